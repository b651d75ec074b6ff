use super::{Marks, label, svg};

/// Room beside the cells for names.
const WIDE: f64 = 1000.0;
const NARROW: f64 = 360.0;
const GAP: f64 = 6.0;

/// Cells of block by linear: blocks from left to right on a wide page, from top to bottom on a narrow one.
pub(crate) struct Grid<'a> {
    pub(crate) id: &'a str,
    pub(crate) title: &'a str,
    pub(crate) desc: &'a str,
    pub(crate) blocks: usize,
    /// Names of the kinds of linears, a short one for each, and whether a gap comes before it.
    pub(crate) kinds: Vec<(String, String, bool)>,
    pub(crate) cells: Vec<Cell>,
}

/// One linear.
pub(crate) struct Cell {
    pub(crate) block: usize,
    /// Index into the kinds.
    pub(crate) kind: usize,
    /// Step of the colour ramp; none where there is no value.
    pub(crate) step: Option<usize>,
    /// The same for the other values that may be chosen, for the script, none as `-`.
    pub(crate) steps: String,
    /// Text inside.
    pub(crate) text: String,
    pub(crate) title: String,
    pub(crate) row: String,
    /// A dot in the corner: there is a warning.
    pub(crate) flagged: bool,
}

impl Grid<'_> {
    /// The wide form and the narrow one; the page's style shows one of them.
    pub(crate) fn render(&self) -> String {
        self.form(true) + &self.form(false)
    }

    fn form(&self, wide: bool) -> String {
        let gaps: Vec<f64> = self
            .kinds
            .iter()
            .scan(0.0, |before, (_, _, gap)| {
                *before += if *gap { GAP } else { 0.0 };
                Some(*before)
            })
            .collect();
        let all_gaps = gaps.last().copied().unwrap_or(0.0);
        let (blocks, kinds) = (self.blocks.max(1) as f64, self.kinds.len().max(1) as f64);
        let (left, top) = if wide { (84.0, 4.0) } else { (30.0, 26.0) };
        let (width, height) = if wide {
            (((WIDE - left) / blocks).min(110.0), 30.0)
        } else {
            ((NARROW - left - all_gaps) / kinds, 24.0)
        };
        let place = |block: usize, kind: usize| {
            let gap = gaps.get(kind).copied().unwrap_or(0.0);
            if wide {
                (
                    left + block as f64 * width,
                    top + kind as f64 * height + gap,
                )
            } else {
                (
                    left + kind as f64 * width + gap,
                    top + block as f64 * height,
                )
            }
        };
        let mut out = String::from("<g aria-hidden=\"true\">\n");
        for (kind, (name, short, _)) in self.kinds.iter().enumerate() {
            let (x, y) = place(0, kind);
            out += &if wide {
                label(left - 10.0, y + height / 2.0 + 4.0, "tick end", name)
            } else {
                label(x + width / 2.0, top - 9.0, "tick mid", short)
            };
        }
        let every = if wide { label_step(width) } else { 1 };
        for block in (0..self.blocks).step_by(every) {
            let (x, y) = place(block, 0);
            out += &if wide {
                let below = top + kinds * height + all_gaps + 18.0;
                label(x + width / 2.0, below, "tick mid", &block.to_string())
            } else {
                label(
                    left - 7.0,
                    y + height / 2.0 + 4.0,
                    "tick end",
                    &block.to_string(),
                )
            };
        }
        if wide {
            let below = top + kinds * height + all_gaps + 40.0;
            out += &label(left + blocks * width / 2.0, below, "axis mid", "block");
        } else {
            out += &label(0.0, top - 9.0, "tick", "block");
        }
        out += "</g>\n";
        let mut marks = Marks::default();
        let mut inside = String::new();
        for cell in &self.cells {
            let (x, y) = place(cell.block, cell.kind);
            let class = cell
                .step
                .map_or_else(|| "none".to_owned(), |step| format!("h{step}"));
            // A hair of space between cells, less where they are small.
            let space = (0.06 * width.min(height)).min(1.5);
            let rect = format!(
                "rect x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{:.2}\" rx=\"2\" data-steps=\"{}\"",
                x + space,
                y + space,
                width - 2.0 * space,
                height - 2.0 * space,
                cell.steps
            );
            marks.push(
                &rect,
                &format!("cell {class}"),
                &cell.title,
                Some(&cell.row),
            );
            if !cell.text.is_empty() {
                let class = format!("inside mid {class}");
                inside += &label(x + width / 2.0, y + height / 2.0 + 4.5, &class, &cell.text);
            }
            if cell.flagged {
                inside += &format!(
                    "<circle class=\"flag\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.2\" />\n",
                    x + width - 5.5,
                    y + 5.5
                );
            }
        }
        out += &marks.svg;
        out += &format!("<g aria-hidden=\"true\" class=\"over\">\n{inside}</g>\n");
        let (form, id) = if wide {
            ("wide", self.id.to_owned())
        } else {
            ("narrow", format!("{}-narrow", self.id))
        };
        let size = if wide {
            (WIDE, top + kinds * height + all_gaps + 48.0)
        } else {
            (NARROW, top + blocks * height + 4.0)
        };
        svg(&id, form, size, self.title, self.desc, &out)
    }
}

/// Every how many blocks there is room for a number.
fn label_step(width: f64) -> usize {
    [1, 2, 5, 10, 20]
        .into_iter()
        .find(|n| *n as f64 * width >= 26.0)
        .unwrap_or(50)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::markup::tests::elements;

    #[test]
    fn every_cell_stands_in_both_forms() {
        let cell = |block, kind| Cell {
            block,
            kind,
            step: (kind == 0).then_some(3),
            steps: "3,-".into(),
            text: "4".into(),
            title: format!("block {block}"),
            row: "l0".into(),
            flagged: kind == 1,
        };
        let grid = Grid {
            id: "g",
            title: "t",
            desc: "d",
            blocks: 2,
            kinds: vec![
                ("q_proj".into(), "q".into(), false),
                ("down_proj".into(), "down".into(), true),
            ],
            cells: vec![cell(0, 0), cell(0, 1), cell(1, 0), cell(1, 1)],
        };
        let found = elements(&grid.render());
        let with = |class: &str| found.iter().filter(|tag| tag.contains(class)).count();
        assert_eq!(
            (with("cell h3"), with("cell none"), with("\"flag\"")),
            (4, 4, 4)
        );
        assert_eq!((with("id=\"g\""), with("id=\"g-narrow\"")), (1, 1));
    }

    #[test]
    fn block_numbers_do_not_touch() {
        assert_eq!([40.0, 14.0, 7.0, 1.0].map(label_step), [1, 2, 5, 50]);
    }
}
