use crate::Scheme;

/// A weight as integer codes with a scale and a zero point per group: `w = scale * (code - zero)`.
///
/// Groups are contiguous runs of `scheme.group_len(in_features)` columns. Codes and zeros are below `2^bits` by
/// construction.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedWeight {
    scheme: Scheme,
    out_features: usize,
    in_features: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<u8>,
}

/// Why parts do not make a quantized weight.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// A part has the wrong number of elements.
    #[error("{part}: {found} elements, wanted {wanted}")]
    Length {
        /// `codes`, `scales` or `zeros`.
        part: &'static str,
        /// Elements given.
        found: usize,
        /// Elements needed.
        wanted: usize,
    },
    /// A code or zero point does not fit the width.
    #[error("{part}[{index}] is {value}, above the largest code {max}")]
    Range {
        /// `codes` or `zeros`.
        part: &'static str,
        /// Flat index of the first offender.
        index: usize,
        /// What stood there.
        value: u8,
        /// `2^bits - 1`.
        max: u8,
    },
    /// A scale is zero, infinite or not a number.
    #[error("scales[{index}] is {value}, wanted a finite number other than zero")]
    Scale {
        /// Flat index of the first offender.
        index: usize,
        /// What stood there.
        value: f32,
    },
    /// A block scale of a codebook weight is infinite or not a number.
    #[error("block scales[{index}] is {value}, wanted a finite number")]
    BlockScale {
        /// Flat index of the first offender.
        index: usize,
        /// What stood there.
        value: f32,
    },
    /// Rows of different shape or scheme cannot be stacked.
    #[error("rows to stack differ in scheme or width")]
    Stack,
}

impl QuantizedWeight {
    /// Checks and takes `codes` `[out, in]`, `scales` and `zeros` `[out, groups]`, all row-major.
    /// Zeros of a symmetric scheme must all be `scheme.mid_code()`, or empty to mean that.
    pub fn new(
        scheme: Scheme,
        [out_features, in_features]: [usize; 2],
        codes: Vec<u8>,
        scales: Vec<f32>,
        mut zeros: Vec<u8>,
    ) -> Result<Self, WeightError> {
        let groups = out_features * scheme.n_groups(in_features);
        if scheme.sym() && zeros.is_empty() {
            zeros = vec![scheme.mid_code(); groups];
        }
        for (part, found, wanted) in [
            ("codes", codes.len(), out_features * in_features),
            ("scales", scales.len(), groups),
            ("zeros", zeros.len(), groups),
        ] {
            if found != wanted {
                return Err(WeightError::Length {
                    part,
                    found,
                    wanted,
                });
            }
        }
        let max = scheme.max_code();
        for (part, values) in [("codes", &codes), ("zeros", &zeros)] {
            if let Some(index) = values.iter().position(|&v| v > max) {
                return Err(WeightError::Range {
                    part,
                    index,
                    value: values[index],
                    max,
                });
            }
        }
        if scheme.sym()
            && let Some(index) = zeros.iter().position(|&z| z != scheme.mid_code())
        {
            return Err(WeightError::Range {
                part: "zeros",
                index,
                value: zeros[index],
                max: scheme.mid_code(),
            });
        }
        if let Some(index) = scales.iter().position(|s| !s.is_finite() || *s == 0.0) {
            return Err(WeightError::Scale {
                index,
                value: scales[index],
            });
        }
        Ok(Self {
            scheme,
            out_features,
            in_features,
            codes,
            scales,
            zeros,
        })
    }

    /// Stacks rows that share a scheme and a width, first to last (v's kv heads, solved apart, become one weight).
    pub fn stack(parts: Vec<Self>) -> Result<Self, WeightError> {
        let mut parts = parts.into_iter();
        let mut whole = parts.next().ok_or(WeightError::Stack)?;
        for part in parts {
            if part.scheme != whole.scheme || part.in_features != whole.in_features {
                return Err(WeightError::Stack);
            }
            whole.out_features += part.out_features;
            whole.codes.extend(part.codes);
            whole.scales.extend(part.scales);
            whole.zeros.extend(part.zeros);
        }
        Ok(whole)
    }

    /// The same codes and zero points with other scales, `[out, groups]` row-major.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_scales(self, scales: Vec<f32>) -> Result<Self, WeightError> {
        Self::new(
            self.scheme,
            [self.out_features, self.in_features],
            self.codes,
            scales,
            self.zeros,
        )
    }

    /// Puts row `i` at place `order[i]`: rows that were solved in groups go back where they belong.
    ///
    /// # Errors
    /// [`WeightError::Stack`] when `order` does not name every row once.
    pub fn scatter_rows(self, order: &[usize]) -> Result<Self, WeightError> {
        let mut from = vec![usize::MAX; self.out_features];
        for (row, &place) in order.iter().enumerate() {
            *from
                .get_mut(place)
                .filter(|f| **f == usize::MAX)
                .ok_or(WeightError::Stack)? = row;
        }
        if order.len() != self.out_features {
            return Err(WeightError::Stack);
        }
        let groups = self.n_groups();
        fn moved<T: Copy>(values: &[T], width: usize, from: &[usize]) -> Vec<T> {
            from.iter()
                .flat_map(|&row| &values[row * width..(row + 1) * width])
                .copied()
                .collect()
        }
        Ok(Self {
            codes: moved(&self.codes, self.in_features, &from),
            scales: moved(&self.scales, groups, &from),
            zeros: moved(&self.zeros, groups, &from),
            ..self
        })
    }

    /// How the codes are to be read.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Rows.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Groups a row.
    pub fn n_groups(&self) -> usize {
        self.scheme.n_groups(self.in_features)
    }

    /// Codes `[out, in]`, row-major, one a byte.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Scales `[out, groups]`, row-major, already representable in the type they are stored in.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Zero points `[out, groups]`, row-major, as codes.
    pub fn zeros(&self) -> &[u8] {
        &self.zeros
    }

    /// The weight the codes stand for, `[out, in]` row-major: `scale * (code - zero)` in f32.
    pub fn dequantize(&self) -> Vec<f32> {
        self.dequantize_with(&self.scales)
    }

    /// The same with other scales, `[out, groups]` row-major.
    pub fn dequantize_with(&self, scales: &[f32]) -> Vec<f32> {
        let (group, groups) = (self.scheme.group_len(self.in_features), self.n_groups());
        let mut weight = Vec::with_capacity(self.codes.len());
        for (row, codes) in self.codes.chunks_exact(self.in_features.max(1)).enumerate() {
            for (g, codes) in codes.chunks(group).enumerate() {
                let (scale, zero) = (
                    scales[row * groups + g],
                    i16::from(self.zeros[row * groups + g]),
                );
                weight.extend(
                    codes
                        .iter()
                        .map(|&c| scale * f32::from(i16::from(c) - zero)),
                );
            }
        }
        weight
    }

    /// Bytes the codes, 16-bit scales and (when asymmetric) zero points take once packed.
    pub fn packed_bytes(&self) -> u64 {
        let bits = u64::from(self.scheme.bits());
        let groups = self.scales.len() as u64;
        let zeros = if self.scheme.sym() {
            0
        } else {
            (groups * bits).div_ceil(8)
        };
        (self.codes.len() as u64 * bits).div_ceil(8) + 2 * groups + zeros
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GroupSize;

    fn scheme(bits: u8, group: i64, sym: bool) -> Scheme {
        Scheme::new(bits, GroupSize::from_i64(group).unwrap(), sym).unwrap()
    }

    #[test]
    fn rows_go_back_where_they_belong_and_a_bad_order_is_refused() {
        let scheme = Scheme::new(4, GroupSize::from_i64(16).unwrap(), false).unwrap();
        let weight = QuantizedWeight::new(
            scheme,
            [3, 2],
            vec![1, 2, 3, 4, 5, 6],
            vec![0.5, 1.0, 2.0],
            vec![7, 8, 9],
        )
        .unwrap();
        let moved = weight.clone().scatter_rows(&[2, 0, 1]).unwrap();
        assert_eq!(moved.codes(), [3, 4, 5, 6, 1, 2]);
        assert_eq!(
            (moved.scales(), moved.zeros()),
            (&[1.0, 2.0, 0.5][..], &[8, 9, 7][..])
        );
        for order in [&[0, 1][..], &[0, 1, 1], &[0, 1, 3], &[0, 1, 2, 2]] {
            assert_eq!(
                weight.clone().scatter_rows(order),
                Err(WeightError::Stack),
                "{order:?}"
            );
        }
        let other = weight.clone().with_scales(vec![1.0, 1.0, 4.0]).unwrap();
        assert_eq!(other.dequantize(), weight.dequantize_with(&[1.0, 1.0, 4.0]));
        assert!(weight.with_scales(vec![1.0, 0.0, 4.0]).is_err());
    }

    #[test]
    fn dequantizes_a_ragged_last_group_by_its_own_scale() {
        let codes: Vec<u8> = (0..20).map(|i| i % 16).collect();
        let w = QuantizedWeight::new(
            scheme(4, 16, false),
            [1, 20],
            codes,
            vec![0.5, 2.0],
            vec![8, 1],
        )
        .unwrap();
        let values = w.dequantize();
        assert_eq!(values[0], -4.0);
        assert_eq!(values[15], 3.5);
        assert_eq!(values[16..], [-2.0, 0.0, 2.0, 4.0]);
        assert_eq!(w.packed_bytes(), 10 + 4 + 1);
    }

    #[test]
    fn refuses_codes_zeros_and_scales_out_of_range() {
        let s = scheme(2, 16, false);
        let ok = QuantizedWeight::new(s, [1, 16], vec![3; 16], vec![1.0], vec![3]);
        assert!(ok.is_ok());
        let code = QuantizedWeight::new(s, [1, 16], vec![4; 16], vec![1.0], vec![3]);
        assert_eq!(
            code.unwrap_err().to_string(),
            "codes[0] is 4, above the largest code 3"
        );
        let scale = QuantizedWeight::new(s, [1, 16], vec![1; 16], vec![f32::NAN], vec![3]);
        assert_eq!(
            scale.unwrap_err().to_string(),
            "scales[0] is NaN, wanted a finite number other than zero"
        );
        let short = QuantizedWeight::new(s, [1, 16], vec![1; 15], vec![1.0], vec![3]);
        assert_eq!(
            short.unwrap_err().to_string(),
            "codes: 15 elements, wanted 16"
        );
    }

    #[test]
    fn stacking_rows_equals_making_them_at_once() {
        let s = scheme(4, 16, true);
        let part = |c: u8| {
            QuantizedWeight::new(s, [1, 32], vec![c; 32], vec![1.0, f32::from(c)], vec![]).unwrap()
        };
        let whole = QuantizedWeight::stack(vec![part(1), part(2)]).unwrap();
        assert_eq!(
            (whole.out_features(), whole.scales()),
            (2, &[1.0, 1.0, 1.0, 2.0][..])
        );
        assert_eq!(whole.dequantize()[63], -12.0);
    }

    #[test]
    fn group_sizes_speak_the_fields_minus_one() {
        assert_eq!(GroupSize::from_i64(-1).unwrap().to_string(), "-1");
        assert!(GroupSize::from_i64(0).is_err());
        assert!(Scheme::new(7, GroupSize::Channel, true).is_err());
        assert_eq!(scheme(4, 128, true).n_groups(576), 5);
    }
}
