use crate::chart::{Point, Series, Shape};
use crate::markup::short;
use crate::text::kind;
use crate::{LinearRecord, RunRecord};

/// The linears of a block, and how charts tell them apart: colour by the part of the block, form within it.
pub(super) struct Kinds {
    /// Path inside the block, as `self_attn.q_proj`.
    paths: Vec<String>,
}

impl Kinds {
    pub(super) fn of(linears: &[LinearRecord]) -> Self {
        let mut paths: Vec<String> = Vec::new();
        for linear in linears {
            let path = local(linear);
            if !paths.iter().any(|known| known == path) {
                paths.push(path.to_owned());
            }
        }
        Self { paths }
    }

    pub(super) fn index(&self, linear: &LinearRecord) -> usize {
        let path = local(linear);
        self.paths
            .iter()
            .position(|known| known == path)
            .unwrap_or(0)
    }

    fn parent(path: &str) -> &str {
        path.rsplit_once('.').map_or("", |(parent, _)| parent)
    }

    fn name(&self, index: usize) -> &str {
        let path = &self.paths[index];
        path.rsplit('.').next().unwrap_or(path)
    }

    /// Class of the colour and form of the mark.
    fn look(&self, index: usize) -> (&'static str, Shape) {
        let parent = Self::parent(&self.paths[index]);
        let mut parents: Vec<&str> = self.paths.iter().map(|p| Self::parent(p)).collect();
        let within = parents[..index].iter().filter(|p| **p == parent).count();
        parents.dedup();
        let family = parents.iter().position(|p| *p == parent).unwrap_or(0);
        (["c0", "c1", "c2", "c3"][family % 4], Shape::ALL[within % 4])
    }

    /// For the grids: names, names without their common end, and whether another part of the block begins.
    pub(super) fn rows(&self) -> Vec<(String, String, bool)> {
        (0..self.paths.len())
            .map(|index| {
                let name = self.name(index);
                let gap = index > 0
                    && Self::parent(&self.paths[index]) != Self::parent(&self.paths[index - 1]);
                (
                    name.to_owned(),
                    name.trim_end_matches("_proj").to_owned(),
                    gap,
                )
            })
            .collect()
    }

    /// A series a kind.
    pub(super) fn series(
        &self,
        run: &RunRecord,
        value: fn(&LinearRecord) -> Option<(f64, f64)>,
    ) -> Vec<Series> {
        let points = |kind: usize| {
            let linears = run.linears.iter().enumerate();
            linears
                .filter(|(_, linear)| self.index(linear) == kind)
                .filter_map(|(row, linear)| {
                    let (x, y) = value(linear)?;
                    Some(Point {
                        x,
                        y,
                        title: title(linear),
                        row: Some(row_id(row)),
                        ..Point::default()
                    })
                })
                .collect()
        };
        (0..self.paths.len())
            .map(|kind| {
                let (class, shape) = self.look(kind);
                Series {
                    name: self.name(kind).to_owned(),
                    class,
                    shape,
                    line: false,
                    points: points(kind),
                }
            })
            .filter(|series| !series.points.is_empty())
            .collect()
    }
}

/// `self_attn.q_proj` of `model.layers.3.self_attn.q_proj` in block 3.
fn local(linear: &LinearRecord) -> &str {
    let block = format!(".{}.", linear.block);
    linear
        .linear
        .split_once(&block)
        .map_or(&linear.linear, |(_, path)| path)
}

pub(super) fn row_id(index: usize) -> String {
    format!("l{index}")
}

pub(super) fn title(linear: &LinearRecord) -> String {
    let mut out = format!(
        "block {} {}: loss {}",
        linear.block,
        kind(linear),
        short(linear.relative_loss)
    );
    if let Some(heldout) = linear.relative_loss_heldout {
        out += &format!(", held out {}", short(heldout));
    }
    out + &format!(
        ", rounding {}, {} bits",
        short(linear.relative_loss_rtn),
        linear.bits
    )
}
