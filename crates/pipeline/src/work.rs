//! The work folder: what a killed run leaves behind, and where the next one goes on.
//!
//! `OUT/halfbyte/work/` holds, for every finished block, `block-0007.safetensors` (the codes, scales and zero points
//! of its linears, in no format's layout, and tensors beside them that changed, under their own names) and
//! `block-0007.json` (what it holds, and the records); `stream-0008.bin`, the residual stream
//! all windows carry into block 8; and `state.json`, which names the run by its fingerprint and says how many
//! blocks are done. Where scales and norms were tuned in the end, `tuned-0007.safetensors` stand beside the blocks and
//! `tuned.safetensors` holds the norms; state.json then says so; `float-stream.bin` is what the float model's last block gave
//! where tuning is to come and that model walked along. Where a finished run's codes are read back for one more export,
//! `changed.safetensors` has the tensors of no block that had changed. `budget.json` has the widths where they were chosen. Every file
//! is written beside and renamed, state.json last, so a run that dies at any moment leaves a folder whose state.json tells the truth. The stream is large and a
//! disk may be slow, so it is saved only as often as costs a twentieth of the time; blocks solved since are solved
//! again. Every block names its run too, and none of another run is read. Where the folder is another run's, nothing is done
//! unless a fresh start is asked for; then its state goes first. It goes first as well when the folder is removed, so that
//! half a folder is never taken for a whole one.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use halfbyte_checkpoint::{
    Dtype, SafetensorsWriter, TensorInfo, create_folder, remove_file, remove_folder,
    remove_partial_files, write_file, write_json,
};
use halfbyte_quant::{
    BlockScales, Codebook, CodebookWeight, CodedWeight, GroupSize, NestedScales, QuantizedWeight,
    Scheme,
};
use halfbyte_report::{BudgetRecord, LinearRecord, TuneRecord};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::finished::unfinished;

/// A run's folder of finished blocks.
#[derive(Debug)]
pub(crate) struct Work {
    folder: PathBuf,
    fingerprint: String,
    /// When the stream was saved last, and how long that took.
    saved: Option<(Instant, Duration)>,
    /// How the blocks were tuned after they were solved, if they were: the tuned files are then the ones to read.
    tuned: Option<TuneRecord>,
}

/// Work done between two saves, in units of the time a save takes.
const WORK_PER_SAVE: u32 = 20;

/// The word under which a file of tensors names its run.
const FINGERPRINT: &str = "fingerprint";

/// One quantized linear of a finished block.
#[derive(Clone, Debug)]
pub(crate) struct Solved {
    /// Module path, such as `model.layers.3.mlp.up_proj`.
    pub(crate) module: String,
    pub(crate) weight: CodedWeight,
}

/// How many blocks the run in `out` would go on after if it were stopped now. Not every finished block is among them: what the
/// next one needs is written only when that is worth its time.
pub fn blocks_kept(out: &Path) -> usize {
    let state = std::fs::read(out.join("halfbyte/work/state.json")).ok();
    let state: Option<State> = state.and_then(|text| serde_json::from_slice(&text).ok());
    state.map_or(0, |state| state.blocks_done)
}

#[derive(Serialize, Deserialize)]
struct State {
    fingerprint: String,
    blocks_done: usize,
    #[serde(default)]
    tuned: Option<TuneRecord>,
}

#[derive(Serialize, Deserialize)]
struct BudgetFile {
    fingerprint: String,
    budget: BudgetRecord,
}

#[derive(Serialize, Deserialize)]
struct BlockFile {
    /// The run's.
    fingerprint: String,
    linears: Vec<Entry>,
    /// Tensors beside the quantized ones that came out changed.
    replaced: Vec<String>,
    records: Vec<LinearRecord>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    module: String,
    shape: [usize; 2],
    coding: CodingEntry,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CodingEntry {
    Grid {
        bits: u8,
        group_size: i64,
        sym: bool,
    },
    Codebook {
        codebook: String,
        block_size: usize,
        double_quant: bool,
    },
}

/// What was found when a work folder was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) work: Work,
    /// Blocks that an earlier process of the same run finished.
    pub(crate) done: usize,
    /// Why there are none although there were, if that is so.
    pub(crate) lost: Option<String>,
}

impl Work {
    /// The work folder of the run in `out`.
    pub(crate) fn place(out: &Path) -> PathBuf {
        out.join("halfbyte").join("work")
    }

    /// Opens `OUT/halfbyte/work`, creating it, and counts the blocks an earlier run of the same fingerprint finished.
    ///
    /// # Errors
    /// Another run's blocks, unless `fresh`, which removes them.
    pub(crate) fn open(out: &Path, fingerprint: String, fresh: bool) -> Result<Opened> {
        let mut opened = Self::open_in(out, Self::place(out), fingerprint.clone(), fresh)?;
        if let Err(error) = opened.work.check_blocks(opened.done) {
            opened = Self::open(out, fingerprint, true)?;
            opened.lost = Some(damaged(&error));
        }
        Ok(opened)
    }

    /// The same in a folder of the caller's choice, whose blocks may lie elsewhere and are for the caller to look at.
    pub(crate) fn open_in(
        out: &Path,
        folder: PathBuf,
        fingerprint: String,
        fresh: bool,
    ) -> Result<Opened> {
        let mut work = Self {
            fingerprint,
            ..Self::stateless(folder)
        };
        let mut done = 0;
        match work.state() {
            Some(state) if state.fingerprint != work.fingerprint && !fresh => {
                return Err(unfinished(out));
            }
            Some(state) if !fresh => {
                work.tuned = state.tuned;
                done = state.blocks_done;
            }
            _ => (),
        }
        // Without a state that can be believed there is nothing to keep but what was chosen for this very run.
        if fresh || !work.has_state() {
            work.remove_all()?;
        }
        create_folder(&work.folder)?;
        remove_partial_files(&work.folder)?;
        if !work.has_state() {
            work.write_state(0)?;
        }
        Ok(Opened {
            work,
            done,
            lost: None,
        })
    }

    fn has_state(&self) -> bool {
        self.folder.join("state.json").exists()
    }

    /// Whether there is unfinished work of such a fingerprint.
    pub(crate) fn has_begun(out: &Path, is_such: impl Fn(&str) -> bool) -> bool {
        let state = Self::stateless(Self::place(out)).state();
        state.is_some_and(|state| is_such(&state.fingerprint))
    }

    /// Whether the folder's state is of this fingerprint.
    pub(crate) fn has_state_of(&self, fingerprint: &str) -> bool {
        let state = self.state();
        state.is_some_and(|state| state.fingerprint == fingerprint)
    }

    /// Removes what is left of this run's work, and what is left of a removal; another run's stays.
    pub(crate) fn clear(out: &Path, fingerprint: &str) -> Result<()> {
        let work = Self::stateless(Self::place(out));
        match work
            .state()
            .is_none_or(|state| state.fingerprint == fingerprint)
        {
            true => work.remove_all(),
            false => Ok(()),
        }
    }

    /// Whether all that a state promises is there and this run's.
    fn check_blocks(&self, done: usize) -> Result<()> {
        for block in 0..done {
            self.check_block(block)?;
            if self.tuned.is_some() {
                self.check_header(&self.file("tuned", block, "safetensors"))?;
            }
        }
        match self.tuned {
            Some(_) => self.check_header(&self.replaced_file()),
            None => Ok(()),
        }
    }

    /// Whether a finished block is whole and this run's.
    pub(crate) fn check_block(&self, block: usize) -> Result<()> {
        self.block_file(block)?;
        self.check_header(&self.file("block", block, "safetensors"))
    }

    /// Whether a file of tensors is whole and this run's.
    fn check_header(&self, path: &Path) -> Result<()> {
        let place = || format!("{}: cannot be read", path.display());
        let file = std::fs::File::open(path).with_context(place)?;
        let bytes = file.metadata().with_context(place)?.len();
        let mut start = vec![0; 8];
        std::io::Read::read_exact(&mut &file, &mut start).with_context(place)?;
        let length = u64::from_le_bytes(start[..8].try_into()?).min(bytes);
        start.resize(8 + length as usize, 0);
        std::io::Read::read_exact(&mut &file, &mut start[8..]).with_context(place)?;
        let (header, metadata) = SafeTensors::read_metadata(&start)
            .or_else(|error| match error {
                // the tensors themselves were not read
                safetensors::SafeTensorError::MetadataIncompleteBuffer => {
                    let metadata = serde_json::from_slice(&start[8..])
                        .map_err(safetensors::SafeTensorError::InvalidHeaderDeserialization)?;
                    Ok((length as usize, metadata))
                }
                error => Err(error),
            })
            .with_context(place)?;
        let wanted = 8 + header as u64 + metadata.data_len() as u64;
        anyhow::ensure!(bytes == wanted, "{}: cut short", path.display());
        self.check_mark(path, metadata.metadata().as_ref())
    }

    /// Whether a file's metadata names this run.
    fn check_mark(&self, path: &Path, metadata: Option<&HashMap<String, String>>) -> Result<()> {
        let found = metadata.and_then(|words| words.get(FINGERPRINT));
        anyhow::ensure!(
            found == Some(&self.fingerprint),
            "{}: of another run; run again with --fresh",
            path.display()
        );
        Ok(())
    }

    /// Says whose blocks these are, for a folder whose state is kept elsewhere.
    pub(crate) fn belong_to(&mut self, fingerprint: &str) {
        fingerprint.clone_into(&mut self.fingerprint);
    }

    /// Blocks of a folder whose state is kept elsewhere; nothing is made or cleared.
    pub(crate) fn stateless(folder: PathBuf) -> Self {
        Self {
            folder,
            fingerprint: String::new(),
            saved: None,
            tuned: None,
        }
    }

    /// Where this run may spill activations.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn state(&self) -> Option<State> {
        let text = std::fs::read(self.folder.join("state.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn file(&self, name: &str, block: usize, extension: &str) -> PathBuf {
        self.folder.join(format!("{name}-{block:04}.{extension}"))
    }

    /// Whether an earlier run, or this one, has tuned the blocks.
    pub(crate) fn is_tuned(&self) -> bool {
        self.tuned.is_some()
    }

    /// How they were tuned.
    pub(crate) fn tune_record(&self) -> Option<&TuneRecord> {
        self.tuned.as_ref()
    }

    /// Writes all blocks as tuned, and the tensors that were tuned beside them, then says so.
    pub(crate) fn save_tuned(
        &mut self,
        blocks: &[Vec<Solved>],
        replaced: &[(String, Vec<f32>)],
        record: &TuneRecord,
    ) -> Result<()> {
        for (block, solved) in blocks.iter().enumerate() {
            self.write_solved(&self.file("tuned", block, "safetensors"), solved, &[])?;
        }
        self.write_solved(&self.replaced_file(), &[], replaced)?;
        self.tuned = Some(record.clone());
        self.write_state(blocks.len())
    }

    fn replaced_file(&self) -> PathBuf {
        self.folder.join("tuned.safetensors")
    }

    /// The tensors beside the quantized ones that solving a block changed, flat.
    pub(crate) fn replaced(&self, block: usize) -> Result<HashMap<String, Vec<f32>>> {
        let names = self.block_file(block)?.replaced;
        if names.is_empty() {
            return Ok(HashMap::new());
        }
        let wanted = |name: &str| names.iter().any(|n| n == name);
        read_floats(&self.file("block", block, "safetensors"), wanted)
    }

    /// Those of all blocks that tuning changed, and those of no block that were kept as changed.
    pub(crate) fn changed(&self) -> Result<HashMap<String, Vec<f32>>> {
        let kept = self.changed_file();
        match self.tuned {
            Some(_) => read_floats(&self.replaced_file(), |_| true),
            None if kept.exists() => read_floats(&kept, |_| true),
            None => Ok(HashMap::new()),
        }
    }

    /// Keeps tensors of no block that came out other than they were, flat.
    pub(crate) fn save_changed(&self, changed: &[(String, Vec<f32>)]) -> Result<()> {
        self.write_solved(&self.changed_file(), &[], changed)
    }

    fn changed_file(&self) -> PathBuf {
        self.folder.join("changed.safetensors")
    }

    /// Writes a finished block, with the tensors beside its linears that changed; and, when it is time, the stream
    /// behind it and the state that says so. After the last block there is no stream to carry on and the state is
    /// always written.
    pub(crate) fn save(
        &mut self,
        block: usize,
        solved: &[Solved],
        replaced: &[(String, Vec<f32>)],
        records: &[LinearRecord],
        stream: Option<&dyn Fn() -> Result<Vec<u16>>>,
    ) -> Result<()> {
        self.write_block(block, solved, replaced, records)?;
        self.advance(block, stream)
    }

    /// Writes a finished block, and no word of it in the state.
    pub(crate) fn write_block(
        &self,
        block: usize,
        solved: &[Solved],
        replaced: &[(String, Vec<f32>)],
        records: &[LinearRecord],
    ) -> Result<()> {
        self.write_solved(&self.file("block", block, "safetensors"), solved, replaced)?;
        let linears = solved.iter().map(|s| Entry {
            module: s.module.clone(),
            shape: s.weight.shape(),
            coding: match &s.weight {
                CodedWeight::Grid(weight) => CodingEntry::Grid {
                    bits: weight.scheme().bits(),
                    group_size: weight.scheme().group_size().as_i64(),
                    sym: weight.scheme().sym(),
                },
                CodedWeight::Codebook(weight) => CodingEntry::Codebook {
                    codebook: weight.codebook().as_str().to_owned(),
                    block_size: weight.block_size(),
                    double_quant: weight.scheme().double_quant,
                },
            },
        });
        write_json(
            &self.file("block", block, "json"),
            &BlockFile {
                fingerprint: self.fingerprint.clone(),
                linears: linears.collect(),
                replaced: replaced.iter().map(|(name, _)| name.clone()).collect(),
                records: records.to_vec(),
            },
        )?;
        Ok(())
    }

    fn write_solved(
        &self,
        path: &Path,
        solved: &[Solved],
        replaced: &[(String, Vec<f32>)],
    ) -> Result<()> {
        let parts: Vec<Part> = solved.iter().flat_map(parts).collect();
        let mut infos: Vec<TensorInfo> = parts
            .iter()
            .map(|part| TensorInfo {
                name: part.name.clone(),
                dtype: part.dtype,
                shape: part.shape.clone(),
            })
            .collect();
        infos.extend(replaced.iter().map(|(name, values)| TensorInfo {
            name: name.clone(),
            dtype: Dtype::F32,
            shape: vec![values.len()],
        }));
        let mut writer =
            SafetensorsWriter::create_with(path, &infos, &[(FINGERPRINT, &self.fingerprint)])?;
        for part in &parts {
            writer.write(&part.name, &part.bytes)?;
        }
        for (name, values) in replaced {
            writer.write(name, &float_bytes(values))?;
        }
        Ok(writer.finish()?)
    }

    /// Says that a block is done, when it is time; see [`Work::save`].
    pub(crate) fn advance(
        &mut self,
        block: usize,
        stream: Option<&dyn Fn() -> Result<Vec<u16>>>,
    ) -> Result<()> {
        let due = self
            .saved
            .is_none_or(|(at, took)| at.elapsed() > WORK_PER_SAVE * took);
        match stream {
            Some(_) if !due => Ok(()),
            Some(stream) => {
                let start = Instant::now();
                write_bits(&self.stream_file(block + 1), &stream()?)?;
                self.write_state(block + 1)?;
                self.saved = Some((Instant::now(), start.elapsed()));
                Ok(())
            }
            None => self.write_state(block + 1),
        }
    }

    /// Says how many blocks are done, then removes the streams of earlier ones: the state never names a stream that is
    /// not whole.
    fn write_state(&self, blocks_done: usize) -> Result<()> {
        let fingerprint = self.fingerprint.clone();
        write_json(
            &self.folder.join("state.json"),
            &State {
                fingerprint,
                blocks_done,
                tuned: self.tuned.clone(),
            },
        )?;
        for earlier in (0..blocks_done).map(|block| self.stream_file(block)) {
            if earlier.exists() {
                remove_file(&earlier)?;
            }
        }
        Ok(())
    }

    fn stream_file(&self, blocks_done: usize) -> PathBuf {
        self.folder.join(format!("stream-{blocks_done:04}.bin"))
    }

    /// The stream an earlier run carried out of its last saved block.
    pub(crate) fn stream(&self, blocks_done: usize) -> Result<Vec<u16>> {
        read_bits(&self.stream_file(blocks_done))
    }

    /// Keeps the float model's last residual streams for tuning.
    pub(crate) fn save_float_stream(&self, bits: &[u16]) -> Result<()> {
        write_bits(&self.float_stream_file(), bits)
    }

    /// What [`Work::save_float_stream`] kept.
    pub(crate) fn float_stream(&self) -> Result<Vec<u16>> {
        read_bits(&self.float_stream_file())
    }

    fn float_stream_file(&self) -> PathBuf {
        self.folder.join("float-stream.bin")
    }

    /// Bits an earlier run of the same fingerprint shared out.
    pub(crate) fn budget(&self) -> Result<Option<BudgetRecord>> {
        let path = self.folder.join("budget.json");
        let Ok(text) = std::fs::read(&path) else {
            return Ok(None);
        };
        let place = || format!("{}: run again with --fresh", path.display());
        let file: BudgetFile = serde_json::from_slice(&text).with_context(place)?;
        Ok((file.fingerprint == self.fingerprint).then_some(file.budget))
    }

    /// Keeps the bits shared out for a run that goes on later.
    pub(crate) fn save_budget(&self, budget: &BudgetRecord) -> Result<()> {
        let file = BudgetFile {
            fingerprint: self.fingerprint.clone(),
            budget: budget.clone(),
        };
        Ok(write_json(&self.folder.join("budget.json"), &file)?)
    }

    /// The records of a finished block's linears.
    pub(crate) fn records(&self, block: usize) -> Result<Vec<LinearRecord>> {
        Ok(self.block_file(block)?.records)
    }

    /// The linears of a finished block.
    pub(crate) fn load(&self, block: usize) -> Result<Vec<Solved>> {
        let name = if self.tuned.is_some() {
            "tuned"
        } else {
            "block"
        };
        let path = self.file(name, block, "safetensors");
        let bytes =
            std::fs::read(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
        let place = || {
            format!(
                "{}: not a finished block; run again with --fresh",
                path.display()
            )
        };
        let tensors = SafeTensors::deserialize(&bytes).with_context(place)?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).with_context(place)?;
        self.check_mark(&path, metadata.metadata().as_ref())?;
        let read = |entry: &Entry| -> Result<Solved> {
            Ok(Solved {
                module: entry.module.clone(),
                weight: read_weight(&tensors, entry)?,
            })
        };
        self.block_file(block)?
            .linears
            .iter()
            .map(|entry| read(entry).with_context(place))
            .collect()
    }

    fn block_file(&self, block: usize) -> Result<BlockFile> {
        let path = self.file("block", block, "json");
        let text =
            std::fs::read(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
        let file: BlockFile = serde_json::from_slice(&text)
            .with_context(|| format!("{}: run again with --fresh", path.display()))?;
        anyhow::ensure!(
            file.fingerprint == self.fingerprint,
            "{}: of another run; run again with --fresh",
            path.display()
        );
        Ok(file)
    }

    /// Removes the folder once everything is exported.
    pub(crate) fn remove(self) -> Result<()> {
        self.remove_all()
    }

    /// Removes the folder, its state first, so that what a kill leaves of it is not believed.
    fn remove_all(&self) -> Result<()> {
        remove_file(&self.folder.join("state.json"))?;
        Ok(remove_folder(&self.folder)?)
    }
}

/// What is said where finished blocks are gone or cut.
pub(crate) fn damaged(error: &anyhow::Error) -> String {
    format!("the work folder is damaged ({error:#}); starting over")
}

fn write_bits(path: &Path, bits: &[u16]) -> Result<()> {
    let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
    Ok(write_file(path, &bytes)?)
}

fn read_bits(path: &Path) -> Result<Vec<u16>> {
    let bytes =
        std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let pairs = bytes.chunks_exact(2);
    Ok(pairs.map(|b| u16::from_le_bytes([b[0], b[1]])).collect())
}

/// The wanted tensors of a file, flat.
fn read_floats(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<HashMap<String, Vec<f32>>> {
    let place = || format!("{}: run again with --fresh", path.display());
    let bytes = std::fs::read(path).with_context(place)?;
    let tensors = SafeTensors::deserialize(&bytes).with_context(place)?;
    let found = tensors.iter().filter(|(name, _)| wanted(name));
    Ok(found
        .map(|(name, view)| (name.to_owned(), floats(view.data())))
        .collect())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// A linear's weight from its parts.
fn read_weight(tensors: &SafeTensors<'_>, entry: &Entry) -> Result<CodedWeight> {
    let part = |name: &str| -> Result<&[u8]> {
        Ok(tensors.tensor(&format!("{}.{name}", entry.module))?.data())
    };
    let codes = part("codes")?.to_vec();
    Ok(match &entry.coding {
        CodingEntry::Grid {
            bits,
            group_size,
            sym,
        } => {
            let scheme = Scheme::new(*bits, GroupSize::from_i64(*group_size)?, *sym)?;
            let (scales, zeros) = (floats(part("scales")?), part("zeros")?.to_vec());
            QuantizedWeight::new(scheme, entry.shape, codes, scales, zeros)?.into()
        }
        CodingEntry::Codebook {
            codebook,
            block_size,
            double_quant,
        } => {
            let mut books = Codebook::ALL.into_iter();
            let codebook = books
                .find(|book| book.as_str() == codebook)
                .with_context(|| format!("codebook {codebook}"))?;
            let scales = if *double_quant {
                let offset = floats(part("offset")?);
                BlockScales::Nested(NestedScales {
                    codes: part("scale_codes")?.to_vec(),
                    map: floats(part("map")?),
                    absmax: floats(part("scales")?),
                    offset: *offset.first().context("offset")?,
                })
            } else {
                BlockScales::Float(floats(part("scales")?))
            };
            CodebookWeight::new(codebook, entry.shape, *block_size, codes, scales)?.into()
        }
    })
}

/// A tensor of a linear, as [`read_weight`] wants it.
struct Part<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

fn parts(solved: &Solved) -> Vec<Part<'_>> {
    let name = |part: &str| format!("{}.{part}", solved.module);
    let bytes = |part, shape, bytes| Part {
        name: name(part),
        dtype: Dtype::U8,
        shape,
        bytes: Cow::Borrowed(bytes),
    };
    let floats = |part, shape, values| Part {
        name: name(part),
        dtype: Dtype::F32,
        shape,
        bytes: Cow::Owned(float_bytes(values)),
    };
    let shape = solved.weight.shape().to_vec();
    match &solved.weight {
        CodedWeight::Grid(weight) => {
            let groups = vec![weight.out_features(), weight.n_groups()];
            vec![
                bytes("codes", shape, weight.codes()),
                floats("scales", groups.clone(), weight.scales()),
                bytes("zeros", groups, weight.zeros()),
            ]
        }
        CodedWeight::Codebook(weight) => {
            let mut parts = vec![bytes("codes", shape, weight.codes())];
            match weight.scales() {
                BlockScales::Float(scales) => {
                    parts.push(floats("scales", vec![scales.len()], scales));
                }
                BlockScales::Nested(nested) => parts.extend([
                    floats("scales", vec![nested.absmax.len()], &nested.absmax),
                    bytes("scale_codes", vec![nested.codes.len()], &nested.codes),
                    floats("map", vec![nested.map.len()], &nested.map),
                    floats("offset", vec![1], &[nested.offset]),
                ]),
            }
            parts
        }
    }
}

fn float_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use halfbyte_quant::dynamic_map;

    use super::*;

    #[test]
    fn every_kind_of_weight_comes_back_as_it_was_saved() {
        let codes: Vec<u8> = (0..96).map(|i| i % 16).collect();
        let codebook = |codebook, scales| {
            CodebookWeight::new(codebook, [2, 48], 32, codes.clone(), scales).unwrap()
        };
        let nested = NestedScales {
            codes: vec![3, 200, 255],
            map: dynamic_map().to_vec(),
            absmax: vec![0.7],
            offset: -0.1,
        };
        let scheme = Scheme::new(4, GroupSize::Columns(16), false).unwrap();
        let scales = vec![0.5, 0.25, 1.0, 2.0, 0.125, 0.75];
        let grid =
            QuantizedWeight::new(scheme, [2, 48], codes.clone(), scales, vec![7; 6]).unwrap();
        let weights: Vec<CodedWeight> = vec![
            grid.into(),
            codebook(Codebook::Nf4, BlockScales::Float(vec![0.5, 0.1, 3.0])).into(),
            codebook(Codebook::Fp4, BlockScales::Nested(nested)).into(),
        ];
        let solved: Vec<Solved> = weights
            .into_iter()
            .enumerate()
            .map(|(index, weight)| Solved {
                module: format!("model.layers.0.linear{index}"),
                weight,
            })
            .collect();
        let out = tempfile::tempdir().unwrap();
        let open = || Work::open(out.path(), "run".to_owned(), false).unwrap();
        let Opened { mut work, done, .. } = open();
        assert_eq!(done, 0);
        work.save(0, &solved, &[], &[], None).unwrap();
        let Opened { work, done, lost } = open();
        assert_eq!((done, lost), (1, None));
        let loaded = work.load(0).unwrap();
        assert_eq!(loaded.len(), solved.len());
        for (loaded, solved) in loaded.iter().zip(&solved) {
            assert_eq!(loaded.module, solved.module);
            assert_eq!(loaded.weight, solved.weight);
        }
    }

    fn linear(module: &str) -> Solved {
        let scheme = Scheme::new(4, GroupSize::Columns(16), true).unwrap();
        let weight = QuantizedWeight::new(scheme, [1, 16], vec![3; 16], vec![0.5], vec![8]);
        Solved {
            module: module.to_owned(),
            weight: weight.unwrap().into(),
        }
    }

    fn open(out: &Path, fingerprint: &str, fresh: bool) -> Result<Opened> {
        Work::open(out, fingerprint.to_owned(), fresh)
    }

    #[test]
    fn another_runs_work_is_not_given_up_unasked() {
        let out = tempfile::tempdir().unwrap();
        let mut work = open(out.path(), "one", false).unwrap().work;
        work.save(0, &[linear("a")], &[], &[], None).unwrap();
        let error = open(out.path(), "other", false).unwrap_err();
        assert_eq!(crate::exit_code(&error), 2);
        assert!(error.to_string().contains("unfinished work"), "{error}");
        assert_eq!(open(out.path(), "one", false).unwrap().done, 1);
        let other = open(out.path(), "other", true).unwrap();
        assert_eq!((other.done, other.lost), (0, None));
        assert!(!other.work.file("block", 0, "json").exists());
    }

    #[test]
    fn what_is_not_this_runs_or_not_whole_is_not_read() {
        let out = tempfile::tempdir().unwrap();
        let start = || {
            let mut work = open(out.path(), "one", true).unwrap().work;
            work.save(0, &[linear("a")], &[], &[], None).unwrap();
            work
        };
        // a block of another run under this run's state
        let mut work = start();
        let theirs = std::fs::read(work.file("block", 0, "safetensors")).unwrap();
        work.belong_to("other");
        assert!(work.load(0).is_err() && work.records(0).is_err());
        work.write_block(0, &[linear("a")], &[], &[]).unwrap();
        work.belong_to("one");
        assert!(work.load(0).is_err());
        let opened = open(out.path(), "one", false).unwrap();
        assert!(opened.done == 0 && opened.lost.unwrap().contains("of another run"));
        // a block that is cut
        let work = start();
        let path = work.file("block", 0, "safetensors");
        std::fs::write(&path, &theirs[..theirs.len() - 1]).unwrap();
        let opened = open(out.path(), "one", false).unwrap();
        assert!(opened.done == 0 && opened.lost.unwrap().contains("cut short"));
        // a folder whose removal was cut off
        let work = start();
        std::fs::remove_file(work.folder().join("state.json")).unwrap();
        let opened = open(out.path(), "one", false).unwrap();
        assert_eq!((opened.done, opened.lost), (0, None));
        assert!(!path.exists());
    }
}
