//! Scale and zero point of one group, for all rows of a strip at once.

use halfbyte_quant::Scheme;

use crate::Grid;
use crate::kernel::{LANES, Lane, multiversion};
use crate::storage::Storage;

/// What a scheme and its options ask of a grid, in numbers the loops use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GridSpec {
    pub(crate) grid: Grid,
    pub(crate) sym: bool,
    /// Whether a symmetric scale may be negative.
    pub(crate) signed: bool,
    /// `2^bits - 1`.
    pub(crate) max_code: f32,
    /// `2^(bits-1)`.
    pub(crate) mid_code: f32,
    pub(crate) storage: Storage,
}

impl GridSpec {
    pub(crate) fn new(scheme: &Scheme, grid: Grid, signed: bool, storage: Storage) -> Self {
        Self {
            grid,
            sym: scheme.sym(),
            signed: signed && scheme.sym(),
            max_code: f32::from(scheme.max_code()),
            mid_code: f32::from(scheme.mid_code()),
            storage,
        }
    }
}

/// Candidate ranges of the search, as fractions of the group's own.
const CANDIDATES: usize = 36;
const WIDEST: f32 = 1.05;
const NARROWEST: f32 = 0.3;

/// Scale and zero point of a group of columns `w`, each column's squared error weighted with `u`.
/// A group of zeros gets scale 1.
pub(crate) fn group_grid(w: &[Lane], u: &[f32], spec: &GridSpec) -> (Lane, Lane) {
    match spec.grid {
        Grid::MinMax => min_max(w, spec),
        Grid::Search => {
            // a group of dead columns has no weights to go by: all alike
            let ones;
            let u = if u.iter().any(|&u| u > 0.0) {
                u
            } else {
                ones = vec![1.0; w.len()];
                &ones
            };
            search(w, u, spec)
        }
    }
}

/// Nearest level to `x`, as a centred code.
#[inline(always)]
pub(crate) fn nearest(x: f32, inverse_scale: f32, low: f32, high: f32) -> f32 {
    (x * inverse_scale).round_ties_even().max(low).min(high)
}

/// Smallest and largest weight of each row, 0 included.
#[inline(always)]
fn range(w: &[Lane]) -> (Lane, Lane) {
    let (mut low, mut high) = (Lane::ZERO, Lane::ZERO);
    for w in w {
        for l in 0..LANES {
            low.0[l] = low.0[l].min(w.0[l]);
            high.0[l] = high.0[l].max(w.0[l]);
        }
    }
    (low, high)
}

/// The widest step any row of the group may need, before shrinking.
#[inline(always)]
fn full_step(low: f32, high: f32, spec: &GridSpec) -> f32 {
    if spec.sym {
        2.0 * high.max(-low) / spec.max_code
    } else {
        (high - low) / spec.max_code
    }
}

/// The grid of a group's own range.
fn min_max(w: &[Lane], spec: &GridSpec) -> (Lane, Lane) {
    let (low, high) = range(w);
    of_range(&low, &high, spec)
}

/// The grid of a group's own range after all of it is cut to `-limit..=limit`.
pub(crate) fn clipped_min_max(w: &[Lane], limit: &Lane, spec: &GridSpec) -> (Lane, Lane) {
    let (mut low, mut high) = range(w);
    for l in 0..LANES {
        low.0[l] = low.0[l].max(-limit.0[l]);
        high.0[l] = high.0[l].min(limit.0[l]);
    }
    of_range(&low, &high, spec)
}

fn of_range(low: &Lane, high: &Lane, spec: &GridSpec) -> (Lane, Lane) {
    let (mut scale, mut zero) = (Lane([1.0; LANES]), Lane([spec.mid_code; LANES]));
    for l in 0..LANES {
        let (low, high) = (low.0[l], high.0[l]);
        if high > low {
            scale.0[l] = spec.storage.round(full_step(low, high, spec));
            if !spec.sym {
                zero.0[l] = (-low / scale.0[l])
                    .round_ties_even()
                    .clamp(0.0, spec.max_code);
            }
        }
    }
    (scale, zero)
}

multiversion! {
    /// Range search (algorithm: for each range, code the group, refit the scale to the codes by weighted least
    /// squares, round it to storage; keep the scale of least error). Symmetric groups may try both signs,
    /// asymmetric ones the neighbouring zero points.
    fn search(w: &[Lane], u: &[f32], spec: &GridSpec) -> (Lane, Lane) {
        let (low, high) = range(w);
        let mut best = Best {
            error: Lane([f32::INFINITY; LANES]),
            scale: Lane([1.0; LANES]),
            zero: Lane([spec.mid_code; LANES]),
        };
        let mut step = Lane::ZERO;
        for l in 0..LANES {
            step.0[l] = full_step(low.0[l], high.0[l], spec);
        }
        for candidate in 0..CANDIDATES {
            let p = WIDEST - (WIDEST - NARROWEST) * candidate as f32 / (CANDIDATES - 1) as f32;
            let mut scale = Lane::ZERO;
            for l in 0..LANES {
                scale.0[l] = spec.storage.round(p * step.0[l]);
            }
            if spec.sym {
                let zero = Lane([spec.mid_code; LANES]);
                try_grid(w, u, spec, &scale, &zero, &mut best);
                if spec.signed {
                    for scale in &mut scale.0 {
                        *scale = -*scale;
                    }
                    try_grid(w, u, spec, &scale, &zero, &mut best);
                }
            } else {
                for shift in [0.0, -1.0, 1.0] {
                    let mut zero = Lane::ZERO;
                    for l in 0..LANES {
                        let middle = 0.5 * (low.0[l] + high.0[l]) / scale.0[l];
                        let z = (0.5 * spec.max_code - middle).round_ties_even() + shift;
                        zero.0[l] = z.max(0.0).min(spec.max_code);
                    }
                    try_grid(w, u, spec, &scale, &zero, &mut best);
                }
            }
        }
        for l in 0..LANES {
            if low.0[l] == high.0[l] {
                best.scale.0[l] = 1.0;
                best.zero.0[l] = spec.mid_code;
            }
        }
        (best.scale, best.zero)
    }
}

struct Best {
    error: Lane,
    scale: Lane,
    zero: Lane,
}

/// Codes the group on one grid, and keeps that grid, or the same codes under their best scale, where better.
#[inline(always)]
fn try_grid(w: &[Lane], u: &[f32], spec: &GridSpec, scale: &Lane, zero: &Lane, best: &mut Best) {
    let (mut inverse, mut low, mut high) = (Lane::ZERO, Lane::ZERO, Lane::ZERO);
    for l in 0..LANES {
        inverse.0[l] = 1.0 / scale.0[l];
        low.0[l] = -zero.0[l];
        high.0[l] = spec.max_code - zero.0[l];
    }
    let (mut error, mut slope, mut curvature) = (Lane::ZERO, Lane::ZERO, Lane::ZERO);
    for (w, &u) in w.iter().zip(u) {
        for l in 0..LANES {
            let v = nearest(w.0[l], inverse.0[l], low.0[l], high.0[l]);
            let d = v.mul_add(-scale.0[l], w.0[l]);
            let (ud, uv) = (u * d, u * v);
            error.0[l] = ud.mul_add(d, error.0[l]);
            slope.0[l] = ud.mul_add(v, slope.0[l]);
            curvature.0[l] = uv.mul_add(v, curvature.0[l]);
        }
    }
    for l in 0..LANES {
        // Σ u (w - (s + ds) v)² = error - 2 ds slope + ds² curvature
        let refit = if curvature.0[l] > 0.0 {
            spec.storage.round(scale.0[l] + slope.0[l] / curvature.0[l])
        } else {
            scale.0[l]
        };
        let ds = refit - scale.0[l];
        let refit_error = error.0[l] - ds * (2.0 * slope.0[l] - ds * curvature.0[l]);
        let same_sign = refit * scale.0[l] > 0.0;
        let (found, with) = if same_sign && refit_error < error.0[l] {
            (refit_error, refit)
        } else {
            (error.0[l], scale.0[l])
        };
        if found < best.error.0[l] {
            best.error.0[l] = found;
            best.scale.0[l] = with;
            best.zero.0[l] = zero.0[l];
        }
    }
}
