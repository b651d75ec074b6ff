//! Valid inputs made wrong: nodes of a tree taken away, doubled, exchanged and replaced, then bytes cut and turned.
//!
//! The rejected alternative, bytes alone, hardly ever comes past the parser.

use halfbyte_calibrate::text::SplitMix64;
use serde_json::{Map, Number, Value, json};

/// How a target's input is written, which decides how it is spoiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One JSON value.
    Json,
    /// One JSON value a line.
    Lines,
    /// YAML.
    Yaml,
    /// Eight bytes of length, a JSON header, data.
    Safetensors,
    /// Text or bytes of no form that is known here.
    Bytes,
}

/// An input with its tree, where it has one.
#[derive(Clone)]
pub(crate) struct Input {
    pub(crate) bytes: Vec<u8>,
    tree: Option<Value>,
    /// What follows the header of [`Format::Safetensors`].
    data: Vec<u8>,
}

impl Input {
    pub(crate) fn new(bytes: Vec<u8>, format: Format) -> Self {
        let mut data = Vec::new();
        let tree = match format {
            Format::Json => serde_json::from_slice(&bytes).ok(),
            Format::Lines => {
                let lines = bytes.split(|&b| b == b'\n').filter(|line| !line.is_empty());
                let lines: Result<Vec<Value>, _> = lines.map(serde_json::from_slice).collect();
                lines.ok().map(Value::Array)
            }
            // anchors and nesting are the reader's to judge, not to be met here
            Format::Yaml if bytes.len() < 20_000 && !bytes.contains(&b'&') && !is_deep(&bytes) => {
                serde_yaml::from_slice(&bytes).ok()
            }
            Format::Safetensors => header_of(&bytes).map(|(header, rest)| {
                data = rest.to_vec();
                header
            }),
            _ => None,
        };
        Self { bytes, tree, data }
    }
}

fn is_deep(bytes: &[u8]) -> bool {
    bytes.iter().filter(|b| b"[{-?".contains(b)).count() > 400
}

fn header_of(bytes: &[u8]) -> Option<(Value, &[u8])> {
    let length = u64::from_le_bytes(*bytes.first_chunk()?) as usize;
    let rest = bytes.get(8..)?;
    let header = serde_json::from_slice(rest.get(..length)?).ok()?;
    Some((header, &rest[length..]))
}

/// A safetensors file of this header and data.
pub(crate) fn safetensors(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// Makes new inputs of old ones.
pub(crate) struct Mutator<'a> {
    pub(crate) random: SplitMix64,
    pub(crate) format: Format,
    /// Words that mean something to the target: keys and values of all seeds.
    pub(crate) words: &'a [String],
}

/// No input grows beyond this.
pub(crate) const LARGEST: usize = 90_000;

impl Mutator<'_> {
    fn one_in(&mut self, n: usize) -> bool {
        self.random.below(n) == 0
    }

    /// One input spoiled, with pieces of another.
    pub(crate) fn mutate(&mut self, input: &Input, other: &Input) -> Vec<u8> {
        let mut bytes = match &input.tree {
            Some(tree) if !self.one_in(8) => {
                let mut tree = tree.clone();
                let steps = 1 + self.random.below(3) * self.random.below(3);
                for _ in 0..steps {
                    self.spoil(&mut tree, other.tree.as_ref());
                }
                self.write(&tree, &input.data)
            }
            _ => input.bytes.clone(),
        };
        if input.tree.is_none() || self.one_in(10) {
            let steps = 1 + self.random.below(4);
            for _ in 0..steps {
                self.spoil_bytes(&mut bytes, &other.bytes);
            }
        }
        bytes.truncate(LARGEST);
        bytes
    }

    fn write(&mut self, tree: &Value, data: &[u8]) -> Vec<u8> {
        let json = |value: &Value| serde_json::to_vec(value).unwrap_or_default();
        match self.format {
            Format::Lines => match tree {
                Value::Array(lines) => {
                    let lines: Vec<_> = lines.iter().map(json).collect();
                    lines.join(&b'\n')
                }
                other => json(other),
            },
            Format::Yaml => match self.one_in(4) {
                true => json(tree),
                false => serde_yaml::to_string(tree).unwrap_or_default().into_bytes(),
            },
            Format::Safetensors => {
                let mut file = safetensors(&json(tree), data);
                if self.one_in(20) {
                    let length = self.size() as u64;
                    file[..8].copy_from_slice(&length.to_le_bytes());
                }
                file
            }
            _ => json(tree),
        }
    }

    /// Changes one node.
    fn spoil(&mut self, tree: &mut Value, other: Option<&Value>) {
        let spare = other.map(|other| self.pick(other).clone());
        let nodes = count(tree);
        let at = self.random.below(nodes);
        let kind = self.random.below(14);
        let value = self.value();
        let word = self.word();
        let times = 1 + self.random.below(30) * self.random.below(30);
        let deep = 1 + self.random.below(12) * self.random.below(12);
        let (which, second) = (self.random.below(1 << 20), self.random.below(1 << 20));
        let number = self.number();
        let Some(node) = node_at(tree, at) else {
            return;
        };
        match (kind, &mut *node) {
            (0, Value::Object(map)) if !map.is_empty() => {
                let key = key_at(map, which);
                map.shift_remove(&key);
            }
            (0, Value::Array(list)) if !list.is_empty() => {
                list.remove(which % list.len());
            }
            (1, Value::Object(map)) if !map.is_empty() => {
                let from = key_at(map, which);
                let copy = map[&from].clone();
                map.insert(word, copy);
            }
            (1 | 2, Value::Array(list)) if !list.is_empty() => {
                let copy = list[which % list.len()].clone();
                let room = LARGEST / (1 + count(&copy) * 8);
                for _ in 0..times.min(room) {
                    list.push(copy.clone());
                }
            }
            (2, Value::Object(map)) if !map.is_empty() => {
                let from = key_at(map, which);
                if let Some(value) = map.shift_remove(&from) {
                    map.insert(word, value);
                }
            }
            (3, Value::Object(map)) if map.len() > 1 => {
                let (a, b) = (key_at(map, which), key_at(map, second));
                let (x, y) = (map[&a].clone(), map[&b].clone());
                map.insert(a, y);
                map.insert(b, x);
            }
            (3, Value::Array(list)) if list.len() > 1 => {
                let n = list.len();
                list.swap(which % n, second % n);
            }
            (4, Value::Object(map)) => {
                map.insert(word, value);
            }
            (4, Value::Array(list)) => list.insert(which % (list.len() + 1), value),
            (5, Value::String(text)) => *text = self.text(text.clone()),
            (5 | 6, Value::Number(old)) => {
                if let Some(changed) = self.nearby(old) {
                    *node = changed;
                }
            }
            (7, Value::Number(old)) => *node = json!(old.to_string()),
            (7, Value::String(text)) => {
                *node = text.parse::<f64>().map_or(json!([text]), |x| json!(x));
            }
            (7, Value::Bool(flag)) => *node = json!(u8::from(*flag)),
            (7, Value::Object(map)) => *node = Value::Array(map.values().cloned().collect()),
            (7, Value::Array(list)) => {
                let keys = list.iter().enumerate();
                *node = Value::Object(keys.map(|(i, v)| (i.to_string(), v.clone())).collect());
            }
            (8, _) => {
                let inner = std::mem::take(node);
                *node = wrapped(inner, deep, &word);
            }
            (9, _) if spare.is_some() => *node = spare.unwrap_or_default(),
            (10, _) => *node = number,
            (11, _) => *node = json!(word),
            _ => *node = value,
        }
    }

    /// A node of a tree.
    fn pick<'v>(&mut self, tree: &'v Value) -> &'v Value {
        let mut node = tree;
        loop {
            let next = match node {
                Value::Object(map) if !map.is_empty() => {
                    map.values().nth(self.random.below(map.len()))
                }
                Value::Array(list) if !list.is_empty() => list.get(self.random.below(list.len())),
                _ => None,
            };
            match next {
                Some(next) if !self.one_in(4) => node = next,
                _ => return node,
            }
        }
    }

    fn value(&mut self) -> Value {
        match self.random.below(10) {
            0 => Value::Null,
            1 => json!(true),
            2 => json!(false),
            3 => json!([]),
            4 => json!({}),
            5 => {
                let word = self.word();
                json!(self.text(word))
            }
            6 => json!(self.word()),
            7 => json!([self.number(), self.number()]),
            _ => self.number(),
        }
    }

    fn number(&mut self) -> Value {
        const WHOLE: [i64; 22] = [
            0,
            1,
            -1,
            2,
            3,
            4,
            7,
            8,
            16,
            31,
            64,
            127,
            128,
            255,
            256,
            4096,
            65_535,
            1 << 31,
            u32::MAX as i64,
            1 << 53,
            i64::MAX,
            i64::MIN,
        ];
        const REAL: [f64; 14] = [
            0.5, -0.0, 1e-308, 5e-324, 1e308, 1.797e308, -1e308, 1e-10, 1e16, 1e19, 1e100, 0.1,
            -3.7, 1e39,
        ];
        match self.random.below(8) {
            0 => json!(u64::MAX),
            1..4 => json!(REAL[self.random.below(REAL.len())]),
            _ => json!(WHOLE[self.random.below(WHOLE.len())]),
        }
    }

    /// A number close to another, or far from it.
    fn nearby(&mut self, old: &Number) -> Option<Value> {
        let step = 1 + self.random.below(3) as i64;
        if let Some(x) = old.as_i64() {
            return Some(match self.random.below(6) {
                0 => json!(x.wrapping_add(step)),
                1 => json!(x.wrapping_sub(step)),
                2 => json!(x.wrapping_neg()),
                3 => json!(x.wrapping_mul(1 << (8 * step))),
                4 => json!(x / 2),
                _ => json!(x as f64 + 0.5),
            });
        }
        let x = old.as_f64()?;
        let changed = match self.random.below(5) {
            0 => -x,
            1 => x * 1e10f64.powi(step as i32 * 8),
            2 => x * 1e-10f64.powi(step as i32 * 8),
            3 => x.floor(),
            _ => x + 1.0,
        };
        Number::from_f64(changed).map(Value::Number)
    }

    fn word(&mut self) -> String {
        match self.words.is_empty() {
            true => "text".to_owned(),
            false => self.words[self.random.below(self.words.len())].clone(),
        }
    }

    fn text(&mut self, old: String) -> String {
        const STRANGE: [&str; 16] = [
            "",
            "\u{1b}[2J\u{1b}]0;x\u{7}",
            "../../etc/passwd",
            "/",
            "NaN",
            "Infinity",
            "\u{0}",
            "\u{feff}",
            "\u{202e}abc",
            "é\u{301}\u{1f469}\u{200d}\u{1f680}",
            "{{ 1 }}",
            "((a+)+)+$",
            "[",
            "\\",
            "%s%n",
            " ",
        ];
        let strange = STRANGE[self.random.below(STRANGE.len())];
        let mut at = self.random.below(old.len() + 1);
        while !old.is_char_boundary(at) {
            at -= 1;
        }
        match self.random.below(6) {
            0 => strange.to_owned(),
            1 => format!("{}{strange}{}", &old[..at], &old[at..]),
            2 => old[..at].to_owned(),
            3 => old.repeat(
                (1 + self.random.below(60) * self.random.below(60))
                    .min(1 + LARGEST / (1 + old.len())),
            ),
            4 => format!("{old}{}", self.word()),
            _ => format!("{}{}", &old[at..], &old[..at]),
        }
    }

    fn size(&mut self) -> usize {
        match self.random.below(5) {
            0 => usize::MAX,
            1 => self.random.below(1 << 40),
            2 => self.random.below(16),
            _ => self.random.below(4096),
        }
    }

    fn spoil_bytes(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let n = bytes.len();
        let at = self.random.below(n + 1);
        let length = 1 + self.random.below(16).min(self.random.below(n + 1));
        let end = (at + length).min(n);
        match self.random.below(11) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 if n > 0 => bytes[at % n] ^= 1 << self.random.below(8),
            3 if n > 0 => bytes[at % n] = self.random.below(256) as u8,
            4 => {
                let piece = bytes[at..end].to_vec();
                let times = 1 + self.random.below(40) * self.random.below(40);
                let times = times.min(LARGEST / piece.len().max(1));
                bytes.splice(at..at, piece.repeat(times));
            }
            5 => {
                let word = self.word();
                bytes.splice(at..at, word.into_bytes());
            }
            6 => {
                const MARKS: &[u8] =
                    b"[{\"]},:\\-&*!|>%@`#?'\n\t \x00\x1b\x7f\xff\xc3\xe2.0919eE+~";
                let mark = MARKS[self.random.below(MARKS.len())];
                let times = match self.random.below(6) {
                    0 => 1 + self.random.below(600) * self.random.below(100),
                    _ => 1,
                };
                bytes.splice(at..at, std::iter::repeat_n(mark, times));
            }
            7 if !other.is_empty() => {
                let from = self.random.below(other.len());
                let to = (from + 1 + self.random.below(200)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            8 => {
                const TEXTS: [&str; 14] = [
                    "NaN",
                    "-Infinity",
                    "&a ",
                    "*a ",
                    "<<: *a\n",
                    "!!binary ",
                    "!x ",
                    "? ",
                    "---\n",
                    "\u{feff}",
                    "{{",
                    "%}",
                    "\\ud800",
                    "1e999",
                ];
                let text = TEXTS[self.random.below(TEXTS.len())];
                bytes.splice(at..at, text.bytes());
            }
            9 if n >= 4 => {
                let at = at % (n - 3);
                let number = self.size() as u32;
                bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
            }
            _ if n > 1 => bytes.swap(at % n, end % n),
            _ => {}
        }
    }
}

fn wrapped(inner: Value, deep: usize, word: &str) -> Value {
    (0..deep).fold(inner, |inner, _| match deep % 2 {
        0 => Value::Array(vec![inner]),
        _ => Value::Object(Map::from_iter([(word.to_owned(), inner)])),
    })
}

fn key_at(map: &Map<String, Value>, which: usize) -> String {
    let key = map.keys().nth(which % map.len().max(1));
    key.cloned().unwrap_or_default()
}

/// Nodes of a tree, itself included.
fn count(tree: &Value) -> usize {
    1 + match tree {
        Value::Object(map) => map.values().map(count).sum(),
        Value::Array(list) => list.iter().map(count).sum(),
        _ => 0,
    }
}

/// The node of that number, counted from the root down.
fn node_at(tree: &mut Value, mut at: usize) -> Option<&mut Value> {
    fn walk<'v>(node: &'v mut Value, at: &mut usize) -> Option<&'v mut Value> {
        if *at == 0 {
            return Some(node);
        }
        *at -= 1;
        match node {
            Value::Object(map) => map.values_mut().find_map(|inner| walk(inner, at)),
            Value::Array(list) => list.iter_mut().find_map(|inner| walk(inner, at)),
            _ => None,
        }
    }
    walk(tree, &mut at)
}

/// All keys and short strings of a tree.
pub(crate) fn words(input: &Input) -> Vec<String> {
    fn walk(node: &Value, words: &mut Vec<String>) {
        match node {
            Value::Object(map) => {
                for (key, inner) in map {
                    words.push(key.clone());
                    walk(inner, words);
                }
            }
            Value::Array(list) => list.iter().for_each(|inner| walk(inner, words)),
            Value::String(text) if text.len() < 60 => words.push(text.clone()),
            _ => {}
        }
    }
    let mut found = Vec::new();
    if let Some(tree) = &input.tree {
        walk(tree, &mut found);
    }
    found
}

/// Smaller inputs of the same kind, to try in the place of one that was found: a node less, or a piece less.
pub(crate) fn smaller(input: &Input, format: Format) -> Vec<Vec<u8>> {
    let mut random = Mutator {
        random: SplitMix64::new(1, 1),
        format,
        words: &[],
    };
    let mut all = Vec::new();
    if let Some(tree) = &input.tree {
        for at in (0..count(tree)).take(400) {
            let mut tree = tree.clone();
            let Some(node) = node_at(&mut tree, at) else {
                continue;
            };
            match node {
                Value::Object(map) => {
                    for key in map.keys().cloned().collect::<Vec<_>>() {
                        let mut less = map.clone();
                        less.shift_remove(&key);
                        all.push((at, Value::Object(less)));
                    }
                }
                Value::Array(list) => {
                    for start in [0, list.len() / 2] {
                        let half = list.len().div_ceil(2);
                        let mut less = list.clone();
                        less.drain(start..(start + half).min(list.len()));
                        all.push((at, Value::Array(less)));
                    }
                }
                Value::String(text) if text.len() > 8 => {
                    all.push((
                        at,
                        json!(
                            text.chars()
                                .take(text.chars().count() / 2)
                                .collect::<String>()
                        ),
                    ));
                }
                _ => {}
            }
        }
        all.truncate(2000);
        return all
            .into_iter()
            .map(|(at, node)| {
                let mut tree = tree.clone();
                if let Some(slot) = node_at(&mut tree, at) {
                    *slot = node;
                }
                random.write(&tree, &input.data)
            })
            .collect();
    }
    let n = input.bytes.len();
    let mut pieces = Vec::new();
    let mut size = n / 2;
    while size > 0 && pieces.len() < 400 {
        for start in (0..n).step_by(size) {
            let mut less = input.bytes.clone();
            less.drain(start..(start + size).min(n));
            pieces.push(less);
        }
        size /= 2;
    }
    pieces
}
