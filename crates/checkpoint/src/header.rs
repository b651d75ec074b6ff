//! The header of a safetensors file: which tensors it holds and where.
//!
//! Read here and not by the safetensors crate, whose reading passes every entry through a buffer and two hash maps, takes
//! the last of two tensors of one name, and does not name the tensor whose size is wrong.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use crate::{CheckpointError, Result};

/// Longer headers are none: what every reader of the format holds to.
const LONGEST: usize = 100_000_000;

/// A tensor as the header has it.
#[derive(Debug)]
pub(crate) struct HeaderEntry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Where in the file its bytes are.
    pub(crate) range: Range<usize>,
}

/// All tensors of a file whose first eight bytes give a header that lies within it, in the order of their bytes, which cover
/// the rest of the file without gaps.
pub(crate) fn read_header(bytes: &[u8], path: &Path) -> Result<Vec<HeaderEntry>> {
    let damaged = |reason: String| CheckpointError::Header {
        path: path.to_owned(),
        reason,
    };
    let length = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
    let length = length.and_then(|n| usize::try_from(n).ok());
    let length = length.ok_or_else(|| damaged("it has no length".to_owned()))?;
    if length > LONGEST {
        let reason = format!("{length} bytes of header, wanted {LONGEST} or fewer");
        return Err(damaged(reason));
    }
    let data = 8 + length;
    let text = bytes.get(8..data).unwrap_or_default();
    let text = std::str::from_utf8(text)
        .map_err(|error| damaged(format!("invalid UTF-8 in header: {error}")))?;
    let Header(mut tensors) = serde_json::from_str(text)
        .map_err(|error| damaged(format!("invalid JSON in header: {error}")))?;
    tensors.sort_by(|(a, x), (b, y)| (x.data_offsets, a).cmp(&(y.data_offsets, b)));

    let mut end = 0;
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, info) in tensors {
        let (start, stop) = info.data_offsets;
        if start != end || stop < start {
            return Err(damaged(format!(
                "invalid offset for tensor `{name}`: bytes {start} to {stop}, wanted from {end} on"
            )));
        }
        let elements = info
            .shape
            .iter()
            .try_fold(1usize, |n, &dim| n.checked_mul(dim));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        if bits.is_none_or(|bits| bits % 8 != 0 || bits / 8 != stop - start) {
            return Err(damaged(format!(
                "tensor `{name}` is {} {:?} in {} bytes",
                info.dtype,
                info.shape,
                stop - start
            )));
        }
        end = stop;
        entries.push(HeaderEntry {
            name,
            dtype: info.dtype,
            shape: info.shape,
            range: data.saturating_add(start)..data.saturating_add(stop),
        });
    }
    let wanted = data.saturating_add(end);
    match bytes.len() {
        found if found < wanted => Err(CheckpointError::Truncated {
            path: path.to_owned(),
            bytes: found as u64,
            wanted: wanted as u64,
        }),
        found if found > wanted => Err(damaged(format!(
            "{} bytes follow the last tensor, wanted none",
            found - wanted
        ))),
        _ => Ok(entries),
    }
}

/// The JSON as it stands, but for `__metadata__`, which is checked and passed over.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with an entry a tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<Option<HashMap<String, String>>>()?;
                        continue;
                    }
                    tensors.push((name, map.next_value::<TensorInfo>()?));
                }
                Ok(Header(tensors))
            }
        }
        let header = deserializer.deserialize_map(Entries)?;
        let mut names: Vec<&str> = header.0.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(D::Error::custom(format!("{} stands there twice", pair[0]))),
            None => Ok(header),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(header: &str, data: usize) -> Result<usize, String> {
        let length = (header.len() as u64).to_le_bytes();
        let file = [&length[..], header.as_bytes(), &vec![0; data]].concat();
        let read = read_header(&file, Path::new("x"));
        read.map(|entries| entries.len())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_contradicts_itself_is_named() {
        let check = |header: &str, data: usize, wanted: &str| {
            assert_eq!(read(header, data).unwrap_err(), format!("x: {wanted}"));
        };
        let a = r#""a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}"#;
        assert_eq!(read(&format!("{{{a}}}"), 4), Ok(1));
        assert_eq!(
            read(
                &format!("{{{a}, \"__metadata__\": {{\"format\": \"pt\"}}}}"),
                4
            ),
            Ok(1)
        );
        assert_eq!(read("{}", 0), Ok(0));
        check(
            &format!("{{{a}, {a}}}"),
            4,
            "damaged safetensors header: invalid JSON in header: a stands there twice",
        );
        check(
            &format!("{{{a}}}").replace("[2]", "[3]"),
            4,
            "damaged safetensors header: tensor `a` is F16 [3] in 4 bytes",
        );
        check(
            &format!("{{{a}}}").replace("[2]", "[9223372036854775807, 4]"),
            4,
            "damaged safetensors header: tensor `a` is F16 [9223372036854775807, 4] in 4 bytes",
        );
        check(
            &format!("{{{a}, {}}}", a.replace("\"a\"", "\"b\"")),
            4,
            "damaged safetensors header: invalid offset for tensor `b`: bytes 0 to 4, wanted from 4 on",
        );
        check(
            &format!("{{{a}}}"),
            3,
            "72 bytes, but the header wants 73; the file is cut short, copy or download it again",
        );
    }

    /// Against the format's own crate, over headers in which two numbers at a time are changed.
    #[test]
    fn the_same_files_are_read_as_by_the_safetensors_crate() {
        let entry = |name: &str, shape: &str, from: usize, to: usize| {
            format!(
                r#""{name}": {{"dtype": "F32", "shape": {shape}, "data_offsets": [{from}, {to}]}}"#
            )
        };
        let mut good = 0;
        for shape in ["[]", "[0]", "[1]", "[1, 1]", "[2]"] {
            for from in [0, 4, 8] {
                for to in [0, 4, 8, 12] {
                    for data in [0, 4, 8, 12] {
                        let header = format!(
                            "{{{}, {}}}",
                            entry("b", shape, from, to),
                            entry("a", "[1]", 0, 4)
                        );
                        let length = (header.len() as u64).to_le_bytes();
                        let file = [&length[..], header.as_bytes(), &vec![0; data]].concat();
                        let theirs = safetensors::SafeTensors::read_metadata(&file);
                        let ours = read_header(&file, Path::new("x"));
                        assert_eq!(ours.is_ok(), theirs.is_ok(), "{header} {data}: {ours:?}");
                        good += usize::from(ours.is_ok());
                    }
                }
            }
        }
        assert!(good >= 5, "{good}");
    }
}
