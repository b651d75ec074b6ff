//! Windows of token ids from weighted sources: the one function the pipeline calls.

use std::collections::HashSet;

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::chat::RenderChat;
use super::pack::{self, Supply};
use super::random::SplitMix64;
use super::read::Reading;
use super::source::Purpose;
use super::{SourceReport, TextError, TextReport, TextSource, mix, tokenize};

/// How documents become windows.
///
/// With `Truncate` and `Drop` documents are taken in the order of the source, the first ones first, and reading
/// stops when there are enough: a JSON Lines file of exactly `num_samples` records is used as it stands,
/// whatever the seed. A plain text file has no marks between its documents; there, paragraphs (runs
/// of lines between blank lines, or single lines where there are no blank ones) are joined until they
/// fill a window, and the next document begins at the paragraph after, so that every window starts at
/// the head of a paragraph. What is left of the last paragraph of a window is counted as truncated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// Documents are joined by a blank line (`"\n\n"`, no special token) and cut into full windows; of those,
    /// the seed picks one from each of `n` equal stretches of the text. Nothing is padded.
    #[default]
    Concat,
    /// The first `sequence_length` tokens of a document. Shorter documents are padded; those with fewer than
    /// [`WindowOptions::shortest_document`] tokens are dropped.
    Truncate,
    /// As `Truncate`, but documents shorter than `sequence_length` are dropped. Nothing is padded.
    Drop,
}

/// How many windows of what length, and how they are made.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowOptions {
    /// Windows in all, held-out ones included; at least 1.
    pub num_samples: usize,
    /// Tokens per window; at least 2.
    pub sequence_length: usize,
    /// How documents become windows.
    pub packing: Packing,
    /// Chooses among windows (`Concat`) and shifts the order in which sources alternate. Never changes a token.
    pub seed: u64,
    /// Share of the windows kept out of the statistics, 0 or more and below 1. Above 0, and with 8 windows or
    /// more, at least one window is held out; never all of them.
    pub holdout: f64,
    /// Windows of ids drawn evenly from the vocabulary, special tokens aside, that the statistics are taken from on top
    /// of the `num_samples` of text: what the text does not visit is not free to err.
    pub random_samples: usize,
}

/// One window of calibration text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Window {
    /// `sequence_length` token ids; those from `len` on are padding (id 0) and must be masked out.
    pub ids: Vec<u32>,
    /// Real tokens, at least 1.
    pub len: usize,
}

/// What [`load_windows`] returns.
#[derive(Debug, Clone, PartialEq)]
pub struct Windows {
    /// The windows that the statistics are taken from; sources alternate; windows of random ids, then those that
    /// the model wrote, come last.
    pub calibration: Vec<Window>,
    /// The windows kept out, spread evenly over each source.
    pub holdout: Vec<Window>,
    /// Windows of neither that the model wrote to be tuned on.
    pub tuning: Vec<Window>,
    /// What was read, used and dropped.
    pub report: TextReport,
}

impl WindowOptions {
    /// Tokens that a document must have to be used: `sequence_length` for [`Packing::Drop`]; an eighth of that
    /// and at least 16 for [`Packing::Truncate`], because the first tokens of a text, which see almost nothing
    /// before them, would otherwise weigh too much; none for [`Packing::Concat`].
    pub fn shortest_document(&self) -> usize {
        match self.packing {
            Packing::Concat => 0,
            Packing::Truncate => (self.sequence_length / 8).max(16).min(self.sequence_length),
            Packing::Drop => self.sequence_length,
        }
    }
}

/// Reads the sources and makes `num_samples` windows of them.
///
/// Each source gives a share of the windows proportional to its weight (largest remainder); where a source runs
/// out, the others give the rest and a warning says so. Chats are written by `render`, the model's chat template, where
/// there is one and the source does not forbid it. The same sources, tokenizer and options give the same
/// windows, whatever the number of threads.
///
/// # Errors
/// No source, a weight or option out of range, files that are missing, unreadable, not UTF-8, not JSON, not
/// parquet or without the text column, token ids of another vocabulary, no text, or less of it than `num_samples` windows: see [`TextError`].
pub fn load_windows(
    sources: &[TextSource],
    tokenizer: &Tokenizer,
    render: Option<&RenderChat>,
    options: &WindowOptions,
) -> Result<Windows, TextError> {
    check(sources, options)?;
    let tokenizer = tokenize::plain(tokenizer)?;
    let reading = Reading {
        render,
        vocabulary: Some(tokenize::vocabulary(&tokenizer)),
        purpose: Purpose::Calibration,
        whole_files: true,
    };
    let weights: Vec<f64> = sources.iter().map(|source| source.weight).collect();
    let wanted = mix::apportion(options.num_samples, &weights);
    let (supplies, counts) = supplies(sources, &weights, &wanted, &tokenizer, reading, options)?;

    let mut windows = Vec::new();
    let mut reports = Vec::new();
    for (i, (supply, &count)) in supplies.into_iter().zip(&counts).enumerate() {
        // The interleaving draws from streams 0..n of the seed, the choice of windows from those after.
        let mut random = SplitMix64::new(options.seed, (sources.len() + i) as u64);
        let (source_windows, report) = supply.take(count, &mut random);
        windows.push(source_windows);
        reports.push(SourceReport {
            windows_wanted: wanted[i],
            ..report
        });
    }
    let (calibration, holdout) = hold_out(windows, options);
    let report = report(reports, &calibration, &holdout, options);
    let mut windows = Windows {
        calibration,
        holdout,
        tuning: Vec::new(),
        report,
    };
    let mut random = SplitMix64::new(options.seed, 2 * sources.len() as u64);
    windows.add_random(&tokenizer, options.random_samples, &mut random);
    Ok(windows)
}

/// All ids of a vocabulary but those of special tokens, in rising order.
pub fn ordinary_ids(tokenizer: &Tokenizer) -> Vec<u32> {
    let special = tokenizer.get_added_tokens_decoder();
    let is_special = |id: &u32| special.get(id).is_some_and(|token| token.special);
    let mut ids: Vec<u32> = tokenizer.get_vocab(true).into_values().collect();
    ids.retain(|id| !is_special(id));
    ids.sort_unstable();
    ids
}

impl Windows {
    /// Adds windows that the model wrote, whole ones, to those that the statistics are taken from.
    pub fn add_generated(&mut self, windows: Vec<Vec<u32>>) {
        self.report.tokens_generated += self.add(windows);
    }

    /// Adds so many windows of random ids; none where the tokenizer knows special tokens only.
    pub fn add_random(&mut self, tokenizer: &Tokenizer, count: usize, random: &mut SplitMix64) {
        let ids = ordinary_ids(tokenizer);
        if ids.is_empty() {
            return;
        }
        let len = self.report.sequence_length;
        let mut window = || (0..len).map(|_| ids[random.below(ids.len())]).collect();
        let windows = (0..count).map(|_| window()).collect();
        self.report.tokens_random += self.add(windows);
    }

    /// Adds windows that the model wrote, whole ones, to those that are tuned on.
    pub fn add_tuning(&mut self, windows: Vec<Vec<u32>>) {
        self.tuning.extend(windows.into_iter().map(whole));
    }

    /// How many tokens the added windows have.
    fn add(&mut self, windows: Vec<Vec<u32>>) -> usize {
        let tokens = windows.iter().map(Vec::len).sum();
        self.calibration.extend(windows.into_iter().map(whole));
        self.report.tokens_calibration += tokens;
        self.report.windows_calibration = self.calibration.len();
        self.report.windows_sha256 = windows_sha256(self.calibration.iter().chain(&self.holdout));
        tokens
    }
}

/// A window without padding.
fn whole(ids: Vec<u32>) -> Window {
    Window {
        len: ids.len(),
        ids,
    }
}

fn check(sources: &[TextSource], options: &WindowOptions) -> Result<(), TextError> {
    let out_of_range = |option, found, wanted| {
        Err(TextError::Option {
            option,
            found,
            wanted,
        })
    };
    if sources.is_empty() {
        return Err(TextError::NoSources);
    }
    if options.num_samples == 0 {
        return out_of_range("num_samples", "0".into(), "1 or more");
    }
    if options.sequence_length < 2 {
        return out_of_range(
            "sequence_length",
            options.sequence_length.to_string(),
            "2 or more",
        );
    }
    if !(0.0..1.0).contains(&options.holdout) {
        return out_of_range(
            "holdout",
            options.holdout.to_string(),
            "a share from 0 to below 1",
        );
    }
    match sources
        .iter()
        .find(|source| !(source.weight > 0.0 && source.weight.is_finite()))
    {
        Some(source) => Err(TextError::Weight {
            name: source.name(),
            weight: source.weight,
        }),
        None => Ok(()),
    }
}

/// Reads the sources for their shares, and shares out again what those that ran out could not give.
fn supplies(
    sources: &[TextSource],
    weights: &[f64],
    wanted: &[usize],
    tokenizer: &Tokenizer,
    reading: Reading,
    options: &WindowOptions,
) -> Result<(Vec<Supply>, Vec<usize>), TextError> {
    let mut counts = wanted.to_vec();
    let mut supplies = Vec::with_capacity(sources.len());
    for (source, &count) in sources.iter().zip(&counts) {
        supplies.push(pack::supply(source, count, tokenizer, reading, options)?);
    }
    loop {
        for (count, supply) in counts.iter_mut().zip(&supplies) {
            *count = (*count).min(supply.available());
        }
        let missing = options.num_samples - counts.iter().sum::<usize>();
        if missing == 0 {
            return Ok((supplies, counts));
        }
        let more: Vec<usize> = (0..sources.len())
            .filter(|&i| !supplies[i].exhausted || supplies[i].available() > counts[i])
            .collect();
        if more.is_empty() {
            return Err(too_little(&supplies, options));
        }
        let shares = mix::apportion(
            missing,
            &more.iter().map(|&i| weights[i]).collect::<Vec<_>>(),
        );
        for (&i, share) in more.iter().zip(shares) {
            counts[i] += share;
            if counts[i] > supplies[i].available() && !supplies[i].exhausted {
                supplies[i] = pack::supply(&sources[i], counts[i], tokenizer, reading, options)?;
            }
        }
    }
}

fn too_little(supplies: &[Supply], options: &WindowOptions) -> TextError {
    let names = supplies
        .iter()
        .map(|s| s.report.name.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    let tokens_found = supplies.iter().map(|s| s.report.tokens_available).sum();
    let dropped = supplies
        .iter()
        .map(|s| s.report.documents_dropped.total())
        .sum();
    if tokens_found == 0 {
        let told = supplies.iter().flat_map(|s| &s.report.told);
        let told = told.map(|told| format!("; {told}")).collect();
        return TextError::NoText {
            names,
            dropped,
            told,
        };
    }
    TextError::TooLittle {
        names,
        tokens_found,
        tokens_needed: options.num_samples.saturating_mul(options.sequence_length),
        windows_found: supplies.iter().map(Supply::available).sum(),
        num_samples: options.num_samples,
        sequence_length: options.sequence_length,
        dropped,
        packing: options.packing,
    }
}

/// Splits each source's windows by the share held out, then lets the sources alternate. The share is taken
/// source by source, because a regular pick from alternating sources may fall on one of them each time.
fn hold_out(windows: Vec<Vec<Window>>, options: &WindowOptions) -> (Vec<Window>, Vec<Window>) {
    let counts: Vec<usize> = windows.iter().map(Vec::len).collect();
    let total = mix::holdout_count(options.num_samples, options.holdout);
    let shares = mix::apportion(total, &counts.iter().map(|&n| n as f64).collect::<Vec<_>>());
    let (mut kept, mut held) = (Vec::new(), Vec::new());
    for (source, share) in windows.into_iter().zip(shares) {
        let out = mix::evenly_inside(share, source.len());
        let (mut kept_here, mut held_here) = (Vec::new(), Vec::new());
        for (i, window) in source.into_iter().enumerate() {
            if out.binary_search(&i).is_ok() {
                held_here.push(window)
            } else {
                kept_here.push(window)
            }
        }
        kept.push(kept_here);
        held.push(held_here);
    }
    (alternate(kept, options.seed), alternate(held, options.seed))
}

fn alternate(windows: Vec<Vec<Window>>, seed: u64) -> Vec<Window> {
    let order = mix::interleave(&windows.iter().map(Vec::len).collect::<Vec<_>>(), seed);
    let mut sources: Vec<_> = windows.into_iter().map(Vec::into_iter).collect();
    // Each source's indices come in rising order, so the next of that source is the one named.
    order
        .into_iter()
        .filter_map(|(source, _)| sources[source].next())
        .collect()
}

fn report(
    sources: Vec<SourceReport>,
    calibration: &[Window],
    holdout: &[Window],
    options: &WindowOptions,
) -> TextReport {
    let tokens = |windows: &[Window]| windows.iter().map(|w| w.len).sum();
    let mut report = TextReport {
        packing: options.packing,
        sequence_length: options.sequence_length,
        windows_calibration: calibration.len(),
        windows_holdout: holdout.len(),
        windows_padded: sources.iter().map(|s| s.windows_padded).sum(),
        tokens_calibration: tokens(calibration),
        tokens_holdout: tokens(holdout),
        tokens_random: 0,
        tokens_generated: 0,
        windows_sha256: windows_sha256(calibration.iter().chain(holdout)),
        sources,
        warnings: Vec::new(),
    };
    report.warnings = warnings(&report, calibration, holdout, options);
    report
}

fn windows_sha256<'a>(windows: impl Iterator<Item = &'a Window>) -> String {
    let mut hash = Sha256::new();
    for window in windows {
        hash.update((window.len as u32).to_le_bytes());
        for id in &window.ids[..window.len] {
            hash.update(id.to_le_bytes());
        }
    }
    pack::hex(&hash.finalize())
}

fn warnings(
    report: &TextReport,
    calibration: &[Window],
    holdout: &[Window],
    options: &WindowOptions,
) -> Vec<String> {
    let mut warnings = Vec::new();
    for source in &report.sources {
        let name = &source.name;
        if source.windows_used < source.windows_wanted {
            warnings.push(format!(
                "{name}: gave {} of the {} windows its weight asks for; the other sources gave the rest",
                source.windows_used, source.windows_wanted
            ));
        }
        let dropped = source.documents_dropped;
        if 2 * dropped.total() > source.documents_read {
            warnings.push(format!(
                "{name}: {} of {} documents were dropped: {} empty, {} below {} tokens, {} not UTF-8, {} refused by the chat \
                 template",
                dropped.total(),
                source.documents_read,
                dropped.empty,
                dropped.too_short,
                options.shortest_document(),
                dropped.not_utf8,
                dropped.refused
            ));
        }
        warnings.extend(source.told.iter().map(|told| format!("{name}: {told}")));
        if source.windows_wanted == 0 {
            warnings.push(format!(
                "{name}: its weight is too small for one of {} windows; raise weight or num_samples",
                options.num_samples
            ));
        }
    }
    let (tokens, places) = (
        report.tokens_calibration + report.tokens_holdout,
        (calibration.len() + holdout.len()) * options.sequence_length,
    );
    if 2 * tokens < places {
        warnings.push(format!(
            "{} of {} windows are padded and only {tokens} of their {places} places hold tokens; \
             packing: concat fills them",
            report.windows_padded,
            calibration.len() + holdout.len()
        ));
    }
    if options.holdout > 0.0 && holdout.is_empty() {
        warnings.push(format!(
            "holdout: no window is held out of {}; raise num_samples to 8 or more",
            options.num_samples
        ));
    }
    let distinct: HashSet<&Window> = calibration.iter().collect();
    let twice = calibration.len() - distinct.len();
    if twice > 0 {
        warnings.push(format!(
            "{twice} calibration windows are copies of others; the text repeats itself"
        ));
    }
    let leaked = holdout
        .iter()
        .filter(|window| distinct.contains(window))
        .count();
    if leaked > 0 {
        warnings.push(format!(
            "{leaked} held-out windows are also among the calibration windows, so their error is no held-out error; \
             the text repeats itself"
        ));
    }
    warnings
}
