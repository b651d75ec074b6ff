use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::server::{Content, Fault, Server};
use crate::folder::hex;
use crate::{
    CheckpointError, HubOptions, ModelFolder, Source, fixture, resolve, resolve_dataset,
    resolve_with_progress,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const SECOND: &str = "89abcdef0123456789abcdef0123456789abcdef";
const WEIGHTS: &str = "model.safetensors";

fn model_files(max_shard_bytes: u64) -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    fixture::write_model(dir.path(), json!({}), max_shard_bytes);
    let mut files: BTreeMap<_, _> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect();
    for name in [
        "merges.txt",
        "notes.md",
        "pytorch_model.bin",
        "original/x.txt",
    ] {
        files.insert(name.to_owned(), name.as_bytes().to_vec());
    }
    files.insert("__init__.py".to_owned(), vec![]);
    files
}

fn content(files: BTreeMap<String, Vec<u8>>) -> Content {
    Content {
        api_path: "models/org/model".to_owned(),
        commits: BTreeMap::from([("main".to_owned(), COMMIT.to_owned())]),
        files: BTreeMap::from([(COMMIT.to_owned(), files)]),
        ..Content::default()
    }
}

/// A hub with one model in one file, an empty cache, and the way to it.
fn hub() -> (Server, TempDir, HubOptions) {
    serve(content(model_files(u64::MAX)))
}

fn serve(content: Content) -> (Server, TempDir, HubOptions) {
    let server = Server::start(content);
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions {
        cache_dir: Some(cache.path().to_owned()),
        endpoint: Some(server.url()),
        ..HubOptions::default()
    };
    (server, cache, options)
}

fn fault(server: &Server, file: &str, fault: Fault) {
    let mut content = server.content.lock().unwrap();
    content.faults.insert(file.to_owned(), fault);
}

fn heal(server: &Server) {
    server.content.lock().unwrap().faults.clear();
}

fn folder(source: &Source) -> PathBuf {
    match source {
        Source::Hub { folder, .. } => folder.clone(),
        other => panic!("{other:?}"),
    }
}

fn fails(source: &str, options: &HubOptions) -> CheckpointError {
    resolve(source, options).unwrap_err()
}

fn text(error: &CheckpointError, options: &HubOptions) -> String {
    fixture::message(error, options.cache_dir.as_ref().unwrap())
        .replace(options.endpoint.as_ref().unwrap(), "ENDPOINT")
}

fn offline(options: &HubOptions) -> HubOptions {
    HubOptions {
        offline: true,
        ..options.clone()
    }
}

fn is_whole(source: &Source) {
    source.open().unwrap().check_tensors().unwrap();
    let served = &model_files(u64::MAX)[WEIGHTS];
    assert_eq!(&fs::read(folder(source).join(WEIGHTS)).unwrap(), served);
}

fn weight_blob(cache: &TempDir) -> PathBuf {
    let etag = hex(&Sha256::digest(&model_files(u64::MAX)[WEIGHTS]));
    cache.path().join("models--org--model/blobs").join(etag)
}

#[test]
fn a_fresh_download_is_whole_and_the_second_run_needs_no_network() {
    let (server, cache, options) = hub();
    let mut seen: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let first = resolve_with_progress("org/model", &options, &mut |progress| {
        let before = seen.insert(progress.file.to_owned(), (progress.bytes, progress.total));
        assert!(before.is_none_or(|(bytes, _)| bytes <= progress.bytes));
    })
    .unwrap();
    is_whole(&first);
    assert_eq!(
        first,
        Source::Hub {
            id: "org/model".to_owned(),
            commit: COMMIT.to_owned(),
            folder: cache
                .path()
                .join("models--org--model/snapshots")
                .join(COMMIT),
        }
    );
    let size = model_files(u64::MAX)[WEIGHTS].len() as u64;
    assert_eq!(seen[WEIGHTS], (size, size));
    let mut names: Vec<_> = fs::read_dir(folder(&first))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["config.json", "merges.txt", WEIGHTS, "tokenizer.json"]
    );
    let main = cache.path().join("models--org--model/refs/main");
    assert_eq!(fs::read_to_string(main).unwrap(), COMMIT);

    let asked = server.requests().len();
    assert_eq!(resolve("org/model", &options).unwrap(), first);
    assert_eq!(resolve("org/model", &offline(&options)).unwrap(), first);
    assert_eq!(server.requests().len(), asked);
}

#[test]
fn shards_are_found_by_the_index() {
    let (_server, _cache, options) = serve(content(model_files(2000)));
    let source = resolve("org/model", &options).unwrap();
    source.open().unwrap().check_tensors().unwrap();
    let shards = fs::read_dir(folder(&source)).unwrap().flatten();
    let shards = shards.filter(|e| e.file_name().to_string_lossy().starts_with("model-0"));
    assert_eq!(shards.count(), 6);
}

#[test]
fn a_revision_is_a_snapshot_of_its_own() {
    let mut content = content(model_files(u64::MAX));
    let mut files = model_files(u64::MAX);
    files.insert("merges.txt".to_owned(), b"second".to_vec());
    content.files.insert(SECOND.to_owned(), files);
    content.commits.insert("pr/5".to_owned(), SECOND.to_owned());
    let (_server, _cache, options) = serve(content);
    let merges = |source: &Source| fs::read(folder(source).join("merges.txt")).unwrap();
    let main = resolve("org/model", &options).unwrap();
    let by_id = resolve("org/model@pr/5", &options).unwrap();
    assert_eq!(merges(&main), b"merges.txt");
    assert_eq!(merges(&by_id), b"second");
    let by_option = HubOptions {
        revision: Some(SECOND.to_owned()),
        ..offline(&options)
    };
    assert_eq!(resolve("org/model", &by_option).unwrap(), by_id);
}

#[test]
fn the_token_is_sent_and_without_it_the_refusal_says_what_to_do() {
    let (server, _cache, options) = hub();
    server.content.lock().unwrap().token = Some("secret".to_owned());
    assert_eq!(
        text(&fails("org/model", &options), &options),
        format!("org/model@main: file list: the hub answered 401; {REFUSED}")
    );
    let with_token = HubOptions {
        token: Some("secret".to_owned()),
        ..options
    };
    let before = server.requests().len();
    is_whole(&resolve("org/model", &with_token).unwrap());
    let later = &server.requests()[before..];
    assert!(later.len() > 4);
    assert!(
        later
            .iter()
            .all(|r| r.authorization.as_deref() == Some("Bearer secret"))
    );
}

const REFUSED: &str = "a private or gated repository wants HF_TOKEN, the token of an account that may read it, and a \
                       gated one that its licence was accepted on its page; or check the id";

#[test]
fn a_refusal_is_told_in_the_hubs_own_words() {
    let (server, _cache, options) = hub();
    let refuse = |header: &str, body: &str| {
        let mut content = server.content.lock().unwrap();
        content.refusal = [header.to_owned(), body.to_owned()];
        drop(content);
        text(&fails("org/model", &options), &options)
    };
    server.content.lock().unwrap().is_gated = true;
    let gated = refuse(
        "Access to org/model is restricted.  Ask for it on its page.",
        "",
    );
    assert!(
        gated.ends_with(&format!(
            ": the hub answered 403, \"Access to org/model is restricted. Ask for it on its page\"; {REFUSED}"
        )),
        "{gated}"
    );
    server.content.lock().unwrap().token = Some("secret".to_owned());
    assert_eq!(
        refuse("", "{\"error\": \"Invalid username or password.\"}"),
        format!(
            "org/model@main: file list: the hub answered 401, \"Invalid username or password\"; {REFUSED}"
        )
    );
    let page = refuse("", "<html>no</html>");
    assert!(page.contains("the hub answered 401; a private"), "{page}");
}

#[test]
fn unknown_ids_and_revisions_are_told_apart_from_broken_networks() {
    let (server, _cache, options) = hub();
    let hint = "the hub answered 404; check the id, the revision and the file, or name a folder that exists";
    assert_eq!(
        text(&fails("org/other", &options), &options),
        format!("org/other@main: file list: {hint}")
    );
    assert_eq!(
        text(&fails("org/model@v9", &options), &options),
        format!("org/model@v9: file list: {hint}")
    );
    fault(&server, WEIGHTS, Fault::Status(404));
    assert_eq!(
        text(&fails("org/model", &options), &options),
        format!("org/model@main: model.safetensors: {hint}")
    );
    drop(server);
    let found = text(&fails("org/new", &options), &options);
    assert!(
        found.starts_with("org/new@main: file list: download from ENDPOINT failed: "),
        "{found}"
    );
    assert!(
        found.ends_with(
            "; run again to go on where it stopped, or set HF_HUB_OFFLINE=1 to use the cache alone"
        ),
        "{found}"
    );
}

#[test]
fn a_server_error_is_tried_again_and_then_told() {
    let (server, _cache, options) = hub();
    fault(&server, "config.json", Fault::Status(503));
    assert_eq!(
        text(&fails("org/model", &options), &options),
        "org/model@main: config.json: the hub answered 503; run again later, or set HF_HUB_OFFLINE=1 to use the cache \
         alone"
    );
    assert_eq!(server.starts("/config.json").len(), 4);
}

#[test]
fn offline_uses_nothing_but_the_cache() {
    let (server, _cache, options) = hub();
    assert_eq!(
        text(&fails("org/model", &offline(&options)), &options),
        "org/model@main: the model is not in the cache DIR, and offline mode is on; unset HF_HUB_OFFLINE to download \
         it, or point HF_HUB_CACHE to the cache that has it"
    );
    let source = resolve("org/model", &options).unwrap();
    fs::remove_file(folder(&source).join(WEIGHTS)).unwrap();
    let asked = server.requests().len();
    let found = text(&fails("org/model", &offline(&options)), &options);
    assert!(
        found.contains(": only a part of the model is in the cache DIR,"),
        "{found}"
    );
    assert_eq!(server.requests().len(), asked);
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke() {
    let (server, _cache, options) = hub();
    fault(
        &server,
        WEIGHTS,
        Fault::Cut {
            after: 1000,
            times: 2,
        },
    );
    is_whole(&resolve("org/model", &options).unwrap());
    assert_eq!(
        server.starts(&format!("store/{COMMIT}/{WEIGHTS}")),
        [0, 1000, 2000]
    );
}

#[test]
fn a_run_that_gave_up_is_resumed_by_the_next_one() {
    let (server, cache, options) = hub();
    fault(
        &server,
        WEIGHTS,
        Fault::Cut {
            after: 500,
            times: 4,
        },
    );
    let found = text(&fails("org/model", &options), &options);
    assert!(
        found.starts_with("org/model@main: model.safetensors: download from ENDPOINT failed: "),
        "{found}"
    );
    let snapshot = cache
        .path()
        .join("models--org--model/snapshots")
        .join(COMMIT);
    assert!(!snapshot.join(WEIGHTS).exists());
    assert!(ModelFolder::open(&snapshot).is_err());
    heal(&server);
    is_whole(&resolve("org/model", &options).unwrap());
    assert_eq!(
        server.starts(&format!("store/{COMMIT}/{WEIGHTS}")),
        [0, 500, 1000, 1500, 2000]
    );
}

#[test]
fn a_body_that_ends_early_without_an_error_is_never_taken_for_whole() {
    let (server, cache, options) = hub();
    fault(&server, WEIGHTS, Fault::Short { by: 1 });
    assert!(resolve("org/model", &options).is_err());
    let snapshot = cache
        .path()
        .join("models--org--model/snapshots")
        .join(COMMIT);
    assert!(!snapshot.join(WEIGHTS).is_symlink());
    heal(&server);
    is_whole(&resolve("org/model", &options).unwrap());
}

#[test]
fn bytes_that_changed_on_the_way_are_found_by_the_checksum() {
    let (server, cache, options) = hub();
    fault(&server, WEIGHTS, Fault::Flip);
    let found = text(&fails("org/model", &options), &options);
    assert!(
        found.starts_with("org/model@main: model.safetensors: its SHA-256 is "),
        "{found}"
    );
    assert!(
        found.ends_with("; the file was removed, run again to download it"),
        "{found}"
    );
    assert!(!weight_blob(&cache).exists());
    heal(&server);
    is_whole(&resolve("org/model", &options).unwrap());
}

#[test]
fn partial_files_of_a_killed_run_are_used_or_replaced() {
    let whole = model_files(u64::MAX)[WEIGHTS].clone();
    let longer = [whole.as_slice(), b"more"].concat();
    for left in [whole.clone(), longer, whole[..7].to_vec()] {
        let (_server, cache, options) = hub();
        let part = weight_blob(&cache).with_extension("part");
        fs::create_dir_all(part.parent().unwrap()).unwrap();
        fs::write(&part, &left).unwrap();
        is_whole(&resolve("org/model", &options).unwrap());
        assert!(!part.exists());
    }
}

#[test]
fn a_dangling_link_in_the_cache_is_downloaded_again() {
    let (_server, cache, options) = hub();
    let source = resolve("org/model", &options).unwrap();
    fs::remove_file(weight_blob(&cache)).unwrap();
    assert!(folder(&source).join(WEIGHTS).is_symlink());
    is_whole(&resolve("org/model", &options).unwrap());
}

#[test]
fn a_repository_without_safetensors_says_what_it_has() {
    let mut files = model_files(u64::MAX);
    files.remove(WEIGHTS);
    let (_server, _cache, options) = serve(content(files));
    assert_eq!(
        text(&fails("org/model", &options), &options),
        "org/model@main: holds no model to read, wanted config.json and model.safetensors (or its index), found \
         pytorch_model.bin; take a repository with safetensors"
    );
}

#[test]
fn a_cache_that_cannot_be_written_is_told() {
    let (_server, cache, mut options) = hub();
    let file = cache.path().join("file");
    fs::write(&file, b"").unwrap();
    options.cache_dir = Some(file);
    let found = fixture::message(&fails("org/model", &options), cache.path());
    assert!(
        found.starts_with("cannot write to the hub cache DIR/file: "),
        "{found}"
    );
    assert!(
        found.ends_with("; a file stands where a folder is needed, choose another name"),
        "{found}"
    );
}

#[test]
fn data_sets_are_listed_filtered_and_cached() {
    let names = [
        "README.md",
        "a/train.jsonl",
        "a/test.jsonl",
        "b.txt",
        "c.parquet",
        "d.csv",
        "e.zip",
    ];
    let files = names
        .iter()
        .map(|n| ((*n).to_owned(), n.as_bytes().to_vec()));
    let mut content = content(files.collect());
    content.api_path = "datasets/org/text".to_owned();
    let (server, _cache, options) = serve(content);
    let wanted = |name: &str| !name.contains("test");
    let get = |options: &HubOptions| resolve_dataset("org/text", &wanted, options, &mut |_| ());
    let found = get(&options).unwrap();
    assert_eq!(
        (found.id.as_str(), found.commit.as_str()),
        ("org/text", COMMIT)
    );
    let snapshot = found.files[1].parent().unwrap().to_owned();
    let names: Vec<_> = found
        .files
        .iter()
        .map(|path| path.strip_prefix(&snapshot).unwrap())
        .collect();
    assert_eq!(
        names,
        [
            Path::new("a/train.jsonl"),
            Path::new("b.txt"),
            Path::new("c.parquet"),
            Path::new("d.csv")
        ]
    );
    for (path, name) in found.files.iter().zip(&names) {
        assert_eq!(fs::read(path).unwrap(), name.to_str().unwrap().as_bytes());
    }
    let asked = server.requests().len();
    assert_eq!(get(&options).unwrap(), found);
    assert_eq!(server.requests().len(), asked + 1);
    assert_eq!(get(&offline(&options)).unwrap(), found);
    assert_eq!(server.requests().len(), asked + 1);

    let none = resolve_dataset("org/text", &|_| false, &options, &mut |_| ()).unwrap_err();
    assert_eq!(
        none.to_string(),
        "org/text@main: none of its 7 files is a txt, jsonl, json, csv, tsv or parquet file, packed or not, that was asked for"
    );
    let form = resolve_dataset("text", &wanted, &options, &mut |_| ()).unwrap_err();
    assert_eq!(
        form.to_string(),
        "text: not the id of a data set, wanted org/name or org/name@revision"
    );
}
