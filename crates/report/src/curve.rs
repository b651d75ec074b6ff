//! Loss against calibration text: means over the linears that were solved from less of it too, and what follows.

use crate::enough::error_of_mean;
use crate::text::kind;
use crate::{LinearRecord, RunRecord};

/// Losses over tokens, by rising tokens, the whole text last; two points or more.
pub(crate) struct Curve {
    pub(crate) points: Vec<Means>,
    /// Kinds of linears that it is of, in order of first appearance.
    pub(crate) kinds: Vec<String>,
    /// Blocks that it is of.
    pub(crate) blocks: Vec<usize>,
    /// Of every linear the last fall of the held-out loss's logarithm, for a doubling of the text.
    last_falls: Vec<f64>,
}

/// What twice the text may take from the held-out loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Doubling {
    /// A share of it; 0 where the loss did not fall.
    pub(crate) share: f64,
    /// Standard error over the linears; none of a single one. They share their held-out text, so what another text would
    /// say is not in it.
    pub(crate) error: Option<f64>,
}

/// Geometric means over the linears at one size of the text.
pub(crate) struct Means {
    pub(crate) tokens: u64,
    pub(crate) relative_loss: f64,
    pub(crate) relative_loss_heldout: f64,
    /// On the held-out text, for each of the kinds.
    pub(crate) by_kind: Vec<f64>,
}

impl Curve {
    /// Of the linears that have all points; none where it was not measured, or a loss is no number above 0.
    pub(crate) fn of(run: &RunRecord) -> Option<Self> {
        let n = run
            .linears
            .iter()
            .map(|l| l.calibration_curve.len())
            .max()?;
        let linears: Vec<&LinearRecord> = (run.linears.iter())
            .filter(|l| l.calibration_curve.len() == n)
            .collect();
        let (mut kinds, mut blocks): (Vec<String>, Vec<usize>) = (Vec::new(), Vec::new());
        for linear in &linears {
            if !kinds.iter().any(|known| known == kind(linear)) {
                kinds.push(kind(linear).to_owned());
            }
            if !blocks.contains(&linear.block) {
                blocks.push(linear.block);
            }
        }
        let means = |i: usize| {
            let of_kind = |name: &str| {
                let members = linears.iter().filter(|l| kind(l) == name);
                mean(members.map(|l| l.calibration_curve[i].relative_loss_heldout))
            };
            let points = || linears.iter().map(|l| l.calibration_curve[i]);
            Means {
                // The statistics of some linears are of more rows a token, v's of a row a query head.
                tokens: points().map(|p| p.tokens).min().unwrap_or(0),
                relative_loss: mean(points().map(|p| p.relative_loss)),
                relative_loss_heldout: mean(points().map(|p| p.relative_loss_heldout)),
                by_kind: kinds.iter().map(|name| of_kind(name)).collect(),
            }
        };
        let points: Vec<Means> = (0..n).map(means).collect();
        let usable = |p: &Means| {
            let losses = [p.relative_loss, p.relative_loss_heldout];
            losses.iter().all(|loss| loss.is_finite() && *loss > 0.0)
        };
        if points.len() < 2 || !points.iter().all(usable) {
            return None;
        }
        let last_fall = |linear: &&LinearRecord| {
            let [.., half, whole] = &linear.calibration_curve[..] else {
                return f64::NAN;
            };
            let doublings = (whole.tokens as f64 / half.tokens as f64).log2();
            (half.relative_loss_heldout / whole.relative_loss_heldout).ln() / doublings
        };
        Some(Self {
            points,
            kinds,
            blocks,
            last_falls: linears.iter().map(last_fall).collect(),
        })
    }

    /// The last point but one and the last.
    pub(crate) fn ends(&self) -> [&Means; 2] {
        let last = self.points.len() - 1;
        [&self.points[last - 1], &self.points[last]]
    }

    /// By what share the held-out loss at the last point but one is above the whole text's.
    pub(crate) fn halving(&self) -> f64 {
        let [half, whole] = self.ends();
        half.relative_loss_heldout / whole.relative_loss_heldout - 1.0
    }

    /// What twice the text may lower the held-out loss by: its logarithm falls from doubling to doubling in the proportion of
    /// the last two, but never faster than in the last, nor less than half as fast. What a loss has above its floor goes as
    /// one over the tokens, whose falls halve; a proportion below that is chance.
    pub(crate) fn doubling(&self) -> Doubling {
        let fall = |pair: &[Means]| {
            let doublings = (pair[1].tokens as f64 / pair[0].tokens as f64).log2();
            (pair[0].relative_loss_heldout / pair[1].relative_loss_heldout).ln() / doublings
        };
        let falls: Vec<f64> = self.points.windows(2).map(fall).collect();
        let (last, proportion) = match falls[..] {
            [.., before, last] if before > 0.0 => (last, (last / before).clamp(0.5, 1.0)),
            // A fall after a rise, or the only one, says nothing of the proportion.
            [.., last] => (last, 1.0),
            [] => (0.0, 1.0),
        };
        let left = (-last.max(0.0) * proportion).exp();
        Doubling {
            share: 1.0 - left,
            error: error_of_mean(self.last_falls.iter().copied())
                .map(|error| left * proportion * error),
        }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let logs: Vec<f64> = values.map(f64::ln).collect();
    (logs.iter().sum::<f64>() / logs.len() as f64).exp()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::CurvePointRecord;
    use crate::fixture;

    /// A run whose linears have these held-out losses, times their own, at an eighth, a quarter, a half and the whole.
    pub(crate) fn run_with(heldout: &[f64]) -> RunRecord {
        let mut run = fixture::run();
        let n = heldout.len();
        for linear in &mut run.linears {
            let points = heldout
                .iter()
                .enumerate()
                .map(|(i, loss)| CurvePointRecord {
                    tokens: linear.tokens >> (n - 1 - i),
                    relative_loss: linear.relative_loss * (0.5 + 0.5 * i as f64 / n as f64),
                    relative_loss_heldout: linear.relative_loss * loss,
                });
            linear.calibration_curve = points.collect();
        }
        run
    }

    fn doubling(heldout: &[f64]) -> f64 {
        Curve::of(&run_with(heldout)).unwrap().doubling().share
    }

    #[test]
    fn means_are_geometric_over_all_linears_and_those_of_a_kind() {
        let mut run = run_with(&[4.0, 3.0, 2.0]);
        // No curve of its own.
        run.linears[3].calibration_curve.clear();
        let curve = Curve::of(&run).unwrap();
        assert_eq!(curve.kinds, ["q_proj", "down_proj"]);
        assert_eq!(curve.blocks, [0, 1]);
        let tokens: Vec<u64> = curve.points.iter().map(|p| p.tokens).collect();
        assert_eq!(tokens, [250, 500, 1000]);
        let last = &curve.points[2];
        let near = |found: f64, wanted: f64| assert!((found / wanted - 1.0).abs() < 1e-12);
        near(last.relative_loss_heldout, 2.0 * 0.000_016f64.cbrt() / 10.0);
        near(last.by_kind[0], 2.0 * 0.002);
        near(last.by_kind[1], 2.0 * 0.004);
        near(curve.halving(), 0.5);
    }

    #[test]
    fn doubling_carries_on_the_falls_and_never_gains_more_than_the_last_one() {
        let near = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-12, "{found}");
        // Falls of ln 4 and ln 2: the next is half as large.
        near(doubling(&[8.0, 2.0, 1.0]), 1.0 - 0.5f64.sqrt());
        // No less than half: what is above a floor goes as one over the tokens.
        near(doubling(&[16.0, 1.1, 1.0]), 1.0 - (1.0f64 / 1.1).sqrt());
        // Falls that grow are not trusted to grow on.
        near(doubling(&[2.2, 2.0, 1.0]), 0.5);
        near(doubling(&[1.9, 2.0, 1.0]), 0.5);
        near(doubling(&[2.0, 1.0]), 0.5);
        near(doubling(&[3.0, 1.0, 1.1]), 0.0);
    }

    #[test]
    fn the_error_of_what_twice_the_text_gains_is_that_of_the_last_fall_over_the_linears() {
        let mut run = run_with(&[4.0, 2.0, 1.0]);
        // logarithms of the last falls: 2 ln 2 and 0 in turn, ln 2 in the mean
        for (i, linear) in run.linears.iter_mut().enumerate() {
            let point = &mut linear.calibration_curve[1];
            point.relative_loss_heldout *= if i % 2 == 0 { 2.0 } else { 0.5 };
        }
        let Doubling { share, error } = Curve::of(&run).unwrap().doubling();
        assert!((share - 0.5).abs() < 1e-12);
        // four values, each ln 2 away from their mean: 4 ln² 2 / 3 / 4, and half of the loss is left
        let wanted = 0.5 * 2.0f64.ln() / 3.0f64.sqrt();
        assert!((error.unwrap() - wanted).abs() < 1e-12);
        run.linears.truncate(1);
        assert_eq!(Curve::of(&run).unwrap().doubling().error, None);
    }

    #[test]
    fn no_curve_or_one_of_losses_without_a_logarithm_is_none() {
        assert!(Curve::of(&fixture::run()).is_none());
        assert!(Curve::of(&run_with(&[1.0])).is_none());
        assert!(Curve::of(&run_with(&[1.0, 0.0])).is_none());
        assert!(Curve::of(&run_with(&[f64::NAN, 1.0])).is_none());
    }
}
