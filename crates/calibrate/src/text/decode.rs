//! Bytes of a file to its text: unpacked, decoded, without a byte order mark.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use super::TextError;
use super::read::failed;

/// Bytes that are read, one buffer at a time.
pub(super) type Bytes = Box<dyn BufRead>;

/// Bytes that are looked at to tell what a file is.
const HEAD_BYTES: usize = 4096;

/// Packings inside one another that are unpacked.
const DEPTH: usize = 2;

/// A file's bytes, unpacked, and the first of them.
pub(super) struct Unpacked {
    pub(super) bytes: Bytes,
    pub(super) head: Vec<u8>,
    /// Whether the file was packed.
    pub(super) packed: bool,
}

/// Unpacks gzip and zstd, which their first bytes tell, whatever the file's name.
pub(super) fn unpack(file: impl Read + 'static, path: &Path) -> Result<Unpacked, TextError> {
    let mut bytes: Bytes = Box::new(BufReader::new(file));
    let mut packed = false;
    for _ in 0..=DEPTH {
        let (head, rest) = peek(bytes).map_err(|e| failed(path, e))?;
        bytes = match packing(&head) {
            None => {
                return Ok(Unpacked {
                    bytes: rest,
                    head,
                    packed,
                });
            }
            Some("gzip") => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(rest))),
            Some("zstd") => {
                let decoder = zstd::Decoder::with_buffer(rest).map_err(|e| failed(path, e))?;
                Box::new(BufReader::new(decoder))
            }
            Some(kind) => {
                return Err(TextError::Packed {
                    path: path.into(),
                    kind,
                });
            }
        };
        packed = true;
    }
    Err(TextError::Packed {
        path: path.into(),
        kind: "gzip or zstd more than twice",
    })
}

/// How bytes that begin so are packed.
fn packing(head: &[u8]) -> Option<&'static str> {
    let marks: [(&[u8], &str); 7] = [
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"PK\x03\x04", "zip"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"\x04\x22\x4d\x18", "lz4"),
    ];
    marks
        .iter()
        .find(|(mark, _)| head.starts_with(mark))
        .map(|(_, kind)| *kind)
}

/// The first bytes, and all bytes with those.
fn peek(mut bytes: Bytes) -> io::Result<(Vec<u8>, Bytes)> {
    let mut head = Vec::new();
    bytes
        .by_ref()
        .take(HEAD_BYTES as u64)
        .read_to_end(&mut head)?;
    let whole = Cursor::new(head.clone()).chain(bytes);
    Ok((head, Box::new(whole)))
}

/// The text of unpacked bytes: without a byte order mark, and UTF-16 with one as UTF-8.
pub(super) fn text(unpacked: Unpacked, path: &Path) -> Result<Bytes, TextError> {
    let Unpacked {
        mut bytes, head, ..
    } = unpacked;
    let wide = match head.as_slice() {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => {
            return Err(TextError::Encoding {
                path: path.into(),
                found: "UTF-32",
            });
        }
        [0xff, 0xfe, ..] => Some(u16::from_le_bytes as fn([u8; 2]) -> u16),
        [0xfe, 0xff, ..] => Some(u16::from_be_bytes as fn([u8; 2]) -> u16),
        [0xef, 0xbb, 0xbf, ..] => {
            bytes.consume(3);
            None
        }
        _ if is_wide(&head) => {
            return Err(TextError::Encoding {
                path: path.into(),
                found: "UTF-16 without a byte order mark",
            });
        }
        _ => None,
    };
    Ok(match wide {
        None => bytes,
        Some(unit) => {
            bytes.consume(2);
            Box::new(BufReader::new(Utf16 {
                bytes,
                unit,
                high: None,
                ready: Vec::new(),
                taken: 0,
            }))
        }
    })
}

/// Whether every second byte of a text's head is zero, as in UTF-16 of plain letters.
fn is_wide(head: &[u8]) -> bool {
    let zeros = |odd: usize| {
        head.iter()
            .skip(odd)
            .step_by(2)
            .filter(|b| **b == 0)
            .count()
    };
    let half = head.len() / 2;
    half >= 4
        && [(0, 1), (1, 0)]
            .iter()
            .any(|&(a, b)| 4 * zeros(a) >= 3 * half && zeros(b) == 0)
}

/// UTF-16 to UTF-8.
struct Utf16 {
    bytes: Bytes,
    unit: fn([u8; 2]) -> u16,
    /// The first half of a character of two.
    high: Option<u16>,
    ready: Vec<u8>,
    taken: usize,
}

impl Utf16 {
    fn take(&mut self, unit: u16) -> io::Result<()> {
        let units = match self.high.take() {
            Some(high) => vec![high, unit],
            None if (0xd800..0xdc00).contains(&unit) => {
                self.high = Some(unit);
                return Ok(());
            }
            None => vec![unit],
        };
        for decoded in char::decode_utf16(units) {
            let character = decoded.map_err(|_| not_utf16())?;
            let mut buffer = [0; 4];
            self.ready
                .extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
        }
        Ok(())
    }
}

fn not_utf16() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "it begins as UTF-16 and goes on as something else; save the file as UTF-8",
    )
}

impl Read for Utf16 {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.ready.len() {
            self.ready.clear();
            self.taken = 0;
            let mut buffer = Vec::new();
            self.bytes.by_ref().take(8192).read_to_end(&mut buffer)?;
            if buffer.is_empty() {
                return match self.high {
                    None => Ok(0),
                    Some(_) => Err(not_utf16()),
                };
            }
            let (pairs, []) = buffer.as_chunks::<2>() else {
                return Err(not_utf16());
            };
            for pair in pairs {
                self.take((self.unit)(*pair))?;
            }
        }
        let count = out.len().min(self.ready.len() - self.taken);
        out[..count].copy_from_slice(&self.ready[self.taken..][..count]);
        self.taken += count;
        Ok(count)
    }
}

/// Text in pieces of whole characters, with line ends as `\n` where the file has `\r\n`.
pub(super) struct Pieces {
    bytes: Bytes,
    /// Bytes at the end of the last piece that wait for what comes after them.
    held: Vec<u8>,
    /// Bytes before the held ones.
    offset: usize,
}

/// Bytes read for a piece.
const PIECE_BYTES: usize = 64 << 10;

impl Pieces {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self {
            bytes,
            held: Vec::new(),
            offset: 0,
        }
    }

    /// The next piece; none at the end.
    pub(super) fn next(&mut self, path: &Path) -> Result<Option<String>, TextError> {
        loop {
            let mut piece = std::mem::take(&mut self.held);
            let before = piece.len();
            self.bytes
                .by_ref()
                .take(PIECE_BYTES as u64)
                .read_to_end(&mut piece)
                .map_err(|e| failed(path, e))?;
            let at_end = piece.len() == before;
            if piece.is_empty() {
                return Ok(None);
            }
            let mut whole = match std::str::from_utf8(&piece) {
                Ok(_) => piece.len(),
                Err(e) if e.error_len().is_none() && !at_end => e.valid_up_to(),
                Err(e) => {
                    return Err(TextError::NotUtf8 {
                        place: path.display().to_string(),
                        offset: self.offset + e.valid_up_to(),
                    });
                }
            };
            if !at_end && piece[..whole].ends_with(b"\r") {
                whole -= 1;
            }
            self.held = piece.split_off(whole);
            self.offset += whole;
            let text = String::from_utf8(piece).map_err(|e| TextError::NotUtf8 {
                place: path.display().to_string(),
                offset: e.utf8_error().valid_up_to(),
            })?;
            if !text.is_empty() {
                return Ok(Some(match text.contains("\r\n") {
                    true => text.replace("\r\n", "\n"),
                    false => text,
                }));
            }
        }
    }
}
