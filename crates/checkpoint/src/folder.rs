//! A model folder opened for reading: config, tensor index over one or many mapped safetensors files, tokenizer.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet, btree_map};
use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use crate::caught::caught;
use crate::config::expected_tensors;
use crate::growth::{MOST, growth};
use crate::header::read_header;
use crate::json::{parse_json, parse_value, without_mark};
use crate::{CheckpointError, ModelConfig, Result, copy_file, write_file};

/// A tensor as it lies in the file: row-major, little endian, not necessarily aligned.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Shape, `[out_features, in_features]` for linears.
    pub shape: &'a [usize],
    /// The elements' bytes.
    pub bytes: &'a [u8],
}

/// One file of an [`Identity`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Name inside the folder.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256 of its content, hex.
    pub sha256: String,
}

/// What a model is made of: files known by their content, whatever their names and times of change say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The folder, or `embedded:tiny`.
    pub source: String,
    /// SHA-256 of config.json, hex.
    pub config_sha256: String,
    /// The weight files, the tokenizer and the shard index, sorted by name.
    pub files: Vec<FileIdentity>,
    /// SHA-256 over all of the above but `source`, hex.
    pub fingerprint: String,
}

/// A model folder, opened and indexed. Reading is by shared reference from any thread.
#[derive(Debug)]
pub struct ModelFolder {
    home: Home,
    config: ModelConfig,
    raw_config: Value,
    weights: Vec<WeightFile>,
    tensors: BTreeMap<String, Entry>,
    notices: Vec<String>,
}

/// Where the files are.
#[derive(Clone, Debug)]
enum Home {
    Disk(PathBuf),
    Embedded(&'static EmbeddedModel),
}

/// A model inside this program.
#[derive(Debug)]
struct EmbeddedModel {
    name: &'static str,
    files: &'static [(&'static str, &'static [u8])],
}

const EMBEDDED: &[EmbeddedModel] = &[EmbeddedModel {
    name: "tiny",
    files: &[
        (
            "config.json",
            include_bytes!("../embedded/tiny/config.json"),
        ),
        (
            "generation_config.json",
            include_bytes!("../embedded/tiny/generation_config.json"),
        ),
        (
            "model.safetensors",
            include_bytes!("../embedded/tiny/model.safetensors"),
        ),
        (
            "tokenizer.json",
            include_bytes!("../embedded/tiny/tokenizer.json"),
        ),
        (
            "tokenizer_config.json",
            include_bytes!("../embedded/tiny/tokenizer_config.json"),
        ),
    ],
}];

/// A safetensors file in memory, by the system's pages or as part of the program.
#[derive(Debug)]
enum WeightFile {
    Mapped(Mmap),
    Static(&'static [u8]),
}

impl WeightFile {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
        }
    }
}

/// Where a tensor lies.
#[derive(Debug)]
struct Entry {
    weight_file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// The weight file of a model that is not sharded.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The list of the weight files of one that is.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// model.safetensors.index.json, as it stands.
#[derive(Deserialize)]
struct IndexFile {
    weight_map: BTreeMap<String, String>,
}

/// Missing tensors that a message names.
const NAMED_MISSING: usize = 5;

impl ModelFolder {
    /// Opens a folder with config.json and model.safetensors (or model.safetensors.index.json and its shards).
    /// Headers are read and checked; weights are not.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            let kind = match path.exists() {
                true => io::ErrorKind::NotADirectory,
                false => io::ErrorKind::NotFound,
            };
            return Err(CheckpointError::io("open model folder", path, kind.into()));
        }
        Self::open_home(Home::Disk(path.to_owned()))
    }

    /// Opens a model that is part of this program; `tiny` is the only one.
    pub fn embedded(name: &str) -> Result<Self> {
        let model = EMBEDDED
            .iter()
            .find(|model| model.name == name)
            .ok_or_else(|| CheckpointError::Embedded(name.to_owned()))?;
        Self::open_home(Home::Embedded(model))
    }

    fn open_home(home: Home) -> Result<Self> {
        let config_path = home.path("config.json");
        if !home.has("config.json") {
            return Err(CheckpointError::NoConfig(home.path("")));
        }
        let text = home.read("config.json")?;
        let (raw_config, no_numbers) = parse_value(&text, &config_path)?;
        let config = ModelConfig::parse(&text, &config_path)?;
        let mut notices = config.notices.clone();
        let no_numbers = no_numbers.into_iter();
        notices.extend(no_numbers.map(|key| {
            format!("config.json: {key}, which JSON does not have; written on as null")
        }));

        let mut weights = Vec::new();
        let mut tensors = BTreeMap::new();
        for name in weight_files(&home)? {
            let file = home.map(&name)?;
            index_tensors(file.bytes(), &home.path(&name), weights.len(), &mut tensors)?;
            weights.push(file);
        }
        let mut folder = Self {
            home,
            config,
            raw_config,
            weights,
            tensors,
            notices,
        };
        folder.pass_over_stale_quantization();
        folder.untie_differing_head();
        folder.tell_of_links()?;
        Ok(folder)
    }

    /// Takes a model for what its weights are where a quantization_config stands beside float ones, as merging an adapter
    /// that was trained on a quantized model leaves it.
    fn pass_over_stale_quantization(&mut self) {
        if self.config.quantization_config.is_none() || !self.is_float() {
            return;
        }
        self.config.quantization_config = None;
        if let Value::Object(keys) = &mut self.raw_config {
            keys.shift_remove("quantization_config");
        }
        self.notices.push(
            "config.json: quantization_config is passed over, since all weights are float ones; what is written has none of it"
                .to_owned(),
        );
    }

    /// Whether every linear has a weight of floats in the shape it should have, and nothing that goes with codes.
    fn is_float(&self) -> bool {
        let expected = expected_tensors(&self.config);
        let is_whole = |(name, shape): &(String, Vec<usize>)| {
            let entry = self.tensors.get(name);
            entry.is_some_and(|entry| is_float(entry.dtype) && &entry.shape == shape)
        };
        let linears = linears(&expected);
        expected.iter().all(is_whole) && !self.names().any(|name| part_of_codes(name, &linears))
    }

    /// Has the file's own head stand where config.json ties the head to the embedding and the file holds another one, as
    /// transformers 5 does. What is written says so too, so that no reader takes the embedding.
    fn untie_differing_head(&mut self) {
        const NAMES: [&str; 2] = ["model.embed_tokens.weight", "lm_head.weight"];
        let [Some(embedding), Some(head)] = NAMES.map(|name| self.tensors.get(name)) else {
            return;
        };
        let bytes = |entry: &Entry| &self.weights[entry.weight_file].bytes()[entry.range.clone()];
        let same = embedding.dtype == head.dtype
            && embedding.shape == head.shape
            && bytes(embedding) == bytes(head);
        if !self.config.tie_word_embeddings || same {
            return;
        }
        self.release(NAMES);
        self.config.tie_word_embeddings = false;
        if let Value::Object(keys) = &mut self.raw_config {
            keys.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
        }
        self.notices.push(
            "config.json: tie_word_embeddings is true, but the weights hold an lm_head.weight that is not the embedding: it is \
             taken as the head, as transformers 5 does, and what is written says tie_word_embeddings: false"
                .to_owned(),
        );
    }

    /// The folder's path, or `embedded:NAME`: for messages and records.
    pub fn place(&self) -> String {
        self.home.to_string()
    }

    /// The config, resolved.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What a reader should know before the model is used: keys that are not honoured, what was mended in reading. A
    /// sentence each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// config.json with its key order kept, valid JSON and true of the weights: what is written back with additions.
    pub fn raw_config(&self) -> &Value {
        &self.raw_config
    }

    /// Every tensor's name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether a tensor of this name exists.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor's bytes in place; nothing is copied.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let entry = self
            .tensors
            .get(name)
            .ok_or_else(|| CheckpointError::NoTensor {
                place: self.place(),
                name: name.to_owned(),
            })?;
        Ok(TensorView {
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: &self.weights[entry.weight_file].bytes()[entry.range.clone()],
        })
    }

    /// A tensor as `f32`, converted exactly from F32, F16 or BF16 and rounded from F64. Fails on another shape or type, and on the first
    /// value that is NaN or infinite.
    pub fn f32(&self, name: &str, expected_shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        self.check_shape(name, tensor.shape, expected_shape)?;
        let values = to_f32(tensor.dtype, tensor.bytes)
            .ok_or_else(|| self.element_type(name, tensor.dtype))?;
        match values.iter().position(|x| !x.is_finite()) {
            None => Ok(values),
            Some(index) => Err(CheckpointError::NotFinite {
                place: self.place(),
                name: name.to_owned(),
                value: values[index],
                index,
                row_column: match *tensor.shape {
                    [_, columns] => Some((index / columns, index % columns)),
                    _ => None,
                },
            }),
        }
    }

    /// Rows of a tensor as `f32`, in the order asked for: an embedding without reading the rest of it. Fails as
    /// [`Self::f32`] does; `rows` must be below the first extent.
    pub fn f32_rows(
        &self,
        name: &str,
        expected_shape: &[usize; 2],
        rows: &[u32],
    ) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        self.check_shape(name, tensor.shape, expected_shape)?;
        let row_bytes = tensor.bytes.len() / expected_shape[0].max(1);
        let mut values = Vec::with_capacity(rows.len() * expected_shape[1]);
        for &row in rows {
            let bytes = &tensor.bytes[row as usize * row_bytes..][..row_bytes];
            let decoded =
                to_f32(tensor.dtype, bytes).ok_or_else(|| self.element_type(name, tensor.dtype))?;
            if let Some(column) = decoded.iter().position(|x| !x.is_finite()) {
                return Err(CheckpointError::NotFinite {
                    place: self.place(),
                    name: name.to_owned(),
                    value: decoded[column],
                    index: row as usize * expected_shape[1] + column,
                    row_column: Some((row as usize, column)),
                });
            }
            values.extend(decoded);
        }
        Ok(values)
    }

    /// Gives the pages of these tensors back to the system, so that resident memory does not grow with the file.
    /// They are read again from the file when touched again. Unknown names and the embedded model are no-ops.
    pub fn release<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let mut ranges: Vec<_> = names
            .into_iter()
            .filter_map(|name| self.tensors.get(name))
            .map(|entry| (entry.weight_file, entry.range.clone()))
            .collect();
        ranges.sort_by_key(|(file, range)| (*file, range.start));
        // Neighbours are joined first: a page that two of them share is then given back as well.
        let mut joined: Vec<(usize, Range<usize>)> = Vec::new();
        for (file, range) in ranges {
            match joined.last_mut() {
                Some((last, whole)) if *last == file && range.start <= whole.end => {
                    whole.end = whole.end.max(range.end);
                }
                _ => joined.push((file, range)),
            }
        }
        for (file, range) in joined {
            if let WeightFile::Mapped(map) = &self.weights[file] {
                release_pages(map, range);
            }
        }
    }

    /// Tensors that no part of the model reads and that change nothing of what it computes, sorted: layers beyond
    /// `num_hidden_layers`, towers for pictures and sound, heads for other tasks. Buffers that every reader makes anew, a
    /// copy of a tied head and biases of zeros are left out.
    ///
    /// # Errors
    /// Tensors that the architecture has no place for and that would change what it computes: biases, norms or adapters in
    /// a block, and whatever stands at the embedding, the last norm or the head. Read without them it is another model.
    pub fn unread_tensors(&self) -> Result<Vec<String>> {
        let expected = expected_tensors(&self.config);
        let linears = linears(&expected);
        let known: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let is_quantized = self.config.quantization_config.is_some();
        let (mut harmless, mut harmful) = (Vec::new(), Vec::new());
        for name in self.names() {
            let is_read = known.contains(name)
                || (name == "lm_head.weight" && self.config.tie_word_embeddings)
                || (is_quantized && part_of_codes(name, &linears))
                || is_buffer(name)
                || (name.ends_with(".bias") && self.is_zero(name));
            if is_read {
                continue;
            }
            match self.changes_the_model(name) {
                true => harmful.push(name.to_owned()),
                false => harmless.push(name.to_owned()),
            }
        }
        match harmful.is_empty() {
            true => Ok(harmless),
            false => Err(self.another_model(harmful)),
        }
    }

    /// Whether a tensor that is not read stands where the model computes.
    fn changes_the_model(&self, name: &str) -> bool {
        // scales of a cache in 8 bits, which is not what the weights are
        let of_cache = [".k_scale", ".v_scale", ".q_scale", ".kv_scale"];
        match block_of(name) {
            Some(block) => {
                block < self.config.num_hidden_layers
                    && !of_cache.iter().any(|end| name.ends_with(end))
            }
            None => [
                "lm_head.",
                "model.embed",
                "model.norm",
                "model.final",
                "embed_",
                "base_model.",
            ]
            .iter()
            .any(|start| name.starts_with(start)),
        }
    }

    fn another_model(&self, names: Vec<String>) -> CheckpointError {
        let row = self.config.row();
        let bias = |part: &str| {
            names
                .iter()
                .all(|name| name.ends_with(".bias") && name.contains(part))
        };
        let hint = if names.iter().any(|name| name.contains("lora_")) {
            "merge the adapter into the weights first"
        } else if row.reads_attention_bias && bias(".self_attn.") {
            "write attention_bias: true into config.json if the model was made with them on all of q, k, v and o"
        } else if row.reads_mlp_bias && bias(".mlp.") {
            "write mlp_bias: true into config.json if the model was made with them"
        } else {
            "give the model_type that the model was made as, or leave these tensors out if it is known to do without"
        };
        CheckpointError::AnotherModel {
            place: self.place(),
            architecture: row.architecture,
            count: names.len(),
            first: names.into_iter().take(NAMED_MISSING).collect(),
            hint,
        }
    }

    /// Whether all elements are 0 or -0.
    fn is_zero(&self, name: &str) -> bool {
        let Ok(tensor) = self.tensor(name) else {
            return false;
        };
        to_f32(tensor.dtype, tensor.bytes).is_some_and(|values| values.iter().all(|&x| x == 0.0))
    }

    /// Checks that every tensor the config requires exists with its shape, in F64, F32, F16 or BF16.
    pub fn check_tensors(&self) -> Result<()> {
        self.check_tensors_but(&|_| false)
    }

    /// [`Self::check_tensors`] without those that `skip` names, such as weights that are there as codes.
    pub fn check_tensors_but(&self, skip: &dyn Fn(&str) -> bool) -> Result<()> {
        let mut expected = expected_tensors(&self.config);
        expected.retain(|(name, _)| !skip(name));
        let missing: Vec<_> = expected
            .iter()
            .map(|(name, _)| name)
            .filter(|name| !self.has(name))
            .collect();
        if !missing.is_empty() {
            return Err(CheckpointError::TensorsMissing {
                place: self.place(),
                count: missing.len(),
                first: missing.into_iter().take(NAMED_MISSING).cloned().collect(),
            });
        }
        for (name, shape) in &expected {
            let tensor = self.tensor(name)?;
            self.check_shape(name, tensor.shape, shape)?;
            if !is_float(tensor.dtype) {
                return Err(self.element_type(name, tensor.dtype));
            }
        }
        Ok(())
    }

    /// Names of the files that go with the model unchanged: tokenizer, chat template, generation config, code, licence.
    pub fn other_files(&self) -> Result<Vec<String>> {
        let mut names = self.home.list()?;
        names.retain(|name| goes_with_model(name) && self.home.is_own(name));
        Ok(names)
    }

    /// Tells of files that would go with the model but are links to somewhere else: what lies there is not the folder's to
    /// give away.
    fn tell_of_links(&mut self) -> Result<()> {
        let mut names = self.home.list()?;
        names.retain(|name| goes_with_model(name) && !self.home.is_own(name));
        self.notices.extend(names.iter().map(|name| {
            format!(
                "{name} is a link to a file outside the folder and is not copied into what is written; put the file itself \
                 there if it belongs to the model"
            )
        }));
        Ok(())
    }

    /// A file of the folder whole.
    pub fn read_file(&self, name: &str) -> Result<Cow<'static, [u8]>> {
        self.home.read(name)
    }

    /// Copies [`Self::other_files`] into the existing folder `out`, each atomically; returns their names. JSON is written
    /// without a byte order mark, which most readers of it refuse.
    pub fn copy_other_files(&self, out: &Path) -> Result<Vec<String>> {
        let names = self.other_files()?;
        for name in &names {
            if name.ends_with(".json") {
                write_file(&out.join(name), without_mark(&self.read_file(name)?))?;
                continue;
            }
            match &self.home {
                Home::Disk(folder) => copy_file(&folder.join(name), &out.join(name))?,
                Home::Embedded(_) => write_file(&out.join(name), &self.read_file(name)?)?,
            }
        }
        Ok(names)
    }

    /// tokenizer.json, ready to encode.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let fail = |reason: String| CheckpointError::Tokenizer {
            place: self.place(),
            reason,
        };
        if !self.home.has("tokenizer.json") {
            return Err(fail(
                "missing; the folder needs the tokenizer's own JSON file, which transformers writes with \
                 save_pretrained of a fast tokenizer"
                    .to_owned(),
            ));
        }
        let text = self.home.read("tokenizer.json")?;
        let growth = growth(without_mark(&text));
        if growth > MOST {
            return Err(fail(format!(
                "its steps would lengthen a text up to {growth:.0} times, wanted {MOST} or less; copy or download it again"
            )));
        }
        // A merge of pieces that are too short, for one, is met with a panic.
        match caught(|| Tokenizer::from_bytes(without_mark(&text))) {
            Ok(read) => read.map_err(|error| fail(format!("cannot be read: {error}"))),
            Err(panic) => Err(fail(format!(
                "cannot be read: it contradicts itself ({panic}); copy or download it again"
            ))),
        }
    }

    /// A fingerprint for resuming and provenance. Every file is read once, several at a time, at some gigabyte a second and
    /// thread.
    pub fn identity(&self) -> Result<Identity> {
        let config_sha256 = hex(&Sha256::digest(self.home.read("config.json")?));
        let mut names = weight_files(&self.home)?;
        names.extend(["tokenizer.json".to_owned(), INDEX.to_owned()]);
        names.retain(|name| self.home.has(name));
        names.sort();
        let files = self.file_identities(&names)?;

        let mut hash = Sha256::new();
        hash.update(&config_sha256);
        for file in &files {
            hash.update(format!("\n{} {} {}", file.name, file.bytes, file.sha256));
        }
        Ok(Identity {
            source: self.place(),
            config_sha256,
            files,
            fingerprint: hex(&hash.finalize()),
        })
    }

    /// The files' identities in order, a thread a core taking one file after the other.
    fn file_identities(&self, names: &[String]) -> Result<Vec<FileIdentity>> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut found = Vec::new();
            while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                found.push(self.home.file_identity(name));
            }
            found
        };
        let mut files = std::thread::scope(|scope| {
            let threads = threads.min(names.len());
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let done = workers.into_iter().flat_map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            done.collect::<Result<Vec<_>>>()
        })?;
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    fn check_shape(&self, name: &str, found: &[usize], wanted: &[usize]) -> Result<()> {
        if found == wanted {
            return Ok(());
        }
        Err(CheckpointError::Shape {
            place: self.place(),
            name: name.to_owned(),
            found: found.to_vec(),
            wanted: wanted.to_vec(),
        })
    }

    fn element_type(&self, name: &str, found: Dtype) -> CheckpointError {
        CheckpointError::ElementType {
            place: self.place(),
            name: name.to_owned(),
            found,
        }
    }
}

impl std::fmt::Display for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Disk(folder) => folder.display().fmt(f),
            Self::Embedded(model) => write!(f, "embedded:{}", model.name),
        }
    }
}

impl Home {
    /// A file's path, for messages when embedded.
    fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Disk(folder) if name.is_empty() => folder.clone(),
            Self::Disk(folder) => folder.join(name),
            Self::Embedded(model) => PathBuf::from(format!("embedded:{}/{name}", model.name)),
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Disk(folder) => folder.join(name).is_file(),
            Self::Embedded(model) => model.files.iter().any(|(file, _)| *file == name),
        }
    }

    /// Whether a file lies in the folder, be it by a link, or in the blobs of the hub cache that the folder is a snapshot of.
    fn is_own(&self, name: &str) -> bool {
        let Self::Disk(folder) = self else {
            return true;
        };
        let (Ok(folder), Ok(file)) = (folder.canonicalize(), folder.join(name).canonicalize())
        else {
            return false;
        };
        let snapshots = folder.parent().filter(|above| above.ends_with("snapshots"));
        let repository = snapshots.and_then(Path::parent);
        let blobs = repository.and_then(|repository| repository.join("blobs").canonicalize().ok());
        file.starts_with(&folder) || blobs.is_some_and(|blobs| file.starts_with(blobs))
    }

    /// Files directly in the folder, sorted.
    fn list(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = match self {
            Self::Embedded(model) => model.files.iter().map(|(f, _)| (*f).to_owned()).collect(),
            Self::Disk(folder) => {
                let fail = |error| CheckpointError::io("list", folder, error);
                fs::read_dir(folder)
                    .map_err(fail)?
                    .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                    .collect::<io::Result<Vec<_>>>()
                    .map_err(fail)?
                    .into_iter()
                    .filter(|name| folder.join(name).is_file())
                    .collect()
            }
        };
        names.sort();
        Ok(names)
    }

    fn embedded_bytes(model: &EmbeddedModel, name: &str) -> Result<&'static [u8]> {
        model
            .files
            .iter()
            .find(|(file, _)| *file == name)
            .map(|(_, bytes)| *bytes)
            .ok_or_else(|| {
                let path = PathBuf::from(format!("embedded:{}/{name}", model.name));
                CheckpointError::io("read", &path, io::ErrorKind::NotFound.into())
            })
    }

    fn read(&self, name: &str) -> Result<Cow<'static, [u8]>> {
        match self {
            Self::Embedded(model) => Self::embedded_bytes(model, name).map(Cow::Borrowed),
            Self::Disk(folder) => {
                let path = folder.join(name);
                fs::read(&path)
                    .map(Cow::Owned)
                    .map_err(|error| CheckpointError::io("read", &path, error))
            }
        }
    }

    fn map(&self, name: &str) -> Result<WeightFile> {
        match self {
            Self::Embedded(model) => Self::embedded_bytes(model, name).map(WeightFile::Static),
            Self::Disk(folder) => {
                let path = folder.join(name);
                let fail = |error| CheckpointError::io("read", &path, error);
                let file = fs::File::open(&path).map_err(fail)?;
                if file.metadata().map_err(fail)?.len() == 0 {
                    // An empty file cannot be mapped.
                    return Ok(WeightFile::Static(&[]));
                }
                // SAFETY: the map is read-only and private. Another process that cuts the file while it is read could
                // still fault this one; every reader of mapped weights takes that risk, and nothing here writes them.
                let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
                Ok(WeightFile::Mapped(map))
            }
        }
    }

    fn file_identity(&self, name: &str) -> Result<FileIdentity> {
        let mut hash = Sha256::new();
        let bytes = match self {
            Self::Embedded(model) => {
                let content = Self::embedded_bytes(model, name)?;
                hash.update(content);
                content.len() as u64
            }
            Self::Disk(folder) => {
                let path = folder.join(name);
                let fail = |error| CheckpointError::io("read", &path, error);
                let mut file = fs::File::open(&path).map_err(fail)?;
                let mut buffer = vec![0; 1 << 20];
                let mut bytes = 0;
                loop {
                    match file.read(&mut buffer) {
                        Ok(0) => break bytes,
                        Ok(n) => {
                            hash.update(&buffer[..n]);
                            bytes += n as u64;
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                        Err(error) => return Err(fail(error)),
                    }
                }
            }
        };
        Ok(FileIdentity {
            name: name.to_owned(),
            bytes,
            sha256: hex(&hash.finalize()),
        })
    }
}

/// Names of the weight files, sorted: the index's shards, or the single file.
fn weight_files(home: &Home) -> Result<Vec<String>> {
    if home.has(INDEX) {
        let path = home.path(INDEX);
        let index = parse_index(&home.read(INDEX)?, &path)?;
        for (shard, tensors) in &index {
            if !home.has(shard) {
                return Err(CheckpointError::ShardMissing {
                    index: path,
                    shard: shard.clone(),
                    n_tensors: tensors.len(),
                    first: tensors[0].clone(),
                });
            }
        }
        return Ok(index.into_keys().collect());
    }
    if home.has(SINGLE) {
        return Ok(vec![SINGLE.to_owned()]);
    }
    let mut others = home.list()?;
    others.retain(|name| {
        [
            ".bin",
            ".pt",
            ".pth",
            ".gguf",
            ".safetensors",
            ".msgpack",
            ".h5",
        ]
        .iter()
        .any(|end| name.ends_with(end))
    });
    Err(CheckpointError::NoWeights {
        folder: home.path(""),
        others,
    })
}

/// Weight files with the tensors that an index puts in each, both sorted.
pub(crate) fn parse_index(text: &[u8], path: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let index: IndexFile = parse_json(text, path)?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in index.weight_map {
        if !is_plain_name(&shard) {
            return Err(CheckpointError::Json {
                path: path.to_owned(),
                reason: format!("weight_map names '{shard}', wanted a file beside the index"),
            });
        }
        shards.entry(shard).or_default().push(tensor);
    }
    if shards.is_empty() {
        return Err(CheckpointError::Json {
            path: path.to_owned(),
            reason: "weight_map is empty".to_owned(),
        });
    }
    Ok(shards)
}

/// Whether a name stays inside the folder it is joined to.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}

/// Whether a file belongs to the model but is neither its config nor its weights.
pub fn goes_with_model(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
        "spiece.model",
        "chat_template.jinja",
        "chat_template.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
    ];
    let licence = ["LICENSE", "LICENCE", "NOTICE"]
        .iter()
        .any(|start| name.starts_with(start));
    !name.contains('/') && (NAMES.contains(&name) || licence || name.ends_with(".py"))
}

/// Adds a file's tensors to the index, after checking its header against its size.
fn index_tensors(
    bytes: &[u8],
    path: &Path,
    weight_file: usize,
    tensors: &mut BTreeMap<String, Entry>,
) -> Result<()> {
    check_frame(bytes, path)?;
    for found in read_header(bytes, path)? {
        let entry = Entry {
            weight_file,
            dtype: found.dtype,
            shape: found.shape,
            range: found.range,
        };
        match tensors.entry(found.name) {
            btree_map::Entry::Vacant(place) => drop(place.insert(entry)),
            btree_map::Entry::Occupied(place) => {
                return Err(CheckpointError::Header {
                    path: path.to_owned(),
                    reason: format!("{} stands in another weight file as well", place.key()),
                });
            }
        }
    }
    Ok(())
}

/// Tells files of another kind and cut ones from safetensors, by the first nine bytes and the size.
fn check_frame(bytes: &[u8], path: &Path) -> Result<()> {
    let wrong = |reason| CheckpointError::NotSafetensors {
        path: path.to_owned(),
        reason,
    };
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(wrong(
            "it is a git-lfs pointer; fetch the file with git lfs pull",
        ));
    }
    if bytes.starts_with(b"GGUF") {
        return Err(wrong(
            "it is a GGUF file; take the model's original checkpoint",
        ));
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return Err(wrong(
            "it is a zip archive as torch.save writes; convert it to safetensors",
        ));
    }
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(wrong(
            "it is shorter than the 8 bytes of the header's length; copy or download it again",
        ));
    };
    if bytes.get(8).is_some_and(|&b| b != b'{') {
        return Err(wrong(
            "no header follows the first 8 bytes; copy or download it again",
        ));
    }
    let header = u64::from_le_bytes(*length);
    if header > bytes.len() as u64 - 8 {
        return Err(CheckpointError::HeaderBeyondFile {
            path: path.to_owned(),
            header,
            bytes: bytes.len() as u64,
        });
    }
    Ok(())
}

/// Whether a tensor of this type is read as it stands.
fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// The modules of tensors of two dimensions: the linears, the embedding and a head of its own.
fn linears(expected: &[(String, Vec<usize>)]) -> HashSet<&str> {
    let weights = expected.iter().filter(|(_, shape)| shape.len() == 2);
    let modules = weights.filter_map(|(name, _)| name.strip_suffix(".weight"));
    modules.collect()
}

/// Whether a tensor is one that a linear's codes are made of, or that goes with them.
fn part_of_codes(tensor: &str, linears: &HashSet<&str>) -> bool {
    let mut modules = tensor.match_indices('.').map(|(at, _)| tensor.split_at(at));
    modules.any(|(module, part)| linears.contains(module) && part != ".weight" && part != ".bias")
}

/// Whether a tensor is a table that every reader makes anew, as old versions of transformers saved them.
fn is_buffer(name: &str) -> bool {
    [
        "rotary_emb.inv_freq",
        "rotary_emb.cos_cached",
        "rotary_emb.sin_cached",
        ".masked_bias",
        ".position_ids",
    ]
    .iter()
    .any(|end| name.ends_with(end))
}

/// The block that a tensor is of.
fn block_of(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("model.layers.")?;
    rest.split('.').next()?.parse().ok()
}

/// Little-endian elements as `f32`, exactly but for F64, which is rounded; `None` for other types.
fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        Dtype::F32 => Some(
            bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        ),
        Dtype::F64 => {
            let (elements, _) = bytes.as_chunks::<8>();
            Some(
                elements
                    .iter()
                    .map(|b| f64::from_le_bytes(*b) as f32)
                    .collect(),
            )
        }
        Dtype::F16 => Some(pairs.map(|b| f16::from_le_bytes(b).to_f32()).collect()),
        Dtype::BF16 => Some(pairs.map(|b| bf16::from_le_bytes(b).to_f32()).collect()),
        _ => None,
    }
}

/// A multiple of every page size in use.
#[cfg(unix)]
const PAGES: usize = 64 << 10;

/// Tells the system that the whole pages inside `range` are not needed.
#[cfg(unix)]
fn release_pages(map: &Mmap, range: Range<usize>) {
    // The map itself begins on a page, so offsets are rounded inward, never over a neighbour's bytes. At the end of
    // the file the last page belongs to no one else.
    let start = range.start.next_multiple_of(PAGES);
    let end = match range.end == map.len() {
        true => range.end,
        false => range.end / PAGES * PAGES,
    };
    if start >= end {
        return;
    }
    // SAFETY: the map is read-only and backed by a file, so dropped pages come back with the same bytes on the next
    // read; outstanding slices stay valid.
    let released = unsafe {
        map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
    };
    if let Err(error) = released {
        tracing::debug!("pages could not be given back: {error}");
    }
}

/// Other systems decide by themselves.
#[cfg(not(unix))]
fn release_pages(_map: &Mmap, _range: Range<usize>) {}

/// Whether this program holds a model of this name.
pub(crate) fn is_embedded(name: &str) -> bool {
    EMBEDDED.iter().any(|model| model.name == name)
}

/// The SHA-256 of some bytes, in hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::fixture::{config, message, tensors, write_model, write_tensors};
    use crate::{TensorInfo, expected_tensors};

    const ONE_FILE: u64 = u64::MAX;

    fn model(changes: Value, max_shard_bytes: u64) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path(), changes, max_shard_bytes);
        dir
    }

    fn open_message(dir: &TempDir) -> String {
        message(&ModelFolder::open(dir.path()).unwrap_err(), dir.path())
    }

    /// A model whose weights are exactly these.
    fn with_tensors(tensors: &[(TensorInfo, Vec<u8>)]) -> TempDir {
        let dir = model(json!({}), ONE_FILE);
        write_tensors(&dir.path().join(SINGLE), tensors);
        dir
    }

    fn llama_tensors() -> Vec<(TensorInfo, Vec<u8>)> {
        tensors(&config(json!({})).unwrap())
    }

    #[test]
    fn one_file_and_shards_hold_the_same_tensors() {
        let (single, sharded) = (model(json!({}), ONE_FILE), model(json!({}), 2000));
        let single = ModelFolder::open(single.path()).unwrap();
        let shards = ModelFolder::open(sharded.path()).unwrap();
        assert!(shards.weights.len() > 2);
        single.check_tensors().unwrap();
        shards.check_tensors().unwrap();
        assert!(single.names().eq(shards.names()));
        for name in single.names() {
            let (a, b) = (single.tensor(name).unwrap(), shards.tensor(name).unwrap());
            assert_eq!(
                (a.dtype, a.shape, a.bytes),
                (b.dtype, b.shape, b.bytes),
                "{name}"
            );
        }
    }

    #[test]
    fn tensors_read_back_as_written() {
        let dir = model(json!({}), ONE_FILE);
        let folder = ModelFolder::open(dir.path()).unwrap();
        for (info, bytes) in llama_tensors() {
            assert!(folder.has(&info.name));
            assert_eq!(folder.tensor(&info.name).unwrap().bytes, bytes);
        }
        let values = folder.f32("model.embed_tokens.weight", &[32, 16]).unwrap();
        assert_eq!(values[..3], [-3.0, -2.875, -2.75]);
    }

    #[test]
    fn every_sixteen_bit_pattern_converts_exactly() {
        // Independent oracle: the value by its bit fields, in f64.
        let value = |bits: u16, exponent_bits: u32| {
            let fraction_bits = 15 - exponent_bits;
            let bias = (1i32 << (exponent_bits - 1)) - 1;
            let exponent = i32::from((bits & 0x7fff) >> fraction_bits);
            let fraction =
                f64::from(bits & ((1 << fraction_bits) - 1)) / f64::from(1u32 << fraction_bits);
            let size = match exponent {
                0 => fraction * 2f64.powi(1 - bias),
                e if e == (1 << exponent_bits) - 1 => return None,
                e => (1.0 + fraction) * 2f64.powi(e - bias),
            };
            Some(if bits >> 15 == 1 { -size } else { size })
        };
        for (dtype, exponent_bits) in [(Dtype::F16, 5), (Dtype::BF16, 8)] {
            let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let found = to_f32(dtype, &bytes).unwrap();
            for bits in 0..=u16::MAX {
                let found = found[usize::from(bits)];
                match value(bits, exponent_bits) {
                    Some(wanted) => assert_eq!(f64::from(found), wanted, "{dtype} {bits:#x}"),
                    None => assert!(!found.is_finite()),
                }
            }
        }
        assert_eq!(to_f32(Dtype::F32, &1.5f32.to_le_bytes()), Some(vec![1.5]));
        assert_eq!(to_f32(Dtype::I32, &[0; 4]), None);
    }

    #[test]
    fn embedded_tiny_opens_whole_and_encodes() {
        let folder = ModelFolder::embedded("tiny").unwrap();
        folder.check_tensors().unwrap();
        assert_eq!(folder.place(), "embedded:tiny");
        assert!(!folder.has("lm_head.weight"));
        let norm = folder.f32("model.norm.weight", &[256]).unwrap();
        assert!(norm.iter().all(|x| x.abs() < 100.0));
        let encoding = folder.tokenizer().unwrap();
        let encoding = encoding.encode("fn main() {}", false).unwrap();
        assert!(!encoding.get_ids().is_empty());
        folder.release(["model.norm.weight"]);
        assert_eq!(folder.f32("model.norm.weight", &[256]).unwrap(), norm);
        let unknown = ModelFolder::embedded("huge").unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "no embedded model is called 'huge'; use embedded:tiny"
        );
    }

    #[test]
    fn raw_config_keeps_unknown_keys_and_their_order() {
        let folder = ModelFolder::embedded("tiny").unwrap();
        let text = include_str!("../embedded/tiny/config.json");
        let keys = text
            .lines()
            .filter(|line| line.starts_with("  \""))
            .map(|line| {
                let name = line.split('"').nth(1);
                name.unwrap()
            });
        assert!(keys.eq(folder.raw_config().as_object().unwrap().keys()));
        assert_eq!(folder.raw_config()["initializer_range"], 0.02);
    }

    #[test]
    fn tied_untied_and_tied_with_a_head_are_all_whole() {
        for tied in [true, false] {
            let dir = model(json!({"tie_word_embeddings": tied}), ONE_FILE);
            let folder = ModelFolder::open(dir.path()).unwrap();
            folder.check_tensors().unwrap();
            assert_eq!(folder.has("lm_head.weight"), !tied);
        }
        let dir = model(json!({"tie_word_embeddings": true}), ONE_FILE);
        write_tensors(&dir.path().join(SINGLE), &llama_tensors());
        let folder = ModelFolder::open(dir.path()).unwrap();
        folder.check_tensors().unwrap();
        assert!(folder.has("lm_head.weight"));
    }

    /// A tensor of so many elements of BF16, all of one value.
    fn tensor(name: &str, shape: &[usize], value: f32) -> (TensorInfo, Vec<u8>) {
        let elements = shape.iter().product();
        let info = TensorInfo {
            name: name.to_owned(),
            dtype: Dtype::BF16,
            shape: shape.to_vec(),
        };
        (info, bf16::from_f32(value).to_le_bytes().repeat(elements))
    }

    /// A folder with the config's tensors and more.
    fn with_more(changes: Value, more: &[(TensorInfo, Vec<u8>)]) -> TempDir {
        let dir = model(changes.clone(), ONE_FILE);
        let mut all = tensors(&config(changes).unwrap());
        all.extend_from_slice(more);
        write_tensors(&dir.path().join(SINGLE), &all);
        dir
    }

    #[test]
    fn a_head_that_differs_from_the_embedding_it_is_tied_to_unties_it() {
        let tied = json!({"tie_word_embeddings": true});
        let copy = {
            let mut copy = tensors(&config(tied.clone()).unwrap())[0].clone();
            copy.0.name = "lm_head.weight".to_owned();
            copy
        };
        let dir = with_more(tied.clone(), &[copy]);
        let folder = ModelFolder::open(dir.path()).unwrap();
        assert!(folder.config().tie_word_embeddings && folder.notices().is_empty());
        assert_eq!(folder.unread_tensors().unwrap(), [""; 0]);

        let dir = with_more(tied, &[tensor("lm_head.weight", &[32, 16], 0.5)]);
        let folder = ModelFolder::open(dir.path()).unwrap();
        folder.check_tensors().unwrap();
        assert!(!folder.config().tie_word_embeddings);
        assert_eq!(folder.raw_config()["tie_word_embeddings"], false);
        assert_eq!(folder.notices().len(), 1);
        assert!(folder.notices()[0].contains("lm_head.weight that is not the embedding"));
        assert_eq!(folder.unread_tensors().unwrap(), [""; 0]);
    }

    #[test]
    fn tensors_that_no_part_reads_are_listed_and_those_without_meaning_are_not() {
        let more = [
            tensor("model.layers.2.mlp.up_proj.weight", &[24, 16], 1.0),
            tensor("model.vision_tower.patch.weight", &[4, 4], 1.0),
            tensor("mtp.fc.weight", &[16, 32], 1.0),
            tensor("score.weight", &[2, 16], 1.0),
            tensor("model.layers.0.self_attn.k_scale", &[1], 1.0),
            tensor("model.layers.0.self_attn.rotary_emb.inv_freq", &[2], 1.0),
            tensor("model.rotary_emb.inv_freq", &[2], 1.0),
            tensor("model.layers.1.mlp.down_proj.bias", &[16], 0.0),
            tensor("lm_head.bias", &[32], -0.0),
        ];
        let dir = with_more(json!({}), &more);
        assert_eq!(
            ModelFolder::open(dir.path())
                .unwrap()
                .unread_tensors()
                .unwrap(),
            [
                "model.layers.0.self_attn.k_scale",
                "model.layers.2.mlp.up_proj.weight",
                "model.vision_tower.patch.weight",
                "mtp.fc.weight",
                "score.weight",
            ]
        );
        let embedded = ModelFolder::embedded("tiny").unwrap();
        assert_eq!(embedded.unread_tensors().unwrap(), [""; 0]);
    }

    #[test]
    fn tensors_that_would_change_the_model_are_refused() {
        let refused = |changes: Value, name: &str| {
            let dir = with_more(changes, &[tensor(name, &[4], 0.5)]);
            let folder = ModelFolder::open(dir.path()).unwrap();
            folder.check_tensors().unwrap();
            message(&folder.unread_tensors().unwrap_err(), dir.path())
        };
        assert_eq!(
            refused(json!({}), "model.layers.0.self_attn.q_proj.bias"),
            "DIR: the weights hold 1 tensor that LlamaForCausalLM does not compute with: \
             model.layers.0.self_attn.q_proj.bias; the result would be of another model; write attention_bias: true into \
             config.json if the model was made with them on all of q, k, v and o"
        );
        for (name, hint) in [
            ("model.layers.1.mlp.gate_proj.bias", "write mlp_bias: true"),
            (
                "model.layers.0.self_attn.q_norm.weight",
                "give the model_type",
            ),
            (
                "model.layers.1.pre_feedforward_layernorm.weight",
                "give the model_type",
            ),
            ("model.layers.0.input_layernorm.bias", "give the model_type"),
            ("model.layers.0.self_attn.sinks", "give the model_type"),
            (
                "model.layers.0.self_attn.q_proj.lora_A.weight",
                "merge the adapter",
            ),
            (
                "model.layers.0.mlp.down_proj.weight_scale",
                "give the model_type",
            ),
            ("model.norm.bias", "give the model_type"),
            ("model.embed_positions.weight", "give the model_type"),
            ("lm_head.bias", "give the model_type"),
        ] {
            let found = refused(json!({}), name);
            assert!(found.contains(name) && found.contains(hint), "{found}");
        }
        let qwen = json!({"model_type": "qwen2", "num_key_value_heads": 2});
        let found = refused(qwen, "model.layers.0.self_attn.o_proj.bias");
        assert!(found.contains("give the model_type"), "{found}");
    }

    #[test]
    fn a_quantization_config_beside_float_weights_is_passed_over() {
        let changes = || json!({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}});
        let dir = with_more(changes(), &[]);
        let folder = ModelFolder::open(dir.path()).unwrap();
        assert_eq!(folder.config().quantization_config, None);
        assert!(folder.raw_config().get("quantization_config").is_none());
        assert!(folder.notices()[0].contains("quantization_config is passed over"));
        // codes, or what goes with them, are believed
        for part in [
            "absmax",
            "weight.absmax",
            "qweight",
            "weight_scale",
            "weight_scale_inv",
        ] {
            let name = format!("model.layers.1.mlp.up_proj.{part}");
            let dir = with_more(changes(), &[tensor(&name, &[4], 0.5)]);
            let folder = ModelFolder::open(dir.path()).unwrap();
            assert!(folder.config().quantization_config.is_some(), "{part}");
            assert_eq!(folder.unread_tensors().unwrap(), [""; 0], "{part}");
        }
        let mut codes = llama_tensors();
        let up = codes
            .iter_mut()
            .find(|(info, _)| info.name.ends_with("1.mlp.up_proj.weight"));
        let (info, bytes) = up.unwrap();
        (info.dtype, info.shape) = (Dtype::U8, vec![24 * 16 / 2, 1]);
        bytes.truncate(24 * 16 / 2);
        let dir = with_more(changes(), &[]);
        write_tensors(&dir.path().join(SINGLE), &codes);
        let folder = ModelFolder::open(dir.path()).unwrap();
        assert!(folder.config().quantization_config.is_some());
    }

    #[test]
    fn files_with_a_byte_order_mark_are_read_and_written_without() {
        let dir = model(json!({}), 2000);
        for name in ["config.json", INDEX, "tokenizer.json"] {
            let path = dir.path().join(name);
            let text = fs::read(&path).unwrap();
            fs::write(&path, [b"\xef\xbb\xbf", text.as_slice()].concat()).unwrap();
        }
        let folder = ModelFolder::open(dir.path()).unwrap();
        folder.check_tensors().unwrap();
        folder.tokenizer().unwrap();
        let out = tempfile::tempdir().unwrap();
        folder.copy_other_files(out.path()).unwrap();
        assert!(
            fs::read(out.path().join("tokenizer.json"))
                .unwrap()
                .starts_with(b"{")
        );
    }

    #[test]
    fn numbers_that_json_lacks_are_told_and_written_as_null() {
        let dir = model(json!({}), ONE_FILE);
        let path = dir.path().join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(
            &path,
            text.replacen('{', "{\"time_step_limit\": [0.0, Infinity],", 1),
        )
        .unwrap();
        let folder = ModelFolder::open(dir.path()).unwrap();
        assert_eq!(folder.raw_config()["time_step_limit"], json!([0.0, null]));
        assert_eq!(
            folder.notices(),
            [
                "config.json: time_step_limit.1 is Infinity, which JSON does not have; written on as null"
            ]
        );
        fs::write(&path, text.replacen("10000.0", "NaN", 1)).unwrap();
        let refused = open_message(&dir);
        assert!(refused.contains("\"NaN\", expected f64"), "{refused}");
    }

    #[test]
    fn doubles_are_read_rounded() {
        let mut tensors = llama_tensors();
        let values: Vec<f64> = (0..16).map(|i| f64::from(i) / 3.0).collect();
        tensors[1].0.dtype = Dtype::F64;
        tensors[1].1 = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let dir = with_tensors(&tensors);
        let folder = ModelFolder::open(dir.path()).unwrap();
        folder.check_tensors().unwrap();
        let found = folder.f32(&tensors[1].0.name, &[16]).unwrap();
        assert!(
            found
                .iter()
                .zip(&values)
                .all(|(found, value)| *found == *value as f32)
        );
        assert_eq!(
            crate::encode_f32(&[0.1], Dtype::F64).unwrap(),
            f64::from(0.1f32).to_le_bytes()
        );
    }

    #[test]
    fn a_path_that_is_no_model_folder_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            open_message(&dir),
            "DIR holds no config.json; name the folder that has config.json and model.safetensors side by side"
        );
        let absent = ModelFolder::open(&dir.path().join("absent")).unwrap_err();
        assert_eq!(
            message(&absent, dir.path()),
            "cannot open model folder DIR/absent: entity not found"
        );
    }

    #[test]
    fn missing_weights_are_told_with_what_is_there_instead() {
        let dir = model(json!({}), ONE_FILE);
        fs::rename(
            dir.path().join(SINGLE),
            dir.path().join("pytorch_model.bin"),
        )
        .unwrap();
        assert_eq!(
            open_message(&dir),
            "DIR holds neither model.safetensors nor model.safetensors.index.json (found pytorch_model.bin); weights \
             must be safetensors"
        );
    }

    #[test]
    fn a_missing_shard_is_named() {
        let dir = model(json!({}), 2000);
        let names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("model-00002"))
            .collect();
        fs::remove_file(dir.path().join(&names[0])).unwrap();
        assert_eq!(
            open_message(&dir),
            format!(
                "DIR/model.safetensors.index.json names {}, which is not in the folder; it holds 4 tensors, \
                 model.layers.0.mlp.gate_proj.weight among them, download it again",
                names[0]
            )
        );
    }

    #[test]
    fn an_index_cannot_name_files_outside_the_folder() {
        let dir = model(json!({}), 2000);
        let index = json!({"weight_map": {"a": "../../secret.safetensors"}});
        fs::write(dir.path().join(INDEX), index.to_string()).unwrap();
        assert_eq!(
            open_message(&dir),
            "DIR/model.safetensors.index.json: weight_map names '../../secret.safetensors', wanted a file beside the \
             index"
        );
    }

    #[test]
    fn cut_and_foreign_weight_files_have_messages_of_their_own() {
        let dir = model(json!({}), ONE_FILE);
        let path = dir.path().join(SINGLE);
        let whole = fs::read(&path).unwrap();
        let header = u64::from_le_bytes(*whole.first_chunk::<8>().unwrap()) as usize;
        let n = whole.len();
        let cases: Vec<(Vec<u8>, String)> = vec![
            (
                whole[..n - 100].to_vec(),
                format!(
                    "DIR/model.safetensors: {} bytes, but the header wants {n}; the file is cut short, copy or \
                     download it again",
                    n - 100
                ),
            ),
            (
                whole[..100].to_vec(),
                format!(
                    "DIR/model.safetensors: header of {header} bytes in a file of 100 bytes; the file is cut short, \
                     copy or download it again"
                ),
            ),
            (
                vec![],
                "DIR/model.safetensors: not a safetensors file: it is shorter than the 8 bytes of the header's length; \
                 copy or download it again"
                    .to_owned(),
            ),
            (
                b"<!DOCTYPE html><html>".to_vec(),
                "DIR/model.safetensors: not a safetensors file: no header follows the first 8 bytes; copy or download \
                 it again"
                    .to_owned(),
            ),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n".to_vec(),
                "DIR/model.safetensors: not a safetensors file: it is a git-lfs pointer; fetch the file with git lfs \
                 pull"
                    .to_owned(),
            ),
            (
                b"PK\x03\x04 and so on".to_vec(),
                "DIR/model.safetensors: not a safetensors file: it is a zip archive as torch.save writes; convert it to \
                 safetensors"
                    .to_owned(),
            ),
            (
                [whole.as_slice(), b"more"].concat(),
                "DIR/model.safetensors: damaged safetensors header: 4 bytes follow the last tensor, wanted none"
                    .to_owned(),
            ),
            (
                [&9u64.to_le_bytes()[..], b"{\"a\": 1}}"].concat(),
                "DIR/model.safetensors: damaged safetensors header: invalid JSON in header: invalid type: integer `1`, \
                 expected struct TensorInfo at line 1 column 7"
                    .to_owned(),
            ),
        ];
        for (bytes, wanted) in cases {
            fs::write(&path, bytes).unwrap();
            assert_eq!(open_message(&dir), wanted);
        }
    }

    #[test]
    fn no_cut_of_a_weight_file_is_taken_for_whole() {
        let dir = model(json!({"num_hidden_layers": 1}), ONE_FILE);
        let path = dir.path().join(SINGLE);
        let whole = fs::read(&path).unwrap();
        for length in (0..whole.len()).step_by(37) {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(ModelFolder::open(dir.path()).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_tensor_that_stands_in_two_shards_is_refused() {
        let dir = model(json!({}), 2000);
        let index: IndexFile =
            serde_json::from_slice(&fs::read(dir.path().join(INDEX)).unwrap()).unwrap();
        let mut shards: Vec<_> = index.weight_map.into_values().collect();
        shards.sort();
        shards.dedup();
        fs::copy(dir.path().join(&shards[0]), dir.path().join(&shards[1])).unwrap();
        let found = open_message(&dir);
        assert!(
            found.ends_with("stands in another weight file as well"),
            "{found}"
        );
    }

    #[test]
    fn missing_tensors_are_counted_and_the_first_ones_named() {
        let dir = with_tensors(&llama_tensors()[..4]);
        let folder = ModelFolder::open(dir.path()).unwrap();
        assert_eq!(
            message(&folder.check_tensors().unwrap_err(), dir.path()),
            "DIR: 17 of the tensors that config.json calls for are missing: \
             model.layers.0.self_attn.v_proj.weight, model.layers.0.self_attn.o_proj.weight, \
             model.layers.0.post_attention_layernorm.weight, model.layers.0.mlp.gate_proj.weight, \
             model.layers.0.mlp.up_proj.weight, ...; the folder is incomplete or of another architecture"
        );
        let one = with_tensors(&llama_tensors()[1..]);
        let folder = ModelFolder::open(one.path()).unwrap();
        assert_eq!(
            message(&folder.check_tensors().unwrap_err(), one.path()),
            "DIR: 1 of the tensors that config.json calls for are missing: model.embed_tokens.weight; the folder is \
             incomplete or of another architecture"
        );
    }

    #[test]
    fn a_missing_head_is_told_with_what_ties_it() {
        let dir = model(json!({}), ONE_FILE);
        let mut all = llama_tensors();
        all.pop();
        write_tensors(&dir.path().join(SINGLE), &all);
        let folder = ModelFolder::open(dir.path()).unwrap();
        assert_eq!(
            message(&folder.check_tensors().unwrap_err(), dir.path()),
            "DIR: 1 of the tensors that config.json calls for are missing: lm_head.weight; where the head is the embedding, \
             config.json must say tie_word_embeddings: true"
        );
    }

    #[test]
    fn wrong_shapes_types_and_names_are_told() {
        let mut tensors = llama_tensors();
        tensors[0].0.shape = vec![16, 32];
        let dir = with_tensors(&tensors);
        let folder = ModelFolder::open(dir.path()).unwrap();
        let wanted =
            "DIR: model.embed_tokens.weight has shape [16, 32], wanted [32, 16] by config.json";
        assert_eq!(
            message(&folder.check_tensors().unwrap_err(), dir.path()),
            wanted
        );
        let read = folder.f32("model.embed_tokens.weight", &[32, 16]);
        assert_eq!(message(&read.unwrap_err(), dir.path()), wanted);
        assert_eq!(
            message(&folder.f32("model.x", &[1]).unwrap_err(), dir.path()),
            "DIR: no tensor model.x"
        );

        let mut tensors = llama_tensors();
        tensors[1].0.dtype = Dtype::I16;
        let dir = with_tensors(&tensors);
        let folder = ModelFolder::open(dir.path()).unwrap();
        assert_eq!(
            message(&folder.check_tensors().unwrap_err(), dir.path()),
            "DIR: model.layers.0.input_layernorm.weight is I16, wanted F64, F32, F16 or BF16; take a checkpoint that is \
             not quantized yet"
        );
    }

    #[test]
    fn values_that_are_not_finite_are_named_by_index_row_and_column() {
        let mut tensors = llama_tensors();
        tensors[0].1[2 * 37..2 * 38].copy_from_slice(&bf16::NAN.to_le_bytes());
        tensors[1].1[6..8].copy_from_slice(&bf16::NEG_INFINITY.to_le_bytes());
        let dir = with_tensors(&tensors);
        let folder = ModelFolder::open(dir.path()).unwrap();
        folder.check_tensors().unwrap();
        assert_eq!(
            message(
                &folder
                    .f32("model.embed_tokens.weight", &[32, 16])
                    .unwrap_err(),
                dir.path()
            ),
            "DIR: model.embed_tokens.weight holds NaN at flat index 37 (row 2, column 5); the checkpoint is damaged"
        );
        let norm = folder.f32("model.layers.0.input_layernorm.weight", &[16]);
        assert_eq!(
            message(&norm.unwrap_err(), dir.path()),
            "DIR: model.layers.0.input_layernorm.weight holds -inf at flat index 3; the checkpoint is damaged"
        );
    }

    #[test]
    fn files_that_go_with_the_model_are_listed_and_copied() {
        let dir = model(json!({}), 2000);
        for name in [
            "merges.txt",
            "LICENSE.txt",
            "modeling_x.py",
            "pytorch_model.bin",
            "notes.md",
        ] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir(dir.path().join("original")).unwrap();
        let folder = ModelFolder::open(dir.path()).unwrap();
        let wanted = [
            "LICENSE.txt",
            "merges.txt",
            "modeling_x.py",
            "tokenizer.json",
        ];
        assert_eq!(folder.other_files().unwrap(), wanted);
        let out = tempfile::tempdir().unwrap();
        assert_eq!(folder.copy_other_files(out.path()).unwrap(), wanted);
        assert_eq!(
            fs::read(out.path().join("merges.txt")).unwrap(),
            b"merges.txt"
        );
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 4);

        let out = tempfile::tempdir().unwrap();
        let embedded = ModelFolder::embedded("tiny").unwrap();
        let wanted = [
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ];
        assert_eq!(embedded.copy_other_files(out.path()).unwrap(), wanted);
    }

    #[cfg(unix)]
    #[test]
    fn links_out_of_the_folder_are_not_copied_and_told() {
        use std::os::unix::fs::symlink;
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "a secret").unwrap();
        let dir = model(json!({}), ONE_FILE);
        symlink(outside.path().join("secret"), dir.path().join("LICENSE")).unwrap();
        fs::write(dir.path().join("terms"), "terms").unwrap();
        symlink("terms", dir.path().join("NOTICE")).unwrap();
        let folder = ModelFolder::open(dir.path()).unwrap();
        assert_eq!(folder.other_files().unwrap(), ["NOTICE", "tokenizer.json"]);
        assert_eq!(
            folder.notices(),
            [
                "LICENSE is a link to a file outside the folder and is not copied into what is written; put the file itself \
              there if it belongs to the model"
            ]
        );
        let out = tempfile::tempdir().unwrap();
        folder.copy_other_files(out.path()).unwrap();
        assert!(!out.path().join("LICENSE").exists());
        assert_eq!(fs::read(out.path().join("NOTICE")).unwrap(), b"terms");

        // a hub cache keeps files in blobs, and a snapshot is a folder of links to them
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--org--name");
        let snapshot = repository.join("snapshots/abc");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir(repository.join("blobs")).unwrap();
        for name in ["config.json", SINGLE, "tokenizer.json"] {
            fs::copy(dir.path().join(name), repository.join("blobs").join(name)).unwrap();
            symlink(Path::new("../../blobs").join(name), snapshot.join(name)).unwrap();
        }
        symlink(outside.path().join("secret"), snapshot.join("merges.txt")).unwrap();
        let folder = ModelFolder::open(&snapshot).unwrap();
        assert_eq!(folder.other_files().unwrap(), ["tokenizer.json"]);
        assert_eq!(folder.notices().len(), 1);
    }

    #[test]
    fn a_missing_or_broken_tokenizer_is_told() {
        let dir = model(json!({}), ONE_FILE);
        let path = dir.path().join("tokenizer.json");
        fs::write(&path, "{}").unwrap();
        let folder = ModelFolder::open(dir.path()).unwrap();
        let found = message(&folder.tokenizer().unwrap_err(), dir.path());
        assert!(
            found.starts_with("DIR: tokenizer.json: cannot be read: "),
            "{found}"
        );
        fs::remove_file(&path).unwrap();
        assert_eq!(
            message(&folder.tokenizer().unwrap_err(), dir.path()),
            "DIR: tokenizer.json: missing; the folder needs the tokenizer's own JSON file, which transformers writes \
             with save_pretrained of a fast tokenizer"
        );
    }

    #[test]
    fn identity_changes_with_any_file_and_only_then() {
        let dir = model(json!({}), 2000);
        let identity = || ModelFolder::open(dir.path()).unwrap().identity().unwrap();
        let first = identity();
        assert_eq!(first, identity());
        assert!(first.files.len() > 3);
        let text = serde_json::to_string(&first).unwrap();
        assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), first);

        // neither a newer time nor a copy is another model
        let weights = dir.path().join(&first.files[0].name);
        let changed_at = fs::metadata(&weights).unwrap().modified().unwrap();
        let later = changed_at + std::time::Duration::from_secs(7);
        let open = || fs::OpenOptions::new().write(true).open(&weights).unwrap();
        open().set_modified(later).unwrap();
        assert_eq!(identity(), first);
        // one bit is, of whatever size and time the file is
        let mut bytes = fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&weights, bytes).unwrap();
        open().set_modified(changed_at).unwrap();
        assert_ne!(identity().fingerprint, first.fingerprint);

        let embedded = || ModelFolder::embedded("tiny").unwrap().identity().unwrap();
        assert_eq!(embedded(), embedded());
        assert_ne!(embedded().fingerprint, first.fingerprint);
    }

    #[test]
    fn released_pages_leave_memory_and_come_back_unchanged() {
        let shape = vec![1024, 4096];
        let changes = json!({"vocab_size": 1024, "hidden_size": 4096, "num_hidden_layers": 1,
            "intermediate_size": 8, "num_attention_heads": 64, "num_key_value_heads": 1});
        let dir = model(changes, ONE_FILE);
        let folder = ModelFolder::open(dir.path()).unwrap();
        let name = "model.embed_tokens.weight";
        let first = folder.f32(name, &shape).unwrap();
        let resident = || {
            // Of this file alone, so that other tests do not disturb the figure.
            let maps = fs::read_to_string("/proc/self/smaps").unwrap();
            let place = folder.place();
            let mut lines = maps.lines().skip_while(|line| !line.contains(&place));
            let rss = lines.find(|line| line.starts_with("Rss:")).unwrap();
            rss.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        if cfg!(target_os = "linux") {
            let before = resident();
            assert!(before >= 8 << 10, "{before} KiB");
            folder.release(
                expected_tensors(folder.config())
                    .iter()
                    .map(|(n, _)| n.as_str()),
            );
            let after = resident();
            assert!(after <= 256, "{after} KiB of {before} stayed");
        }
        folder.release(["no such tensor", name]);
        assert_eq!(folder.f32(name, &shape).unwrap(), first);
    }
}
