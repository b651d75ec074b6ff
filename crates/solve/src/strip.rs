//! Rows as strips and columns as padded groups: the shapes the kernels run on.

use faer::MatRef;
use halfbyte_quant::{QuantizedWeight, Scheme};

use crate::SolveError;
use crate::kernel::{LANES, Lane, PANEL};
use crate::solution::Sums;

/// Where columns stand once every group is padded to whole panels. Padding columns hold zero weights and zero rows
/// of `H`, so they take part in every product and change none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Columns of the weight.
    pub(crate) columns: usize,
    /// Columns a group, the last one may hold fewer.
    pub(crate) group: usize,
    /// Positions a group.
    pub(crate) stride: usize,
    /// Groups a row.
    pub(crate) groups: usize,
    /// Positions in all, a multiple of [`PANEL`].
    pub(crate) padded: usize,
}

impl Layout {
    pub(crate) fn new(columns: usize, group: usize) -> Self {
        let (stride, groups) = (group.next_multiple_of(PANEL), columns.div_ceil(group));
        let last = columns - (groups - 1) * group;
        Self {
            columns,
            group,
            stride,
            groups,
            padded: (groups - 1) * stride + last.next_multiple_of(PANEL),
        }
    }

    pub(crate) fn of(scheme: &Scheme, columns: usize) -> Self {
        Self::new(columns, scheme.group_len(columns))
    }

    /// One group: padding at the very end only.
    pub(crate) fn plain(columns: usize) -> Self {
        Self::new(columns, columns)
    }

    pub(crate) fn position(&self, column: usize) -> usize {
        column / self.group * self.stride + column % self.group
    }

    /// Positions of a group's columns, without padding.
    pub(crate) fn real(&self, g: usize) -> std::ops::Range<usize> {
        let start = g * self.stride;
        start..start + self.group.min(self.columns - g * self.group)
    }

    /// Positions of a group, padding included.
    pub(crate) fn whole(&self, g: usize) -> std::ops::Range<usize> {
        g * self.stride..((g + 1) * self.stride).min(self.padded)
    }

    /// Whether columns stand as in the plain layout.
    pub(crate) fn is_plain(&self) -> bool {
        self.stride == self.group || self.groups == 1
    }
}

/// The codes of a strip as the solvers change them: `ŵ = scale * v`, `v = code - zero`.
#[derive(Clone, Debug)]
pub(crate) struct Coded {
    /// Centred codes, a lane a position.
    pub(crate) v: Vec<Lane>,
    /// Scales, a lane a group, as stored.
    pub(crate) scale: Vec<Lane>,
    /// Zero points, a lane a group.
    pub(crate) zero: Vec<Lane>,
}

impl Coded {
    pub(crate) fn new(layout: &Layout) -> Self {
        Self {
            v: vec![Lane::ZERO; layout.padded],
            scale: vec![Lane([1.0; LANES]); layout.groups],
            zero: vec![Lane::ZERO; layout.groups],
        }
    }

    /// `w - ŵ` at every position.
    pub(crate) fn error(&self, layout: &Layout, w: &[Lane]) -> Vec<Lane> {
        let mut error = vec![Lane::ZERO; layout.padded];
        for g in 0..layout.groups {
            for p in layout.real(g) {
                for l in 0..LANES {
                    error[p].0[l] = w[p].0[l] - self.scale[g].0[l] * self.v[p].0[l];
                }
            }
        }
        error
    }
}

/// What a pass over the columns of a strip reads.
pub(crate) struct Pass<'a> {
    /// The strip's rows, by position.
    pub(crate) w: &'a [Lane],
    /// `N`, rows and columns in solve order.
    pub(crate) n: &'a Panels,
    /// `D_k` in solve order.
    pub(crate) pivots: &'a [f32],
    /// Position and group of each column in solve order.
    pub(crate) places: &'a [(usize, usize)],
    pub(crate) max_code: f32,
}

impl Pass<'_> {
    /// The columns of the panel that begins at `start`.
    #[inline(always)]
    pub(crate) fn panel(&self, start: usize) -> &[(usize, usize)] {
        &self.places[start..(start + PANEL).min(self.places.len())]
    }
}

/// A solved strip, turned back to rows.
pub(crate) struct StripResult {
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<u8>,
    pub(crate) sums: Sums,
}

impl StripResult {
    pub(crate) fn new(layout: &Layout, coded: &Coded, rows: usize, sums: Sums) -> Self {
        let mut codes = vec![0; rows * layout.columns];
        for column in 0..layout.columns {
            let (v, zero) = (
                &coded.v[layout.position(column)].0,
                &coded.zero[column / layout.group].0,
            );
            for row in 0..rows {
                codes[row * layout.columns + column] = (v[row] + zero[row]) as u8;
            }
        }
        let of = |lanes: &[Lane]| -> Vec<f32> {
            (0..rows)
                .flat_map(|row| lanes.iter().map(move |lane| lane.0[row]))
                .collect()
        };
        Self {
            codes,
            scales: of(&coded.scale),
            zeros: of(&coded.zero).into_iter().map(|z| z as u8).collect(),
            sums,
        }
    }
}

/// Row ranges of the strips of a weight.
pub(crate) fn strips(rows: usize) -> Vec<std::ops::Range<usize>> {
    (0..rows)
        .step_by(LANES)
        .map(|start| start..(start + LANES).min(rows))
        .collect()
}

/// The rows of one strip, a lane a position; missing rows and padding are zero.
pub(crate) fn gather(
    weight: MatRef<'_, f32>,
    rows: impl IntoIterator<Item = usize>,
    layout: &Layout,
) -> Vec<Lane> {
    let mut strip = vec![Lane::ZERO; layout.padded];
    for (lane, row) in rows.into_iter().enumerate() {
        let row = weight.row(row);
        for column in 0..layout.columns {
            strip[layout.position(column)].0[lane] = row[column];
        }
    }
    strip
}

/// Strips back to one weight, first to last, with their sums.
pub(crate) fn assemble(
    scheme: &Scheme,
    shape: [usize; 2],
    strips: Vec<StripResult>,
) -> Result<(QuantizedWeight, Sums), SolveError> {
    let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
    let mut sums = Sums::default();
    for strip in strips {
        codes.extend(strip.codes);
        scales.extend(strip.scales);
        zeros.extend(strip.zeros);
        sums.add(&strip.sums);
    }
    Ok((
        QuantizedWeight::new(*scheme, shape, codes, scales, zeros)?,
        sums,
    ))
}

/// Refuses a weight of another width or with a number that is none.
pub(crate) fn check_weight(weight: MatRef<'_, f32>, columns: usize) -> Result<(), SolveError> {
    if weight.ncols() != columns {
        return Err(SolveError::Shape {
            part: "input features of the statistics",
            found: columns,
            wanted: weight.ncols(),
        });
    }
    if columns == 0 || weight.nrows() == 0 {
        return Err(SolveError::Shape {
            part: "elements of the weight",
            found: 0,
            wanted: 1,
        });
    }
    for row in 0..weight.nrows() {
        let values = weight.row(row);
        for column in 0..columns {
            if !values[column].is_finite() {
                return Err(SolveError::WeightNotFinite {
                    row,
                    column,
                    value: values[column],
                });
            }
        }
    }
    Ok(())
}

/// Columns in panels of [`PANEL`]: `panels[p][i][c] = matrix(i, p * PANEL + c)` for the first `rows(p)` rows.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    data: Vec<[f32; PANEL]>,
    size: usize,
    triangular: bool,
}

impl Panels {
    /// All of a `size x size` matrix, `size` a multiple of [`PANEL`].
    pub(crate) fn full(size: usize) -> Self {
        Self {
            data: vec![[0.0; PANEL]; size / PANEL * size],
            size,
            triangular: false,
        }
    }

    /// The upper triangle, whole panels of it.
    pub(crate) fn upper(size: usize) -> Self {
        let panels = size / PANEL;
        Self {
            data: vec![[0.0; PANEL]; PANEL * panels * (panels + 1) / 2],
            size,
            triangular: true,
        }
    }

    fn range(&self, panel: usize) -> std::ops::Range<usize> {
        if self.triangular {
            let start = PANEL * panel * (panel + 1) / 2;
            start..start + PANEL * (panel + 1)
        } else {
            panel * self.size..(panel + 1) * self.size
        }
    }

    /// Rows of one panel, from the first.
    pub(crate) fn panel(&self, panel: usize) -> &[[f32; PANEL]] {
        &self.data[self.range(panel)]
    }

    pub(crate) fn panel_mut(&mut self, panel: usize) -> &mut [[f32; PANEL]] {
        let range = self.range(panel);
        &mut self.data[range]
    }

    /// Moves a full matrix from the plain layout to another one of the same columns.
    pub(crate) fn relayout(&self, layout: &Layout) -> Self {
        let mut moved = Self::full(layout.padded);
        for column in 0..layout.columns {
            let from = self.panel(column / PANEL);
            let at = layout.position(column);
            let to = moved.panel_mut(at / PANEL);
            for row in 0..layout.columns {
                to[layout.position(row)][at % PANEL] = from[row][column % PANEL];
            }
        }
        moved
    }
}
