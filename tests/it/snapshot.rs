//! Whole texts held against files: `snapshots/NAME.txt` beside the tests.

use std::fs;
use std::path::Path;

/// Fails when `text` is not what the snapshot holds. With `HALFBYTE_UPDATE_SNAPSHOTS` set it is written instead, to be
/// read in the diff before it is committed.
pub(crate) fn assert_snapshot(name: &str, text: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/it/snapshots");
    let path = folder.join(format!("{name}.txt"));
    if std::env::var_os("HALFBYTE_UPDATE_SNAPSHOTS").is_some() {
        fs::create_dir_all(&folder).unwrap();
        fs::write(&path, format!("{text}\n")).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        text,
        wanted.trim_end(),
        "{} differs; HALFBYTE_UPDATE_SNAPSHOTS=1 rewrites it",
        path.display()
    );
}
