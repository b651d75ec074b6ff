//! What one process leaves in a file for another, so that an abort or an endless loop does not take its input along.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const WORDS: usize = 5;
const LARGEST: usize = 1 << 20;

/// The file.
#[derive(Debug)]
pub struct Shared {
    file: File,
}

/// What stands in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Executions begun.
    pub executions: u64,
    /// When the last one began, milliseconds since 1970.
    pub began: u64,
    /// The most memory an execution held.
    pub largest: u64,
    /// The most processor time of an execution, microseconds.
    pub slowest: u64,
    /// What it reads.
    pub input: Vec<u8>,
}

impl Shared {
    /// Opens the file, which is made where it is not there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        Ok(Self { file })
    }

    pub(crate) fn write(&self, state: &State) -> io::Result<()> {
        let input = &state.input[..state.input.len().min(LARGEST)];
        let words = [
            state.executions,
            state.began,
            state.largest,
            state.slowest,
            input.len() as u64,
        ];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(input);
        self.file.write_all_at(&bytes, 0)
    }

    /// What was written last.
    pub fn read(&self) -> io::Result<State> {
        let mut words = [[0; 8]; WORDS];
        self.file.read_exact_at(words.as_flattened_mut(), 0)?;
        let [executions, began, largest, slowest, length] = words.map(u64::from_le_bytes);
        let mut input = vec![0; (length as usize).min(LARGEST)];
        self.file.read_exact_at(&mut input, (WORDS * 8) as u64)?;
        Ok(State {
            executions,
            began,
            largest,
            slowest,
            input,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let shared = Shared::open(&path).unwrap();
        for input in [&b"a longer input"[..], b"short", b""] {
            let state = State {
                executions: 7,
                began: 1,
                largest: 1 << 40,
                slowest: 3,
                input: input.to_vec(),
            };
            shared.write(&state).unwrap();
            assert_eq!(Shared::open(&path).unwrap().read().unwrap(), state);
        }
    }
}
