use super::{Marks, label, svg};

const WIDTH: f64 = 460.0;
const LEFT: f64 = 140.0;
const RIGHT: f64 = 378.0;
const ROW: f64 = 25.0;

/// Bars from left to right, one row a name.
pub(crate) struct Bars<'a> {
    pub(crate) id: &'a str,
    pub(crate) title: &'a str,
    pub(crate) desc: &'a str,
    pub(crate) rows: Vec<Bar>,
}

/// One row.
pub(crate) struct Bar {
    pub(crate) name: String,
    /// Length.
    pub(crate) value: f64,
    /// A second value, marked by a tick across the bar.
    pub(crate) second: Option<f64>,
    /// What stands at the end of the bar.
    pub(crate) text: String,
    pub(crate) title: String,
}

impl Bars<'_> {
    pub(crate) fn render(&self) -> String {
        let most = self
            .rows
            .iter()
            .flat_map(|row| [row.value, row.second.unwrap_or(0.0)])
            .fold(0.0, f64::max);
        let length = |value: f64| {
            if most > 0.0 {
                value / most * (RIGHT - LEFT)
            } else {
                0.0
            }
        };
        let (mut names, mut marks) = (String::from("<g aria-hidden=\"true\">\n"), Marks::default());
        let mut over = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let y = 4.0 + index as f64 * ROW;
            names += &label(LEFT - 10.0, y + 15.0, "tick end", &row.name);
            let end = length(row.value).max(length(row.second.unwrap_or(0.0)));
            names += &label(LEFT + end + 8.0, y + 15.0, "tick", &row.text);
            let bar = format!(
                "rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"",
                y + 3.0,
                length(row.value).max(1.0),
                ROW - 9.0
            );
            marks.push(&bar, "bar c0", &row.title, None);
            if let Some(second) = row.second {
                let x = LEFT + length(second);
                over += &format!(
                    "<path class=\"second\" d=\"M{x:.1} {y:.1}v{:.1}\" />\n",
                    ROW - 3.0
                );
            }
        }
        let content = format!(
            "{names}</g>\n{}<g aria-hidden=\"true\" class=\"over\">\n{over}</g>\n",
            marks.svg
        );
        let height = 8.0 + self.rows.len() as f64 * ROW;
        svg(
            self.id,
            "half",
            (WIDTH, height),
            self.title,
            self.desc,
            &content,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::markup::tests::elements;

    #[test]
    fn the_longest_bar_fills_the_width_and_zeros_are_drawn() {
        let row = |value, second| Bar {
            name: "solve".into(),
            value,
            second,
            text: "1 s".into(),
            title: "solve".into(),
        };
        let bars = |rows| {
            Bars {
                id: "b",
                title: "t",
                desc: "d",
                rows,
            }
            .render()
        };
        let svg = bars(vec![row(2.0, Some(4.0)), row(0.0, None)]);
        let found = elements(&svg);
        assert!(
            found.iter().any(|tag| tag.contains("width=\"119.0\"")),
            "{found:?}"
        );
        assert_eq!(
            found
                .iter()
                .filter(|tag| tag.contains("\"mark bar c0\""))
                .count(),
            2
        );
        assert!(svg.contains(&format!("M{RIGHT:.1} ")));
        assert!(!bars(vec![row(0.0, None)]).contains("NaN"));
    }
}
