/// What an axis shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    pub(crate) label: &'static str,
    pub(crate) log: bool,
    /// Only whole numbers stand at it, blocks for one.
    pub(crate) whole: bool,
}

impl Axis {
    /// KL divergence wherever it is drawn.
    pub(crate) const KL: Self = Self::log("KL to the float model, nats");

    pub(crate) const fn linear(label: &'static str) -> Self {
        Self {
            label,
            log: false,
            whole: false,
        }
    }

    pub(crate) const fn log(label: &'static str) -> Self {
        Self {
            log: true,
            ..Self::linear(label)
        }
    }

    pub(crate) const fn whole(label: &'static str) -> Self {
        Self {
            whole: true,
            ..Self::linear(label)
        }
    }
}

/// Beyond these sizes, which no measurement has, values stand at the end of an axis: between them nothing overflows.
const LEAST: f64 = 1e-300;
const MOST: f64 = 1e300;
/// Ticks of an axis at most.
const TICKS: usize = 24;

/// Values to pixels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    log: bool,
    whole: bool,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// Over all values, with a little room at both ends of an axis that is not of whole numbers. Values that are no
    /// number, or not positive on a logarithmic axis, do not count.
    pub(crate) fn over(axis: Axis, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let usable = values
            .filter(|v| v.is_finite() && (!axis.log || *v > 0.0))
            .map(|v| match axis.log {
                true => v.clamp(LEAST, MOST),
                false => v.clamp(-MOST, MOST),
            });
        let (mut low, mut high) = usable
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
                (low.min(v), high.max(v))
            });
        if low > high {
            (low, high) = (1.0, 1.0);
        }
        if axis.log {
            // in logarithms, since the quotient may be too large for a number
            let room = if high > low {
                0.06 * (high.ln() - low.ln())
            } else {
                1.5f64.ln()
            };
            low = (low.ln() - room).exp().max(LEAST / 10.0);
            high = (high.ln() + room).exp().min(10.0 * MOST);
        } else if axis.whole {
            // far from 0 the next number is more than 1 away
            high = high.max(low + 1.0).max(low + 1e-9 * low.abs());
        } else {
            let room = if high - low > LEAST {
                0.06 * (high - low)
            } else {
                0.5 * high.abs().max(1.0)
            };
            // An axis of sizes does not begin below nothing.
            low = if low >= 0.0 {
                (low - room).max(0.0)
            } else {
                low - room
            };
            high += room;
        }
        Self {
            log: axis.log,
            whole: axis.whole,
            low,
            high,
            from,
            to,
        }
    }

    /// Where a value stands; `None` where it cannot be shown.
    pub(crate) fn at(&self, value: f64) -> Option<f64> {
        let share = if self.log {
            (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (value - self.low) / (self.high - self.low)
        };
        share
            .is_finite()
            .then_some(self.from + share * (self.to - self.from))
    }

    /// Values worth a line, each with its label.
    pub(crate) fn ticks(&self) -> Vec<(f64, String)> {
        // Over less than a factor of five a logarithm is nearly straight, and has too few round powers.
        if self.is_wide() {
            self.log_ticks()
        } else {
            self.linear_ticks()
        }
    }

    fn is_wide(&self) -> bool {
        self.log && self.high > 5.0 * self.low
    }

    /// The unit that labels are in, where straight ticks would have too many zeros: such as `10⁻⁴`.
    pub(crate) fn unit(&self) -> Option<String> {
        let power = self.power();
        (power != 0).then(|| log_label(1, power))
    }

    /// The power of ten that labels leave out.
    fn power(&self) -> i32 {
        let power = self.high.abs().max(self.low.abs()).log10().floor() as i32;
        if !self.is_wide() && power < -2 {
            power
        } else {
            0
        }
    }

    /// The ends.
    pub(crate) fn range(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    fn linear_ticks(&self) -> Vec<(f64, String)> {
        let raw = (self.high - self.low) / 5.0;
        let power = 10f64.powf(raw.log10().floor());
        let nice = [1.0, 2.0, 5.0, 10.0].map(|m| m * power);
        let mut step = nice.into_iter().find(|s| *s >= raw).unwrap_or(raw);
        if self.whole && !self.log {
            step = step.max(1.0);
        }
        let first = (self.low / step).ceil();
        // Where numbers lie no closer than the ticks would, there is nothing between the ends.
        if !(step.is_normal() && first.abs() < 1e15) {
            let ends = [self.low, self.high].into_iter();
            return ends.map(|v| (v, format!("{v:.2e}"))).collect();
        }
        let unit = self.power();
        let digits = (f64::from(unit) - step.log10().floor()).max(0.0) as usize;
        let (first, in_unit) = (first as i64, |v: f64| {
            // in two steps, since the unit itself may be too small for a number
            let half = unit / 2;
            v / 10f64.powi(half) / 10f64.powi(unit - half)
        });
        (first..)
            .take(TICKS)
            .map(|k| k as f64 * step)
            .take_while(|v| *v <= self.high + 1e-9 * step)
            .map(|v| (v, format!("{:.digits$}", in_unit(v))))
            .collect()
    }

    /// Powers of ten; where there are fewer than three, their doubles and fives as well.
    fn log_ticks(&self) -> Vec<(f64, String)> {
        let (first, last) = (
            self.low.log10().floor() as i32,
            self.high.log10().ceil() as i32,
        );
        let wide = self.high.log10() - self.low.log10() >= 2.0;
        let every = if wide { 1 + (last - first) / 8 } else { 1 };
        let multiples: &[u32] = if wide { &[1] } else { &[1, 2, 5] };
        (first..=last)
            .filter(|power| power % every == 0)
            .flat_map(|power| multiples.iter().map(move |m| (*m, power)))
            .map(|(m, power)| (f64::from(m) * 10f64.powi(power), m, power))
            .filter(|(v, _, _)| (self.low..=self.high).contains(v))
            .take(TICKS)
            .map(|(v, m, power)| (v, log_label(m, power)))
            .collect()
    }
}

/// `0.02`, `5`, `2·10⁻⁴`.
fn log_label(multiple: u32, power: i32) -> String {
    match power {
        -2..0 => format!(
            "{:.*}",
            power.unsigned_abs() as usize,
            f64::from(multiple) * 10f64.powi(power)
        ),
        0..4 => (multiple * 10u32.pow(power.unsigned_abs())).to_string(),
        _ => {
            let digits = power.to_string();
            let raised: String = digits.chars().map(superscript).collect();
            if multiple == 1 {
                format!("10{raised}")
            } else {
                format!("{multiple}·10{raised}")
            }
        }
    }
}

fn superscript(c: char) -> char {
    match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        c => c
            .to_digit(10)
            .and_then(|d| char::from_u32(0x2070 + d))
            .unwrap_or(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(log: bool, whole: bool, values: &[f64]) -> Scale {
        let axis = Axis {
            label: "",
            log,
            whole,
        };
        Scale::over(axis, values.iter().copied(), 0.0, 100.0)
    }

    fn labels(scale: Scale) -> String {
        let labels: Vec<String> = scale.ticks().into_iter().map(|(_, label)| label).collect();
        labels.join(" ")
    }

    #[test]
    fn ticks_are_round_numbers_inside_the_range() {
        assert_eq!(labels(scale(false, false, &[0.0, 9.0])), "0 2 4 6 8");
        assert_eq!(
            labels(scale(false, false, &[0.11, 0.14])),
            "0.11 0.12 0.13 0.14"
        );
        assert_eq!(labels(scale(false, true, &[0.0, 2.0])), "0 1 2");
        assert_eq!(
            labels(scale(true, false, &[1e-5, 1e-1])),
            "10⁻⁵ 10⁻⁴ 10⁻³ 0.01 0.1"
        );
        assert_eq!(labels(scale(true, false, &[0.04, 0.6])), "0.05 0.1 0.2 0.5");
        assert_eq!(
            labels(scale(true, false, &[1e-4, 8e-4])),
            "10⁻⁴ 2·10⁻⁴ 5·10⁻⁴"
        );
        assert_eq!(
            labels(scale(true, false, &[0.08, 0.11])),
            "0.08 0.09 0.10 0.11"
        );
    }

    #[test]
    fn zeros_go_into_the_unit() {
        let small = scale(true, false, &[0.00017, 0.00025]);
        assert_eq!(small.unit().as_deref(), Some("10⁻⁴"));
        assert_eq!(labels(small), "1.8 2.0 2.2 2.4");
        for powers in [&[1e-5, 1e-4][..], &[0.02, 0.03], &[0.0, 0.0]] {
            assert_eq!(scale(powers[0] > 0.0, false, powers).unit(), None);
        }
    }

    #[test]
    fn values_lie_where_they_should_and_impossible_ones_nowhere() {
        let whole = scale(false, true, &[0.0, 4.0]);
        assert_eq!(
            (whole.at(0.0), whole.at(1.0), whole.at(4.0)),
            (Some(0.0), Some(25.0), Some(100.0))
        );
        let log = scale(true, false, &[1.0, 100.0, f64::NAN, 0.0]);
        assert!((log.at(10.0).unwrap() - 50.0).abs() < 1e-9);
        assert_eq!((log.at(0.0), log.at(f64::NAN)), (None, None));
    }

    #[test]
    fn one_value_or_none_still_gives_an_axis() {
        assert!(scale(true, false, &[3.0]).at(3.0).unwrap() > 0.0);
        assert!(scale(false, false, &[0.0]).at(0.0).is_some());
        assert!(!scale(false, false, &[]).ticks().is_empty());
    }

    #[test]
    fn no_size_of_a_number_makes_ticks_without_end() {
        let sizes = [
            0.0,
            5e-324,
            1e-308,
            1e-300,
            1e-20,
            1e-3,
            1.0,
            1.0 + 1e-15,
            1e16,
            1e17,
            1e300,
            1.7e308,
            -1e-308,
            -1.0,
            -1.7e308,
        ];
        for log in [false, true] {
            for whole in [false, true] {
                for low in sizes {
                    for high in sizes {
                        let scale = scale(log, whole, &[low, high]);
                        let ticks = scale.ticks();
                        assert!(
                            (1..=TICKS).contains(&ticks.len()),
                            "{low} {high}: {ticks:?}"
                        );
                        let shown = ticks.iter().filter_map(|(value, _)| scale.at(*value));
                        assert!(shown.count() > 0, "{low} {high}: {ticks:?}");
                        assert!(
                            ticks.iter().all(|(_, label)| label.len() < 330),
                            "{ticks:?}"
                        );
                        scale.unit();
                    }
                }
            }
        }
    }
}
