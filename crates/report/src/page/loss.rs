use serde::Serialize;

use super::kinds::{Kinds, row_id, title};
use super::{Section, figure, pair, paragraph};
use crate::chart::{Axis, Cell, Grid, Plot, Point, STEPS, Series, Shape, step};
use crate::markup::{escape, short};
use crate::text::{gain, judged, kind};
use crate::{LinearRecord, RunRecord};

/// Share of the linears past each end of the colour ramp.
const OUTSIDE: f64 = 0.02;

/// What a colour ramp spans.
#[derive(Clone, Copy)]
struct Range {
    low: f64,
    high: f64,
    below: bool,
    above: bool,
}

/// A column of the heat map.
struct Measure {
    name: &'static str,
    log: bool,
    value: fn(&LinearRecord) -> Option<f64>,
    show: fn(f64) -> String,
}

const MEASURES: [Measure; 7] = [
    Measure {
        name: "calibration loss",
        log: true,
        value: |l| Some(l.relative_loss),
        show: short,
    },
    Measure {
        name: "held-out loss",
        log: true,
        value: |l| l.relative_loss_heldout,
        show: short,
    },
    Measure {
        name: "rounding's loss",
        log: true,
        value: |l| Some(l.relative_loss_rtn),
        show: short,
    },
    Measure {
        name: "rounding / ours",
        log: true,
        value: gain,
        show: |v| format!("{} ×", short(v)),
    },
    Measure {
        name: "bits",
        log: false,
        value: |l| Some(f64::from(l.bits)),
        show: |v| format!("{v:.0}"),
    },
    Measure {
        name: "clipped share",
        log: false,
        value: |l| Some(l.clipped_share),
        show: |v| format!("{} %", short(100.0 * v)),
    },
    Measure {
        name: "seconds",
        log: false,
        value: |l| Some(l.seconds),
        show: short,
    },
];

impl Measure {
    /// What the ramp spans: nearly all values, so that one linear far from all others does not take the colours from
    /// them; and whether some lie below and above.
    fn range(&self, linears: &[LinearRecord]) -> Option<Range> {
        let values = linears.iter().filter_map(self.value);
        let mut usable: Vec<f64> = values
            .filter(|v| v.is_finite() && (!self.log || *v > 0.0))
            .collect();
        usable.sort_by(f64::total_cmp);
        let last = usable.len().checked_sub(1)?;
        let outside = (last as f64 * OUTSIDE).round() as usize;
        let (low, high) = (usable[outside], usable[last - outside]);
        Some(Range {
            low,
            high,
            below: usable[0] < low,
            above: usable[last] > high,
        })
    }

    /// Step of the colour ramp; none where there is no value.
    fn step(&self, range: Range, linear: &LinearRecord) -> Option<usize> {
        let value = (self.value)(linear).filter(|v| v.is_finite())?;
        let Range { low, high, .. } = range;
        if low == high {
            return Some(STEPS / 2 - 1);
        }
        let share = if self.log {
            (value / low).ln() / (high / low).ln()
        } else {
            (value - low) / (high - low)
        };
        // Nothing lost, infinitely far down a logarithm, is the lowest there is.
        Some(step(share.clamp(0.0, 1.0)))
    }

    fn ramp(&self, column: usize, range: Range) -> String {
        let swatches: String = (0..STEPS)
            .map(|step| format!("<i class=\"h{step}\"></i>"))
            .collect();
        let hidden = if column == 0 {
            ""
        } else {
            " hidden=\"hidden\""
        };
        let scale = if self.log { ", logarithmic" } else { "" };
        let [low, high] = self.ends(range);
        format!(
            "<div class=\"ramp\" data-column=\"{column}\"{hidden}><span>{}</span><span class=\"bar\" aria-hidden=\"true\">{swatches}</span><span>{}</span><span>{}{scale}</span></div>\n",
            escape(&low),
            escape(&high),
            self.name
        )
    }

    /// What stands at the ends of the ramp.
    fn ends(&self, range: Range) -> [String; 2] {
        let end = |is_passed: bool, sign: &str, value: f64| {
            let sign = if is_passed { sign } else { "" };
            format!("{sign}{}", (self.show)(value))
        };
        [
            end(range.below, "≤ ", range.low),
            end(range.above, "≥ ", range.high),
        ]
    }
}

pub(super) fn loss(run: &RunRecord, kinds: &Kinds) -> Section {
    let chart = Colours::of(&run.linears).heat_map(&run.linears, run.model.blocks, kinds);
    let mut html = figure("Loss by block and linear", HEAT_CAPTION, &chart);
    html += &paragraph(&largest(&run.linears));
    Section {
        id: "loss",
        name: "Loss",
        html,
    }
}

pub(super) const HEAT_CAPTION: &str = "Relative loss is tr(ΔHΔᵀ) / tr(WHWᵀ): the share of a linear's output, in squares, that rounding took away. It has no unit, so \
     linears and models compare. A red dot marks a warning.";

/// The linears that lose most.
pub(super) fn largest(linears: &[LinearRecord]) -> String {
    let mut worst: Vec<&LinearRecord> = linears.iter().collect();
    worst.sort_by(|a, b| judged(b).total_cmp(&judged(a)));
    let names: Vec<String> = worst
        .iter()
        .take(3)
        .map(|l| format!("block {} {} ({})", l.block, kind(l), short(judged(l))))
        .collect();
    let held_out = linears.iter().any(|l| l.relative_loss_heldout.is_some());
    let text = match held_out {
        true => "held-out text",
        false => "the calibration text",
    };
    format!("Largest on {text}: {}.", names.join(", "))
}

/// What a heat map's colours may show of some linears.
pub(super) struct Colours {
    measures: Vec<(&'static Measure, Range)>,
}

impl Colours {
    pub(super) fn of(linears: &[LinearRecord]) -> Self {
        let known = MEASURES
            .iter()
            .filter_map(|measure| Some((measure, measure.range(linears)?)));
        Self {
            measures: known.collect(),
        }
    }

    /// The choice, the ramps and the map, a mark a linear in their order.
    pub(super) fn heat_map(
        &self,
        linears: &[LinearRecord],
        blocks: usize,
        kinds: &Kinds,
    ) -> String {
        let mut chart =
            "<fieldset class=\"needs-script\"><legend>Colour shows</legend>\n".to_owned();
        for (column, (measure, _)) in self.measures.iter().enumerate() {
            let checked = if column == 0 {
                " checked=\"checked\""
            } else {
                ""
            };
            chart += &format!(
                "<label><input type=\"radio\" name=\"heat\" data-column=\"{column}\"{checked} /><span>{}</span></label>\n",
                measure.name
            );
        }
        chart += "</fieldset>\n";
        for (column, (measure, range)) in self.measures.iter().enumerate() {
            chart += &measure.ramp(column, *range);
        }
        let cells = linears.iter().enumerate().map(|(row, linear)| {
            let steps: Vec<Option<usize>> = (self.measures.iter())
                .map(|(m, range)| m.step(*range, linear))
                .collect();
            let words: Vec<String> = steps
                .iter()
                .map(|step| step.map_or_else(|| "-".to_owned(), |step| step.to_string()))
                .collect();
            Cell {
                block: linear.block,
                kind: kinds.index(linear),
                step: steps.first().copied().flatten(),
                steps: words.join(","),
                text: String::new(),
                title: title(linear),
                row: row_id(row),
                flagged: !linear.warnings.is_empty(),
            }
        });
        chart
            + &Grid {
                id: "heat",
                title: "Relative loss by block and linear",
                desc: "One cell a linear; blocks along one axis, the linears of a block along the other. The table of linears below has every figure.",
                blocks,
                kinds: kinds.rows(),
                cells: cells.collect(),
            }
            .render()
    }

    /// The same map of other linears, measure by measure.
    pub(super) fn recoloured(&self, linears: &[LinearRecord]) -> Vec<Recoloured> {
        let of = |(measure, _): &(&'static Measure, Range)| {
            let Some(range) = measure.range(linears) else {
                return Recoloured::default();
            };
            let letter = |linear| {
                let step = measure.step(range, linear)?;
                char::from_digit(step as u32, STEPS as u32)
            };
            let [low, high] = measure.ends(range);
            Recoloured {
                low,
                high,
                steps: linears.iter().map(|l| letter(l).unwrap_or('-')).collect(),
            }
        };
        self.measures.iter().map(of).collect()
    }
}

/// One measure of other linears in a heat map, for the script.
#[derive(Default, Serialize)]
pub(super) struct Recoloured {
    low: String,
    high: String,
    /// A step of the ramp a linear, as a digit to the base of 12, none as `-`.
    steps: String,
}

pub(super) fn depth(run: &RunRecord) -> Option<Section> {
    let block_axis = Axis::whole("block");
    let mut charts = String::new();
    let drift = run.evaluation.as_ref().map_or(&[][..], |e| &e.stream_error);
    if let (Some(last), true) = (drift.last(), drift.len() > 1) {
        let points = drift.iter().enumerate().map(|(block, error)| Point {
            x: block as f64,
            y: *error,
            title: format!("after block {block}: {}", short(*error)),
            ..Point::default()
        });
        let chart = Plot {
            id: "drift",
            title: "Error of the residual stream after each block",
            desc: "Mean over tokens of the squared distance from the float model's stream, over the stream's own square.",
            x: block_axis,
            y: Axis::log("relative error of the stream"),
            diagonal: false,
            series: vec![Series {
                name: "drift".to_owned(),
                class: "c0",
                shape: Shape::Circle,
                line: true,
                points: points.collect(),
            }],
        };
        let caption = format!(
            "How far the exported files' residual stream is from the float model's after each block, on the evaluation text: all errors so far \
             together. It ends at {}.",
            short(*last)
        );
        charts += &figure("Drift of the residual stream", &caption, &chart.render());
    }
    if run.model.blocks > 1 {
        let sums = |value: fn(&LinearRecord) -> Option<f64>| -> Vec<Point> {
            let mut sum = 0.0;
            (0..run.model.blocks)
                .filter_map(|block| {
                    let of_block: Vec<f64> = run
                        .linears
                        .iter()
                        .filter(|l| l.block == block)
                        .filter_map(value)
                        .collect();
                    sum += of_block.iter().sum::<f64>();
                    (!of_block.is_empty()).then(|| Point {
                        x: block as f64,
                        y: sum,
                        title: format!("up to block {block}: {}", short(sum)),
                        ..Point::default()
                    })
                })
                .collect()
        };
        let named = |name: &str, class, shape, points| Series {
            name: name.to_owned(),
            class,
            shape,
            line: true,
            points,
        };
        let series = [
            named(
                "calibration text",
                "c0",
                Shape::Circle,
                sums(|l| Some(l.relative_loss)),
            ),
            named(
                "held-out text",
                "c2",
                Shape::Triangle,
                sums(|l| l.relative_loss_heldout),
            ),
        ];
        let chart = Plot {
            id: "sums",
            title: "Running sum of relative losses",
            desc: "Relative losses of all linears up to a block, added up.",
            x: block_axis,
            y: Axis::linear("sum of relative losses"),
            diagonal: false,
            series: series
                .into_iter()
                .filter(|s| !s.points.is_empty())
                .collect(),
        };
        let caption = "Relative losses of the linears added up from the first block on: where the line is steep, blocks lose most.";
        charts += &figure("Running sum of losses", caption, &chart.render());
    }
    (!charts.is_empty()).then(|| Section {
        id: "depth",
        name: "Down the depth",
        html: pair(&charts),
    })
}
