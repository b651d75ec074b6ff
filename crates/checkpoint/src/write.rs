//! Files appear whole or not at all: written beside their place, flushed to disk, then renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;

use crate::{CheckpointError, Result};

const PARTIAL_PREFIX: &str = ".halfbyte-";
const PARTIAL_SUFFIX: &str = ".part";

/// A file that takes its name only when finished; dropped before, it leaves nothing.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl AtomicFile {
    /// Opens a temporary sibling of `path`.
    pub fn create(path: &Path) -> Result<Self> {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if path.is_dir() {
            return Err(CheckpointError::io(
                "write",
                path,
                io::ErrorKind::IsADirectory.into(),
            ));
        }
        let mut options = tempfile::Builder::new();
        options.prefix(PARTIAL_PREFIX).suffix(PARTIAL_SUFFIX);
        #[cfg(unix)]
        {
            // Temporary files are private by default; a model is meant to be read by others, as the umask allows.
            use std::os::unix::fs::PermissionsExt;
            options.permissions(fs::Permissions::from_mode(0o666));
        }
        let file = options
            .tempfile_in(folder)
            .map_err(|error| CheckpointError::io("create", path, plain(error)))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::with_capacity(1 << 20, file),
        })
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|error| CheckpointError::io("write", &self.path, plain(error)))
    }

    /// Flushes to disk and takes the name, replacing what was there.
    pub fn finish(self) -> Result<()> {
        let Self { path, file } = self;
        let fail = |error: io::Error| CheckpointError::io("write", &path, plain(error));
        let file = file.into_inner().map_err(|e| fail(e.into_error()))?;
        file.as_file().sync_all().map_err(fail)?;
        file.persist(&path).map_err(|e| fail(e.error))?;
        sync_parent(&path);
        Ok(())
    }
}

/// Writes a whole file atomically.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.finish()
}

/// Writes JSON indented by two spaces with a newline at the end, atomically.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| CheckpointError::Json {
        path: path.to_owned(),
        reason: format!("cannot be written as JSON: {error}"),
    })?;
    text.push(b'\n');
    write_file(path, &text)
}

/// Copies a file atomically; links are followed.
pub fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let mut source =
        File::open(from).map_err(|error| CheckpointError::io("read", from, plain(error)))?;
    let mut file = AtomicFile::create(to)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match io::Read::read(&mut source, &mut buffer) {
            Ok(0) => return file.finish(),
            Ok(n) => file.write(&buffer[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(CheckpointError::io("read", from, plain(error))),
        }
    }
}

/// Gives a finished file another place on the same file system, replacing a file that was there.
pub fn move_file(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|error| CheckpointError::io("write", to, error))?;
    sync_parent(to);
    Ok(())
}

/// Removes a file; that there is none is fine.
pub fn remove_file(path: &Path) -> Result<()> {
    gone(fs::remove_file(path), path)
}

/// Removes a folder and all that it holds; that there is none is fine.
pub fn remove_folder(path: &Path) -> Result<()> {
    gone(fs::remove_dir_all(path), path)
}

fn gone(removed: std::io::Result<()>, path: &Path) -> Result<()> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(CheckpointError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Creates a folder and its parents; an existing folder is fine.
pub fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| CheckpointError::io("create", path, plain(error)))
}

/// Removes what a killed run may have left half-written in a folder; returns how many files. No other run may be
/// writing there.
pub fn remove_partial_files(folder: &Path) -> Result<usize> {
    let entries =
        fs::read_dir(folder).map_err(|error| CheckpointError::io("list", folder, error))?;
    let mut removed = 0;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PARTIAL_PREFIX) && name.ends_with(PARTIAL_SUFFIX) {
            fs::remove_file(entry.path())
                .map_err(|error| CheckpointError::io("remove", &entry.path(), error))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// Type of the elements, of whole bytes.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Bytes of the tensor's data.
    pub fn bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().map(|&n| n as u64).product();
        elements * self.dtype.bitsize() as u64 / 8
    }
}

/// Writes a safetensors file tensor by tensor: the header first, then each tensor's bytes in the order given to
/// [`Self::create`], so that memory holds one tensor at a time. Metadata is `{"format": "pt"}`.
#[derive(Debug)]
pub struct SafetensorsWriter {
    file: AtomicFile,
    pending: std::collections::VecDeque<(String, u64)>,
}

impl SafetensorsWriter {
    /// Lays out the file and writes its header to a temporary sibling of `path`.
    pub fn create(path: &Path, tensors: &[TensorInfo]) -> Result<Self> {
        Self::create_with(path, tensors, &[])
    }

    /// [`Self::create`], with more words in the file's metadata.
    pub fn create_with(
        path: &Path,
        tensors: &[TensorInfo],
        metadata: &[(&str, &str)],
    ) -> Result<Self> {
        let mut words = Map::new();
        words.insert("format".to_owned(), "pt".into());
        words.extend(metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())));
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), words.into());
        let mut offset = 0u64;
        for tensor in tensors {
            let end = offset + tensor.bytes();
            let entry = json!({
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": [offset, end],
            });
            if header.insert(tensor.name.clone(), entry).is_some() {
                return Err(CheckpointError::WriteOrder {
                    path: path.to_owned(),
                    reason: format!("{} is listed twice", tensor.name),
                });
            }
            offset = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        // Data begins at a multiple of 8, so that readers may map it as numbers.
        header.resize(header.len().next_multiple_of(8), b' ');

        let mut file = AtomicFile::create(path)?;
        file.write(&(header.len() as u64).to_le_bytes())?;
        file.write(&header)?;
        let pending = tensors
            .iter()
            .map(|tensor| (tensor.name.clone(), tensor.bytes()))
            .collect();
        Ok(Self { file, pending })
    }

    /// Appends the next tensor, which must be `name` and have as many bytes as announced.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let reason = match self.pending.front() {
            None => format!("{name} was not announced"),
            Some((next, _)) if next != name => format!("{name} came where {next} was announced"),
            Some((_, wanted)) if *wanted != bytes.len() as u64 => {
                format!("{name} has {} bytes, announced were {wanted}", bytes.len())
            }
            Some(_) => {
                self.pending.pop_front();
                return self.file.write(bytes);
            }
        };
        Err(self.misuse(reason))
    }

    /// Takes the file's name. All tensors must have been written.
    pub fn finish(self) -> Result<()> {
        match self.pending.front() {
            None => self.file.finish(),
            Some((next, _)) => Err(self.misuse(format!(
                "{} announced tensors were not written, {next} is the first",
                self.pending.len()
            ))),
        }
    }

    fn misuse(&self, reason: String) -> CheckpointError {
        CheckpointError::WriteOrder {
            path: self.file.path.clone(),
            reason,
        }
    }
}

/// One weight file to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    /// File name, `model.safetensors` or `model-00001-of-0000n.safetensors`.
    pub file: String,
    /// Its tensors, in the order given.
    pub tensors: Vec<TensorInfo>,
}

/// How tensors are spread over weight files.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardPlan {
    /// The weight files.
    pub shards: Vec<Shard>,
    /// Content of model.safetensors.index.json, when there is more than one.
    pub index: Option<Value>,
}

/// Fills files in order up to `max_shard_bytes` of tensor data each; a larger tensor has a file of its own.
pub fn plan_shards(tensors: &[TensorInfo], max_shard_bytes: u64) -> ShardPlan {
    let mut groups: Vec<Vec<TensorInfo>> = vec![vec![]];
    let mut filled = 0;
    for tensor in tensors {
        let bytes = tensor.bytes();
        let last = groups.len() - 1;
        if filled + bytes > max_shard_bytes && !groups[last].is_empty() {
            groups.push(vec![tensor.clone()]);
            filled = bytes;
        } else {
            groups[last].push(tensor.clone());
            filled += bytes;
        }
    }
    let n = groups.len();
    let shards: Vec<Shard> = groups
        .into_iter()
        .enumerate()
        .map(|(i, tensors)| Shard {
            file: match n {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
            },
            tensors,
        })
        .collect();
    let index = (n > 1).then(|| shard_index(&shards));
    ShardPlan { shards, index }
}

fn shard_index(shards: &[Shard]) -> Value {
    let tensors = || {
        shards
            .iter()
            .flat_map(|shard| shard.tensors.iter().map(move |tensor| (shard, tensor)))
    };
    let total: u64 = tensors().map(|(_, tensor)| tensor.bytes()).sum();
    let mut weight_map: Vec<_> = tensors()
        .map(|(shard, tensor)| (tensor.name.clone(), json!(shard.file)))
        .collect();
    weight_map.sort_by(|a, b| a.0.cmp(&b.0));
    json!({
        "metadata": {"total_size": total},
        "weight_map": Map::from_iter(weight_map),
    })
}

/// The system's error without the temporary file's name, which tempfile adds and which tells a user nothing.
pub(crate) fn plain(error: io::Error) -> io::Error {
    error
        .raw_os_error()
        .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// Makes the rename itself last; not every file system can, and the data is safe without it.
fn sync_parent(path: &Path) {
    if let Some(parent) = path.parent()
        && let Ok(folder) = File::open(parent)
    {
        let _ = folder.sync_all();
    }
}

/// The bytes of `values` as `dtype`, little-endian, to nearest with ties to even; none for types that are not floats of
/// 16, 32 or 64 bits.
pub fn encode_f32(values: &[f32], dtype: Dtype) -> Option<Vec<u8>> {
    let each = values.iter();
    match dtype {
        Dtype::F64 => Some(each.flat_map(|x| f64::from(*x).to_le_bytes()).collect()),
        Dtype::F32 => Some(each.flat_map(|x| x.to_le_bytes()).collect()),
        Dtype::F16 => Some(
            each.flat_map(|x| half::f16::from_f32(*x).to_le_bytes())
                .collect(),
        ),
        Dtype::BF16 => Some(
            each.flat_map(|x| half::bf16::from_f32(*x).to_le_bytes())
                .collect(),
        ),
        _ => None,
    }
}

/// What a file of element type `dtype` makes of a number; nothing where that is no float type of 16 bits.
pub fn rounding(dtype: Dtype) -> fn(f32) -> f32 {
    match dtype {
        Dtype::F16 => |x| half::f16::from_f32(x).to_f32(),
        Dtype::BF16 => |x| half::bf16::from_f32(x).to_f32(),
        _ => |x| x,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::SafeTensors;
    use tempfile::TempDir;

    use super::*;
    use crate::fixture::{message, write_tensors};

    fn names_in(dir: &TempDir) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn info(name: &str, dtype: Dtype, shape: &[usize]) -> TensorInfo {
        TensorInfo {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
        }
    }

    #[test]
    fn a_file_appears_only_when_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.bin");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(b"half").unwrap();
        assert!(!path.exists());
        drop(file);
        assert!(names_in(&dir).is_empty());
        write_file(&path, b"first").unwrap();
        write_file(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(names_in(&dir), ["out.bin"]);
    }

    #[cfg(unix)]
    #[test]
    fn written_files_are_as_readable_as_plain_ones() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (ours, plain) = (dir.path().join("ours"), dir.path().join("plain"));
        write_file(&ours, b"x").unwrap();
        fs::write(&plain, b"x").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[test]
    fn json_is_indented_ends_in_a_newline_and_keeps_key_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write_json(&path, &json!({"b": 1, "a": [2]})).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\n  \"b\": 1,\n  \"a\": [\n    2\n  ]\n}\n");
    }

    #[test]
    fn copies_are_whole_and_follow_links() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        let bytes: Vec<u8> = (0..700_000u32).map(|i| (i % 251) as u8).collect();
        fs::write(&from, &bytes).unwrap();
        let to = dir.path().join("to");
        copy_file(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), bytes);
        let absent = copy_file(&dir.path().join("absent"), &to).unwrap_err();
        let found = message(&absent, dir.path());
        assert_eq!(
            found,
            "cannot read DIR/absent: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn what_a_killed_run_left_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            ".halfbyte-x1.part",
            "model.safetensors",
            "x.part",
            ".halfbyte",
        ] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        assert_eq!(remove_partial_files(dir.path()).unwrap(), 1);
        assert_eq!(names_in(&dir), [".halfbyte", "model.safetensors", "x.part"]);
    }

    #[test]
    fn places_that_cannot_be_written_are_told_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        let below = write_file(&file.join("x"), b"").unwrap_err();
        assert_eq!(
            message(&below, dir.path()),
            "cannot create DIR/file/x: not a directory; a file stands where a folder is needed, choose another name"
        );
        let folder = create_folder(&file.join("x")).unwrap_err();
        assert_eq!(
            message(&folder, dir.path()),
            "cannot create DIR/file/x: Not a directory (os error 20); a file stands where a folder is needed, choose \
             another name"
        );
        let taken = write_file(dir.path(), b"").unwrap_err();
        assert_eq!(
            message(&taken, dir.path()),
            "cannot write DIR: is a directory"
        );
        for (kind, wanted) in [
            (
                io::ErrorKind::StorageFull,
                "cannot write x: no storage space; free space or choose another output folder",
            ),
            (
                io::ErrorKind::PermissionDenied,
                "cannot write x: permission denied; choose a folder that you may use, or change its permissions",
            ),
            (
                io::ErrorKind::ReadOnlyFilesystem,
                "cannot write x: read-only filesystem or storage medium; the disk is mounted read-only, choose another \
                 output folder",
            ),
        ] {
            let error = CheckpointError::io("write", Path::new("x"), kind.into());
            assert_eq!(error.to_string(), wanted);
        }
    }

    /// /dev/full answers every write with ENOSPC, as a full disk does.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_and_leaves_nothing() {
        use std::os::fd::AsRawFd;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut file = AtomicFile::create(&path).unwrap();
        let full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        *file.file.get_mut().as_file_mut() = full;
        assert!(file.file.get_ref().as_file().as_raw_fd() > 2);
        let error = file.write(&vec![0; 2 << 20]).unwrap_err();
        assert_eq!(
            message(&error, dir.path()),
            "cannot write DIR/x: no storage space; free space or choose another output folder"
        );
        drop(file);
        assert!(names_in(&dir).is_empty());
    }

    #[test]
    fn a_writer_refuses_what_was_not_announced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let infos = [info("a", Dtype::U8, &[2]), info("b", Dtype::U8, &[1])];
        let mut writer = SafetensorsWriter::create(&path, &infos).unwrap();
        let mut refused =
            |name: &str, bytes: &[u8]| message(&writer.write(name, bytes).unwrap_err(), dir.path());
        assert_eq!(refused("b", &[1]), "DIR/m: b came where a was announced");
        assert_eq!(refused("a", &[1]), "DIR/m: a has 1 bytes, announced were 2");
        writer.write("a", &[1, 2]).unwrap();
        assert_eq!(
            message(&writer.finish().unwrap_err(), dir.path()),
            "DIR/m: 1 announced tensors were not written, b is the first"
        );
        let twice = [info("a", Dtype::U8, &[2]), info("a", Dtype::U8, &[2])];
        let error = SafetensorsWriter::create(&path, &twice).unwrap_err();
        assert_eq!(message(&error, dir.path()), "DIR/m: a is listed twice");
        assert!(names_in(&dir).is_empty());
    }

    #[test]
    fn shards_fill_in_order_and_a_large_tensor_stands_alone() {
        let infos = [
            info("a", Dtype::F32, &[10]),
            info("b", Dtype::F16, &[20]),
            info("c", Dtype::I32, &[100]),
            info("d", Dtype::U8, &[8]),
        ];
        let plan = plan_shards(&infos, 80);
        let layout: Vec<Vec<&str>> = plan
            .shards
            .iter()
            .map(|shard| shard.tensors.iter().map(|t| t.name.as_str()).collect())
            .collect();
        assert_eq!(layout, [vec!["a", "b"], vec!["c"], vec!["d"]]);
        assert_eq!(plan.shards[1].file, "model-00002-of-00003.safetensors");
        let index = plan.index.unwrap();
        assert_eq!(index["metadata"]["total_size"], 40 + 40 + 400 + 8);
        assert_eq!(index["weight_map"]["d"], "model-00003-of-00003.safetensors");
        let one = plan_shards(&infos, 1000);
        assert_eq!(
            (one.shards[0].file.as_str(), one.index),
            ("model.safetensors", None)
        );
    }

    fn any_tensor() -> impl Strategy<Value = (Dtype, Vec<usize>)> {
        let dtypes = vec![
            Dtype::I32,
            Dtype::I64,
            Dtype::F16,
            Dtype::BF16,
            Dtype::F32,
            Dtype::U8,
            Dtype::I8,
        ];
        let shape = proptest::collection::vec(0..5usize, 0..4);
        (proptest::sample::select(dtypes), shape)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_written_is_read_back_by_the_safetensors_crate(
            kinds in proptest::collection::vec(any_tensor(), 0..8),
            seed in any::<u8>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("model.safetensors");
            let tensors: Vec<_> = kinds
                .into_iter()
                .enumerate()
                .map(|(i, (dtype, shape))| {
                    let info = TensorInfo { name: format!("t\"{i}é"), dtype, shape };
                    let bytes = (0..info.bytes()).map(|k| (k as u8).wrapping_mul(seed)).collect();
                    (info, bytes)
                })
                .collect();
            write_tensors(&path, &tensors);
            let file = fs::read(&path).unwrap();
            let (header, metadata) = SafeTensors::read_metadata(&file).unwrap();
            prop_assert_eq!(header % 8, 0);
            prop_assert_eq!(&metadata.metadata().as_ref().unwrap()["format"], "pt");
            let read = SafeTensors::deserialize(&file).unwrap();
            prop_assert_eq!(read.len(), tensors.len());
            for (info, bytes) in &tensors {
                let tensor = read.tensor(&info.name).unwrap();
                prop_assert_eq!(tensor.dtype(), info.dtype);
                prop_assert_eq!(tensor.shape(), &info.shape[..]);
                prop_assert_eq!(tensor.data(), &bytes[..]);
            }
        }
    }
}
