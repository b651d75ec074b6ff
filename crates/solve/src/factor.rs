//! From statistics to what every solve over them shares: order, damped `H`, its triangular factor, its pivots.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Mat, Par};
use halfbyte_quant::ActivationStats;

use crate::kernel::PANEL;
use crate::strip::{Layout, Panels};
use crate::{Damp, GptqOptions, Recipe, SolveError};

/// A factored Hessian, shared by all linears with this input and all schemes tried on them.
///
/// With `H_p` the damped Hessian in solve order, `H_p = M Mᵀ` and `M` upper triangular: the Cholesky factor of the
/// index-reversed matrix, reversed back. The pivot `D_k = M_kk²` is the variance of column `k` given all columns
/// solved after it, and the row loss of a solve is `Σ_k D_k (t_k − ŵ_k)²`.
#[derive(Clone, Debug)]
pub struct Factor {
    pub(crate) recipe: Recipe,
    pub(crate) desc_act: bool,
    pub(crate) columns: usize,
    /// `order[i]` is the column solved `i`-th.
    pub(crate) order: Vec<usize>,
    /// `H / unit` in the plain layout; damped for the default recipe, bare for the reference one.
    pub(crate) hessian: Panels,
    /// What the stored diagonal exceeds the undamped `H_kk / unit` by.
    pub(crate) ridge: Vec<f32>,
    /// The mean damped diagonal, by which everything here is divided.
    pub(crate) unit: f64,
    /// What every element of the stored Hessian between live columns exceeds `H / unit` by, ridge apart.
    pub(crate) balance: f32,
    /// `D_k / unit`, by original column.
    pub(crate) pivots: Vec<f32>,
    pub(crate) triangle: Triangle,
    pub(crate) dead: Vec<bool>,
    damp_asked: f64,
    damp_used: f64,
    condition: f64,
    warnings: Vec<String>,
}

/// The triangular matrix a loop walks, in solve order.
#[derive(Clone, Debug)]
pub(crate) enum Triangle {
    /// `N = M diag(1 / M_kk)`, unit upper.
    Pull(Panels),
    /// `U = M⁻¹`, so that `H⁻¹ = Uᵀ U`, upper, row-major, of `H / unit`.
    Push(Vec<f32>),
}

/// Raised dampings tried before a Hessian is given up: 4^10 times the first one.
const LADDER: usize = 10;

/// Factors the statistics as `options` ask: `recipe`, `desc_act`, `damp` and `balance` are read, nothing else.
///
/// Damping is raised fourfold while the Cholesky fails, and the factor says so in its warnings. Zero tokens, or a
/// Hessian of zeros, mean `H = I`.
///
/// # Errors
/// NaN or infinity in the statistics, a negative or absurd damping, or no damping that helps.
pub fn factor(stats: &ActivationStats, options: &GptqOptions) -> Result<Factor, SolveError> {
    let columns = stats.in_features;
    check_stats(stats)?;
    let mut warnings = Vec::new();
    let at = |row: usize, column: usize| f64::from(stats.hessian[row * columns + column]);
    let unseen = stats.n_tokens == 0 || (0..columns).all(|k| at(k, k) <= 0.0);
    if unseen {
        warnings.push("no activations seen; solved as if the input were white (H = I)".to_owned());
    }
    let dead: Vec<bool> = (0..columns).map(|k| !unseen && at(k, k) <= 0.0).collect();
    let h = |row: usize, column: usize| match unseen {
        true => f64::from(u8::from(row == column)),
        false if row != column && (dead[row] || dead[column]) => 0.0,
        false if dead[row] => 0.0,
        false => at(row, column),
    };
    let mean = (0..columns).map(|k| h(k, k)).sum::<f64>() / columns as f64;
    let balance = match options.recipe {
        Recipe::Default if !unseen => options.balance * mean,
        _ => 0.0,
    };
    let shared = |row: usize, column: usize| match dead[row] || dead[column] {
        true => 0.0,
        false => balance,
    };
    let damp_asked = asked(options.damp, columns, stats.n_tokens, unseen)?;

    let mut order: Vec<usize> = (0..columns).collect();
    if options.desc_act {
        order.sort_by(|&a, &b| h(b, b).total_cmp(&h(a, a)));
    }
    let mut damp_used = damp_asked;
    let mut tries = 0;
    let (lower, unit) = loop {
        let unit = mean * (1.0 + damp_used);
        let per_unit = 1.0 / unit;
        let diagonal = |k: usize| {
            (damped(options.recipe, h(k, k), dead[k], mean, damp_used) + shared(k, k)) / unit
        };
        let reversed = |i: usize| order[columns - 1 - i];
        let mut lower = Mat::zeros(columns, columns);
        for j in 0..columns {
            let b = reversed(j);
            let column = &mut lower.col_mut(j);
            column[j] = diagonal(b);
            // row b of H is column b too, and lies together
            for i in j + 1..columns {
                column[i] = (h(b, reversed(i)) + shared(b, reversed(i))) * per_unit;
            }
        }
        if cholesky(&mut lower) {
            break (lower, unit);
        }
        tries += 1;
        if tries > LADDER {
            return Err(SolveError::NotPositiveDefinite { damp: damp_used });
        }
        damp_used = 4.0 * damp_used.max(0.0025);
    };
    if damp_used != damp_asked {
        warnings.push(format!(
            "hessian not positive definite at damping {damp_asked:.4}; raised to {damp_used:.4} of the mean diagonal"
        ));
    }
    let n_dead = dead.iter().filter(|&&d| d).count();
    if n_dead > 0 {
        warnings.push(format!(
            "{n_dead} of {columns} input features never active in calibration"
        ));
    }

    let mut pivots = vec![0.0; columns];
    let (mut least, mut most) = (f64::INFINITY, 0.0f64);
    for (i, &column) in order.iter().enumerate() {
        let pivot = lower[(columns - 1 - i, columns - 1 - i)].powi(2);
        pivots[column] = pivot as f32;
        (least, most) = (least.min(pivot), most.max(pivot));
    }
    let per_unit = 1.0 / unit;
    let mut hessian = Panels::full(Layout::plain(columns).padded);
    let mut ridge = vec![0.0; columns];
    for row in 0..columns {
        for start in (0..columns).step_by(PANEL) {
            let to = &mut hessian.panel_mut(start / PANEL)[row];
            for (c, to) in to.iter_mut().take(columns - start).enumerate() {
                *to = ((h(row, start + c) + shared(row, start + c)) * per_unit) as f32;
            }
        }
    }
    if options.recipe == Recipe::Default {
        for k in 0..columns {
            let bare = h(k, k);
            let damped = damped(options.recipe, bare, dead[k], mean, damp_used);
            let stored = ((damped + shared(k, k)) / unit) as f32;
            hessian.panel_mut(k / PANEL)[k][k % PANEL] = stored;
            ridge[k] = (f64::from(stored) - (bare + shared(k, k)) / unit) as f32;
        }
    }
    Ok(Factor {
        recipe: options.recipe,
        desc_act: options.desc_act,
        columns,
        order,
        hessian,
        ridge,
        unit,
        balance: (balance / unit) as f32,
        pivots,
        triangle: triangle(options.recipe, lower),
        dead,
        damp_asked,
        damp_used,
        condition: most / least,
        warnings,
    })
}

impl Factor {
    /// Input features.
    pub fn in_features(&self) -> usize {
        self.columns
    }

    /// `order()[i]` is the column solved `i`-th.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// `D_k` by original column, in units of `H`: the variance of a column given all columns solved after it.
    /// `Σ_k s_k² D_k / 12` predicts a row's loss before it is solved.
    pub fn pivots(&self) -> Vec<f64> {
        self.pivots
            .iter()
            .map(|&d| f64::from(d) * self.unit)
            .collect()
    }

    /// Damping asked for, a fraction of the mean diagonal.
    pub fn damp_asked(&self) -> f64 {
        self.damp_asked
    }

    /// Damping that let the Cholesky succeed.
    pub fn damp_used(&self) -> f64 {
        self.damp_used
    }

    /// Input features never active in calibration.
    pub fn dead_columns(&self) -> usize {
        self.dead.iter().filter(|&&d| d).count()
    }

    /// Largest over smallest pivot, a lower bound of the damped Hessian's condition number.
    pub fn condition(&self) -> f64 {
        self.condition
    }

    /// What a user should hear: damping raised, dead columns, no tokens.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// The diagonal as factored. The reference gives a dead column the value 1, as its model does; the default leaves it
/// its share of the damping, and a hundredth of the mean where there is none.
fn damped(recipe: Recipe, bare: f64, dead: bool, mean: f64, damp: f64) -> f64 {
    match recipe {
        Recipe::Reference if dead => 1.0 + damp * mean,
        Recipe::Default if dead && damp == 0.0 => 0.01 * mean,
        _ => bare + damp * mean,
    }
}

fn asked(damp: Damp, columns: usize, n_tokens: u64, unseen: bool) -> Result<f64, SolveError> {
    match damp {
        Damp::Auto if unseen => Ok(0.3),
        Damp::Auto => Ok((0.5 * columns as f64 / n_tokens as f64).clamp(0.1, 0.3)),
        Damp::Percent(p) if (0.0..=10.0).contains(&p) => Ok(p),
        Damp::Percent(p) => Err(SolveError::Option {
            option: "damp_percent",
            found: p.to_string(),
            wanted: "a fraction of the mean diagonal from 0 to 10, 0.01 for one percent",
        }),
    }
}

/// Refuses statistics of the wrong size or with a number that is none.
pub(crate) fn check_stats(stats: &ActivationStats) -> Result<(), SolveError> {
    let columns = stats.in_features;
    if stats.hessian.len() != columns * columns || columns == 0 {
        return Err(SolveError::Shape {
            part: "elements of the hessian",
            found: stats.hessian.len(),
            wanted: (columns * columns).max(1),
        });
    }
    match stats.hessian.iter().position(|h| !h.is_finite()) {
        Some(index) => Err(SolveError::HessianNotFinite {
            row: index / columns,
            column: index % columns,
            value: stats.hessian[index],
        }),
        None => Ok(()),
    }
}

/// Replaces the lower triangle by its Cholesky factor; false when it is not positive definite.
/// On one thread: faer's split over threads is not ours to fix, and the bits must not depend on it.
pub(crate) fn cholesky(lower: &mut Mat<f64>) -> bool {
    let scratch = cholesky_in_place_scratch::<f64>(lower.nrows(), Par::Seq, Default::default());
    let mut memory = MemBuffer::new(scratch);
    cholesky_in_place(
        lower.as_mut(),
        Default::default(),
        Par::Seq,
        MemStack::new(&mut memory),
        Default::default(),
    )
    .is_ok()
        && (0..lower.nrows()).all(|k| lower[(k, k)].is_finite() && lower[(k, k)] > 0.0)
}

/// Reverses the factor back to solve order, in the form the recipe's loop reads.
fn triangle(recipe: Recipe, lower: Mat<f64>) -> Triangle {
    let columns = lower.nrows();
    match recipe {
        Recipe::Default => {
            let mut n = Panels::upper(Layout::plain(columns).padded);
            for b in 0..columns {
                let m = lower.col(columns - 1 - b);
                let per_pivot = 1.0 / m[columns - 1 - b];
                let panel = n.panel_mut(b / PANEL);
                for a in 0..=b {
                    panel[a][b % PANEL] = (m[columns - 1 - a] * per_pivot) as f32;
                }
            }
            Triangle::Pull(n)
        }
        Recipe::Reference => {
            let mut inverse = Mat::zeros(columns, columns);
            invert_lower_triangular(inverse.as_mut(), lower.as_ref(), Par::Seq);
            let mut u = vec![0.0; columns * columns];
            for b in 0..columns {
                let column = inverse.col(columns - 1 - b);
                for a in 0..=b {
                    u[a * columns + b] = column[columns - 1 - a] as f32;
                }
            }
            Triangle::Push(u)
        }
    }
}
