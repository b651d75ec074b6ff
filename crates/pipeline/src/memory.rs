//! How much memory a run may hold: what the pipeline file says or, for `auto`, a share of what is free when it starts.
//!
//! What is free is what the kernel says is available, and no more than what control groups leave, which is how
//! containers are limited. The share leaves room for what other programs take meanwhile, and for what is not counted
//! beforehand.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::config::Resources;

/// The share of what is free that `auto` takes, in percent.
const SHARE_PERCENT: u64 = 80;

/// The bytes that a run may hold, settled once at its start. No result hangs on it but for the windows that a model writes,
/// which it may forbid with a warning: what does not fit is spilled to files and read again, the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryLimit {
    /// As the pipeline file says.
    Set(u64),
    /// A share of what is free.
    OfFree(u64),
    /// What is free cannot be known.
    Unknown,
}

impl MemoryLimit {
    /// The limit that is in force from now on.
    pub(crate) fn of(resources: &Resources) -> Self {
        match resources.max_memory_bytes {
            Some(bytes) => Self::Set(bytes),
            None => match free(Path::new("/")) {
                Some(bytes) => Self::OfFree(bytes / 100 * SHARE_PERCENT),
                None => Self::Unknown,
            },
        }
    }

    /// Bytes, if there is a limit.
    pub(crate) fn bytes(self) -> Option<u64> {
        match self {
            Self::Set(bytes) | Self::OfFree(bytes) => Some(bytes),
            Self::Unknown => None,
        }
    }

    /// Bytes that may be held at once.
    pub(crate) fn all(self) -> u64 {
        self.bytes().unwrap_or(u64::MAX)
    }

    /// Bytes that kept activations may take; the rest is for weights, statistics and solving.
    pub(crate) fn activations(self) -> u64 {
        self.all() / 2
    }

    /// What to say where there is no limit though one was asked for.
    pub(crate) fn notice(self) -> Option<String> {
        (self == Self::Unknown).then(|| {
            "resources.max_memory: auto: what is free cannot be known on this system, so there is no limit; a size, such as \
             8GiB, sets one"
                .to_owned()
        })
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(bytes) => {
                write!(
                    f,
                    "{}, resources.max_memory",
                    halfbyte_report::bytes(*bytes)
                )
            }
            Self::OfFree(bytes) => write!(
                f,
                "{}, {SHARE_PERCENT} % of what is free",
                halfbyte_report::bytes(*bytes)
            ),
            Self::Unknown => write!(f, "none, what is free is not known"),
        }
    }
}

/// Bytes that this process can still take, by the files of the Linux kernel under `root`; none where it has no such files.
fn free(root: &Path) -> Option<u64> {
    let groups = groups(root).into_iter().filter_map(|group| group.free());
    available(root).into_iter().chain(groups).min()
}

/// What the whole machine has left: the kernel's own estimate, or before Linux 3.14 what is free or holds copies of files.
fn available(root: &Path) -> Option<u64> {
    let text = read(&root.join("proc/meminfo"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line
            .strip_prefix(':')?
            .split_whitespace()
            .next()?
            .parse()
            .ok()?;
        Some(kib * 1024)
    };
    field("MemAvailable").or_else(|| {
        let rest = ["Buffers", "Cached"].into_iter().filter_map(field);
        Some(field("MemFree")? + rest.sum::<u64>())
    })
}

/// A control group that memory is counted in.
#[derive(Debug, PartialEq)]
struct Group {
    version: Version,
    folder: PathBuf,
}

/// The two interfaces that the kernel has to control groups.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Version {
    One,
    Two,
}

/// The process's own control groups and those that hold them, as far up as they are mounted.
fn groups(root: &Path) -> Vec<Group> {
    let mounts = read(&root.join("proc/self/mountinfo")).unwrap_or_default();
    let own = read(&root.join("proc/self/cgroup")).unwrap_or_default();
    let mut groups = Vec::new();
    for mount in mounts.lines().filter_map(Mount::parse) {
        let place = own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, place) = rest.split_once(':')?;
            let is_it = match mount.version {
                Version::One => controllers.split(',').any(|c| c == "memory"),
                Version::Two => controllers.is_empty(),
            };
            is_it.then_some(place)
        });
        let top = root.join(mount.point.trim_start_matches('/'));
        // A container may see its own group mounted where the whole tree would be.
        let below = Path::new(place.unwrap_or("/")).strip_prefix(&mount.root);
        let own = below.map_or_else(|_| top.clone(), |below| top.join(below));
        groups.extend(
            own.ancestors()
                .take_while(|folder| folder.starts_with(&top))
                .map(|folder| Group {
                    version: mount.version,
                    folder: folder.to_owned(),
                }),
        );
    }
    groups
}

/// A hierarchy of control groups in the file system.
struct Mount {
    version: Version,
    /// The group at the top of it.
    root: String,
    point: String,
}

impl Mount {
    /// Reads a line of mountinfo (proc(5)); none where it is not of control groups that count memory.
    fn parse(line: &str) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (unescaped(place.next()?), unescaped(place.next()?));
        let mut kind = kind.split(' ');
        let version = match kind.next()? {
            "cgroup2" => Version::Two,
            "cgroup" if kind.nth(1)?.split(',').any(|c| c == "memory") => Version::One,
            _ => return None,
        };
        Some(Self {
            version,
            root,
            point,
        })
    }
}

/// A path as mountinfo writes it, with blanks, line ends and backslashes as octal numbers.
fn unescaped(path: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .into_iter()
    .fold(path.to_owned(), |path, (code, sign)| {
        path.replace(code, sign)
    })
}

impl Group {
    /// Bytes that the group may still take; none where it has no limit. Copies of files count as free: the kernel drops
    /// them when the group needs room.
    fn free(&self) -> Option<u64> {
        let number = |file: &str| read(&self.folder.join(file))?.trim().parse::<u64>().ok();
        let stat = read(&self.folder.join("memory.stat")).unwrap_or_default();
        let stat = |name: &str| {
            let value = stat
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
            value.trim().parse::<u64>().ok()
        };
        let (limits, used, copies) = match self.version {
            // "max", which is no number, is no limit
            Version::Two => (
                [number("memory.max"), number("memory.high")],
                number("memory.current")?,
                ["active_file", "inactive_file"],
            ),
            Version::One => (
                [
                    number("memory.limit_in_bytes"),
                    stat("hierarchical_memory_limit"),
                ],
                number("memory.usage_in_bytes")?,
                ["total_active_file", "total_inactive_file"],
            ),
        };
        let limit = limits.into_iter().flatten().min()?;
        let copies: u64 = copies.into_iter().filter_map(stat).sum();
        Some(limit.saturating_sub(used.saturating_sub(copies)))
    }
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const MEMINFO: &str = "MemTotal:       16384 kB\nMemFree:         1024 kB\nMemAvailable:    8192 kB\n\
                           Buffers:          512 kB\nCached:          2048 kB\nSwapCached:      9999 kB\n";

    /// What is free by a folder of such files.
    fn free_by(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        free(root.path())
    }

    #[test]
    fn without_control_groups_the_kernels_estimate_is_what_is_free() {
        assert_eq!(free_by(&[("proc/meminfo", MEMINFO)]), Some(8 * MIB));
        let old = MEMINFO.replace("MemAvailable:    8192 kB\n", "");
        assert_eq!(
            free_by(&[("proc/meminfo", &old)]),
            Some((1024 + 512 + 2048) * 1024)
        );
    }

    #[test]
    fn where_the_kernel_says_nothing_there_is_no_limit() {
        assert_eq!(free_by(&[]), None);
        assert_eq!(free_by(&[("proc/meminfo", "MemAvailable: much\n")]), None);
    }

    const UNIFIED: &str = "25 1 0:22 / /proc rw - proc proc rw\n31 23 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";

    /// A group of the second version below two others; of each what it may take, and has taken.
    fn unified(own: [&str; 3], middle: [&str; 3], top: [&str; 3]) -> Option<u64> {
        let folder = "sys/fs/cgroup/user.slice/job";
        let mut files = vec![
            ("proc/meminfo".to_owned(), MEMINFO),
            ("proc/self/mountinfo".to_owned(), UNIFIED),
            ("proc/self/cgroup".to_owned(), "0::/user.slice/job\n"),
        ];
        let folders = Path::new(folder).ancestors();
        for (folder, group) in folders.zip([own, middle, top]) {
            let names = ["memory.max", "memory.high", "memory.current"];
            for (name, value) in names.into_iter().zip(group) {
                if !value.is_empty() {
                    files.push((format!("{}/{name}", folder.display()), value));
                }
            }
        }
        files.push((
            format!("{folder}/memory.stat"),
            "anon 7\nfile 9999\ninactive_file 1048576\nactive_file 1048576\n",
        ));
        let files: Vec<_> = files
            .iter()
            .map(|(name, text)| (&name[..], *text))
            .collect();
        free_by(&files)
    }

    #[test]
    fn a_group_leaves_its_limit_less_what_it_holds_beside_copies_of_files() {
        let none = ["max\n", "max\n", "5242880\n"];
        // the root of the tree has no such files
        let root = ["", "", ""];
        assert_eq!(unified(none, none, root), Some(8 * MIB));
        assert_eq!(
            unified(["8388608\n", "max\n", "5242880\n"], none, root),
            Some(5 * MIB)
        );
        assert_eq!(
            unified(["8388608\n", "6291456\n", "5242880\n"], none, root),
            Some(3 * MIB)
        );
        assert_eq!(
            unified(["4194304\n", "max\n", "9242880\n"], none, root),
            Some(0)
        );
        assert_eq!(
            unified(["99999999\n", "max\n", "5242880\n"], none, root),
            Some(8 * MIB)
        );
    }

    #[test]
    fn groups_that_hold_the_own_one_limit_it_too() {
        let (none, root) = (["max\n", "max\n", "5242880\n"], ["", "", ""]);
        let middle = ["7340032\n", "max\n", "5242880\n"];
        assert_eq!(unified(none, middle, root), Some(2 * MIB));
        assert_eq!(
            unified(["8388608\n", "max\n", "5242880\n"], middle, root),
            Some(2 * MIB)
        );
        assert_eq!(
            unified(none, none, ["6291456\n", "", "5242880\n"]),
            Some(MIB)
        );
    }

    /// A container that sees the tree from its own group on, whether its paths start there too or not.
    #[test]
    fn a_containers_own_group_is_found_where_it_is_mounted() {
        for (mounted, own) in [
            ("/docker/abc", "/docker/abc"),
            ("/", "/"),
            ("/", "/../other"),
        ] {
            let mounts = format!("31 23 0:27 {mounted} /sys/fs/cgroup rw - cgroup2 cgroup rw\n");
            let own = format!("0::{own}\n");
            let files = [
                ("proc/meminfo", MEMINFO),
                ("proc/self/mountinfo", &mounts[..]),
                ("proc/self/cgroup", &own[..]),
                ("sys/fs/cgroup/memory.max", "3145728\n"),
                ("sys/fs/cgroup/memory.current", "1048576\n"),
            ];
            assert_eq!(free_by(&files), Some(2 * MIB), "{mounted} {own}");
        }
    }

    const FIRST: &str = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                         35 30 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                         36 30 0:32 / /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn groups_of_the_first_version_are_read_as_well() {
        let folder = "sys/fs/cgroup/my memory/docker/abc";
        let of = |limit: &str, stat: &str| {
            let names = ["limit_in_bytes", "usage_in_bytes"];
            let [limit_file, usage_file] = names.map(|name| format!("{folder}/memory.{name}"));
            let stat_file = format!("{folder}/memory.stat");
            free_by(&[
                ("proc/meminfo", MEMINFO),
                ("proc/self/mountinfo", FIRST),
                (
                    "proc/self/cgroup",
                    "4:memory:/docker/abc\n1:cpu,cpuacct:/docker\n0::/\n",
                ),
                (&limit_file, limit),
                (&usage_file, "3145728\n"),
                (&stat_file, stat),
            ])
        };
        let unlimited = "9223372036854771712\n";
        let stat = "cache 9\ntotal_inactive_file 1048576\ntotal_active_file 0\n";
        assert_eq!(of(unlimited, stat), Some(8 * MIB));
        assert_eq!(of("5242880\n", stat), Some(3 * MIB));
        let above = format!("hierarchical_memory_limit 4194304\n{stat}");
        assert_eq!(of(unlimited, &above), Some(2 * MIB));
    }

    #[test]
    fn a_size_is_taken_as_it_is_and_auto_leaves_some_of_what_is_free() {
        let resources = |max_memory_bytes| Resources {
            max_memory_bytes,
            ..Resources::default()
        };
        let set = MemoryLimit::of(&resources(Some(8 << 30)));
        assert_eq!(set, MemoryLimit::Set(8 << 30));
        assert_eq!(set.to_string(), "8.00 GiB, resources.max_memory");
        assert_eq!((set.activations(), set.notice()), (4 << 30, None));
        match MemoryLimit::of(&resources(None)) {
            MemoryLimit::OfFree(bytes) => {
                assert!(cfg!(target_os = "linux") && bytes > 0 && bytes < 1 << 50);
            }
            limit => assert!(limit == MemoryLimit::Unknown && !cfg!(target_os = "linux")),
        }
        assert_eq!(MemoryLimit::Unknown.all(), u64::MAX);
        assert!(MemoryLimit::Unknown.notice().is_some());
    }
}
