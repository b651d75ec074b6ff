//! Where a path really leads: links followed, spelling and case set aside.

use std::path::{Component, Path, PathBuf};

/// Links without an end that are followed one after the other; more are a circle.
const MOST_LINKS: usize = 40;

/// The absolute path of a place that may not exist yet: links are followed, also those that point to nothing yet, and `.`
/// and `..` are taken out.
pub fn real_place(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    follow(&absolute, MOST_LINKS)
}

fn follow(absolute: &Path, links: usize) -> PathBuf {
    // The longest beginning that exists is resolved by the system; `..` behind a link then means what the system means.
    let mut rest: Vec<Component<'_>> = Vec::new();
    let mut existing = absolute.components();
    loop {
        let path = existing.as_path();
        if let Ok(mut place) = path.canonicalize() {
            for part in rest.iter().rev() {
                match part {
                    Component::ParentDir => {
                        place.pop();
                    }
                    Component::CurDir => (),
                    part => place.push(part),
                }
            }
            return place;
        }
        // What is written to a link without an end goes to where it points.
        if let (Ok(target), Some(folder), true) = (path.read_link(), path.parent(), links > 0) {
            let mut whole = folder.join(target);
            whole.extend(rest.iter().rev());
            return follow(&whole, links - 1);
        }
        match existing.next_back() {
            Some(part) => rest.push(part),
            None => return absolute.to_owned(),
        }
    }
}

/// Whether `inner` is `outer` or lies in it, at whatever depth. Both may be spelled through links; on file systems that do
/// not tell case apart neither does this, since existing folders are known by what they are and not by their names.
pub fn is_within(inner: &Path, outer: &Path) -> bool {
    let (inner, outer) = (real_place(inner), real_place(outer));
    inner
        .ancestors()
        .any(|folder| folder == outer || is_same(folder, &outer))
}

/// Whether two paths name one existing file or folder.
#[cfg(unix)]
fn is_same(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Whether two paths name one existing file or folder; here names do not tell case apart.
#[cfg(not(unix))]
fn is_same(a: &Path, b: &Path) -> bool {
    let lower = |path: &Path| path.to_string_lossy().to_lowercase();
    a.exists() && b.exists() && lower(a) == lower(b)
}

/// Bytes that may still be written where `path` is, or is to be; none where the system does not say.
#[cfg(unix)]
pub fn free_bytes(path: &Path) -> Option<u64> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    let place = real_place(path);
    let folder = place.ancestors().find(|folder| folder.exists())?;
    let name = CString::new(folder.as_os_str().as_bytes()).ok()?;
    let mut stats = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the name ends with a zero byte, and the system fills in the whole struct where it answers 0.
    let stats = unsafe {
        if libc::statvfs(name.as_ptr(), stats.as_mut_ptr()) != 0 {
            return None;
        }
        stats.assume_init()
    };
    // The fields have other widths on other systems.
    #[allow(clippy::unnecessary_cast)]
    Some((stats.f_bavail as u64).saturating_mul(stats.f_frsize as u64))
}

/// Bytes that may still be written where `path` is; not known here.
#[cfg(not(unix))]
pub fn free_bytes(_path: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_place_is_known_by_any_spelling() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        fs::create_dir_all(model.join("sub")).unwrap();
        for spelling in ["model", "./model/.", "model/sub/..", "absent/../model"] {
            assert!(is_within(&dir.path().join(spelling), &model), "{spelling}");
        }
        for inside in ["model/new", "model/sub/a/b", "absent/../model/x"] {
            assert!(is_within(&dir.path().join(inside), &model), "{inside}");
            assert!(!is_within(&model, &dir.path().join(inside)), "{inside}");
        }
        for outside in ["models", "mode", "other/model", "model/../x"] {
            assert!(!is_within(&dir.path().join(outside), &model), "{outside}");
        }
        assert!(is_within(&model, dir.path()));
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_where_they_point_even_where_nothing_is_yet() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        fs::create_dir(&model).unwrap();
        symlink("model", dir.path().join("link")).unwrap();
        symlink("link", dir.path().join("link2")).unwrap();
        symlink("model/new", dir.path().join("dangling")).unwrap();
        symlink("dangling", dir.path().join("dangling2")).unwrap();
        for name in [
            "link",
            "link2",
            "link2/new",
            "dangling",
            "dangling2",
            "dangling/x",
        ] {
            assert!(is_within(&dir.path().join(name), &model), "{name}");
        }
        // a circle ends
        symlink("round", dir.path().join("round")).unwrap();
        assert!(!is_within(&dir.path().join("round"), &model));
    }

    #[cfg(unix)]
    #[test]
    fn free_space_is_told_of_places_that_are_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let here = free_bytes(dir.path()).unwrap();
        let there = free_bytes(&dir.path().join("a/b/c")).unwrap();
        assert!(here > 0 && there > 0);
    }
}
