//! One source to its windows: reading, tokenizing, cutting, and counting what became of every token.

use std::ops::ControlFlow;

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::mix::one_per_stretch;
use super::random::SplitMix64;
use super::read::{Account, Reading, Record, read_records};
use super::source::files_of;
use super::{Packing, SourceReport, TextError, TextSource, Window, WindowOptions, tokenize};

/// Windows a source can give, and its account so far.
pub(super) struct Supply {
    pub(super) report: SourceReport,
    /// More windows than these are not to be had, however many are asked for.
    pub(super) exhausted: bool,
    tokens: Tokens,
}

enum Tokens {
    /// `Truncate` and `Drop`: the windows themselves.
    Windows(Vec<Window>),
    /// `Concat`: all tokens, and for each stretch of them the document it is from.
    Stream {
        ids: Vec<u32>,
        stretches: Vec<Stretch>,
        sequence_length: usize,
    },
}

/// Tokens of one document, up to `end` in the stream.
struct Stretch {
    document: usize,
    end: usize,
}

/// Reads a source until it can give `wanted` windows, or to its end.
pub(super) fn supply(
    source: &TextSource,
    wanted: usize,
    tokenizer: &Tokenizer,
    reading: Reading,
    options: &WindowOptions,
) -> Result<Supply, TextError> {
    match options.packing {
        Packing::Concat => stream(source, wanted, tokenizer, reading, options.sequence_length),
        Packing::Truncate | Packing::Drop => documents(source, wanted, tokenizer, reading, options),
    }
}

impl Supply {
    /// Windows it can give.
    pub(super) fn available(&self) -> usize {
        match &self.tokens {
            Tokens::Windows(windows) => windows.len(),
            Tokens::Stream {
                ids,
                sequence_length,
                ..
            } => ids.len() / sequence_length,
        }
    }

    /// Exactly `count` windows, at most [`Supply::available`], and the finished account.
    pub(super) fn take(self, count: usize, random: &mut SplitMix64) -> (Vec<Window>, SourceReport) {
        let available = self.available();
        let mut report = self.report;
        let windows = match self.tokens {
            Tokens::Windows(mut windows) => {
                windows.truncate(count);
                windows
            }
            Tokens::Stream {
                ids,
                stretches,
                sequence_length,
            } => {
                let chosen = one_per_stretch(count, available, random);
                let touched = documents_touched(&stretches, &chosen, sequence_length);
                report.documents_used = touched;
                report.documents_unused =
                    report.documents_read - report.documents_dropped.total() - touched;
                report.tokens_unused = ids.len() - count * sequence_length;
                chosen
                    .iter()
                    .map(|&i| full_window(&ids[i * sequence_length..][..sequence_length]))
                    .collect()
            }
        };
        report.windows_used = windows.len();
        report.windows_padded = windows.iter().filter(|w| w.len < w.ids.len()).count();
        report.tokens_used = windows.iter().map(|w| w.len).sum();
        (windows, report)
    }
}

fn full_window(ids: &[u32]) -> Window {
    Window {
        ids: ids.to_vec(),
        len: ids.len(),
    }
}

/// A report with the source's name and files.
fn opened(source: &TextSource, reading: Reading) -> Result<SourceReport, TextError> {
    let files = files_of(&source.kind, reading.purpose)?
        .paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    Ok(SourceReport {
        name: source.name(),
        weight: source.weight,
        files,
        ..SourceReport::default()
    })
}

impl SourceReport {
    /// Enters what the reader counted.
    fn read(&mut self, account: &Account, has_template: bool) {
        self.documents_chat = account.chats;
        self.documents_templated = account.templated;
        self.told = account.told(has_template);
    }
}

/// Hashes the texts of a source, with a byte between two that UTF-8 never holds.
#[derive(Default)]
struct TextHash(Sha256, bool);

impl TextHash {
    fn add(&mut self, text: &str) {
        self.add_bytes(text.as_bytes());
    }

    /// Of ids, four bytes each, the lowest first.
    fn add_ids(&mut self, ids: &[u32]) {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        self.add_bytes(&bytes);
    }

    fn add_bytes(&mut self, bytes: &[u8]) {
        if std::mem::replace(&mut self.1, true) {
            self.0.update([0xff]);
        }
        self.0.update(bytes);
    }

    fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// ---- Truncate and Drop: one window a document ----

fn documents(
    source: &TextSource,
    wanted: usize,
    tokenizer: &Tokenizer,
    reading: Reading,
    options: &WindowOptions,
) -> Result<Supply, TextError> {
    let mut report = opened(source, reading)?;
    let mut windows = Vec::new();
    let mut hash = TextHash::default();
    let mut exhausted = false;
    if wanted > 0 {
        let name = report.name.clone();
        let (flow, account) = read_records(source, reading, &mut |record| {
            match record {
                Record::NotUtf8 => {
                    report.documents_read += 1;
                    report.documents_dropped.not_utf8 += 1;
                }
                Record::Refused => {
                    report.documents_read += 1;
                    report.documents_dropped.refused += 1;
                }
                Record::Text(text) | Record::Marked(text) if text.trim().is_empty() => {
                    hash.add(&text);
                    report.documents_read += 1;
                    report.documents_dropped.empty += 1;
                }
                Record::Plain(text, _) => {
                    hash.add(&text);
                    report.bytes_read += text.len() as u64;
                    return documents_of_plain_text(&name, &text, tokenizer, options, &mut |ids| {
                        windows.extend(window_of(ids, options, &mut report));
                        windows.len() == wanted
                    });
                }
                Record::Text(text) | Record::Marked(text) => {
                    hash.add(&text);
                    report.bytes_read += text.len() as u64;
                    let ids = tokenize::ids(&name, &text, tokenizer)?;
                    windows.extend(window_of(&ids, options, &mut report));
                }
                Record::Ids(ids) if ids.is_empty() => {
                    report.documents_read += 1;
                    report.documents_dropped.empty += 1;
                }
                Record::Ids(ids) => {
                    hash.add_ids(&ids);
                    report.bytes_read += ID_BYTES * ids.len() as u64;
                    windows.extend(window_of(&ids, options, &mut report));
                }
            }
            Ok(flow(windows.len() == wanted))
        })?;
        report.read(&account, reading.render.is_some() && source.chat_template);
        exhausted = flow.is_continue();
    }
    report.text_sha256 = hash.finish();
    Ok(Supply {
        report,
        exhausted,
        tokens: Tokens::Windows(windows),
    })
}

/// Bytes that a token id counts for, where a source holds ids.
const ID_BYTES: u64 = 4;

fn flow(stop: bool) -> ControlFlow<()> {
    if stop {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}

/// The window of one document, if it is long enough; counts its tokens either way.
fn window_of(ids: &[u32], options: &WindowOptions, report: &mut SourceReport) -> Option<Window> {
    report.documents_read += 1;
    report.tokens_available += ids.len();
    if ids.len() < options.shortest_document() {
        report.documents_dropped.too_short += 1;
        report.tokens_dropped += ids.len();
        return None;
    }
    let len = ids.len().min(options.sequence_length);
    report.documents_used += 1;
    report.tokens_truncated += ids.len() - len;
    let mut padded = ids[..len].to_vec();
    padded.resize(options.sequence_length, PADDING_ID);
    Some(Window { ids: padded, len })
}

/// Every vocabulary has a token 0, so that padding can be embedded without a check.
const PADDING_ID: u32 = 0;

/// Documents of a text without marks: paragraphs joined until they fill a window. `take` says when to stop.
fn documents_of_plain_text(
    name: &str,
    text: &str,
    tokenizer: &Tokenizer,
    options: &WindowOptions,
    take: &mut dyn FnMut(&[u32]) -> bool,
) -> Result<ControlFlow<()>, TextError> {
    let (mut start, mut end, mut estimate) = (None, 0, 0);
    for (from, to) in paragraphs(text) {
        let first = *start.get_or_insert(from);
        end = to;
        estimate += tokenize::ids(name, &text[from..to], tokenizer)?.len();
        if estimate < options.sequence_length {
            continue;
        }
        // Joined, paragraphs may have a token fewer where two merge, or some more for the line breaks.
        let ids = tokenize::ids(name, &text[first..to], tokenizer)?;
        estimate = ids.len();
        if ids.len() < options.sequence_length {
            continue;
        }
        if take(&ids) {
            return Ok(ControlFlow::Break(()));
        }
        (start, estimate) = (None, 0);
    }
    let Some(first) = start else {
        return Ok(ControlFlow::Continue(()));
    };
    Ok(flow(take(&tokenize::ids(
        name,
        &text[first..end],
        tokenizer,
    )?)))
}

/// Byte ranges of the runs of lines that are not blank, without the line break at their end. In a text with only
/// one such run (corpora are often kept with one paragraph a line) each line is a paragraph.
fn paragraphs(text: &str) -> Vec<(usize, usize)> {
    let runs = runs_of_lines(text, true);
    if runs.len() > 1 {
        runs
    } else {
        runs_of_lines(text, false)
    }
}

/// Byte ranges of the runs of lines that are not blank, or of each of those lines.
fn runs_of_lines(text: &str, join: bool) -> Vec<(usize, usize)> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    let (mut position, mut open) = (0, false);
    for line in text.split_inclusive('\n') {
        let blank = line.trim().is_empty();
        let end = position + line.trim_end().len();
        match found.last_mut() {
            _ if blank => open = false,
            Some(last) if open && join => last.1 = end,
            _ => {
                found.push((position, end));
                open = true;
            }
        }
        position += line.len();
    }
    found
}

// ---- Concat: one stream of tokens ----

/// Text tokenized at once; longer documents are split at white space for it. A token never spans the split, so
/// ids may differ from those of the whole document by a token or two per 32 KiB.
const PIECE_BYTES: usize = 32 << 10;

/// Between two documents, but for those with marks of their own.
pub(super) const SEPARATOR: &str = "\n\n";

/// Text kept of a source, at least; a source of this size is tokenized whole.
const TEXT_BYTES_LEAST: usize = 4 << 20;

/// Text kept per token wanted: about eight times what the windows need, for the seed to choose from.
const TEXT_BYTES_PER_TOKEN: usize = 32;

fn stream(
    source: &TextSource,
    wanted: usize,
    tokenizer: &Tokenizer,
    reading: Reading,
    sequence_length: usize,
) -> Result<Supply, TextError> {
    let mut budget = TEXT_BYTES_LEAST.max(
        wanted
            .saturating_mul(sequence_length)
            .saturating_mul(TEXT_BYTES_PER_TOKEN),
    );
    loop {
        let (pieces, mut report) = gather(source, reading, budget)?;
        let texts: Vec<&str> = pieces
            .iter()
            .filter_map(|piece| match &piece.content {
                Content::Text(text) => Some(text.as_str()),
                Content::Ids(_) => None,
            })
            .collect();
        let mut of_texts = tokenize::ids_of_each(&report.name, &texts, tokenizer)?.into_iter();
        let (mut ids, mut stretches) = (Vec::new(), Vec::new());
        for piece in pieces {
            match piece.content {
                Content::Text(_) => ids.extend(of_texts.next().unwrap_or_default()),
                Content::Ids(own) => ids.extend(own),
            }
            stretches.push(Stretch {
                document: piece.document,
                end: ids.len(),
            });
        }
        let enough = ids.len() / sequence_length >= wanted;
        let whole = report.bytes_skipped == 0;
        if enough || whole {
            report.tokens_available = ids.len();
            let exhausted = whole;
            return Ok(Supply {
                report,
                exhausted,
                tokens: Tokens::Stream {
                    ids,
                    stretches,
                    sequence_length,
                },
            });
        }
        budget = budget.saturating_mul(4);
    }
}

struct Piece {
    document: usize,
    /// Whether a document ends with it that a blank line parts from the next.
    parted: bool,
    content: Content,
}

enum Content {
    Text(String),
    Ids(Vec<u32>),
}

impl Piece {
    fn bytes(&self) -> usize {
        match &self.content {
            Content::Text(text) => text.len(),
            Content::Ids(ids) => ID_BYTES as usize * ids.len(),
        }
    }
}

/// The text of a source in pieces, thinned evenly to about `budget` bytes: whenever more is held, every second
/// piece goes and from there on only every second one is kept. One pass, bounded memory, no knowledge of the
/// size beforehand; the head of a large source gets no more room than its end.
fn gather(
    source: &TextSource,
    reading: Reading,
    budget: usize,
) -> Result<(Vec<Piece>, SourceReport), TextError> {
    let mut report = opened(source, reading)?;
    let mut hash = TextHash::default();
    let mut pieces: Vec<(usize, Piece)> = Vec::new();
    let (mut stride, mut seen, mut held) = (1, 0, 0);
    let (_, account) = read_records(source, reading, &mut |record| {
        let document = report.documents_read;
        report.documents_read += 1;
        let mut keep = |piece: Piece| {
            if seen % stride == 0 {
                held += piece.bytes();
                pieces.push((seen, piece));
            }
            seen += 1;
            while held > budget && pieces.len() > 1 {
                stride *= 2;
                pieces.retain(|(i, _)| i % stride == 0);
                held = pieces.iter().map(|(_, piece)| piece.bytes()).sum();
            }
        };
        match record {
            Record::NotUtf8 => report.documents_dropped.not_utf8 += 1,
            Record::Refused => report.documents_dropped.refused += 1,
            Record::Ids(ids) => {
                hash.add_ids(&ids);
                report.documents_dropped.empty += usize::from(ids.is_empty());
                report.bytes_read += ID_BYTES * ids.len() as u64;
                for part in ids.chunks(PIECE_BYTES / ID_BYTES as usize) {
                    keep(Piece {
                        document,
                        parted: false,
                        content: Content::Ids(part.to_vec()),
                    });
                }
            }
            Record::Text(ref text) | Record::Marked(ref text) | Record::Plain(ref text, _) => {
                hash.add(text);
                if text.trim().is_empty() {
                    report.documents_dropped.empty += 1;
                    return Ok(ControlFlow::Continue(()));
                }
                report.bytes_read += text.len() as u64;
                let marked = matches!(record, Record::Marked(_));
                let mut parts = split(text, PIECE_BYTES).peekable();
                while let Some(part) = parts.next() {
                    keep(Piece {
                        document,
                        parted: parts.peek().is_none() && !marked,
                        content: Content::Text(part.into()),
                    });
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    report.read(&account, reading.render.is_some() && source.chat_template);
    report.text_sha256 = hash.finish();
    report.bytes_skipped = report.bytes_read - held as u64;
    let mut pieces: Vec<Piece> = pieces.into_iter().map(|(_, piece)| piece).collect();
    let ends = pieces.len().saturating_sub(1);
    for piece in pieces[..ends].iter_mut().filter(|piece| piece.parted) {
        if let Content::Text(text) = &mut piece.content {
            text.truncate(text.trim_end_matches(['\n', '\r']).len());
            text.push_str(SEPARATOR);
        }
    }
    Ok((pieces, report))
}

/// Parts of at most about `size` bytes that together are the text, split after a blank line if there is one in
/// the second half of the part, else after a line, else before white space, else anywhere between characters.
fn split(text: &str, size: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let at = if rest.len() <= size {
            rest.len()
        } else {
            split_at(rest, size)
        };
        let (part, after) = rest.split_at(at);
        rest = after;
        Some(part)
    })
}

/// Where to split a text longer than `size`: above 0, at most `size` or one character.
fn split_at(text: &str, size: usize) -> usize {
    let end = text.floor_char_boundary(size);
    if end == 0 {
        return text.chars().next().map_or(0, char::len_utf8);
    }
    let half = text.floor_char_boundary(size / 2);
    let tail = &text[half..end];
    tail.rfind("\n\n")
        .map(|i| i + 2)
        .or_else(|| tail.rfind('\n').map(|i| i + 1))
        .or_else(|| tail.rfind(char::is_whitespace))
        .map(|i| half + i)
        .filter(|&at| at > 0)
        .unwrap_or(end)
}

/// How many documents have a token in one of the chosen windows.
fn documents_touched(stretches: &[Stretch], chosen: &[usize], sequence_length: usize) -> usize {
    let (mut count, mut start, mut last) = (0, 0, None);
    for stretch in stretches {
        // The first chosen window that ends after the stretch starts touches it, or none does.
        let next = chosen.partition_point(|&i| (i + 1) * sequence_length <= start);
        let touched = chosen
            .get(next)
            .is_some_and(|&i| i * sequence_length < stretch.end)
            && stretch.end > start;
        if touched && last != Some(stretch.document) {
            count += 1;
            last = Some(stretch.document);
        }
        start = stretch.end;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paragraphs_are_runs_of_lines_between_blank_ones() {
        let text = "\n a\nb \n \t\nc\r\n\r\nd";
        let found: Vec<&str> = paragraphs(text)
            .into_iter()
            .map(|(from, to)| &text[from..to])
            .collect();
        assert_eq!(found, [" a\nb", "c", "d"]);
        assert_eq!(paragraphs(" \n\n"), []);
    }

    #[test]
    fn without_blank_lines_each_line_is_a_paragraph() {
        assert_eq!(paragraphs("\na\nb \nc"), [(1, 2), (3, 4), (6, 7)]);
    }

    #[test]
    fn text_is_split_at_the_best_place_in_reach() {
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(split(text, 8).collect::<Vec<_>>(), expected)
        };
        check("aaaa\n\nb c\nd", &["aaaa\n\n", "b c\nd"]);
        check("aaaaa\nb c", &["aaaaa\n", "b c"]);
        check("aaaaa b c", &["aaaaa b", " c"]);
        check("aaaaaaaaaa", &["aaaaaaaa", "aa"]);
        check("", &[]);
    }

    #[test]
    fn documents_are_counted_once_however_many_stretches_they_have() {
        let stretch = |document, end| Stretch { document, end };
        let stretches = [
            stretch(0, 5),
            stretch(0, 9),
            stretch(1, 10),
            stretch(1, 10),
            stretch(2, 30),
        ];
        assert_eq!(documents_touched(&stretches, &[0], 4), 1);
        assert_eq!(documents_touched(&stretches, &[2], 4), 3);
        assert_eq!(documents_touched(&stretches, &[0, 1, 2], 4), 3);
        assert_eq!(documents_touched(&stretches, &[5], 4), 1);
        assert_eq!(documents_touched(&stretches, &[], 4), 0);
    }

    proptest! {
        #[test]
        fn pieces_are_short_and_together_the_text(text in "[aä漢 \n]{0,200}", size in 1usize..40) {
            let pieces: Vec<&str> = split(&text, size).collect();
            prop_assert!(pieces.iter().all(|p| !p.is_empty() && p.len() <= size.max(3)));
            prop_assert_eq!(pieces.concat(), text);
        }
    }
}
