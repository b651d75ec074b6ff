//! The naive product that every kernel is held against: plain loops, f64.

use crate::PackedWeight;

/// The weight a packed one stands for, `[out_features, in_features]` row-major: `scale * (code - zero)` in f32.
pub(crate) fn dequantize(weight: &PackedWeight) -> Vec<f32> {
    let mut dense = Vec::with_capacity(weight.out_features() * weight.in_features());
    for row in 0..weight.out_features() {
        for column in 0..weight.in_features() {
            let group = weight.group_of(column);
            let steps = i64::from(weight.code(row, column)) - i64::from(weight.zero(row, group));
            dense.push(weight.scale(row, group) * steps as f32);
        }
    }
    dense
}

/// `y = x Wᵀ` for `x` `[tokens, in_features]`, to `[tokens, out_features]`, both row-major.
#[cfg(any(feature = "gpu", test))]
pub(crate) fn multiply(x: &[f32], weight: &PackedWeight) -> Vec<f64> {
    let dense = dequantize(weight);
    let mut y = Vec::new();
    for x in x.chunks_exact(weight.in_features()) {
        for w in dense.chunks_exact(weight.in_features()) {
            y.push(
                x.iter()
                    .zip(w)
                    .map(|(&x, &w)| f64::from(x) * f64::from(w))
                    .sum(),
            );
        }
    }
    y
}
