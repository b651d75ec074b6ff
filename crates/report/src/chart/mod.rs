//! Charts as SVG text: axes and marks from values, with a title a mark, so that a reader without eyes or script has the
//! same figures. Colours are classes; the page's style gives them light and dark.

mod bars;
mod grid;
mod plot;
mod scale;

pub(crate) use bars::{Bar, Bars};
pub(crate) use grid::{Cell, Grid};
pub(crate) use plot::{Plot, Point, Series};
pub(crate) use scale::{Axis, Scale};

use crate::markup::escape;

/// Steps of the colour ramp.
pub(crate) const STEPS: usize = 12;

/// The step of a value's place between 0 and 1.
pub(crate) fn step(share: f64) -> usize {
    ((share * STEPS as f64) as usize).min(STEPS - 1)
}

/// Form of a mark: with colour the second way of telling kinds apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Circle,
    Triangle,
    Square,
    Diamond,
}

impl Shape {
    pub(crate) const ALL: [Self; 4] = [Self::Circle, Self::Triangle, Self::Square, Self::Diamond];

    /// The outline of equal area around a point, as path data.
    pub(crate) fn path(self, x: f64, y: f64) -> String {
        match self {
            Self::Circle => format!(
                "M{:.1} {y:.1}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
                x - 4.5
            ),
            Self::Triangle => format!("M{x:.1} {:.1}l5.6 9.6h-11.2z", y - 6.0),
            Self::Square => format!("M{:.1} {:.1}h8v8h-8z", x - 4.0, y - 4.0),
            Self::Diamond => format!("M{x:.1} {:.1}l5.8 5.8l-5.8 5.8l-5.8 -5.8z", y - 5.8),
        }
    }
}

/// Collects the marks of a chart: the first takes the keyboard's focus, the arrow keys lead to the others.
#[derive(Default)]
pub(crate) struct Marks {
    pub(crate) svg: String,
    count: usize,
}

impl Marks {
    /// `element` is the start of a tag without its end, such as `rect x="1"`; `row` the id of the table row that has all
    /// figures of the mark.
    pub(crate) fn push(&mut self, element: &str, class: &str, title: &str, row: Option<&str>) {
        let name = element.split(' ').next().unwrap_or_default();
        let focus = if self.count == 0 { 0 } else { -1 };
        let row = row.map_or_else(String::new, |row| format!(" data-row=\"{}\"", escape(row)));
        self.svg += &format!(
            "<{element} class=\"mark {class}\" role=\"img\" tabindex=\"{focus}\"{row}><title>{}</title></{name}>\n",
            escape(title)
        );
        self.count += 1;
    }
}

/// The outer element, with the name and description that screen readers tell.
pub(crate) fn svg(
    id: &str,
    class: &str,
    size: (f64, f64),
    title: &str,
    desc: &str,
    content: &str,
) -> String {
    format!(
        "<svg id=\"{id}\" class=\"chart {class}\" viewBox=\"0 0 {:.0} {:.0}\" role=\"group\" aria-labelledby=\"{id}-t\" \
         aria-describedby=\"{id}-d\"><title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>\n{content}</svg>\n",
        size.0,
        size.1,
        escape(title),
        escape(desc)
    )
}

/// A text in a chart.
pub(crate) fn label(x: f64, y: f64, class: &str, text: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{}</text>\n",
        escape(text)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ramp_has_its_ends() {
        assert_eq!([0.0, 0.5, 0.999, 1.0].map(step), [0, 6, 11, 11]);
    }

    #[test]
    fn only_the_first_mark_is_in_the_tab_order_and_titles_are_text() {
        let mut marks = Marks::default();
        marks.push("rect x=\"1\"", "a", "<script>", Some("l0"));
        marks.push("rect x=\"2\"", "a", "two", None);
        assert_eq!(
            marks.svg,
            "<rect x=\"1\" class=\"mark a\" role=\"img\" tabindex=\"0\" data-row=\"l0\"><title>&lt;script&gt;</title></rect>\n\
             <rect x=\"2\" class=\"mark a\" role=\"img\" tabindex=\"-1\"><title>two</title></rect>\n"
        );
    }
}
