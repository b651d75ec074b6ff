use super::{Axis, Marks, Scale, Shape, label, svg};
use crate::markup::escape;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 350.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 446.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 298.0;

/// Points, lines or both over two axes.
pub(crate) struct Plot<'a> {
    pub(crate) id: &'a str,
    pub(crate) title: &'a str,
    pub(crate) desc: &'a str,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    /// The line y = x, both axes then having one range.
    pub(crate) diagonal: bool,
    pub(crate) series: Vec<Series>,
}

/// Points of one kind.
pub(crate) struct Series {
    pub(crate) name: String,
    /// Class of the colour: `c0`, `c1`, `c2`.
    pub(crate) class: &'static str,
    pub(crate) shape: Shape,
    /// Points are joined in their order.
    pub(crate) line: bool,
    pub(crate) points: Vec<Point>,
}

/// One mark.
#[derive(Default)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Half the length of the bar through it, along y.
    pub(crate) error: Option<f64>,
    pub(crate) title: String,
    /// Id of the table row with its figures.
    pub(crate) row: Option<String>,
    /// A letter or two beside it.
    pub(crate) label: Option<String>,
}

impl Plot<'_> {
    /// The chart and its legend.
    pub(crate) fn render(&self) -> String {
        let points = || self.series.iter().flat_map(|s| &s.points);
        let ys = || {
            points().flat_map(|p| {
                let e = p.error.unwrap_or(0.0);
                [p.y - e, p.y, p.y + e]
            })
        };
        let (x, y) = if self.diagonal {
            let both = || points().flat_map(|p| [p.x, p.y]);
            (
                Scale::over(self.x, both(), LEFT, RIGHT),
                Scale::over(self.y, both(), BOTTOM, TOP),
            )
        } else {
            (
                Scale::over(self.x, points().map(|p| p.x), LEFT, RIGHT),
                Scale::over(self.y, ys(), BOTTOM, TOP),
            )
        };
        let mut out = axes(&x, &y, self.x.label, self.y.label);
        if self.diagonal {
            let (low, high) = x.range();
            if let (Some(x1), Some(y1), Some(x2), Some(y2)) =
                (x.at(low), y.at(low), x.at(high), y.at(high))
            {
                out += &format!(
                    "<line class=\"guide\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" />\n"
                );
                out += &label(x2, y2 + 48.0, "note end", "y = x");
            }
        }
        let (mut marks, mut tags) = (Marks::default(), Vec::new());
        for series in &self.series {
            let placed: Vec<(f64, f64, &Point)> = series
                .points
                .iter()
                .filter_map(|p| Some((x.at(p.x)?, y.at(p.y)?, p)))
                .collect();
            if series.line {
                let path: Vec<String> = placed
                    .iter()
                    .map(|(x, y, _)| format!("{x:.1} {y:.1}"))
                    .collect();
                out += &format!(
                    "<polyline class=\"line {}\" points=\"{}\" />\n",
                    series.class,
                    path.join(" ")
                );
            }
            for (px, py, point) in placed {
                if let Some(error) = point.error {
                    // A bar that reaches below what the axis can show ends at the axis.
                    let low = y.at(point.y - error).unwrap_or(BOTTOM).clamp(TOP, BOTTOM);
                    let high = y.at(point.y + error).unwrap_or(TOP).clamp(TOP, BOTTOM);
                    out += &format!(
                        "<path class=\"error {}\" d=\"M{px:.1} {low:.1}V{high:.1}M{:.1} {low:.1}h8M{:.1} {high:.1}h8\" />\n",
                        series.class,
                        px - 4.0,
                        px - 4.0
                    );
                }
                let path = format!("path d=\"{}\"", series.shape.path(px, py));
                marks.push(&path, series.class, &point.title, point.row.as_deref());
                if let Some(text) = &point.label {
                    let (x, y, class) = tag_place(px, py, &tags);
                    tags.push((x, y));
                    out += &label(x, y, class, text);
                }
            }
        }
        let chart = svg(
            self.id,
            "half",
            (WIDTH, HEIGHT),
            self.title,
            self.desc,
            &(out + &marks.svg),
        );
        chart + &self.legend()
    }

    fn legend(&self) -> String {
        if self.series.len() < 2 {
            return String::new();
        }
        let mut out = "<ul class=\"legend\">\n".to_owned();
        for series in &self.series {
            let line = if series.line {
                format!("<path class=\"line {}\" d=\"M0 8H22\" />", series.class)
            } else {
                String::new()
            };
            out += &format!(
                "<li><svg viewBox=\"0 0 22 16\" width=\"22\" height=\"16\" aria-hidden=\"true\">{line}<path class=\"swatch {}\" d=\"{}\" /></svg>{}</li>\n",
                series.class,
                series.shape.path(11.0, 8.0),
                escape(&series.name)
            );
        }
        out + "</ul>\n"
    }
}

/// Beside a point, on the side where no other letter is yet and the chart does not end.
fn tag_place(x: f64, y: f64, taken: &[(f64, f64)]) -> (f64, f64, &'static str) {
    let places = [
        (x + 9.0, y - 7.0, "tag"),
        (x - 9.0, y - 7.0, "tag end"),
        (x + 9.0, y + 17.0, "tag"),
        (x - 9.0, y + 17.0, "tag end"),
    ];
    let free = |place: &(f64, f64, &str)| {
        let inside = place.0 < RIGHT - 14.0 && place.0 > LEFT + 14.0;
        inside
            && taken
                .iter()
                .all(|t| (t.0 - place.0).abs() > 16.0 || (t.1 - place.1).abs() > 13.0)
    };
    places.into_iter().find(free).unwrap_or(places[0])
}

fn axes(x: &Scale, y: &Scale, x_label: &str, y_label: &str) -> String {
    let named = |scale: &Scale, name: &str| match scale.unit() {
        Some(unit) => format!("{name}, {unit}"),
        None => name.to_owned(),
    };
    let mut out = String::from("<g aria-hidden=\"true\">\n");
    for (value, text) in x.ticks() {
        if let Some(at) = x.at(value) {
            out += &format!(
                "<line class=\"rule\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{BOTTOM}\" />\n"
            );
            out += &label(at, BOTTOM + 19.0, "tick mid", &text);
        }
    }
    for (value, text) in y.ticks() {
        if let Some(at) = y.at(value) {
            out += &format!(
                "<line class=\"rule\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{RIGHT}\" y2=\"{at:.1}\" />\n"
            );
            out += &label(LEFT - 8.0, at + 4.0, "tick end", &text);
        }
    }
    out += &label(
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 43.0,
        "axis mid",
        &named(x, x_label),
    );
    out += &format!(
        "<text class=\"axis mid\" transform=\"translate(15 {:.1}) rotate(-90)\">{}</text>\n</g>\n",
        (TOP + BOTTOM) / 2.0,
        escape(&named(y, y_label))
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::markup::tests::elements;

    fn plot(points: Vec<Point>) -> String {
        let axis = Axis::log("a & b");
        let series = |name: &str, points| Series {
            name: name.to_owned(),
            class: "c0",
            shape: Shape::Square,
            line: true,
            points,
        };
        Plot {
            id: "p",
            title: "t",
            desc: "d",
            x: axis,
            y: axis,
            diagonal: true,
            series: vec![series("<one>", points), series("two", vec![])],
        }
        .render()
    }

    fn point(x: f64, y: f64) -> Point {
        Point {
            x,
            y,
            error: Some(2.0 * y),
            title: format!("{x} {y}"),
            ..Point::default()
        }
    }

    #[test]
    fn every_point_that_can_be_shown_has_a_mark_and_a_bar() {
        let svg = plot(vec![
            point(1.0, 2.0),
            point(3.0, 0.1),
            point(0.0, 1.0),
            point(f64::NAN, 1.0),
        ]);
        let found = elements(&svg);
        let with = |class: &str| found.iter().filter(|tag| tag.contains(class)).count();
        assert_eq!((with("\"mark c0\""), with("\"error c0\"")), (2, 2));
        assert!(svg.contains("&lt;one&gt;") && svg.contains("a &amp; b"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn letters_of_points_near_each_other_do_not_meet() {
        let mut taken = Vec::new();
        for y in [100.0, 104.0, 109.0, 111.0] {
            let (x, y, _) = tag_place(200.0, y, &taken);
            taken.push((x, y));
        }
        let apart =
            |a: &(f64, f64), b: &(f64, f64)| (a.0 - b.0).abs() > 16.0 || (a.1 - b.1).abs() > 13.0;
        for (index, a) in taken.iter().enumerate() {
            assert!(taken[..index].iter().all(|b| apart(a, b)), "{taken:?}");
        }
    }

    #[test]
    fn points_on_the_diagonal_lie_on_it() {
        let axis = Axis::log("");
        let values = [0.01, 10.0];
        let x = Scale::over(axis, values.into_iter(), LEFT, RIGHT);
        let y = Scale::over(axis, values.into_iter(), BOTTOM, TOP);
        let share = (x.at(0.3).unwrap() - LEFT) / (RIGHT - LEFT);
        assert!((BOTTOM - y.at(0.3).unwrap() - share * (BOTTOM - TOP)).abs() < 1e-9);
    }
}
