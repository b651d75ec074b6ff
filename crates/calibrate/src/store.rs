use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use halfbyte_kernels::bf16::bits;

/// Activations of every window in bf16, in memory or, past a budget, in a file that goes when the store does.
///
/// bf16 is what such models compute in anyway; it halves the only memory that grows with the calibration set.
#[derive(Debug)]
pub struct Store {
    values_per_window: usize,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<u16>),
    File { file: File, path: PathBuf },
}

/// The spill file could not be made, written or read.
#[derive(Debug, thiserror::Error)]
#[error(
    "activations spilled to {path}: {source}; free space there, raise --max-memory, or lower num_samples"
)]
pub struct StoreError {
    path: PathBuf,
    source: io::Error,
}

impl Store {
    /// Room for `windows` windows of `values_per_window` values, kept in memory.
    pub fn in_memory(windows: usize, values_per_window: usize) -> Self {
        Self {
            values_per_window,
            place: Place::Memory(vec![0; windows * values_per_window]),
        }
    }

    /// The same in a file at `path`, which is removed with the store.
    pub fn in_file(
        windows: usize,
        values_per_window: usize,
        path: &Path,
    ) -> Result<Self, StoreError> {
        let fail = |source| StoreError {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(fail)?;
        file.set_len(Self::bytes(windows, values_per_window))
            .map_err(fail)?;
        Ok(Self {
            values_per_window,
            place: Place::File {
                file,
                path: path.to_owned(),
            },
        })
    }

    /// Bytes such a store takes.
    pub fn bytes(windows: usize, values_per_window: usize) -> u64 {
        2 * windows as u64 * values_per_window as u64
    }

    /// Values of `count` windows from `first` on.
    pub fn read(&self, first: usize, count: usize) -> Result<Vec<f32>, StoreError> {
        Ok(self
            .read_bits(first, count)?
            .into_iter()
            .map(from_bf16)
            .collect())
    }

    /// Replaces the values of windows from `first` on.
    pub fn write(&mut self, first: usize, values: &[f32]) -> Result<(), StoreError> {
        let start = first * self.values_per_window;
        match &mut self.place {
            Place::Memory(all) => {
                all[start..start + values.len()]
                    .iter_mut()
                    .zip(values)
                    .for_each(|(to, x)| *to = bits(*x));
                Ok(())
            }
            Place::File { file, path } => {
                let bytes: Vec<u8> = values.iter().flat_map(|x| bits(*x).to_le_bytes()).collect();
                let fail = |source| StoreError {
                    path: path.clone(),
                    source,
                };
                file.seek(SeekFrom::Start(2 * start as u64))
                    .and_then(|_| file.write_all(&bytes))
                    .map_err(fail)
            }
        }
    }

    /// The stored bits of `count` windows from `first` on, to save them.
    pub fn read_bits(&self, first: usize, count: usize) -> Result<Vec<u16>, StoreError> {
        let (start, len) = (
            first * self.values_per_window,
            count * self.values_per_window,
        );
        match &self.place {
            Place::Memory(all) => Ok(all[start..start + len].to_vec()),
            Place::File { file, path } => {
                let mut bytes = vec![0; 2 * len];
                let fail = |source| StoreError {
                    path: path.clone(),
                    source,
                };
                let mut file: &File = file;
                file.seek(SeekFrom::Start(2 * start as u64))
                    .and_then(|_| file.read_exact(&mut bytes))
                    .map_err(fail)?;
                Ok(bytes
                    .chunks_exact(2)
                    .map(|b| u16::from_le_bytes([b[0], b[1]]))
                    .collect())
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Place::File { path, .. } = &self.place
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!("cannot remove the spill file {}: {error}", path.display());
        }
    }
}

/// The nearest number that a store holds.
pub(crate) fn stored(x: f32) -> f32 {
    from_bf16(bits(x))
}

pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_what_memory_holds_and_goes_with_the_store() {
        let path = std::env::temp_dir().join(format!("halfbyte-store-{}", std::process::id()));
        let values: Vec<f32> = (0..6).map(|i| i as f32 / 3.0).collect();
        let mut memory = Store::in_memory(3, 4);
        let mut file = Store::in_file(3, 4, &path).unwrap();
        for store in [&mut memory, &mut file] {
            store.write(1, &values[..4]).unwrap();
        }
        assert_eq!(memory.read(0, 3).unwrap(), file.read(0, 3).unwrap());
        assert_eq!(
            memory.read_bits(1, 1).unwrap(),
            file.read_bits(1, 1).unwrap()
        );
        drop(file);
        assert!(!path.exists());
    }
}
