//! A hub on a local port that speaks as much of the protocol as a download needs, and misbehaves when told to.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use crate::folder::hex;

/// How the transfer of a file goes wrong.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// The connection closes after so many bytes, this many times.
    Cut { after: usize, times: usize },
    /// Fewer bytes come than the range announced, and the length header agrees with them.
    Short { by: usize },
    /// One bit is wrong.
    Flip,
    /// This status instead of the file.
    Status(u16),
}

/// What the hub holds; a test changes it as it goes.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    /// `models` or `datasets`, then `/org/name`.
    pub(super) api_path: String,
    /// Commit by revision; commits know themselves.
    pub(super) commits: BTreeMap<String, String>,
    /// Files by commit.
    pub(super) files: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Needed to see anything.
    pub(super) token: Option<String>,
    /// What a refusal says: its header, and its body.
    pub(super) refusal: [String; 2],
    /// Whether files are refused to everyone, though their list is not.
    pub(super) is_gated: bool,
    /// By file name.
    pub(super) faults: BTreeMap<String, Fault>,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    pub(super) path: String,
    pub(super) range: Option<String>,
    pub(super) authorization: Option<String>,
}

/// The running server; it stops when dropped.
pub(super) struct Server {
    address: SocketAddr,
    pub(super) content: Arc<Mutex<Content>>,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub(super) fn start(content: Content) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            content: Arc::new(Mutex::new(content)),
            requests: Arc::default(),
            stop: Arc::default(),
        };
        let (content, requests, stop) = (
            server.content.clone(),
            server.requests.clone(),
            server.stop.clone(),
        );
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (content, requests) = (content.clone(), requests.clone());
                std::thread::spawn(move || answer(stream, &content, &requests));
            }
        });
        server
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Starts of the ranges asked for a file, the probes of its first byte left out.
    pub(super) fn starts(&self, file: &str) -> Vec<usize> {
        self.requests()
            .iter()
            .filter(|request| request.path.ends_with(file))
            .filter_map(|request| request.range.as_deref())
            .filter(|range| *range != "bytes=0-0")
            .map(|range| range_of(range).0)
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// First and last byte of `bytes=a-b`; the last may be open.
fn range_of(range: &str) -> (usize, Option<usize>) {
    let (first, last) = range.trim_start_matches("bytes=").split_once('-').unwrap();
    (first.parse().unwrap(), last.parse().ok())
}

fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        text.push(byte[0]);
    }
    let text = String::from_utf8(text).ok()?;
    let header = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    Some(Request {
        path: text.split(' ').nth(1)?.to_owned(),
        range: header("range"),
        authorization: header("authorization"),
    })
}

fn answer(mut stream: TcpStream, content: &Mutex<Content>, requests: &Mutex<Vec<Request>>) {
    let Some(request) = read_request(&mut stream) else {
        return;
    };
    requests.lock().unwrap().push(request.clone());
    let mut content = content.lock().unwrap();
    let allowed = content
        .token
        .as_ref()
        .is_none_or(|token| request.authorization == Some(format!("Bearer {token}")));
    let reply = match allowed {
        false => refusal(401, &content),
        true if content.is_gated && request.path.contains("/resolve/") => refusal(403, &content),
        true => route(&request, &mut content),
    };
    let _ = stream.write_all(&reply);
}

fn status(code: u16) -> Vec<u8> {
    format!("HTTP/1.1 {code} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").into_bytes()
}

fn refusal(code: u16, content: &Content) -> Vec<u8> {
    let [header, body] = &content.refusal;
    let header = match header.as_str() {
        "" => String::new(),
        words => format!("X-Error-Message: {words}\r\n"),
    };
    format!(
        "HTTP/1.1 {code} X\r\n{header}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn route(request: &Request, content: &mut Content) -> Vec<u8> {
    let commit_of = |content: &Content, revision: &str| {
        let revision = revision.replace("%2F", "/");
        match content.files.contains_key(&revision) {
            true => Some(revision),
            false => content.commits.get(&revision).cloned(),
        }
    };
    let api = format!("/api/{}/revision/", content.api_path);
    if let Some(revision) = request.path.strip_prefix(&api) {
        let Some(commit) = commit_of(content, revision) else {
            return status(404);
        };
        let siblings: Vec<_> = content.files[&commit]
            .keys()
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        let body = serde_json::json!({"sha": commit, "siblings": siblings}).to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        return (head + &body).into_bytes();
    }
    let files = match content.api_path.strip_prefix("models") {
        Some(id) => format!("{id}/resolve/"),
        None => format!("/{}/resolve/", content.api_path),
    };
    let is_store = request.path.starts_with("/store/");
    let rest = request.path.strip_prefix("/store/");
    let Some((revision, name)) = rest
        .or_else(|| request.path.strip_prefix(&files))
        .and_then(|rest| rest.split_once('/'))
    else {
        return status(404);
    };
    let Some(commit) = commit_of(content, revision) else {
        return status(404);
    };
    let Some(bytes) = content.files[&commit].get(name).cloned() else {
        return status(404);
    };
    let sha256 = hex(&Sha256::digest(&bytes));
    // Weights lie in a store of their own, as large files do on the hub.
    if name.ends_with(".safetensors") && !is_store {
        return format!(
            "HTTP/1.1 302 Found\r\nLocation: /store/{commit}/{name}\r\nX-Repo-Commit: {commit}\r\nX-Linked-Etag: \
             \"{sha256}\"\r\nETag: \"other\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .into_bytes();
    }
    let etag = match name.ends_with(".safetensors") {
        true => sha256,
        false => sha256[..40].to_owned(),
    };
    transfer(request, content, (name, &bytes), &etag, &commit)
}

fn transfer(
    request: &Request,
    content: &mut Content,
    (name, bytes): (&str, &[u8]),
    etag: &str,
    commit: &str,
) -> Vec<u8> {
    let (first, last) = request.range.as_deref().map_or((0, None), range_of);
    if first >= bytes.len() {
        return status(416);
    }
    let end = last.map_or(bytes.len(), |last| bytes.len().min(last + 1));
    let mut body = bytes[first..end].to_vec();
    let mut length = body.len();
    if request.range.as_deref() != Some("bytes=0-0") {
        match content.faults.get_mut(name) {
            Some(Fault::Cut { after, times }) if *times > 0 => {
                *times -= 1;
                body.truncate(*after);
            }
            Some(Fault::Short { by }) => {
                length -= (*by).min(length);
                body.truncate(length);
            }
            Some(Fault::Flip) => body[0] ^= 1,
            Some(Fault::Status(code)) => return status(*code),
            Some(Fault::Cut { .. }) | None => (),
        }
    }
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\nContent-Range: bytes {first}-{}/{}\r\nETag: \
         \"{etag}\"\r\nX-Repo-Commit: {commit}\r\nConnection: close\r\n\r\n",
        end - 1,
        bytes.len()
    );
    [head.as_bytes(), &body].concat()
}
