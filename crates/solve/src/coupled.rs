//! GPTQ whose rows know of each other: a row's error is paid back by the rows still to come, as a column's is by columns.
//!
//! A linear's output error costs the loss `tr(R Δ H Δᵀ)`, `R` the second moment of the loss's gradient at its output
//! (YAQA, Tseng et al., arXiv 2505.22988, section 3: the Hessian of the KL divergence as `R ⊗ H`). With `R = M Mᵀ` as
//! in [`Factor`](crate::Factor), that is `Σ_i D_i (t_i − ŵ_i) H (t_i − ŵ_i)ᵀ` over rows in solve order, with the
//! target `t_i = w_i + Σ_{a<i} (w_a − ŵ_a) M_ai / M_ii`. So a row's greedy choice is the ordinary solve of its target,
//! grid and refinement included.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use halfbyte_quant::{ActivationStats, QuantizedWeight, Scheme};
use rayon::prelude::*;

use crate::factor::{Factor, Triangle, check_stats};
use crate::gptq::{Problem, check_options};
use crate::kernel::{LANES, Lane, PANEL, accumulate};
use crate::strip::{Panels, StripResult, assemble, check_weight, gather};
use crate::{GptqOptions, Solution, SolveError};

/// Rows are solved in so many waves. Those of one wave are solved side by side and do not hear of each other.
const WAVES: usize = 48;

/// [`gptq`](crate::gptq) under `tr(R Δ H Δᵀ)`: `factor` is of `H`, `rows` of `R`, `[out_features, out_features]`, made with
/// the default recipe. The figures of the solution are those of `H` alone, so they compare with an ordinary solve's.
///
/// The same bits come out on any number of threads.
///
/// # Errors
/// As [`gptq`](crate::gptq), and a factor of rows of another size or recipe.
pub fn gptq_coupled(
    weight: MatRef<'_, f32>,
    factor: &Factor,
    rows: &Factor,
    scheme: &Scheme,
    options: &GptqOptions,
) -> Result<Solution, SolveError> {
    check_options(factor, options)?;
    check_weight(weight, factor.columns)?;
    let out = weight.nrows();
    if rows.columns != out {
        return Err(SolveError::Shape {
            part: "rows of the output's statistics",
            found: rows.columns,
            wanted: out,
        });
    }
    let Triangle::Pull(n) = &rows.triangle else {
        return Err(SolveError::FactorMismatch { option: "recipe" });
    };
    let problem = Problem::new(factor, scheme, options);
    let mut errors = Errors::new(out, problem.layout.padded);
    let mut solved: Vec<StripResult> = Vec::new();
    for wave in waves(out) {
        let strips: Vec<_> = wave.clone().step_by(LANES).collect();
        let found: Vec<(Vec<Lane>, StripResult)> = strips
            .par_iter()
            .map(|&start| {
                let strip = start..(start + LANES).min(wave.end);
                let of = rows.order[strip.clone()].iter().copied();
                let w = gather(weight, of, &problem.layout);
                let mut target = w.clone();
                errors.pull(&mut target, n, strip.clone(), wave.start);
                let coded = problem.solve(&target);
                let error = coded.error(&problem.layout, &w);
                (error, problem.result(&w, &coded, strip.len()))
            })
            .collect();
        for (&start, (error, result)) in strips.iter().zip(found) {
            errors.note(start..(start + LANES).min(wave.end), &error);
            solved.push(result);
        }
    }
    let (quantized, sums) = assemble(scheme, [out, weight.ncols()], solved)?;
    let mut solution = problem.solution(quantized.scatter_rows(&rows.order)?, sums);
    let of_rows = rows.warnings().iter().map(|w| format!("output rows: {w}"));
    solution.warnings.extend(of_rows);
    Ok(solution)
}

/// `tr(R Δ H Δᵀ)` of a quantized weight, summed over consecutive ranges of its rows: `hessian` is `H`, and `rows` are the
/// factors of the ranges' `R`, as [`gptq_coupled`] takes them, damped as they are.
///
/// # Errors
/// Shapes that disagree, NaN or infinity in the weight or the statistics.
pub fn coupled_loss(
    weight: MatRef<'_, f32>,
    quantized: &QuantizedWeight,
    hessian: &ActivationStats,
    rows: &[Factor],
) -> Result<f64, SolveError> {
    check_stats(hessian)?;
    check_weight(weight, hessian.in_features)?;
    let columns = hessian.in_features;
    let covered: usize = rows.iter().map(|rows| rows.columns).sum();
    for (part, found, wanted) in [
        ("rows of the output's statistics", covered, weight.nrows()),
        (
            "rows of the quantized weight",
            quantized.out_features(),
            weight.nrows(),
        ),
        (
            "input features of the quantized weight",
            quantized.in_features(),
            columns,
        ),
    ] {
        if found != wanted {
            return Err(SolveError::Shape {
                part,
                found,
                wanted,
            });
        }
    }
    let values = quantized.dequantize();
    let h = MatRef::from_row_major_slice(&hessian.hessian, columns, columns);
    let (mut first, mut sum) = (0, 0.0);
    for rows in rows {
        let error = Mat::from_fn(rows.columns, columns, |r, c| {
            weight[(first + r, c)] - values[(first + r) * columns + c]
        });
        let mut eh = Mat::<f32>::zeros(rows.columns, columns);
        matmul(
            eh.as_mut(),
            Accum::Replace,
            error.as_ref(),
            h,
            1.0,
            Par::Seq,
        );
        let mut ehe = Mat::<f32>::zeros(rows.columns, rows.columns);
        matmul(
            ehe.as_mut(),
            Accum::Replace,
            eh.as_ref(),
            error.transpose(),
            1.0,
            Par::Seq,
        );
        for b in 0..rows.columns {
            let panel = rows.hessian.panel(b / PANEL);
            let column = (0..rows.columns).map(|a| f64::from(panel[a][b % PANEL] * ehe[(a, b)]));
            sum += rows.unit * column.sum::<f64>();
        }
        first += rows.columns;
    }
    Ok(sum.max(0.0))
}

/// Row ranges in solve order; whole strips where a wave has that many rows.
fn waves(rows: usize) -> Vec<std::ops::Range<usize>> {
    let mut len = rows.div_ceil(WAVES);
    if len > LANES {
        len = len.next_multiple_of(LANES);
    }
    (0..rows)
        .step_by(len.max(1))
        .map(|start| start..(start + len).min(rows))
        .collect()
}

/// `w − ŵ` of the rows solved so far, in panels of columns.
struct Errors {
    /// `data[panel * rows + row]`, rows in solve order.
    data: Vec<[f32; PANEL]>,
    rows: usize,
}

impl Errors {
    fn new(rows: usize, padded: usize) -> Self {
        Self {
            data: vec![[0.0; PANEL]; rows * (padded / PANEL)],
            rows,
        }
    }

    /// Adds to a strip what the first `before` rows owe it.
    fn pull(&self, target: &mut [Lane], n: &Panels, strip: std::ops::Range<usize>, before: usize) {
        let mut owed = vec![Lane::ZERO; before];
        for (lane, row) in strip.enumerate() {
            let column = n.panel(row / PANEL);
            for (owed, factors) in owed.iter_mut().zip(column) {
                owed.0[lane] = factors[row % PANEL];
            }
        }
        for (panel, target) in target.chunks_exact_mut(PANEL).enumerate() {
            let mut sums = [Lane::ZERO; PANEL];
            sums.copy_from_slice(target);
            accumulate(&mut sums, &owed, &self.data[panel * self.rows..][..before]);
            target.copy_from_slice(&sums);
        }
    }

    fn note(&mut self, strip: std::ops::Range<usize>, error: &[Lane]) {
        for (panel, error) in error.chunks_exact(PANEL).enumerate() {
            let rows = &mut self.data[panel * self.rows..][strip.clone()];
            for (lane, row) in rows.iter_mut().enumerate() {
                for (to, error) in row.iter_mut().zip(error) {
                    *to = error.0[lane];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factor;
    use crate::oracle::{obq, on_grid, random_stats, random_weight, scheme};

    /// `R ⊗ H` on the weight as one long row, both damped as the factors were.
    fn kronecker(rows: &Factor, factor: &Factor) -> Vec<f64> {
        let at =
            |f: &Factor, a: usize, b: usize| f64::from(f.hessian.panel(b / PANEL)[a][b % PANEL]);
        let (r, k) = (rows.columns, factor.columns);
        let mut whole = vec![0.0; r * k * r * k];
        for i in 0..r * k {
            for j in 0..r * k {
                whole[i * r * k + j] = at(rows, i / k, j / k) * at(factor, i % k, j % k);
            }
        }
        whole
    }

    #[test]
    fn rows_pay_each_other_back_as_the_textbook_does_on_the_kronecker_product() {
        for (out, columns, group, bits, sym, seed) in [
            (9, 20, 16, 3, true, 1),
            (16, 17, 32, 4, false, 2),
            (5, 33, 16, 2, false, 3),
        ] {
            let weight = random_weight(out, columns, seed);
            let options = GptqOptions {
                refine_rounds: 0,
                ..GptqOptions::default()
            };
            let inner = factor(&random_stats(columns, 3 * columns, seed + 10), &options).unwrap();
            let rows = factor(&random_stats(out, 3 * out, seed + 20), &options).unwrap();
            let scheme = scheme(bits, group, sym);
            let solved = gptq_coupled(weight.as_ref(), &inner, &rows, &scheme, &options).unwrap();

            let order: Vec<usize> = rows
                .order()
                .iter()
                .flat_map(|row| {
                    inner
                        .order()
                        .iter()
                        .map(move |column| row * columns + column)
                })
                .collect();
            let flat: Vec<f64> = (0..out * columns)
                .map(|i| f64::from(weight[(i / columns, i % columns)]))
                .collect();
            let wanted = obq(&flat, &kronecker(&rows, &inner), &order, |i, x| {
                on_grid(&solved.weight, i / columns, i % columns, x)
            });
            let found = solved.weight.dequantize();
            let differ = (0..out * columns)
                .filter(|&i| (f64::from(found[i]) - wanted[i]).abs() > 1e-4)
                .count();
            assert!(differ == 0, "{differ} of {} differ", out * columns);
        }
    }

    #[test]
    fn more_rows_than_a_wave_holds_lower_the_coupled_loss_and_give_the_same_bits_on_any_threads() {
        let (out, columns) = (150, 24);
        let weight = random_weight(out, columns, 7);
        let options = GptqOptions::default();
        let inner = factor(&random_stats(columns, 100, 8), &options).unwrap();
        let moment = random_stats(out, 2 * out, 9);
        let rows = factor(&moment, &options).unwrap();
        let scheme = scheme(3, 16, true);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                gptq_coupled(weight.as_ref(), &inner, &rows, &scheme, &options).unwrap()
            })
        };
        let coupled = run(1);
        assert_eq!(coupled.weight, run(3).weight);
        let alone = crate::gptq(weight.as_ref(), &inner, &scheme, &options).unwrap();
        let cost = |solution: &Solution| {
            let found = solution.weight.dequantize();
            let error = |r: usize, k: usize| f64::from(weight[(r, k)] - found[r * columns + k]);
            let h = |a: usize, b: usize| f64::from(inner.hessian.panel(b / PANEL)[a][b % PANEL]);
            let mut sum = 0.0;
            for a in 0..out {
                let eh: Vec<f64> = (0..columns)
                    .map(|k| (0..columns).map(|j| error(a, j) * h(j, k)).sum())
                    .collect();
                for b in 0..out {
                    let inner: f64 = (0..columns).map(|k| eh[k] * error(b, k)).sum();
                    sum += f64::from(moment.hessian[a * out + b]) * inner;
                }
            }
            sum
        };
        // what the pivots promise, less what the waves leave out
        let promised = rows.pivots().iter().sum::<f64>()
            / (0..out)
                .map(|i| f64::from(moment.hessian[i * out + i]))
                .sum::<f64>();
        let ratio = cost(&coupled) / cost(&alone);
        assert!(
            ratio < 0.5 * (1.0 + promised),
            "{ratio} where {promised} is promised"
        );
        assert!(
            coupled.loss > alone.loss,
            "the inputs' loss alone is what is given up"
        );
    }
}
