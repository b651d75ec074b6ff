//! The cells of a grid held against a model: which can be, and how large they are.

use std::path::Path;

use anyhow::Result;
use halfbyte_checkpoint::{ModelFolder, TensorInfo};
use halfbyte_report::CellRecord;

use crate::config::{self, Pipeline, Sweep};
use crate::error::user_error;
use crate::export::tensor_infos;
use crate::quantize::Layout;
use crate::recipe::Settings;
use crate::work::Work;

/// A cell that can be solved.
pub(super) struct Cell<'a> {
    /// Its place among those.
    pub(super) place: usize,
    pub(super) name: &'a str,
    pub(super) pipeline: &'a Pipeline,
    pub(super) layout: Layout,
    pub(super) settings: Settings,
    /// Where its blocks lie.
    pub(super) work: Work,
}

impl Cell<'_> {
    /// Linears to solve.
    pub(super) fn n_linears(&self) -> usize {
        let modules = self.layout.modules.iter();
        modules.filter(|(_, coding)| coding.is_some()).count()
    }
}

/// All cells as records without figures of loss, and those that can be solved.
///
/// # Errors
/// None can be.
pub(super) fn cells<'a>(
    grid: &'a Sweep,
    folder: &ModelFolder,
    work: &Path,
) -> Result<(Vec<Cell<'a>>, Vec<CellRecord>)> {
    let (mut cells, mut records) = (Vec::new(), Vec::new());
    for cell in &grid.cells {
        let (layout, record) = held_against(cell, folder)?;
        records.push(record);
        if let (Ok(pipeline), Some(layout)) = (&cell.pipeline, layout) {
            let signed_scales = layout.signed_scales(pipeline);
            cells.push(Cell {
                place: cells.len(),
                name: &cell.name,
                pipeline,
                layout,
                settings: Settings::new(pipeline, signed_scales),
                work: Work::stateless(work.join(&cell.name)),
            });
        }
    }
    if cells.is_empty() {
        let reasons = records.iter().filter_map(|cell| cell.refused.as_ref());
        let first = reasons.into_iter().next().cloned().unwrap_or_default();
        return Err(user_error(
            format!(
                "sweep: none of the {} cells can be solved; the first: {first}",
                records.len()
            ),
            "change the axes, or `export`",
        ));
    }
    Ok((cells, records))
}

/// The same for a plan.
pub(crate) fn plan_cells(grid: &Sweep, folder: &ModelFolder) -> Result<Vec<CellRecord>> {
    let each = grid.cells.iter().map(|cell| held_against(cell, folder));
    Ok(each
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .map(|(_, record)| record)
        .collect())
}

fn held_against(cell: &config::Cell, folder: &ModelFolder) -> Result<(Option<Layout>, CellRecord)> {
    let mut record = CellRecord {
        cell: cell.name.clone(),
        method: cell.method.to_string(),
        recipe: cell.recipe.to_string(),
        bits: cell.bits,
        group_size: cell.group_size,
        sym: cell.sym,
        ..CellRecord::default()
    };
    let layout = cell
        .pipeline
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|pipeline| {
            let own_head = folder.has("lm_head.weight");
            Layout::of_config(pipeline, folder.config(), own_head)
                .map_err(|error| error.to_string())
        });
    let layout = match layout {
        Ok(layout) => layout,
        Err(reason) => {
            record.refused = Some(reason);
            return Ok((None, record));
        }
    };
    let (format, _) = layout.formats[0];
    let infos = tensor_infos(&layout, folder, format)?;
    record.bytes = Some(infos.iter().map(TensorInfo::bytes).sum());
    record.bits_per_weight = Some(layout.bits_per_weight(folder.config()));
    Ok((Some(layout), record))
}
