//! Which of several ways each part of a model is coded, so that the whole fits a size and loses least.

use crate::SolveError;

/// One way to code a unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What it takes, in any unit that adds up.
    pub size: f64,
    /// What it loses, in any unit that adds up.
    pub loss: f64,
}

/// One choice a unit, of least summed loss within `limit` by Lagrange's multiplier: units climb the convex hulls of their
/// choices, always the step that lowers the loss most for its size, and what is left over goes to the best steps that
/// still fit. No choice of units can do better by more than one step of one unit loses (Shoham and Gersho, "Efficient
/// bit allocation for an arbitrary set of quantizers", 1988).
///
/// Gives the index of the choice of every unit; equal steps go to the earlier unit.
///
/// # Errors
/// A unit without choices, a number that is not finite, or a limit below the smallest choices together.
pub fn allocate(units: &[Vec<Choice>], limit: f64) -> Result<Vec<usize>, SolveError> {
    let wrong = |found: String, wanted| SolveError::Option {
        option: "budget",
        found,
        wanted,
    };
    let finite = |choice: &Choice| choice.size.is_finite() && choice.loss.is_finite();
    if let Some(unit) = units
        .iter()
        .position(|unit| unit.is_empty() || !unit.iter().all(finite))
    {
        return Err(wrong(
            format!("unit {unit} without a choice of finite size and loss"),
            "at least one such choice a unit",
        ));
    }
    let hulls: Vec<Vec<usize>> = units.iter().map(|unit| hull(unit)).collect();
    let mut at = vec![0; units.len()];
    let mut size: f64 = hulls
        .iter()
        .zip(units)
        .map(|(hull, unit)| unit[hull[0]].size)
        .sum();
    if size > limit {
        return Err(wrong(
            format!("{limit:.0}"),
            "at least what the smallest choices take together",
        ));
    }
    loop {
        let mut best: Option<(f64, usize, f64)> = None;
        for (index, (hull, unit)) in hulls.iter().zip(units).enumerate() {
            let Some(&next) = hull.get(at[index] + 1) else {
                continue;
            };
            let (from, to) = (unit[hull[at[index]]], unit[next]);
            let more = to.size - from.size;
            let gain = (from.loss - to.loss) / more;
            if size + more <= limit && best.is_none_or(|(most, ..)| gain > most) {
                best = Some((gain, index, more));
            }
        }
        let Some((_, index, more)) = best else {
            let chosen = hulls.iter().zip(at);
            return Ok(chosen.map(|(hull, at)| hull[at]).collect());
        };
        at[index] += 1;
        size += more;
    }
}

/// The choices on the lower convex hull, from the smallest to that of least loss.
fn hull(choices: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..choices.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (choices[a], choices[b]);
        a.size.total_cmp(&b.size).then(a.loss.total_cmp(&b.loss))
    });
    let mut hull: Vec<usize> = Vec::new();
    for index in order {
        let new = choices[index];
        if hull
            .last()
            .is_some_and(|&last| new.loss >= choices[last].loss)
        {
            continue;
        }
        while let [.., before, last] = hull[..] {
            let (before, last) = (choices[before], choices[last]);
            // the last one stays only if the way over it is steeper first
            let (first, whole) = (last.size - before.size, new.size - before.size);
            if (before.loss - last.loss) * whole > (before.loss - new.loss) * first {
                break;
            }
            hull.pop();
        }
        hull.push(index);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(seed: u64, count: usize, choices: usize) -> Vec<Vec<Choice>> {
        let mut state = seed;
        let mut unit = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1u64 << 24) as f64
        };
        let mut one = || {
            let (weights, sensitivity) = (1.0 + (unit() * 4.0).floor(), 0.1 + unit());
            let of = |bits: usize| Choice {
                size: weights * (bits + 2) as f64,
                loss: sensitivity * weights * 0.25f64.powi(bits as i32),
            };
            (0..choices).map(of).collect()
        };
        (0..count).map(|_| one()).collect()
    }

    fn total(units: &[Vec<Choice>], chosen: &[usize]) -> (f64, f64) {
        let of = units.iter().zip(chosen).map(|(unit, &c)| unit[c]);
        of.fold((0.0, 0.0), |(s, l), c| (s + c.size, l + c.loss))
    }

    /// The least loss of all combinations that fit.
    fn exhaustive(units: &[Vec<Choice>], limit: f64) -> f64 {
        let mut best = f64::INFINITY;
        let count: usize = units.iter().map(Vec::len).product();
        for mut code in 0..count {
            let chosen: Vec<usize> = units
                .iter()
                .map(|unit| {
                    let c = code % unit.len();
                    code /= unit.len();
                    c
                })
                .collect();
            let (size, loss) = total(units, &chosen);
            if size <= limit {
                best = best.min(loss);
            }
        }
        best
    }

    #[test]
    fn it_fits_and_is_within_one_step_of_the_best_of_all_combinations() {
        for seed in 0..40 {
            let units = units(seed, 6, 4);
            let smallest = total(&units, &[0; 6]).0;
            let largest = total(&units, &[3; 6]).0;
            for share in [0.0, 0.2, 0.5, 0.8, 1.0] {
                let limit = smallest + share * (largest - smallest);
                let chosen = allocate(&units, limit).unwrap();
                let (size, loss) = total(&units, &chosen);
                assert!(size <= limit);
                let best = exhaustive(&units, limit);
                let step = (0..6).map(|i| match chosen[i] {
                    3 => 0.0,
                    c => units[i][c].loss - units[i][c + 1].loss,
                });
                let step = step.fold(0.0, f64::max);
                assert!(loss <= best + step + 1e-12, "{seed} {share}: {loss} {best}");
            }
        }
    }

    #[test]
    fn choices_that_cost_more_for_nothing_are_never_taken() {
        let choice = |size, loss| Choice { size, loss };
        let unit = vec![
            choice(4.0, 1.0),
            choice(2.0, 3.0),
            choice(3.0, 3.5),
            choice(8.0, 0.9),
            choice(6.0, 1.0),
        ];
        assert_eq!(hull(&unit), [1, 0, 3]);
        assert_eq!(allocate(std::slice::from_ref(&unit), 7.0).unwrap(), [0]);
        assert_eq!(allocate(&[unit], 100.0).unwrap(), [3]);
    }

    #[test]
    fn limits_that_cannot_be_met_and_units_without_choices_are_errors() {
        let choice = Choice {
            size: 2.0,
            loss: 1.0,
        };
        assert!(allocate(&[vec![choice], vec![choice]], 3.9).is_err());
        assert!(allocate(&[vec![choice], vec![]], 10.0).is_err());
        assert!(allocate(&[], 0.0).unwrap().is_empty());
    }
}
