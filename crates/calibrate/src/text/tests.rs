//! The whole way from files to windows, with a tokenizer that gives the word `w7` the id 7.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;
use sha2::{Digest, Sha256};
use tokenizers::{Tokenizer, TruncationParams};

use super::*;

const WORDS: usize = 4000;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let vocab: serde_json::Map<String, serde_json::Value> = (0..WORDS)
        .map(|i| (format!("w{i}"), i.into()))
        .chain([("[UNK]".into(), WORDS.into())])
        .collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    });
    Tokenizer::from_bytes(json.to_string()).unwrap()
});

/// `count` words from `w{from}` on.
fn words(from: usize, count: usize) -> String {
    (from..from + count)
        .map(|i| format!("w{i}"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn ids(from: usize, count: usize) -> Vec<u32> {
    (from..from + count).map(|i| i as u32).collect()
}

fn options(num_samples: usize, sequence_length: usize, packing: Packing) -> WindowOptions {
    WindowOptions {
        num_samples,
        sequence_length,
        packing,
        seed: 0,
        holdout: 0.0,
        random_samples: 0,
    }
}

fn memory(texts: Vec<String>) -> TextSource {
    TextSource {
        kind: SourceKind::Texts {
            name: "memory".into(),
            texts,
        },
        weight: 1.0,
        text_column: None,
        chat_template: true,
    }
}

fn path(path: &Path) -> TextSource {
    TextSource {
        kind: SourceKind::Path(path.into()),
        weight: 1.0,
        text_column: None,
        chat_template: true,
    }
}

/// A file in a folder of its own, which lives as long as the first part.
fn file(name: &str, bytes: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn load(sources: &[TextSource], options: &WindowOptions) -> Windows {
    let windows = load_windows(sources, &TOKENIZER, None, options).unwrap();
    check_accounts(&windows, options);
    windows
}

#[test]
fn random_windows_come_on_top_and_leave_the_text_as_it_is() {
    let mut tokenizer = TOKENIZER.clone();
    let special = |text: &str| tokenizers::AddedToken::from(text, true);
    let all = [special("w7"), special("<end>")];
    tokenizer.add_special_tokens(all).unwrap();
    let source = [memory(vec![words(0, 900)])];
    let plain = WindowOptions {
        holdout: 0.2,
        ..options(10, 80, Packing::Concat)
    };
    let mixed = WindowOptions {
        random_samples: 300,
        ..plain.clone()
    };
    let plain = load_windows(&source, &tokenizer, None, &plain).unwrap();
    let windows = load_windows(&source, &tokenizer, None, &mixed).unwrap();
    assert_eq!(windows.holdout, plain.holdout);
    let (text, random) = windows.calibration.split_at(plain.calibration.len());
    assert_eq!(text, plain.calibration);
    assert_eq!(random.len(), 300);
    assert!(random.iter().all(|w| w.len == 80 && w.ids.len() == 80));
    assert_eq!(windows.report.tokens_random, 24_000);
    assert_eq!(
        windows.report.tokens_calibration,
        plain.report.tokens_calibration + 24_000
    );
    assert_eq!(plain.report.tokens_random, 0);
    assert_ne!(windows.report.windows_sha256, plain.report.windows_sha256);
    let mut more = windows.clone();
    more.add_generated(vec![vec![3; 80], vec![5; 80]]);
    let without_tuning = more.clone();
    more.add_tuning(vec![vec![7; 80]]);
    assert_eq!((more.tuning.len(), more.tuning[0].len), (1, 80));
    assert_eq!(
        (&more.calibration, &more.report),
        (&without_tuning.calibration, &without_tuning.report)
    );
    assert_eq!(
        more.calibration[..windows.calibration.len()],
        windows.calibration
    );
    assert_eq!(more.calibration.len(), windows.calibration.len() + 2);
    assert_eq!(more.report.windows_calibration, more.calibration.len());
    assert_eq!(
        more.report.tokens_calibration,
        windows.report.tokens_calibration + 160
    );
    assert_eq!(more.report.tokens_generated, 160);
    assert_eq!(more.report.tokens_random, 24_000);
    assert_ne!(more.report.windows_sha256, windows.report.windows_sha256);
    let mut counts = vec![0usize; WORDS + 2];
    for id in random.iter().flat_map(|w| &w.ids) {
        counts[*id as usize] += 1;
    }
    // the unknown word is a word like others; what is special is not drawn
    assert_eq!((counts[7], counts[WORDS + 1]), (0, 0));
    let drawn = counts.iter().filter(|n| **n > 0).count();
    assert!(drawn > WORDS * 98 / 100, "{drawn} of {WORDS} in six rounds");
    assert!(counts.iter().all(|n| *n < 30));
    assert_eq!(
        windows,
        load_windows(&source, &tokenizer, None, &mixed).unwrap(),
        "the same seed"
    );
}

/// The laws every result obeys, whatever the sources.
fn check_accounts(windows: &Windows, options: &WindowOptions) {
    let report = &windows.report;
    let all: Vec<&Window> = windows.calibration.iter().chain(&windows.holdout).collect();
    assert_eq!(all.len(), options.num_samples);
    assert!(
        all.iter()
            .all(|w| w.ids.len() == options.sequence_length && (1..=w.ids.len()).contains(&w.len))
    );
    assert!(all.iter().all(|w| w.ids[w.len..].iter().all(|&id| id == 0)));
    assert_eq!(report.windows_calibration, windows.calibration.len());
    assert_eq!(report.windows_holdout, windows.holdout.len());
    assert_eq!(
        report.windows_padded,
        all.iter()
            .filter(|w| w.len < options.sequence_length)
            .count()
    );
    let tokens: usize = all.iter().map(|w| w.len).sum();
    assert_eq!(report.tokens_calibration + report.tokens_holdout, tokens);
    assert_eq!(
        report.sources.iter().map(|s| s.tokens_used).sum::<usize>(),
        tokens
    );
    assert_eq!(
        report.sources.iter().map(|s| s.windows_used).sum::<usize>(),
        all.len()
    );
    assert_eq!(
        report
            .sources
            .iter()
            .map(|s| s.windows_wanted)
            .sum::<usize>(),
        all.len()
    );
    for s in &report.sources {
        assert_eq!(
            s.documents_read,
            s.documents_used + s.documents_unused + s.documents_dropped.total(),
            "{s:?}"
        );
        assert_eq!(
            s.tokens_available,
            s.tokens_used + s.tokens_truncated + s.tokens_dropped + s.tokens_unused,
            "{s:?}"
        );
    }
}

fn error(sources: &[TextSource], options: &WindowOptions) -> String {
    load_windows(sources, &TOKENIZER, None, options)
        .unwrap_err()
        .to_string()
}

fn error_in_file(name: &str, bytes: impl AsRef<[u8]>) -> String {
    let (folder, file) = file(name, bytes);
    error(&[path(&file)], &options(1, 4, Packing::Concat))
        .replace(&folder.path().display().to_string(), "DIR")
}

// ---- packings ----

#[test]
fn truncate_takes_the_first_documents_in_file_order_whatever_the_seed() {
    let mut lines = String::new();
    for i in 0..40 {
        writeln!(lines, "{{\"text\": \"{}\"}}", words(i * 50, 32)).unwrap();
    }
    let (_folder, file) = file("a.jsonl", lines);
    for seed in [0, 1, 99] {
        let windows = load(
            &[path(&file)],
            &WindowOptions {
                seed,
                ..options(40, 32, Packing::Truncate)
            },
        );
        for (i, window) in windows.calibration.iter().enumerate() {
            assert_eq!((&window.ids, window.len), (&ids(i * 50, 32), 32));
        }
        let fewer = load(
            &[path(&file)],
            &WindowOptions {
                seed,
                ..options(7, 20, Packing::Truncate)
            },
        );
        assert_eq!(fewer.calibration[6].ids, ids(300, 20));
        assert_eq!(
            fewer.report.sources[0].documents_read, 7,
            "reading stops when there are enough"
        );
        assert_eq!(fewer.report.sources[0].tokens_truncated, 7 * 12);
    }
}

#[test]
fn truncate_pads_short_documents_and_drops_shorter_ones() {
    let texts = vec![
        words(0, 15),
        words(100, 16),
        " \n".into(),
        words(200, 128),
        words(300, 130),
    ];
    let windows = load(&[memory(texts)], &options(3, 128, Packing::Truncate));
    assert_eq!(
        windows
            .calibration
            .iter()
            .map(|w| w.len)
            .collect::<Vec<_>>(),
        [16, 128, 128]
    );
    assert_eq!(windows.calibration[0].ids[..16], ids(100, 16));
    let source = &windows.report.sources[0];
    assert_eq!(
        source.documents_dropped,
        DroppedDocuments {
            empty: 1,
            too_short: 1,
            not_utf8: 0,
            refused: 0
        }
    );
    assert_eq!(
        (
            source.tokens_dropped,
            source.tokens_truncated,
            source.windows_padded
        ),
        (15, 2, 1)
    );
}

#[test]
fn drop_leaves_out_what_is_shorter_than_a_window() {
    let texts = vec![words(0, 31), words(100, 32), words(200, 40)];
    let windows = load(&[memory(texts)], &options(2, 32, Packing::Drop));
    assert_eq!(windows.calibration[0].ids, ids(100, 32));
    assert_eq!(windows.calibration[1].ids, ids(200, 32));
    assert_eq!(windows.report.windows_padded, 0);
    assert_eq!(windows.report.sources[0].documents_dropped.too_short, 1);
}

#[test]
fn plain_text_is_cut_at_paragraphs_for_truncate_and_drop() {
    // Paragraphs of 10 words: three fill a window of 25, and the next window starts at the fourth.
    let text: String = (0..8)
        .map(|i| format!("{}\n \n", words(i * 10, 10)))
        .collect();
    let (_folder, file) = file("a.txt", text);
    let windows = load(&[path(&file)], &options(3, 25, Packing::Truncate));
    assert_eq!(windows.calibration[0].ids, ids(0, 25));
    assert_eq!(windows.calibration[1].ids, ids(30, 25));
    assert_eq!(
        (
            windows.calibration[2].ids[..20].to_vec(),
            windows.calibration[2].len
        ),
        (ids(60, 20), 20)
    );
    assert!(
        error(&[path(&file)], &options(3, 25, Packing::Drop))
            .contains("enough for 2 windows of 25 (1 documents")
    );
}

#[test]
fn concat_joins_documents_and_uses_every_full_window() {
    let windows = load(
        &[memory(vec![words(0, 7), words(7, 9), words(16, 6)])],
        &options(5, 4, Packing::Concat),
    );
    let joined: Vec<u32> = windows
        .calibration
        .iter()
        .flat_map(|w| w.ids.clone())
        .collect();
    assert_eq!(joined, ids(0, 20));
    let source = &windows.report.sources[0];
    assert_eq!(
        (
            source.tokens_available,
            source.tokens_unused,
            source.documents_used
        ),
        (22, 2, 3)
    );
}

#[test]
fn concat_spreads_its_windows_over_the_whole_text() {
    let windows = load(
        &[memory(vec![words(0, 4000)])],
        &options(10, 10, Packing::Concat),
    );
    for (i, window) in windows.calibration.iter().enumerate() {
        let stretch = i as u32 * 400..(i as u32 + 1) * 400;
        assert!(
            stretch.contains(&window.ids[0]) && stretch.contains(&window.ids[9]),
            "{i}: {:?}",
            window.ids
        );
    }
    let other = load(
        &[memory(vec![words(0, 4000)])],
        &WindowOptions {
            seed: 1,
            ..options(10, 10, Packing::Concat)
        },
    );
    assert_ne!(windows.calibration, other.calibration);
}

#[test]
fn concat_counts_the_documents_no_window_touches() {
    let texts = (0..100).map(|i| words(i * 10, 10)).collect();
    let windows = load(&[memory(texts)], &options(3, 10, Packing::Concat));
    let source = &windows.report.sources[0];
    assert_eq!(
        (
            source.documents_used,
            source.documents_unused,
            source.tokens_unused
        ),
        (3, 97, 970)
    );
}

#[test]
fn a_source_far_larger_than_needed_is_thinned_evenly() {
    // 12 MB of text; 4 MB are tokenized, and the windows still reach from its head to its end.
    let text: String = (0..4000)
        .map(|i| format!("{} ", format!("w{i} ").repeat(600)))
        .collect();
    let windows = load(&[memory(vec![text])], &options(20, 16, Packing::Concat));
    let source = &windows.report.sources[0];
    assert!(source.bytes_skipped > source.bytes_read / 2, "{source:?}");
    assert!(
        source.bytes_read - source.bytes_skipped > 2 << 20,
        "{source:?}"
    );
    assert!(windows.calibration[0].ids[0] < 400 && windows.calibration[19].ids[0] > 3600);
}

#[test]
fn a_truncation_in_the_tokenizer_file_is_ignored() {
    let mut tokenizer = TOKENIZER.clone();
    tokenizer
        .with_truncation(Some(TruncationParams {
            max_length: 5,
            ..Default::default()
        }))
        .unwrap();
    let windows = load_windows(
        &[memory(vec![words(0, 40)])],
        &tokenizer,
        None,
        &options(1, 40, Packing::Truncate),
    )
    .unwrap();
    assert_eq!(windows.calibration[0].len, 40);
    assert_eq!(
        evaluation_windows(&words(0, 40), &tokenizer, 40, &WindowChoice::All)
            .unwrap()
            .n_available,
        1
    );
}

// ---- mixing and holding out ----

#[test]
fn windows_are_shared_out_by_weight_and_alternate() {
    let sources = [
        TextSource {
            weight: 3.0,
            ..memory(vec![words(0, 2000)])
        },
        TextSource {
            weight: 1.0,
            ..memory(vec![words(2000, 2000)])
        },
    ];
    let windows = load(&sources, &options(40, 10, Packing::Concat));
    let from_second = |w: &Window| w.ids[0] >= 2000;
    assert_eq!(
        windows
            .calibration
            .iter()
            .filter(|w| from_second(w))
            .count(),
        10
    );
    assert_eq!(
        windows.calibration[..20]
            .iter()
            .filter(|w| from_second(w))
            .count(),
        5
    );
    assert_eq!(windows.report.warnings, Vec::<String>::new());
}

#[test]
fn a_source_that_runs_out_is_made_up_for_by_the_others_with_a_warning() {
    for packing in [Packing::Concat, Packing::Truncate, Packing::Drop] {
        let short = TextSource {
            kind: SourceKind::Texts {
                name: "short".into(),
                texts: vec![words(0, 20), words(20, 20)],
            },
            ..memory(vec![])
        };
        let sources = [
            short,
            memory((0..30).map(|i| words(100 + 20 * i, 20)).collect()),
        ];
        let windows = load(&sources, &options(20, 20, packing));
        let used: Vec<usize> = windows
            .report
            .sources
            .iter()
            .map(|s| s.windows_used)
            .collect();
        assert_eq!(used, [2, 18], "{packing:?}");
        assert_eq!(
            windows.report.warnings,
            [
                "short: gave 2 of the 10 windows its weight asks for; the other sources gave the rest"
            ]
        );
    }
}

#[test]
fn each_source_is_held_out_in_its_share() {
    let sources = [
        memory(vec![words(0, 1000)]),
        memory(vec![words(1000, 1000)]),
    ];
    let windows = load(
        &sources,
        &WindowOptions {
            holdout: 0.5,
            ..options(40, 10, Packing::Concat)
        },
    );
    assert_eq!(windows.holdout.len(), 20);
    assert_eq!(
        windows.holdout.iter().filter(|w| w.ids[0] >= 1000).count(),
        10
    );
}

#[test]
fn held_out_windows_lie_all_over_the_text() {
    let windows = load(
        &[memory(vec![words(0, 4000)])],
        &WindowOptions {
            holdout: 0.1,
            ..options(100, 40, Packing::Concat)
        },
    );
    let starts: Vec<u32> = windows.holdout.iter().map(|w| w.ids[0]).collect();
    assert_eq!(starts, (0..10).map(|i| i * 400 + 200).collect::<Vec<_>>());
}

#[test]
fn repeated_text_is_warned_of() {
    let windows = load(
        &[memory(vec![words(0, 20); 10])],
        &WindowOptions {
            holdout: 0.2,
            ..options(10, 20, Packing::Drop)
        },
    );
    let warnings = windows.report.warnings.join("\n");
    assert!(
        warnings.contains("7 calibration windows are copies of others"),
        "{warnings}"
    );
    assert!(
        warnings.contains("2 held-out windows are also among"),
        "{warnings}"
    );
}

// ---- kinds of files ----

#[test]
fn a_folder_is_read_in_name_order_without_its_readme() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    put("README.md", &words(3000, 50));
    put(".hidden.txt", &words(3100, 50));
    put(
        "b.jsonl",
        &format!(
            "{{\"text\": \"{}\"}}\n\n{{\"text\": null}}\n",
            words(10, 10)
        ),
    );
    put("a.txt", &words(0, 10));
    put(
        "c.json",
        &format!(
            "[{{\"text\": \"{}\"}}, \"{}\"]",
            words(20, 10),
            words(30, 10)
        ),
    );
    std::fs::create_dir(folder.path().join("deeper")).unwrap();
    put("deeper/d.txt", &words(3200, 50));
    let windows = load(&[path(folder.path())], &options(4, 10, Packing::Concat));
    let joined: Vec<u32> = windows
        .calibration
        .iter()
        .flat_map(|w| w.ids.clone())
        .collect();
    assert_eq!(joined, ids(0, 40));
    let source = &windows.report.sources[0];
    let names: Vec<&str> = source.files.iter().map(|f| &f[f.len() - 7..]).collect();
    assert!(
        names[0].ends_with("a.txt")
            && names[1].ends_with("b.jsonl")
            && names[2].ends_with("c.json")
    );
    assert_eq!(
        (source.documents_read, source.documents_dropped.empty),
        (5, 1)
    );
}

#[test]
fn chats_are_joined_plainly_and_reported() {
    let chat = format!(
        "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{}\"}}, {{\"role\": \"tool\", \"content\": null}}, \
         {{\"role\": \"assistant\", \"content\": [{{\"type\": \"text\", \"text\": \"{}\"}}]}}]}}\n",
        words(0, 10),
        words(10, 10)
    );
    let shared = format!(
        "{{\"conversations\": [{{\"from\": \"human\", \"value\": \"{}\"}}]}}\n",
        words(20, 20)
    );
    let (_folder, file) = file("a.jsonl", chat + &shared);
    let windows = load(&[path(&file)], &options(2, 20, Packing::Truncate));
    assert_eq!(windows.calibration[0].ids, ids(0, 20));
    assert_eq!(windows.calibration[1].ids, ids(20, 20));
    assert_eq!(windows.report.sources[0].documents_chat, 2);
    assert!(windows.report.warnings[0].contains("2 chats were read as plain text"));
}

#[test]
fn the_text_hash_of_one_file_is_that_files_sha256() {
    let text = words(0, 100);
    let (_folder, file) = file("a.txt", &text);
    let expected = pack::hex(&Sha256::digest(&text));
    for packing in [Packing::Concat, Packing::Drop] {
        let windows = load(&[path(&file)], &options(1, 10, packing));
        assert_eq!(windows.report.sources[0].text_sha256, expected);
    }
}

#[test]
fn the_windows_hash_covers_lengths_and_tokens_in_order() {
    let windows = load(
        &[memory(vec![words(5, 16), words(50, 17)])],
        &options(2, 17, Packing::Truncate),
    );
    let mut hash = Sha256::new();
    hash.update(16u32.to_le_bytes());
    (5u32..21).for_each(|id| hash.update(id.to_le_bytes()));
    hash.update(17u32.to_le_bytes());
    (50u32..67).for_each(|id| hash.update(id.to_le_bytes()));
    assert_eq!(windows.report.windows_sha256, pack::hex(&hash.finalize()));
}

// ---- bad input ----

#[test]
fn too_little_text_says_how_much_there_is_and_three_remedies() {
    assert_eq!(
        error(
            &[memory(vec![words(0, 50)])],
            &options(10, 16, Packing::Concat)
        ),
        "too little calibration text: found 50 tokens in memory, enough for 3 windows of 16 (0 documents dropped), \
         needed 160 tokens for num_samples: 10; add text, set num_samples: 3, shorten sequence_length, or add a \
         second source"
    );
    assert_eq!(
        error(
            &[memory(vec![words(0, 50), words(0, 3)])],
            &options(10, 512, Packing::Drop)
        ),
        "too little calibration text: found 53 tokens in memory, enough for 0 windows of 512 (2 documents dropped), \
         needed 5120 tokens for num_samples: 10; add text, shorten sequence_length (now 512), or set packing: concat \
         to join short documents"
    );
}

#[test]
fn sources_without_text_are_named() {
    for texts in [vec![], vec![String::new(), " \n\t".into()]] {
        for packing in [Packing::Concat, Packing::Truncate, Packing::Drop] {
            let message = error(&[memory(texts.clone())], &options(1, 4, packing));
            assert_eq!(
                message,
                format!(
                    "no calibration text: nothing in memory ({} documents dropped)",
                    texts.len()
                )
            );
        }
    }
}

#[test]
fn options_out_of_range_name_what_was_wanted() {
    let source = || vec![memory(vec![words(0, 100)])];
    let good = options(1, 4, Packing::Concat);
    let messages = [
        error(&[], &good),
        error(
            &source(),
            &WindowOptions {
                num_samples: 0,
                ..good.clone()
            },
        ),
        error(
            &source(),
            &WindowOptions {
                sequence_length: 1,
                ..good.clone()
            },
        ),
        error(
            &source(),
            &WindowOptions {
                holdout: 1.0,
                ..good.clone()
            },
        ),
        error(
            &source(),
            &WindowOptions {
                holdout: f64::NAN,
                ..good.clone()
            },
        ),
        error(
            &[TextSource {
                weight: 0.0,
                ..memory(vec![])
            }],
            &good,
        ),
        error(
            &[TextSource {
                weight: f64::NAN,
                ..memory(vec![])
            }],
            &good,
        ),
    ];
    assert_eq!(
        messages,
        [
            "no calibration text: the list of sources is empty; give at least one file, folder or data set",
            "num_samples is 0, wanted 1 or more",
            "sequence_length is 1, wanted 2 or more",
            "holdout is 1, wanted a share from 0 to below 1",
            "holdout is NaN, wanted a share from 0 to below 1",
            "memory: weight is 0, wanted a number above 0; remove the source to leave it out",
            "memory: weight is NaN, wanted a number above 0; remove the source to leave it out",
        ]
    );
}

#[test]
fn a_missing_path_and_an_unknown_kind_are_named() {
    let good = options(1, 4, Packing::Concat);
    assert_eq!(
        error(&[path(Path::new("no/such.txt"))], &good),
        "no/such.txt: no such file or folder; paths are relative to the folder halfbyte is started in"
    );
    assert!(
        error_in_file("a.csv", "x").starts_with("DIR/a.csv: unknown kind of file; wanted .txt,")
    );
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.csv"), "x").unwrap();
    let message = error(&[path(folder.path())], &good);
    assert!(
        message.ends_with("in this folder (it holds a.csv); subfolders are not searched"),
        "{message}"
    );
}

#[test]
fn text_that_is_not_utf8_is_named_by_byte() {
    assert_eq!(
        error_in_file("a.txt", b"abc\xffdef"),
        "DIR/a.txt: not UTF-8 at byte 3 of the file; save the file as UTF-8"
    );
    assert_eq!(
        error_in_file("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xe4\"}\n"),
        "DIR/a.jsonl:2: not UTF-8 at byte 24 of the file; save the file as UTF-8"
    );
}

#[test]
fn a_bad_line_of_json_is_named_by_line() {
    assert_eq!(
        error_in_file("a.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \n"),
        "DIR/a.jsonl:3: column 8: EOF while parsing a value; wanted one JSON object a line, or one array of objects"
    );
    assert_eq!(
        error_in_file("a.jsonl", "{\"text\": \"a\"}\n17\n"),
        "DIR/a.jsonl:2: found a number; wanted one JSON object a line, or one array of objects"
    );
    assert!(error_in_file("a.json", "[{\"text\": \"a\"},\n oops]").starts_with("DIR/a.json:2: "));
}

#[test]
fn a_missing_or_wrong_column_lists_what_there_is() {
    assert_eq!(
        error_in_file("a.jsonl", "{\"body\": \"a\", \"id\": 1}"),
        "DIR/a.jsonl:1: no column \"text\" (nor \"messages\" nor \"conversations\"); set text_column to one of: body, id"
    );
    let (_folder, file) = file("a.json", "[{\"body\": \"a\", \"id\": 1}]");
    let with = |column: &str| {
        let source = TextSource {
            text_column: Some(column.into()),
            ..path(&file)
        };
        error(&[source], &options(1, 4, Packing::Concat))
    };
    assert!(
        with("text").ends_with("record 0: no column \"text\"; set text_column to one of: body, id")
    );
    assert!(with("id").ends_with(
        "record 0: column \"id\" holds a number, wanted text; set text_column to a column of strings"
    ));
}

// ---- laws ----

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_token_of_a_held_out_window_is_in_a_calibration_window(
        first in 200usize..2000, second in 200usize..2000, length in 2usize..20, seed: u64, holdout in 0.0f64..0.9
    ) {
        // Every word occurs once, so that a shared id is a shared place.
        let sources = [
            memory(vec![words(0, first / 2), words(first / 2, first - first / 2)]),
            memory(vec![words(2000, second)]),
        ];
        let num_samples = 200 / length;
        let options = WindowOptions { seed, holdout, ..options(num_samples, length, Packing::Concat) };
        let windows = load(&sources, &options);
        let seen: HashSet<u32> = windows.calibration.iter().flat_map(|w| w.ids.clone()).collect();
        prop_assert_eq!(seen.len(), windows.calibration.len() * length, "no token twice");
        prop_assert!(windows.holdout.iter().all(|w| w.ids.iter().all(|id| !seen.contains(id))));
    }

    #[test]
    fn accounts_add_up_and_the_same_seed_gives_the_same_windows(
        lengths in prop::collection::vec(0usize..120, 10..60), cut in 1usize..9, seed: u64,
        weights in (0.1f64..5.0, 0.1f64..5.0), length in 2usize..40, packing in 0usize..3, share in 0.1f64..1.0
    ) {
        let packing = [Packing::Concat, Packing::Truncate, Packing::Drop][packing];
        let texts: Vec<String> = lengths.iter().enumerate().map(|(i, &n)| words(i * 60, n)).collect();
        let (a, b) = texts.split_at(cut);
        let sources = [
            TextSource { weight: weights.0, ..memory(a.to_vec()) },
            TextSource { weight: weights.1, ..memory(b.to_vec()) },
        ];
        let mut options = WindowOptions { seed, holdout: 0.2, ..options(100_000, length, packing) };
        // What the error says is there is what can be had.
        let available = match load_windows(&sources, &TOKENIZER, None, &options) {
            Err(TextError::TooLittle { windows_found, .. }) => windows_found,
            Err(TextError::NoText { .. }) => 0,
            other => panic!("{other:?}"),
        };
        prop_assume!(available > 0);
        options.num_samples = ((available as f64 * share) as usize).max(1);
        let windows = load(&sources, &options);
        prop_assert_eq!(&windows, &load(&sources, &options));
        options.num_samples = available;
        load(&sources, &options);
        options.num_samples = available + 1;
        prop_assert!(load_windows(&sources, &TOKENIZER, None, &options).is_err());
    }
}
