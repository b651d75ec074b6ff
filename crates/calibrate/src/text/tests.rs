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
    put("deeper/d.txt", &words(3200, 10));
    let windows = load(&[path(folder.path())], &options(5, 10, Packing::Concat));
    let joined: Vec<u32> = windows
        .calibration
        .iter()
        .flat_map(|w| w.ids.clone())
        .collect();
    assert_eq!(joined, [ids(0, 40), ids(3200, 10)].concat());
    let source = &windows.report.sources[0];
    let names: Vec<&str> = source.files.iter().map(|f| &f[f.len() - 7..]).collect();
    assert!(
        names[0].ends_with("a.txt")
            && names[1].ends_with("b.jsonl")
            && names[2].ends_with("c.json")
    );
    assert_eq!(
        (source.documents_read, source.documents_dropped.empty),
        (6, 1)
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
    let told = windows.report.warnings.join("\n");
    assert!(
        told.contains("took conversations of 1 records, messages of 1 records")
            && told.contains("2 chats were read as plain text"),
        "{told}"
    );
}

/// The documents of a file of calibration text as the tokenizer sees them, and what is told of it.
fn documents_in(
    name: &str,
    bytes: impl AsRef<[u8]>,
    render: Option<&RenderChat>,
) -> Result<(Vec<String>, Vec<String>), String> {
    let (_folder, file) = file(name, bytes);
    let reading = read::Reading {
        render,
        vocabulary: Some(WORDS),
        purpose: source::Purpose::Calibration,
        whole_files: true,
    };
    let mut found = Vec::new();
    let (_, account) = read::read_records(&path(&file), reading, &mut |record| {
        found.push(match record {
            read::Record::Text(text) | read::Record::Plain(text, _) => text,
            read::Record::Marked(text) => format!("marked {text}"),
            read::Record::Ids(ids) => format!("{ids:?}"),
            read::Record::NotUtf8 => "not UTF-8".into(),
            read::Record::Refused => "refused".into(),
        });
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .map_err(|e| e.to_string())?;
    Ok((found, account.told(render.is_some())))
}

/// `role: content` of each message, one a line; systems are refused.
fn lines_of(messages: &[Message]) -> Result<String, String> {
    let mut out = String::new();
    for message in messages {
        if message.role == "system" {
            return Err("no system here".into());
        }
        writeln!(out, "{}: {}", message.role, message.content).unwrap();
    }
    Ok(out)
}

fn check_record(record: serde_json::Value, wanted: &str, told: &str) {
    let (found, all) = documents_in("a.jsonl", record.to_string(), Some(&lines_of)).unwrap();
    assert_eq!(found, [wanted], "{record}");
    let all = all.join("\n");
    assert!(
        if told.is_empty() {
            all.is_empty()
        } else {
            all.contains(told)
        },
        "{record}: {all}"
    );
}

#[test]
fn records_of_every_shape_give_their_document() {
    use serde_json::json;
    let chat = "marked user: q\nassistant: a\n";
    let messages = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    for record in [
        json!({"messages": messages}),
        json!({"text": null, "messages": messages}),
        json!({"text": " ", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
        json!({"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}),
        json!({"messages": messages.to_string()}),
    ] {
        check_record(record, chat, "");
    }
    for (record, told) in [
        (
            json!({"prompt": "q", "completion": "a"}),
            "took prompt and completion of 1 records; set text_column",
        ),
        (
            json!({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}),
            "prompt and completion",
        ),
        (
            json!({"instruction": "q", "input": "", "output": "a"}),
            "instruction and output",
        ),
        (
            json!({"question": "q", "answer": "a", "id": "x"}),
            "question and answer",
        ),
        (
            json!({"Question": "q", "Response": "a"}),
            "Question and Response",
        ),
        (json!({"input": "q", "output": "a"}), "input and output"),
        (
            json!({"chosen": messages, "rejected": []}),
            "took chosen of",
        ),
        (
            json!({"prompt": "q", "chosen": messages, "rejected": "r"}),
            "prompt and chosen",
        ),
        (
            json!({"prompt": "q", "chosen": "a", "rejected": "r"}),
            "prompt and chosen",
        ),
        (
            json!({"prompt": [messages[0]], "chosen": [messages[1]]}),
            "prompt and chosen",
        ),
        (
            json!({"prompt": [messages[0]], "chosen": messages}),
            "prompt and chosen",
        ),
        (
            json!({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: r"}),
            "took chosen of",
        ),
    ] {
        check_record(record, chat, told);
    }
    check_record(
        json!({"instruction": "q", "input": "more", "output": "a"}),
        "marked user: q\n\nmore\nassistant: a\n",
        "instruction, input and output",
    );
    check_record(
        json!({"prompt": "q", "system": "s", "completion": "a"}),
        "refused",
        "1 of 1 chats were dropped because the model's chat template refuses them, the first with: no system here",
    );
    check_record(
        json!({"messages": messages, "tools": [{"name": "t"}]}),
        chat,
        "1 chats have tools",
    );
    check_record(
        json!({"messages": ["q", "a"]}),
        "q\n\na",
        "1 of them have messages without a role",
    );
    check_record(
        json!({"content": "words", "score": 1}),
        "words",
        "took content of 1 records",
    );
    check_record(
        json!({"whatever": "words", "id": 1, "n": "17"}),
        "words",
        "took whatever of 1 records",
    );
    check_record(
        json!({"text": "words", "content": "other", "prompt": "q", "completion": "a"}),
        "words",
        "",
    );
    check_record(
        json!({"chosen": "better", "rejected": "worse"}),
        "better",
        "took chosen",
    );
    check_record(
        json!({"prompt": "only", "n": 1}),
        "only",
        "took prompt of 1 records",
    );
    check_record(
        json!({"input_ids": [3, 4, 5, 0], "attention_mask": [1, 1, 1, 0], "labels": [3]}),
        "[3, 4, 5]",
        "took input_ids",
    );
}

#[test]
fn records_that_are_unclear_are_refused_with_their_columns() {
    let of = |lines: &str| documents_in("a.jsonl", lines, None).unwrap_err();
    assert!(of("{\"a\": \"one\", \"b\": \"two\"}").ends_with("set text_column to one of: a, b"));
    let later = of("{\"a\": \"one\"}\n{\"a\": \"x\", \"b\": \"two\"}");
    assert!(
        later.contains("a.jsonl:2: no column") && later.ends_with("one of: a, b"),
        "{later}"
    );
    let later = of("{\"a\": \"one\"}\n{\"b\": \"two\"}");
    assert!(later.ends_with("one of: b, a"), "{later}");
    assert!(of("{\"n\": 1}").ends_with("set text_column to one of: n"));
    assert!(of("{}").ends_with("set text_column to one of: (none)"));
    assert!(of("{\"input_ids\": [-100, 5]}").contains("holds numbers that are no token ids"));
    let unknown = of("{\"input_ids\": [5]}\n{\"input_ids\": [5, 4000]}");
    assert!(
        unknown.contains("a.jsonl:2: token id 4000 is not in the model's vocabulary of 4000"),
        "{unknown}"
    );
}

#[test]
fn json_may_have_a_byte_order_mark_and_what_is_no_number() {
    let array =
        "\u{feff}[{\"text\": \"one\", \"score\": NaN}, {\"text\": NaN}, {\"text\": \"two\"}]";
    let lines = "\u{feff}{\"text\": \"one\", \"x\": [-Infinity]}\r\n{\"text\": NaN}\r\n\r\n{\"text\": \"two\"}\r\n";
    for (name, text) in [
        ("a.json", array),
        ("a.jsonl", array),
        ("a.jsonl", lines),
        ("a.json", lines),
    ] {
        assert_eq!(
            documents_in(name, text, None).unwrap().0,
            ["one", "", "two"],
            "{text}"
        );
    }
    let cut = documents_in("a.json", "[{\"text\": \"one\"},\n{\"text\": ", None).unwrap_err();
    assert!(cut.contains("a.json:2: EOF"), "{cut}");
    let after = documents_in("a.json", "[{\"text\": \"one\"}]\nx", None).unwrap_err();
    assert!(after.contains("a.json:2: trailing characters"), "{after}");
}

#[test]
fn tables_may_hold_line_breaks_and_delimiters_in_quotes() {
    let csv = "id,text\r\n1,\"one, two\r\nthree \"\"four\"\"\"\r\n2,five\r\n";
    assert_eq!(
        documents_in("a.csv", csv, None).unwrap().0,
        ["one, two\r\nthree \"four\"", "five"]
    );
    let tsv = "\u{feff}prompt\tresponse\nq, q\ta\n";
    assert_eq!(
        documents_in("a.tsv", tsv, Some(&lines_of)).unwrap().0,
        ["marked user: q, q\nassistant: a\n"]
    );
    let (found, told) = documents_in("a.csv", "n,words\n1,one\n2,\n3,33\n", None).unwrap();
    assert_eq!(found, ["one", "", "33"]);
    assert!(told[0].contains("took words of 3 records"), "{told:?}");
    let uneven = documents_in("a.csv", "a,b\n1,2\n1,2,3\n", None);
    assert!(uneven.is_err(), "{uneven:?}");
    let uneven = documents_in("a.csv", "text,b\nx,2\ny,2,3\n", None).unwrap_err();
    assert!(
        uneven.contains("a.csv:3: 3 cells, and the first row has 2"),
        "{uneven}"
    );
    let twice = documents_in("a.csv", "text,text\nx,2\n", None).unwrap_err();
    assert!(twice.contains("two columns are named \"text\""), "{twice}");
    let bytes = documents_in("a.csv", b"text\nx\n\xff\n", None).unwrap_err();
    assert!(bytes.contains("a.csv:3: not UTF-8"), "{bytes}");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut out = flate2::write::GzEncoder::new(Vec::new(), Default::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

#[test]
fn packed_files_are_unpacked_whatever_their_names() {
    let lines = b"{\"text\": \"one\"}\n{\"text\": \"two\"}\n";
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let halves = [gzip(&lines[..16]), gzip(&lines[16..])].concat();
    let frames = [zstd(&lines[..16]), zstd(&lines[16..])].concat();
    for packed in [
        gzip(lines),
        halves,
        zstd(lines),
        frames,
        gzip(&zstd(lines)),
        lines.to_vec(),
    ] {
        for name in ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl", "a.json"] {
            assert_eq!(
                documents_in(name, &packed, None).unwrap().0,
                ["one", "two"],
                "{name}"
            );
        }
    }
    assert_eq!(
        documents_in("a.txt.gz", gzip(b"one\r\ntwo"), None)
            .unwrap()
            .0,
        ["one\ntwo"]
    );
    assert_eq!(
        documents_in("a.csv.zst", zstd(b"text\none\n"), None)
            .unwrap()
            .0,
        ["one"]
    );
    let cut = documents_in("a.jsonl.gz", &gzip(lines)[..20], None).unwrap_err();
    assert!(cut.ends_with("cannot be read"), "{cut}");
    for (mark, kind) in [
        (&b"BZh9..."[..], "bzip2"),
        (b"\xfd7zXZ\0..", "xz"),
        (b"PK\x03\x04..", "zip"),
    ] {
        let refused = documents_in("a.txt", mark, None).unwrap_err();
        assert!(
            refused.contains(&format!("packed with {kind}, which is not read")),
            "{refused}"
        );
    }
}

#[test]
fn a_packed_table_of_columns_is_read_by_its_content() {
    use parquet::file::writer::SerializedFileWriter;
    let schema =
        parquet::schema::parser::parse_message_type("message m { required binary text (STRING); }");
    let mut bytes = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut bytes, schema.unwrap().into(), Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values = ["one", "two"].map(parquet::data_type::ByteArray::from);
    column
        .typed::<parquet::data_type::ByteArrayType>()
        .write_batch(&values, None, None)
        .unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    for (name, bytes) in [
        ("a.parquet.gz", gzip(&bytes)),
        ("a.parquet", bytes.clone()),
        ("a.bin", bytes.clone()),
        ("a.txt", bytes),
    ] {
        assert_eq!(
            documents_in(name, bytes, None).unwrap().0,
            ["one", "two"],
            "{name}"
        );
    }
}

#[test]
fn a_file_of_an_unknown_name_is_told_by_its_content() {
    for (text, kind, wanted) in [
        ("{\"text\": \"one\"}\n", "JSON", "one"),
        ("\u{feff}[{\"text\": \"one\"}]", "JSON", "one"),
        ("[1] one", "plain text", "[1] one"),
    ] {
        let (found, told) = documents_in("a.dat", text, None).unwrap();
        assert_eq!(found, [wanted]);
        assert!(
            told[0].ends_with(&format!("a.dat was read as {kind}, by its content")),
            "{told:?}"
        );
    }
    let binary = documents_in("model.bin", b"ab\0\0\0cd\xff", None).unwrap_err();
    assert!(
        binary.contains("unknown kind of file, binary data; wanted text (.txt"),
        "{binary}"
    );
    let arrow = documents_in("a.arrow", b"\xff\xff\xff\xff\x10\0", None).unwrap_err();
    assert!(
        arrow.contains("an Arrow file; write it as parquet"),
        "{arrow}"
    );
}

#[test]
fn wide_encodings_with_a_mark_are_decoded_and_others_refused() {
    let text = "wörter 😀\r\nund mehr\r\n";
    let wide = |order: fn(u16) -> [u8; 2], text: &str| -> Vec<u8> {
        text.encode_utf16().flat_map(order).collect()
    };
    for order in [u16::to_le_bytes as fn(u16) -> [u8; 2], u16::to_be_bytes] {
        let marked = wide(order, &format!("\u{feff}{text}"));
        assert_eq!(
            documents_in("a.txt", &marked, None).unwrap().0,
            ["wörter 😀\nund mehr\n"]
        );
        let json = wide(order, "\u{feff}{\"text\": \"ö\"}");
        assert_eq!(documents_in("a.jsonl", json, None).unwrap().0, ["ö"]);
        let bare = documents_in("a.txt", wide(order, "plain words"), None).unwrap_err();
        assert!(
            bare.contains("the text is UTF-16 without a byte order mark"),
            "{bare}"
        );
        let odd = documents_in("a.txt", &marked[..marked.len() - 1], None).unwrap_err();
        assert!(odd.ends_with("cannot be read"), "{odd}");
    }
    let utf32 = documents_in("a.txt", b"\xff\xfe\0\0a\0\0\0", None).unwrap_err();
    assert!(utf32.contains("the text is UTF-32"), "{utf32}");
}

#[test]
fn splits_are_taken_by_their_purpose_and_what_is_left_is_told() {
    let check = |names: &[&str], purpose, wanted: &[&str], told: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let files = source::files_of(&SourceKind::Path(folder.path().into()), purpose).unwrap();
        let found: Vec<String> = files
            .paths
            .iter()
            .map(|p| p.strip_prefix(folder.path()).unwrap().display().to_string())
            .collect();
        assert_eq!(found, wanted);
        assert_eq!(files.told, told);
    };
    use source::Purpose::{Calibration, Evaluation};
    let hub = [
        "README.md",
        ".gitattributes",
        "dataset_infos.json",
        "data/train-00001-of-00002.parquet",
        "data/train-00000-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
        "data/validation-00000-of-00001.parquet",
    ];
    check(
        &hub,
        Calibration,
        &[
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
        ],
        &[
            "took the split train, 2 files, and left data/test-00000-of-00001.parquet, data/validation-00000-of-00001.parquet",
        ],
    );
    check(
        &hub,
        Evaluation,
        &["data/test-00000-of-00001.parquet"],
        &[
            "took the split test, 1 files, and left data/train-00000-of-00002.parquet, data/train-00001-of-00002.parquet, data/validation-00000-of-00001.parquet",
        ],
    );
    let nested = [
        "en/train/a.jsonl.gz",
        "en/dev/a.jsonl.gz",
        "de/train/b.csv",
        "picture.png",
    ];
    check(
        &nested,
        Calibration,
        &["de/train/b.csv", "en/train/a.jsonl.gz"],
        &[
            "took the split train, 2 files, and left en/dev/a.jsonl.gz",
            "left what is no text file by its name: picture.png",
        ],
    );
    check(
        &["a.txt", "test.txt"],
        Calibration,
        &["a.txt"],
        &["took what is of no split, 1 files, and left test.txt"],
    );
    check(
        &["test.txt"],
        Calibration,
        &["test.txt"],
        &["took the split test and what there is beside it, because there is no other"],
    );
    check(
        &["train.txt"],
        Evaluation,
        &["train.txt"],
        &["took the split train and what there is beside it, because there is no other"],
    );
    check(
        &["contest.txt", "b.txt"],
        Calibration,
        &["b.txt", "contest.txt"],
        &[],
    );
}

#[test]
fn chats_in_a_template_stand_side_by_side_and_a_source_may_forbid_it() {
    let chat = |from: usize| {
        let (a, b) = (words(from, 10), words(from + 10, 10));
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{a}\"}}, {{\"role\": \"assistant\", \"content\": \"{b}\"}}]}}\n"
        )
    };
    let (_folder, file) = file("a.jsonl", chat(0) + &chat(20));
    // marks that are words of the vocabulary
    let render = |messages: &[Message]| {
        let turns = messages
            .iter()
            .map(|m| format!(" w{} {}", 1000 + m.role.len(), m.content));
        Ok(turns.collect::<String>())
    };
    let with = |source: &TextSource, packing| {
        let options = options(1, 40, packing);
        load_windows(
            std::slice::from_ref(source),
            &TOKENIZER,
            Some(&render),
            &options,
        )
        .unwrap()
    };
    let source = path(&file);
    let windows = with(&source, Packing::Concat);
    let turn = |mark: u32, from: usize| [vec![mark], ids(from, 10)].concat();
    let all = [
        turn(1004, 0),
        turn(1009, 10),
        turn(1004, 20),
        turn(1009, 30),
    ]
    .concat();
    assert_eq!(windows.calibration[0].ids, all[..40]);
    let report = &windows.report.sources[0];
    assert_eq!((report.documents_chat, report.documents_templated), (2, 2));
    assert_eq!(windows.report.warnings, Vec::<String>::new());
    let plain = TextSource {
        chat_template: false,
        ..source
    };
    let windows = with(&plain, Packing::Concat);
    assert_eq!(windows.calibration[0].ids, ids(0, 40));
    assert_eq!(windows.report.sources[0].documents_templated, 0);
    assert!(windows.report.warnings[0].contains("2 chats were read as plain text"));
}

#[test]
fn chats_that_the_template_refuses_are_counted_and_all_of_them_an_error() {
    let chat = |role: &str| {
        let text = words(0, 40);
        format!("{{\"messages\": [{{\"role\": \"{role}\", \"content\": \"{text}\"}}]}}\n")
    };
    for packing in [Packing::Concat, Packing::Drop] {
        let (_folder, mixed) = file("a.jsonl", chat("system") + &chat("user") + &chat("system"));
        let options = options(1, 20, packing);
        let windows = load_windows(&[path(&mixed)], &TOKENIZER, Some(&lines_of), &options).unwrap();
        let source = &windows.report.sources[0];
        // Drop stops when it has enough
        let refused = if packing == Packing::Drop { 1 } else { 2 };
        assert_eq!(source.documents_dropped.refused, refused);
        assert!(
            windows
                .report
                .warnings
                .iter()
                .any(|w| w.contains("the first with: no system here"))
        );
        let (_folder, all) = file("a.jsonl", chat("system"));
        let error = load_windows(&[path(&all)], &TOKENIZER, Some(&lines_of), &options)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("(1 documents dropped); 1 of 1 chats were dropped")
                && error.contains("`chat_template: false`"),
            "{error}"
        );
    }
}

#[test]
fn token_ids_are_packed_as_they_are() {
    let lines: String = (0..4)
        .map(|i| format!("{{\"input_ids\": {:?}}}\n", ids(i * 20, 20)))
        .collect();
    let (_folder, file) = file("a.jsonl", lines);
    let windows = load(&[path(&file)], &options(4, 20, Packing::Concat));
    let joined: Vec<u32> = windows
        .calibration
        .iter()
        .flat_map(|w| w.ids.clone())
        .collect();
    assert_eq!(joined, ids(0, 80));
    let windows = load(&[path(&file)], &options(4, 16, Packing::Drop));
    assert_eq!(windows.calibration[3].ids, ids(60, 16));
    assert_eq!(windows.report.sources[0].tokens_truncated, 16);
}

// ---- evaluation text ----

fn evaluation(source: &TextSource, render: Option<&RenderChat>) -> Result<EvaluationText, String> {
    evaluation_windows_of(source, &TOKENIZER, render, 10, &WindowChoice::All)
        .map_err(|e| e.to_string())
}

#[test]
fn evaluation_documents_are_joined_by_blank_lines_whatever_the_file() {
    let parts = [words(0, 15), words(15, 15), words(30, 23)];
    let wanted =
        evaluation_windows(&parts.join("\n\n"), &TOKENIZER, 10, &WindowChoice::All).unwrap();
    let lines: String = parts
        .iter()
        .map(|t| format!("{{\"text\": \"{t}\\n\"}}\n{{\"text\": \"\"}}\n"))
        .collect();
    for (name, bytes) in [
        ("a.jsonl", lines.clone().into_bytes()),
        ("a.jsonl.gz", gzip(lines.as_bytes())),
        (
            "a.csv",
            format!("text\n{}\n", parts.join("\n")).into_bytes(),
        ),
        ("a.txt", parts.join("\r\n\r\n").into_bytes()),
    ] {
        let (_folder, file) = file(name, bytes);
        assert_eq!(evaluation(&path(&file), None).unwrap(), wanted, "{name}");
    }
    let (_folder, file) = file("a.jsonl", "{\"input_ids\": [1, 2]}");
    let refused = evaluation(&path(&file), None).unwrap_err();
    assert!(
        refused.contains("a.jsonl:1: holds token ids, wanted text"),
        "{refused}"
    );
}

#[test]
fn the_text_that_is_scored_is_the_file_to_the_byte() {
    // long enough for several pieces, with line ends at its head, its end and where pieces meet
    for text in [
        "\n\n w1 w2 \n\n".to_owned(),
        format!("\n{}\n\n", "w1\n\n\n".repeat(60_000)),
        "w3".into(),
        "\n\n".into(),
    ] {
        let mut pieces = String::new();
        let (_folder, file) = file("a.txt", &text);
        let source = path(&file);
        evaluation::text_of(&source, &mut |piece| pieces.push_str(piece)).unwrap();
        assert_eq!(pieces, text);
    }
}

#[test]
fn a_large_text_gives_the_windows_of_the_whole_though_its_ids_are_not_kept() {
    let text: String = (0..1_300_000)
        .map(|i: usize| format!("w{} ", i * 7919 % 4000))
        .collect();
    let (_folder, file) = file("a.txt", &text);
    for choice in [
        WindowChoice::Count(7),
        WindowChoice::List(vec![9000, 3, 12_999]),
    ] {
        let found = evaluation_windows_of(&path(&file), &TOKENIZER, None, 100, &choice).unwrap();
        assert_eq!((found.n_tokens, found.n_available), (1_300_000, 13_000));
        for (window, index) in found.windows.iter().zip(&found.indices) {
            let wanted: Vec<u32> = (index * 100..index * 100 + 100)
                .map(|i| (i * 7919 % 4000) as u32)
                .collect();
            assert_eq!(*window, wanted);
        }
    }
}

#[test]
fn scored_chats_are_in_the_template_and_a_folder_gives_its_test_split() {
    let folder = tempfile::tempdir().unwrap();
    let chat = format!(
        "{{\"messages\": [{{\"role\": \"w77\", \"content\": \"{}\"}}]}}\n",
        words(0, 30)
    );
    std::fs::write(folder.path().join("test.jsonl"), chat.repeat(2)).unwrap();
    std::fs::write(folder.path().join("train.jsonl"), "x").unwrap();
    let render =
        |messages: &[Message]| Ok(format!("{} {} ", messages[0].role, messages[0].content));
    let found = evaluation(&path(folder.path()), Some(&render)).unwrap();
    let all = [vec![77], ids(0, 30), vec![77], ids(0, 30)].concat();
    assert_eq!(found.windows.concat(), all[..60]);
    assert_eq!(found.warnings.len(), 1);
    assert!(found.warnings[0].ends_with("took the split test, 1 files, and left train.jsonl"));
    let refuse = |_: &[Message]| Err("never".to_owned());
    let error = evaluation(&path(folder.path()), Some(&refuse)).unwrap_err();
    assert!(
        error.contains("0 tokens are 0 windows") && error.contains("the first with: never"),
        "{error}"
    );
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
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.dat"), "x").unwrap();
    let message = error(&[path(folder.path())], &good);
    assert!(
        message.ends_with("in this folder or below (it holds a.dat)"),
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
        error_in_file(
            "a.jsonl",
            "{\"title\": \"a\", \"summary\": \"b\", \"n\": 1}"
        ),
        "DIR/a.jsonl:1: no column \"text\" (nor a chat, a question and its answer, input_ids, or one column of strings \
         alone); set text_column to one of: title, summary"
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
