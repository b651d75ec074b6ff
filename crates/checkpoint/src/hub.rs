//! Downloads from the hub into the cache that every tool of the field shares.
//!
//! hf-hub speaks the protocol and keeps the cache's layout. Around it stands what it leaves out: one commit for all
//! files of a run, the cache first, retries that resume, and a check of every finished file against the size and, for
//! large files, the SHA-256 that the hub announced. A snapshot counts as whole only when every file it needs is there.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};

use crate::folder::{INDEX, SINGLE, goes_with_model, hex, is_plain_name, parse_index};
use crate::source::HubId;
use crate::{CheckpointError, DatasetFiles, HubOptions, Progress, Result, Source};

const ENDPOINT: &str = "https://huggingface.co";
/// Tries after the first; each goes on where the last one stopped.
const RETRIES: u32 = 3;
/// Waited before the first retry, doubled for each further one.
const WAIT: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 200 });
/// What is asked for before any file.
const FILE_LIST: &str = "file list";
const DATASET_ENDINGS: &[&str] = &[
    ".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zst",
];

/// Finds a model in the cache, or downloads it.
pub(crate) fn model(
    id: &HubId,
    options: &HubOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Source> {
    let hub = Hub::new(id, RepoType::Model, options)?;
    let cached = hub.cached();
    if let Some((commit, folder)) = &cached
        && is_whole_model(folder)
    {
        return Ok(hub.source(commit, folder));
    }
    if options.offline {
        return Err(hub.offline(match cached {
            Some(_) => "only a part of the model is",
            None => "the model is not",
        }));
    }
    let listing = hub.list()?;
    let names: Vec<&str> = listing
        .siblings
        .iter()
        .map(|file| file.rfilename.as_str())
        .collect();
    let has = |name: &str| names.contains(&name);
    if !has("config.json") || !(has(INDEX) || has(SINGLE)) {
        return Err(hub.lacks_model_files(&names));
    }
    let download = hub.download(&listing.sha)?;
    for name in names.iter().filter(|name| goes_with_model(name)) {
        download.fetch_optional(name, progress)?;
    }
    download.fetch("config.json", progress)?;
    let weights = match has(INDEX) {
        false => vec![SINGLE.to_owned()],
        true => {
            let path = download.fetch(INDEX, progress)?;
            let text =
                fs::read(&path).map_err(|error| CheckpointError::io("read", &path, error))?;
            parse_index(&text, &path)?.into_keys().collect()
        }
    };
    for name in &weights {
        download.fetch(name, progress)?;
    }
    hub.remember(&listing.sha)?;
    Ok(hub.source(&listing.sha, &download.folder))
}

/// Lists a data set's files, or takes those in the cache when offline, and downloads what is missing.
pub(crate) fn dataset(
    id: &HubId,
    wanted: &dyn Fn(&str) -> bool,
    options: &HubOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<DatasetFiles> {
    let hub = Hub::new(id, RepoType::Dataset, options)?;
    let is_wanted = |name: &&str| {
        is_plain_name(name) && DATASET_ENDINGS.iter().any(|end| name.ends_with(end)) && wanted(name)
    };
    let (commit, mut names, folder) = if options.offline {
        let (commit, folder) = hub
            .cached()
            .ok_or_else(|| hub.offline("the data set is not"))?;
        let names = files_below(&folder)?;
        (commit, names, folder)
    } else {
        let listing = hub.list()?;
        let names = listing.siblings.into_iter().map(|f| f.rfilename).collect();
        let folder = hub.snapshot(&listing.sha);
        (listing.sha, names, folder)
    };
    let all = names.len();
    names.retain(|name| is_wanted(&name.as_str()));
    names.sort();
    if names.is_empty() {
        return Err(CheckpointError::HubContent {
            repo: id.to_string(),
            reason: format!(
                "none of its {all} files is a txt, jsonl, json, csv, tsv or parquet file, packed or not, that was asked for"
            ),
        });
    }
    if !options.offline {
        let download = hub.download(&commit)?;
        for name in &names {
            download.fetch(name, progress)?;
        }
        hub.remember(&commit)?;
    }
    Ok(DatasetFiles {
        id: id.name.clone(),
        files: names.iter().map(|name| folder.join(name)).collect(),
        commit,
    })
}

/// One repository, seen through the cache and the network.
struct Hub<'a> {
    id: &'a HubId,
    kind: RepoType,
    cache: Cache,
    endpoint: String,
    token: Option<String>,
}

/// One commit of it, being downloaded.
struct Download<'a> {
    hub: &'a Hub<'a>,
    api: Api,
    repo: ApiRepo,
    commit: String,
    folder: PathBuf,
}

/// What a failed attempt means.
enum Failure {
    /// Worth another try.
    Again(CheckpointError),
    /// Not worth one.
    Final(CheckpointError),
    /// The partial file in the cache does not fit what the hub offers now.
    PartialFile,
}

impl<'a> Hub<'a> {
    fn new(id: &'a HubId, kind: RepoType, options: &HubOptions) -> Result<Self> {
        let cache = options
            .cache_dir
            .clone()
            .unwrap_or_else(|| Cache::default().path().clone());
        // hf-hub links by relative paths, which needs both ends to be absolute.
        let cache = std::path::absolute(&cache)
            .map_err(|error| CheckpointError::io("use the hub cache", &cache, error))?;
        let endpoint = options.endpoint.as_deref().unwrap_or(ENDPOINT);
        Ok(Self {
            id,
            kind,
            cache: Cache::new(cache),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: options.token.clone(),
        })
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.name.clone(), self.kind, revision.to_owned())
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.cache.repo(self.repo(commit)).pointer_path(commit)
    }

    /// The commit that the revision is known to mean, and its folder, if the cache has any of it.
    fn cached(&self) -> Option<(String, PathBuf)> {
        let revision = &self.id.revision;
        let commit = match is_commit(revision) {
            true => revision.clone(),
            false => {
                let repo = self.cache.path().join(self.repo(revision).folder_name());
                let text = fs::read_to_string(repo.join("refs").join(revision)).ok()?;
                Some(text.trim().to_owned()).filter(|commit| is_commit(commit))?
            }
        };
        let folder = self.snapshot(&commit);
        folder.is_dir().then_some((commit, folder))
    }

    /// Notes which commit the revision means, once all of it is there.
    fn remember(&self, commit: &str) -> Result<()> {
        self.cache
            .repo(self.repo(&self.id.revision))
            .create_ref(commit)
            .map_err(|error| {
                CheckpointError::io("write to the hub cache", self.cache.path(), error)
            })
    }

    fn source(&self, commit: &str, folder: &Path) -> Source {
        Source::Hub {
            id: self.id.name.clone(),
            commit: commit.to_owned(),
            folder: folder.to_owned(),
        }
    }

    fn offline(&self, what: &str) -> CheckpointError {
        CheckpointError::HubOffline {
            repo: self.id.to_string(),
            what: what.to_owned(),
            cache: self.cache.path().clone(),
        }
    }

    fn api(&self) -> Result<Api> {
        ApiBuilder::from_cache(self.cache.clone())
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            .with_user_agent("halfbyte", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| self.transport("connection", error.to_string()))
    }

    /// Files and commit of the revision.
    fn list(&self) -> Result<RepoInfo> {
        const WHAT: &str = FILE_LIST;
        let repo = self.api()?.repo(self.repo(&self.id.revision));
        let listing = retry(|| repo.info().map_err(|error| self.classify(WHAT, error)))
            .map_err(|failure| self.give_up(WHAT, failure))?;
        match is_commit(&listing.sha) {
            true => Ok(listing),
            false => Err(self.transport(WHAT, format!("'{}' is not a commit", listing.sha))),
        }
    }

    fn download(&'a self, commit: &str) -> Result<Download<'a>> {
        let api = self.api()?;
        Ok(Download {
            hub: self,
            repo: api.repo(self.repo(commit)),
            api,
            commit: commit.to_owned(),
            folder: self.snapshot(commit),
        })
    }

    fn lacks_model_files(&self, names: &[&str]) -> CheckpointError {
        let mut found: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| {
                [".bin", ".pt", ".pth", ".gguf"]
                    .iter()
                    .any(|e| name.ends_with(e))
            })
            .take(3)
            .collect();
        if found.is_empty() {
            found = names.iter().copied().take(3).collect();
        }
        CheckpointError::HubContent {
            repo: self.id.to_string(),
            reason: format!(
                "holds no model to read, wanted config.json and model.safetensors (or its index), found {}; \
                 take a repository with safetensors",
                match found.is_empty() {
                    true => "nothing".to_owned(),
                    false => found.join(", "),
                }
            ),
        }
    }

    fn transport(&self, file: &str, reason: String) -> CheckpointError {
        CheckpointError::HubTransport {
            repo: self.id.to_string(),
            file: file.to_owned(),
            endpoint: self.endpoint.clone(),
            reason,
        }
    }

    /// Tells what the user must mend from what may pass.
    fn classify(&self, file: &str, error: ApiError) -> Failure {
        let status = match &error {
            ApiError::RequestError(request) => match **request {
                ureq::Error::StatusCode(status) => Some(status),
                _ => None,
            },
            ApiError::InvalidResume => return Failure::PartialFile,
            ApiError::IoError(io) if is_about_disk(io.kind()) => {
                return Failure::Final(CheckpointError::io(
                    "write to the hub cache",
                    self.cache.path(),
                    io.kind().into(),
                ));
            }
            ApiError::LockAcquisition(lock) => {
                return Failure::Final(self.transport(
                    file,
                    format!(
                        "another program is downloading it ({} is locked)",
                        lock.display()
                    ),
                ));
            }
            _ => None,
        };
        match status {
            Some(416) => Failure::PartialFile,
            Some(status) => {
                let said = CheckpointError::HubStatus {
                    repo: self.id.to_string(),
                    file: file.to_owned(),
                    status,
                    words: match status {
                        401 | 403 => self.words(file),
                        _ => None,
                    },
                };
                match status >= 500 {
                    true => Failure::Again(said),
                    false => Failure::Final(said),
                }
            }
            None => Failure::Again(self.transport(file, error.to_string())),
        }
    }

    fn give_up(&self, file: &str, failure: Failure) -> CheckpointError {
        match failure {
            Failure::Again(error) | Failure::Final(error) => error,
            Failure::PartialFile => CheckpointError::HubStatus {
                repo: self.id.to_string(),
                file: file.to_owned(),
                status: 416,
                words: None,
            },
        }
    }

    /// Why the hub refuses, in its own words, which hf-hub leaves out: the same is asked once more for them alone.
    fn words(&self, file: &str) -> Option<String> {
        let repo = self.api().ok()?.repo(self.repo(&self.id.revision));
        let mut request = repo.info_request();
        if file != FILE_LIST {
            request = request.uri(repo.url(file));
        }
        let request = request.config().http_status_as_error(false).build();
        let mut answer = request.call().ok()?;
        let header = answer.headers().get("x-error-message");
        let header = header.and_then(|words| Some(words.to_str().ok()?.to_owned()));
        let words = header.or_else(|| {
            let body = answer.body_mut().with_config().limit(1 << 16);
            let body = body.read_to_string().ok()?;
            match serde_json::from_str::<serde_json::Value>(&body) {
                Ok(json) => Some(json.get("error")?.as_str()?.to_owned()),
                // A page for a browser is no message.
                Err(_) => Some(body).filter(|body| !body.contains('<')),
            }
        })?;
        let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
        let line = line.trim_end_matches('.').chars().take(400).collect();
        Some(line).filter(|line: &String| !line.is_empty())
    }
}

impl Download<'_> {
    /// The file's place in the snapshot, downloaded if it is not there yet.
    fn fetch(&self, name: &str, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
        let pointer = self.folder.join(name);
        if pointer.is_file() {
            return Ok(pointer);
        }
        if pointer.is_symlink() {
            // What it pointed to is gone; hf-hub would stumble over it.
            fs::remove_file(&pointer)
                .map_err(|error| CheckpointError::io("remove", &pointer, error))?;
        }
        retry(|| self.attempt(name, &pointer, progress))
            .map_err(|failure| self.hub.give_up(name, failure))?;
        Ok(pointer)
    }

    /// [`Self::fetch`] for a file that the model does without: an empty one cannot be downloaded in ranges.
    fn fetch_optional(&self, name: &str, progress: &mut dyn FnMut(Progress<'_>)) -> Result<()> {
        match self.fetch(name, progress) {
            Err(CheckpointError::HubStatus { status: 416, .. }) => {
                tracing::warn!("{}: {name} is empty on the hub, left out", self.hub.id);
                Ok(())
            }
            result => result.map(drop),
        }
    }

    fn attempt(
        &self,
        name: &str,
        pointer: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failure> {
        let mut wanted = 0;
        let report = Report {
            file: name,
            bytes: 0,
            total: &mut wanted,
            sink: progress,
        };
        match self.repo.download_with_progress(name, report) {
            Ok(_) => self.verify(name, pointer, wanted),
            Err(error) => Err(match self.hub.classify(name, error) {
                Failure::PartialFile => self.mend_partial(name),
                failure => failure,
            }),
        }
    }

    /// Holds a finished file against what was announced, before anyone takes it for whole.
    fn verify(&self, name: &str, pointer: &Path, wanted: u64) -> Result<(), Failure> {
        let fail = |error| {
            Failure::Final(CheckpointError::io(
                "read from the hub cache",
                pointer,
                error,
            ))
        };
        let blob = fs::canonicalize(pointer).map_err(fail)?;
        let bytes = fs::metadata(&blob).map_err(fail)?.len();
        if bytes < wanted {
            // Short, but as far as it goes it may be right: it becomes a partial file again.
            fs::rename(&blob, blob.with_extension("part")).map_err(fail)?;
            fs::remove_file(pointer).map_err(fail)?;
            let reason = format!("the connection closed after {bytes} of {wanted} bytes");
            return Err(Failure::Again(self.hub.transport(name, reason)));
        }
        let damage = if bytes > wanted {
            Some(format!("{bytes} bytes arrived, announced were {wanted}"))
        } else {
            wrong_checksum(&blob).map_err(fail)?
        };
        let Some(reason) = damage else {
            return Ok(());
        };
        fs::remove_file(pointer).map_err(fail)?;
        if blob != pointer {
            fs::remove_file(&blob).map_err(fail)?;
        }
        Err(Failure::Final(CheckpointError::HubDamaged {
            repo: self.hub.id.to_string(),
            file: name.to_owned(),
            reason,
        }))
    }

    /// Brings the partial file of an earlier run into a state that can be resumed.
    fn mend_partial(&self, name: &str) -> Failure {
        let metadata = match self.api.metadata(&self.repo.url(name)) {
            Ok(metadata) => metadata,
            Err(ApiError::RequestError(error))
                if matches!(*error, ureq::Error::StatusCode(416)) =>
            {
                return Failure::Final(self.hub.give_up(name, Failure::PartialFile));
            }
            Err(error) => return self.hub.classify(name, error),
        };
        let repo = self.hub.cache.repo(self.hub.repo(&self.commit));
        let part = repo.blob_path(metadata.etag()).with_extension("part");
        let length = fs::metadata(&part).map_or(0, |data| data.len());
        let mended = match length == metadata.size() as u64 && length > 0 {
            // All there, only not renamed: the last byte is asked for again, as an empty range cannot be.
            true => fs::OpenOptions::new()
                .write(true)
                .open(&part)
                .and_then(|file| file.set_len(length - 1)),
            false => fs::remove_file(&part),
        };
        match mended {
            Ok(()) => Failure::Again(self.hub.give_up(name, Failure::PartialFile)),
            Err(error) => Failure::Final(CheckpointError::io("mend", &part, error)),
        }
    }
}

/// Hands hf-hub's steps on as whole figures.
struct Report<'a> {
    file: &'a str,
    bytes: u64,
    total: &'a mut u64,
    sink: &'a mut dyn FnMut(Progress<'_>),
}

impl hf_hub::api::Progress for Report<'_> {
    fn init(&mut self, size: usize, _file: &str) {
        // Called again when the transfer begins, and the bytes already there are told after it.
        self.bytes = 0;
        *self.total = size as u64;
    }

    fn update(&mut self, size: usize) {
        self.bytes += size as u64;
        (self.sink)(Progress {
            file: self.file,
            bytes: self.bytes,
            total: *self.total,
        });
    }

    fn finish(&mut self) {}
}

fn retry<T>(mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut told = String::new();
    for n in 0..RETRIES {
        match attempt() {
            Err(Failure::Again(error)) => {
                let text = error.brief();
                // Without a network every try fails alike.
                if text != told {
                    tracing::warn!("{text}; trying again");
                }
                told = text;
                std::thread::sleep(WAIT * 2u32.pow(n));
            }
            result => return result,
        }
    }
    attempt()
}

/// The hub names large files by their SHA-256; others by a git hash, which is left alone.
fn wrong_checksum(blob: &Path) -> io::Result<Option<String>> {
    let name = blob.file_name().unwrap_or_default().to_string_lossy();
    if name.len() != 64 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let mut file = fs::File::open(blob)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    let found = hex(&hash.finalize());
    Ok((found != *name).then(|| format!("its SHA-256 is {found}, announced was {name}")))
}

fn is_whole_model(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    let weights = match has(INDEX) {
        false => has(SINGLE),
        true => fs::read(folder.join(INDEX))
            .ok()
            .and_then(|text| parse_index(&text, &folder.join(INDEX)).ok())
            .is_some_and(|shards| shards.keys().all(|shard| has(shard))),
    };
    weights && has("config.json") && has("tokenizer.json")
}

/// Names of all files in a snapshot, relative to it, with forward slashes.
fn files_below(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut pending = vec![String::new()];
    while let Some(prefix) = pending.pop() {
        let path = folder.join(&prefix);
        let fail = |error| CheckpointError::io("list", &path, error);
        for entry in fs::read_dir(&path).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            let name = format!("{prefix}{}", name.to_string_lossy());
            match folder.join(&name) {
                path if path.is_dir() => pending.push(name + "/"),
                path if path.is_file() => names.push(name),
                _ => (),
            }
        }
    }
    Ok(names)
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_about_disk(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::NotADirectory
            | ErrorKind::AlreadyExists
    )
}

#[cfg(test)]
mod server;

#[cfg(test)]
mod tests;
