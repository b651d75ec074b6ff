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
        let usable = values.filter(|v| v.is_finite() && (!axis.log || *v > 0.0));
        let (mut low, mut high) = usable
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
                (low.min(v), high.max(v))
            });
        if low > high {
            (low, high) = (1.0, 1.0);
        }
        if axis.log {
            let room = if high > low {
                (high / low).powf(0.06)
            } else {
                1.5
            };
            (low, high) = (low / room, high * room);
        } else if axis.whole {
            high = high.max(low + 1.0);
        } else {
            let room = if high > low {
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
            (value / self.low).ln() / (self.high / self.low).ln()
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
        if self.log && self.high > 5.0 * self.low {
            self.log_ticks()
        } else {
            self.linear_ticks()
        }
    }

    /// The unit that labels are in, where straight ticks would have too many zeros: such as `10⁻⁴`.
    pub(crate) fn unit(&self) -> Option<String> {
        let power = self.power();
        (power != 0).then(|| log_label(1, power))
    }

    /// The power of ten that labels leave out.
    fn power(&self) -> i32 {
        let power = self.high.abs().max(self.low.abs()).log10().floor() as i32;
        let straight = !(self.log && self.high > 5.0 * self.low);
        if straight && power < -2 { power } else { 0 }
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
        if self.whole {
            step = step.max(1.0);
        }
        let unit = self.power();
        let digits = (f64::from(unit) - step.log10().floor()).max(0.0) as usize;
        let first = (self.low / step).ceil() as i64;
        (first..)
            .map(|k| k as f64 * step)
            .take_while(|v| *v <= self.high + 1e-9 * step)
            .map(|v| (v, format!("{:.digits$}", v / 10f64.powi(unit))))
            .collect()
    }

    /// Powers of ten; where there are fewer than three, their doubles and fives as well.
    fn log_ticks(&self) -> Vec<(f64, String)> {
        let (first, last) = (
            self.low.log10().floor() as i32,
            self.high.log10().ceil() as i32,
        );
        let wide = (self.high / self.low).log10() >= 2.0;
        let every = if wide { 1 + (last - first) / 8 } else { 1 };
        let multiples: &[u32] = if wide { &[1] } else { &[1, 2, 5] };
        (first..=last)
            .filter(|power| power % every == 0)
            .flat_map(|power| multiples.iter().map(move |m| (*m, power)))
            .map(|(m, power)| (f64::from(m) * 10f64.powi(power), m, power))
            .filter(|(v, _, _)| (self.low..=self.high).contains(v))
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
}
