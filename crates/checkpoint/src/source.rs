//! Where a model comes from: a folder, the embedded model, or the hub.

use std::path::{Path, PathBuf};

use crate::folder::is_embedded;
use crate::{CheckpointError, ModelFolder, Result};

/// How to reach the hub.
#[derive(Clone, Debug, Default)]
pub struct HubOptions {
    /// Branch, tag or commit; `main` when absent. An `@revision` in the id goes before it.
    pub revision: Option<String>,
    /// Sent as a bearer token.
    pub token: Option<String>,
    /// The hub cache, holding `models--ORG--NAME`; `~/.cache/huggingface/hub` when absent.
    pub cache_dir: Option<PathBuf>,
    /// `https://huggingface.co` when absent.
    pub endpoint: Option<String>,
    /// Use the cache only.
    pub offline: bool,
}

impl HubOptions {
    /// Reads HF_ENDPOINT, HF_TOKEN (or the file `token` in HF_HOME, as a login leaves it), HF_HUB_CACHE, HF_HOME and
    /// HF_HUB_OFFLINE.
    pub fn from_env() -> Self {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    fn from_variables(get: &dyn Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| {
            get(name)
                .map(|v| v.trim().to_owned())
                .filter(|v| !v.is_empty())
        };
        let home = set("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache")));
            cache.map(|cache| cache.join("huggingface"))
        });
        let token_file = || {
            let text = std::fs::read_to_string(home.as_ref()?.join("token")).ok()?;
            Some(text.trim().to_owned()).filter(|token| !token.is_empty())
        };
        Self {
            revision: None,
            token: set("HF_TOKEN").or_else(token_file),
            cache_dir: set("HF_HUB_CACHE")
                .map(PathBuf::from)
                .or_else(|| home.as_ref().map(|home| home.join("hub"))),
            endpoint: set("HF_ENDPOINT"),
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| {
                ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str())
            }),
        }
    }
}

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file's name in the repository.
    pub file: &'a str,
    /// Bytes there so far.
    pub bytes: u64,
    /// Size of the file.
    pub total: u64,
}

/// Where a model was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A model folder on disk.
    Folder(PathBuf),
    /// A model inside this program, by name.
    Embedded(String),
    /// A hub model, now in the cache.
    Hub {
        /// `org/name`.
        id: String,
        /// The commit that was asked for resolved to.
        commit: String,
        /// Its snapshot folder in the cache.
        folder: PathBuf,
    },
}

impl Source {
    /// Opens what was found.
    pub fn open(&self) -> Result<ModelFolder> {
        match self {
            Self::Folder(path) | Self::Hub { folder: path, .. } => ModelFolder::open(path),
            Self::Embedded(name) => ModelFolder::embedded(name),
        }
    }
}

/// The files of a hub data set, now in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetFiles {
    /// `org/name`.
    pub id: String,
    /// The commit that was asked for resolved to.
    pub commit: String,
    /// Local paths, sorted by name in the repository.
    pub files: Vec<PathBuf>,
}

/// Finds a model: an existing folder, `embedded:tiny`, or a hub id `org/name[@revision]`, which is downloaded unless
/// the cache has it.
pub fn resolve(source: &str, options: &HubOptions) -> Result<Source> {
    resolve_with_progress(source, options, &mut |_| ())
}

/// [`resolve`], telling how far each download is.
pub fn resolve_with_progress(
    source: &str,
    options: &HubOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Source> {
    if let Some(name) = source.strip_prefix("embedded:") {
        return match is_embedded(name) {
            true => Ok(Source::Embedded(name.to_owned())),
            false => Err(CheckpointError::Embedded(name.to_owned())),
        };
    }
    if Path::new(source).is_dir() {
        return Ok(Source::Folder(PathBuf::from(source)));
    }
    let id =
        HubId::parse(source, options).ok_or_else(|| CheckpointError::Source(source.to_owned()))?;
    hub_model(&id, options, progress)
}

/// Downloads the txt, jsonl, json, csv, tsv and parquet files, also packed, of a hub data set `org/name[@revision]` that `wanted` accepts by
/// their name in the repository. Files that the cache has are not downloaded again; the list is asked for each time,
/// unless offline.
pub fn resolve_dataset(
    id: &str,
    wanted: &dyn Fn(&str) -> bool,
    options: &HubOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<DatasetFiles> {
    let id = HubId::parse(id, options).ok_or_else(|| CheckpointError::HubContent {
        repo: id.to_owned(),
        reason: "not the id of a data set, wanted org/name or org/name@revision".to_owned(),
    })?;
    hub_dataset(&id, wanted, options, progress)
}

#[cfg(feature = "hub")]
use crate::hub::{dataset as hub_dataset, model as hub_model};

#[cfg(not(feature = "hub"))]
fn hub_model(
    id: &HubId,
    _options: &HubOptions,
    _progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Source> {
    Err(CheckpointError::HubDisabled(id.name.clone()))
}

#[cfg(not(feature = "hub"))]
fn hub_dataset(
    id: &HubId,
    _wanted: &dyn Fn(&str) -> bool,
    _options: &HubOptions,
    _progress: &mut dyn FnMut(Progress<'_>),
) -> Result<DatasetFiles> {
    Err(CheckpointError::HubDisabled(id.name.clone()))
}

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HubId {
    /// `org/name`.
    pub(crate) name: String,
    /// Branch, tag or commit.
    pub(crate) revision: String,
}

impl HubId {
    /// `org/name[@revision]`, or none when the text has another form.
    fn parse(text: &str, options: &HubOptions) -> Option<Self> {
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision.to_owned())),
            None => (text, options.revision.clone()),
        };
        let (org, model) = name.split_once('/')?;
        let is_part = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let revision = revision.unwrap_or_else(|| "main".to_owned());
        let is_revision = crate::folder::is_plain_name(&revision)
            && revision
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
        (is_part(org) && is_part(model) && is_revision).then(|| Self {
            name: name.to_owned(),
            revision,
        })
    }
}

impl std::fmt::Display for HubId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.name, self.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> HubOptions {
        HubOptions::from_variables(&|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn folders_and_embedded_models_need_no_hub() {
        let dir = tempfile::tempdir().unwrap();
        let offline = options(&[("HF_HUB_OFFLINE", "1")]);
        let source = dir.path().display().to_string();
        assert_eq!(
            resolve(&source, &offline).unwrap(),
            Source::Folder(dir.path().to_owned())
        );
        let tiny = resolve("embedded:tiny", &offline).unwrap();
        assert_eq!(tiny, Source::Embedded("tiny".to_owned()));
        assert_eq!(tiny.open().unwrap().config().vocab_size, 4096);
        assert_eq!(
            resolve("embedded:big", &offline).unwrap_err().to_string(),
            "no embedded model is called 'big'; use embedded:tiny"
        );
    }

    #[test]
    fn a_source_of_no_known_form_is_told_the_three_forms() {
        for source in [
            "",
            "tiny",
            "./absent/model",
            "/absent/model",
            "a/b/c",
            "org/na me",
            "org/name@",
            "org/name@../x",
        ] {
            assert_eq!(
                resolve(source, &HubOptions::default())
                    .unwrap_err()
                    .to_string(),
                format!(
                    "model source '{source}' is neither an existing folder, nor embedded:tiny, nor a hub id such as \
                     org/name or org/name@revision"
                )
            );
        }
    }

    #[test]
    fn ids_carry_their_revision_before_the_options() {
        let mut options = HubOptions::default();
        let parse =
            |text: &str, options: &HubOptions| HubId::parse(text, options).unwrap().to_string();
        assert_eq!(parse("org/model-1.5_b", &options), "org/model-1.5_b@main");
        options.revision = Some("v1".to_owned());
        assert_eq!(parse("org/model", &options), "org/model@v1");
        assert_eq!(
            parse("org/model@refs/pr/5", &options),
            "org/model@refs/pr/5"
        );
    }

    #[test]
    fn the_environment_is_read_as_other_tools_read_it() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "from-login\n").unwrap();
        let place = home.path().display().to_string();
        let found = options(&[("HF_HOME", &place), ("HF_ENDPOINT", "http://mirror")]);
        assert_eq!(found.cache_dir, Some(home.path().join("hub")));
        assert_eq!(found.token.as_deref(), Some("from-login"));
        assert_eq!(found.endpoint.as_deref(), Some("http://mirror"));
        assert!(!found.offline);
        let found = options(&[
            ("HF_HOME", &place),
            ("HF_TOKEN", " from-variable "),
            ("HF_HUB_CACHE", "/cache"),
            ("HF_HUB_OFFLINE", "TRUE"),
        ]);
        assert_eq!(found.cache_dir, Some(PathBuf::from("/cache")));
        assert_eq!(found.token.as_deref(), Some("from-variable"));
        assert!(found.offline);
        let found = options(&[("HOME", "/home/x"), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(
            found.cache_dir,
            Some(PathBuf::from("/home/x/.cache/huggingface/hub"))
        );
        assert!(!found.offline && found.token.is_none());
    }
}
