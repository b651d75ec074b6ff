//! One process at a time in a folder.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::write::plain;
use crate::{CheckpointError, Result};

/// A file that this process holds locked. The system lets go of it when the process ends, however it ends; dropped, it is
/// removed too.
#[derive(Debug)]
pub struct FolderLock {
    /// None where the file system has no locks.
    file: Option<File>,
    path: PathBuf,
    /// Folders made for it, the innermost first.
    made: Vec<PathBuf>,
}

/// Who holds a lock, as far as the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    #[serde(default)]
    host: String,
}

impl FolderLock {
    /// Locks the file `path` for this process alone. Its folder is made, and removed again with the lock where nothing else
    /// came into it. Where the file system has no locks this succeeds; [`Self::is_real`] tells.
    ///
    /// # Errors
    /// [`CheckpointError::InUse`] where another process holds it, alone or shared; a folder that cannot be made.
    pub fn exclusive(path: &Path) -> Result<Self> {
        Self::take(path, File::try_lock)
    }

    /// Locks the file `path` together with other processes that share it, against any that wants it alone.
    ///
    /// # Errors
    /// As [`Self::exclusive`], where another process holds it alone.
    pub fn shared(path: &Path) -> Result<Self> {
        Self::take(path, File::try_lock_shared)
    }

    /// Whether the file system keeps others out.
    pub fn is_real(&self) -> bool {
        self.file.is_some()
    }

    fn take(path: &Path, lock: fn(&File) -> Result<(), TryLockError>) -> Result<Self> {
        let fail = |error: io::Error| CheckpointError::io("lock", path, plain(error));
        let made = make_folders(path.parent().unwrap_or(Path::new(".")))?;
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .map_err(|error| CheckpointError::io("create", path, plain(error)))?;
            match lock(&file) {
                Ok(()) => (),
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    let _ = file.read_to_string(&mut text);
                    let holder: Holder = serde_json::from_str(&text).unwrap_or_default();
                    return Err(CheckpointError::InUse {
                        folder: lock_of(path),
                        process: (holder.pid > 0).then_some(holder.pid),
                        host: Some(holder.host)
                            .filter(|host| !host.is_empty() && *host != host_name()),
                    });
                }
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(Self {
                        file: None,
                        path: path.to_owned(),
                        made,
                    });
                }
                Err(TryLockError::Error(error)) => return Err(fail(error)),
            }
            // The one who held it may have removed the file between the opening and the lock; then it is another's to make.
            if !is_still(&file, path) {
                continue;
            }
            let holder = Holder {
                pid: std::process::id(),
                host: host_name(),
            };
            let text = serde_json::to_string(&holder).unwrap_or_default();
            // Who holds it is for messages alone.
            let _ = file
                .set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| file.write_all(text.as_bytes()));
            return Ok(Self {
                file: Some(file),
                path: path.to_owned(),
                made,
            });
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Others that share it keep the file.
        let alone = self
            .file
            .as_ref()
            .is_none_or(|file| file.try_lock().is_ok());
        if alone {
            let _ = fs::remove_file(&self.path);
            for folder in &self.made {
                // Only empty folders go.
                let _ = fs::remove_dir(folder);
            }
        }
    }
}

/// The folder that a lock file stands for: the one that `halfbyte/` is in.
fn lock_of(path: &Path) -> PathBuf {
    let folder = path.parent().unwrap_or(path);
    match folder.file_name().is_some_and(|name| name == "halfbyte") {
        true => folder.parent().unwrap_or(folder).to_owned(),
        false => folder.to_owned(),
    }
}

/// Makes a folder and those above it; gives those that were not there, the innermost first.
fn make_folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let made: Vec<PathBuf> = folder
        .ancestors()
        .take_while(missing)
        .map(Path::to_owned)
        .collect();
    crate::create_folder(folder)?;
    Ok(made)
}

#[cfg(unix)]
fn is_still(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), path.metadata()) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_still(_file: &File, path: &Path) -> bool {
    path.exists()
}

fn host_name() -> String {
    let file = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = file.or_else(|| std::env::var("COMPUTERNAME").ok());
    name.map_or_else(String::new, |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_alone_or_several_share_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out").join("halfbyte").join("lock");
        let alone = FolderLock::exclusive(&path).unwrap();
        assert!(alone.is_real());
        for taken in [FolderLock::exclusive(&path), FolderLock::shared(&path)] {
            let error = taken.unwrap_err();
            let CheckpointError::InUse {
                folder,
                process,
                host,
            } = &error
            else {
                panic!("{error}");
            };
            assert_eq!(*folder, dir.path().join("out"));
            assert_eq!((*process, host), (Some(std::process::id()), &None));
        }
        drop(alone);
        assert!(!dir.path().join("out").exists(), "nothing is left behind");
        let (one, other) = (
            FolderLock::shared(&path).unwrap(),
            FolderLock::shared(&path).unwrap(),
        );
        assert!(FolderLock::exclusive(&path).is_err());
        drop(one);
        assert!(FolderLock::exclusive(&path).is_err());
        drop(other);
        drop(FolderLock::exclusive(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn folders_that_something_else_came_into_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out").join("halfbyte").join("lock");
        let lock = FolderLock::exclusive(&path).unwrap();
        fs::write(dir.path().join("out").join("model"), b"").unwrap();
        drop(lock);
        assert!(dir.path().join("out").join("model").exists());
        assert!(!dir.path().join("out").join("halfbyte").exists());
    }
}
