//! From the mirror, whose shape is right, to the pipeline, whose meaning is.

use std::path::{Path, PathBuf};

use halfbyte_quant::{Coding, GroupSize, Scheme};

use super::error::Fault;
use super::file::{
    BudgetFile, EvaluateFile, EvaluateSwitch, ExportFile, ModelFile, PipelineFile, QuantFile,
    RuleFile, SourceFile,
};
use super::{
    Awq, Budget, BudgetLimit, Calibration, EMBEDDED_CALIBRATION, EMBEDDED_EVALUATION, Evaluate,
    Export, Format, Gate, Located, Method, Model, ModelSource, Pattern, Pipeline, Propagation,
    Quant, Recipe, Report, Resources, Rule, SignedScales, Source, TextSource, Treatment, Tune,
    Windows, sweep,
};
use crate::recipe;

/// Checks what the schema cannot say; `base_dir` is the pipeline file's folder.
pub(super) fn check(file: PipelineFile, base_dir: &Path) -> Result<Pipeline, Fault> {
    let model = model(&file.model, base_dir)?;
    let calibration = calibration(&file, base_dir)?;
    let quant = quant(&file.quant)?;
    let rules = (file.rules.iter().enumerate())
        .map(|(index, rule)| self::rule(index, rule, &file.quant))
        .collect::<Result<Vec<_>, _>>()?;
    let ignore = (file.ignore.iter().enumerate())
        .map(|(index, written)| pattern(&["ignore", &index.to_string()], written))
        .collect::<Result<_, _>>()?;
    let evaluate = evaluate(&file.evaluate, base_dir)?;
    if file.gate.max_kl.is_some() && evaluate.is_none() {
        return Err(Fault::new(
            &["gate", "max_kl"],
            "nothing is measured to hold it against",
            "add `evaluate: {text: FILE}`",
        ));
    }
    demands_of_method(&file, &quant, &rules)?;
    let sweep = sweep::check(&file, base_dir)?;
    Ok(Pipeline {
        model,
        calibration,
        method: file.method,
        recipe: file.recipe,
        export: export(&file, &quant, &rules)?,
        quant,
        awq: Awq {
            loss: file.awq.loss,
            loss_tokens: file.awq.loss_tokens,
        },
        propagation: file
            .propagation
            .unwrap_or(recipe::usual(file.recipe).propagation),
        tune: Tune {
            epochs: file.tune.epochs,
            generated_samples: file.tune.generated_samples,
            num_samples: file.tune.num_samples,
            learning_rate: file.tune.learning_rate,
        },
        budget: file.budget.as_ref().map(|b| budget(b, &file)).transpose()?,
        sweep,
        rules,
        ignore,
        evaluate,
        gate: Gate {
            max_kl: file.gate.max_kl,
        },
        report: Report {
            html: file.report.html,
            llm_int8: file.report.llm_int8,
            calibration_curve: file.report.calibration_curve,
        },
        resources: Resources {
            threads: file.resources.threads,
            max_memory_bytes: max_memory(&file.resources.max_memory)?,
            device: file.resources.device,
        },
        notices: Vec::new(),
    })
}

/// One limit, widths in order, patterns that are patterns; and a method that measures what it loses.
fn budget(budget: &BudgetFile, file: &PipelineFile) -> Result<Budget, Fault> {
    let limit = match (budget.bits_per_weight, &budget.bytes) {
        (Some(bits), None) => BudgetLimit::BitsPerWeight(bits),
        (None, Some(bytes)) => BudgetLimit::Bytes(size(&["budget", "bytes"], bytes)?),
        _ => {
            return Err(Fault::new(
                &["budget"],
                "wants one limit, `bits_per_weight` or `bytes`",
                "write `budget: {bits_per_weight: 4.25}`",
            ));
        }
    };
    if file.method.is_data_free() {
        return Err(Fault::new(
            &["budget"],
            format!(
                "what a width costs is measured on calibration text, and `method: {}` reads none",
                file.method
            ),
            "use `method: gptq`",
        ));
    }
    let mut bits = budget.bits.clone();
    bits.sort_unstable();
    bits.dedup();
    let floors = (budget.floors.iter().enumerate()).map(|(index, floor)| {
        let pattern = pattern(
            &["budget", "floors", &index.to_string(), "match"],
            &floor.pattern,
        )?;
        Ok((pattern, floor.bits))
    });
    Ok(Budget {
        limit,
        bits,
        floors: floors.collect::<Result<_, Fault>>()?,
    })
}

/// The size that stands at `at`.
pub(super) fn size(at: &[&str], text: &str) -> Result<u64, Fault> {
    parse_bytes(text).ok_or_else(|| {
        Fault::new(
            at,
            format!("`{text}` is not a size"),
            "write it as 90MB, 1.5GiB or a count of bytes",
        )
    })
}

/// Reads a size such as `8GiB`, `500 MB` or a plain count of bytes.
pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000 * 1000,
        "gb" => 1000 * 1000 * 1000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "tb" => 1000 * 1000 * 1000 * 1000,
        "t" | "tib" => 1 << 40,
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * unit as f64;
    (1.0..1e18).contains(&bytes).then_some(bytes as u64)
}

fn model(file: &ModelFile, base_dir: &Path) -> Result<Model, Fault> {
    let written = file.source.as_str();
    let at = ["model", "source"];
    let wrong = |problem: String, hint: &str| Fault::new(&at, problem, hint);
    let mut revision = file.revision.clone();
    let source = if let Some(name) = written.strip_prefix("embedded:") {
        if name != "tiny" {
            return Err(wrong(
                format!("no model `{name}` is inside the program"),
                "use embedded:tiny",
            ));
        }
        ModelSource::Embedded(name.to_owned())
    } else if let Some(path) = find(written, base_dir) {
        if written.ends_with(".gguf") {
            return Err(wrong(
                "`.gguf` files are known, but not in this version".to_owned(),
                "give a folder of safetensors",
            ));
        }
        if !path.is_dir() {
            return Err(wrong(
                format!("`{written}` is a file, wanted a model's folder"),
                "give the folder that holds config.json and the safetensors",
            ));
        }
        ModelSource::Folder(Located {
            written: written.to_owned(),
            path,
        })
    } else if let Some((id, at_revision)) = hub_id(written) {
        if let Some(at_revision) = at_revision {
            if revision.is_some() {
                return Err(wrong(
                    format!("`{written}` names a revision, and so does model.revision"),
                    "keep one of the two",
                ));
            }
            revision = Some(at_revision.to_owned());
        }
        ModelSource::Hub(id.to_owned())
    } else {
        return Err(wrong(
            not_there(written, base_dir),
            "give a model's folder, a hub id `org/name`, or embedded:tiny",
        ));
    };
    if revision.is_some() && !matches!(source, ModelSource::Hub(_)) {
        return Err(Fault::new(
            &["model", "revision"],
            format!("`{written}` has no revisions"),
            "leave it out; only hub models have revisions",
        ));
    }
    Ok(Model { source, revision })
}

/// Windows that the float model writes: as many as asked for, or as the method and the recipe want; none where no text is
/// read.
pub(super) fn generated_samples(file: &PipelineFile) -> usize {
    let windows = file.calibration.num_samples;
    match file.calibration.generated_samples {
        _ if file.method.is_data_free() => 0,
        Some(asked) => asked,
        None => recipe::generated_samples(file.method, file.recipe, windows),
    }
}

fn calibration(whole: &PipelineFile, base_dir: &Path) -> Result<Calibration, Fault> {
    let file = &whole.calibration;
    let sources = (file.sources.iter().enumerate())
        .map(|(index, source)| self::source(index, source, base_dir))
        .collect::<Result<_, _>>()?;
    let calibration = Calibration {
        sources,
        num_samples: file.num_samples,
        sequence_length: file.sequence_length,
        packing: file.packing,
        seed: file.seed,
        holdout: file.holdout,
        random_samples: file.random_samples,
        generated_samples: generated_samples(whole),
    };
    if calibration.held_out_samples() >= calibration.num_samples {
        return Err(Fault::new(
            &["calibration", "holdout"],
            format!(
                "found {} of {} samples, which leaves none for the statistics",
                file.holdout, file.num_samples
            ),
            "set `holdout: 0`, or raise `num_samples`",
        ));
    }
    Ok(calibration)
}

fn source(index: usize, file: &SourceFile, base_dir: &Path) -> Result<Source, Fault> {
    let index = index.to_string();
    let at = |key: &'static str| vec!["calibration", "sources", &index, key];
    let text = match (&file.path, &file.dataset) {
        (Some(path), None) if path == EMBEDDED_CALIBRATION => TextSource::Embedded,
        (Some(path), None) => match find(path, base_dir) {
            Some(found) => TextSource::Path(Located {
                written: path.clone(),
                path: found,
            }),
            None => {
                let hint = match hub_id(path) {
                    Some(_) => format!("if a data set on the hub is meant, write `dataset: {path}`"),
                    None => "paths are taken from the pipeline file's folder, then from the working folder".to_owned(),
                };
                return Err(Fault::new(&at("path"), not_there(path, base_dir), hint));
            }
        },
        (None, Some(id)) => match hub_id(id) {
            Some(_) => TextSource::Dataset(id.clone()),
            None => {
                return Err(Fault::new(
                    &at("dataset"),
                    format!("`{id}` is no hub id"),
                    "write `org/name`, or `path:` for a file or folder",
                ));
            }
        },
        (found, _) => {
            let problem = match found {
                Some(_) => "found both `path` and `dataset`, wanted one",
                None => "found neither `path` nor `dataset`, wanted one",
            };
            return Err(Fault::new(
                &at("path")[..3],
                problem,
                "write one entry a source: `path` for files, `dataset` for a hub id",
            ));
        }
    };
    let weight = file.weight.unwrap_or(1.0);
    if weight <= 0.0 {
        return Err(Fault::new(
            &at("weight"),
            format!("found {weight}, wanted a number above 0"),
            "take the source out of the list to leave it out",
        ));
    }
    Ok(Source {
        text,
        weight,
        text_column: file.text_column.clone(),
        chat_template: file.chat_template.unwrap_or(true),
    })
}

fn quant(file: &QuantFile) -> Result<Quant, Fault> {
    if file.desc_act && !file.static_groups {
        return Err(Fault::new(
            &["quant", "static_groups"],
            "groups that follow the order (false, with desc_act true) are known, but not in this version",
            "leave `static_groups: true`, which keeps the gain of the order and needs no index when the model runs",
        ));
    }
    Ok(Quant {
        scheme: scheme(&["quant"], file.bits, file.group_size, file.sym)?,
        desc_act: file.desc_act,
        static_groups: file.static_groups,
        damp_percent: file.damp_percent,
        signed_scales: file.signed_scales,
        double_quant: file.double_quant,
    })
}

fn rule(index: usize, file: &RuleFile, quant: &QuantFile) -> Result<Rule, Fault> {
    let index = index.to_string();
    let at = ["rules", index.as_str()];
    let pattern = pattern(&["rules", &index, "match"], &file.pattern)?;
    let changes = file.bits.is_some() || file.group_size.is_some() || file.sym.is_some();
    let treatment = match (file.skip, changes) {
        (Some(true), false) => Treatment::Keep,
        (Some(false), _) | (None, true) => Treatment::Quantize(scheme(
            &at,
            file.bits.unwrap_or(quant.bits),
            file.group_size.unwrap_or(quant.group_size),
            file.sym.unwrap_or(quant.sym),
        )?),
        (Some(true), true) => {
            return Err(Fault::new(
                &at,
                "found `skip: true` beside settings that it would make idle",
                "keep either `skip` or the settings",
            ));
        }
        (None, false) => {
            return Err(Fault::new(
                &at,
                "changes nothing",
                "add `bits`, `group_size` or `sym`, or `skip: true`",
            ));
        }
    };
    Ok(Rule { pattern, treatment })
}

/// What a method cannot do, in `quant` or in a rule; and what does not go together with it.
fn demands_of_method(file: &PipelineFile, quant: &Quant, rules: &[Rule]) -> Result<(), Fault> {
    if file.recipe == Recipe::Best && !matches!(file.method, Method::Gptq | Method::AwqGptq) {
        return Err(Fault::new(
            &["recipe"],
            format!(
                "`best` is a recipe of gptq and awq+gptq, and the method is {}",
                file.method
            ),
            "use `method: gptq`, or `recipe: default`",
        ));
    }
    if file.method.is_data_free() && file.tune.epochs.is_some_and(|epochs| epochs > 0) {
        return Err(Fault::new(
            &["tune", "epochs"],
            format!(
                "tuning needs calibration text, and {} reads none",
                file.method
            ),
            "use a method that reads text, or leave `tune` out",
        ));
    }
    if file.method.is_data_free() && file.propagation == Some(Propagation::Asymmetric) {
        return Err(Fault::new(
            &["propagation"],
            format!(
                "asymmetric compares with the float model on calibration text, and {} reads none",
                file.method
            ),
            "use a method that reads text, or leave `propagation` out",
        ));
    }
    if file.method.is_data_free() && quant.signed_scales == SignedScales::On {
        return Err(Fault::new(
            &["quant", "signed_scales"],
            format!("{} has no negative scales", file.method),
            "leave it out, or use rtn or gptq",
        ));
    }
    if file.method.codebook().is_none() && !quant.double_quant {
        return Err(Fault::new(
            &["quant", "double_quant"],
            format!(
                "only block scales of nf4 and fp4 are quantized once more, and the method is {}",
                file.method
            ),
            "leave it out",
        ));
    }
    if file.report.llm_int8 && (file.method.is_data_free() || file.method.scales_channels()) {
        return Err(Fault::new(
            &["report", "llm_int8"],
            format!(
                "outliers are looked for in the inputs of the model as it is, and {} {}",
                file.method,
                if file.method.is_data_free() {
                    "reads no text"
                } else {
                    "scales them"
                }
            ),
            "use `method: gptq` or `rtn`",
        ));
    }
    let method = file.method;
    let schemes = rules.iter().enumerate().filter_map(|(index, rule)| {
        let Treatment::Quantize(scheme) = rule.treatment else {
            return None;
        };
        Some((format!("rules.{index}"), scheme))
    });
    for (asked_by, scheme) in [("quant".to_owned(), quant.scheme)]
        .into_iter()
        .chain(schemes)
    {
        let (cannot, hint) = match method {
            Method::Hqq if scheme.sym() => (
                "chooses zero points, and symmetric weights have none",
                "set `sym: false` there",
            ),
            Method::Absmax if scheme.bits() != 8 || !scheme.sym() => (
                "is for symmetric weights of 8 bits",
                "set `bits: 8` and `sym: true` there, or use rtn",
            ),
            Method::Nf4 | Method::Fp4 if scheme.bits() != 4 || !scheme.sym() => (
                "has codes of 4 bits and no zero points",
                "set `bits: 4` and `sym: true` there",
            ),
            Method::Nf4 | Method::Fp4 if !is_block(scheme.group_size()) => (
                "has blocks of 32, 64, 128, 256, 512 or 1024 weights",
                "set `group_size: 64` there",
            ),
            Method::Absmax => continue,
            _ if scheme.group_size() == GroupSize::Tensor => (
                "has no single scale for a whole weight, which `group_size: 0` means",
                "set `group_size: -1` there for one a row, or use `method: absmax`",
            ),
            _ => continue,
        };
        return Err(Fault::new(
            &["method"],
            format!("`{asked_by}` asks for more than `{method}` can do: it {cannot}"),
            hint,
        ));
    }
    Ok(())
}

/// Block sizes that readers of codebooks take.
fn is_block(group_size: GroupSize) -> bool {
    matches!(group_size, GroupSize::Columns(n) if n >= 32 && n.is_power_of_two())
}

fn scheme(at: &[&str], bits: u8, group_size: i64, sym: bool) -> Result<Scheme, Fault> {
    let group_size = match group_size {
        0 => Ok(GroupSize::Tensor),
        other => GroupSize::from_i64(other),
    };
    group_size
        .and_then(|group_size| Scheme::new(bits, group_size, sym))
        .map_err(|error| Fault::new(at, error.to_string(), "see `halfbyte schema`"))
}

fn pattern(at: &[&str], written: &str) -> Result<Pattern, Fault> {
    Pattern::parse(written).map_err(|error| {
        Fault::new(
            at,
            error.to_string(),
            "without `re:` the pattern is a name with `*` and `?`",
        )
    })
}

fn export(file: &PipelineFile, quant: &Quant, rules: &[Rule]) -> Result<Vec<Export>, Fault> {
    let exports: Vec<Export> = (file.export.iter())
        .map(|export: &ExportFile| Export {
            format: export.format,
            out: export.out.as_ref().map(PathBuf::from),
        })
        .collect();
    for (index, export) in exports.iter().enumerate() {
        let index_word = index.to_string();
        let at = |key: &'static str| vec!["export", &index_word, key];
        let before = &exports[..index];
        if before.iter().any(|e| e.format == export.format) {
            return Err(Fault::new(
                &at("format"),
                format!("`{}` is there twice", export.format),
                "keep one of the two",
            ));
        }
        if export.out.is_some() && before.iter().any(|e| e.out == export.out) {
            return Err(Fault::new(
                &at("out"),
                "another export has the same folder",
                "give each its own, or leave `out` away",
            ));
        }
        let whole = (vec!["quant".to_owned()], quant.scheme);
        let rules = rules.iter().enumerate().filter_map(|(i, rule)| {
            let Treatment::Quantize(scheme) = rule.treatment else {
                return None;
            };
            Some((vec!["rules".to_owned(), i.to_string()], scheme))
        });
        for (asked_by, scheme) in [whole].into_iter().chain(rules) {
            let coding = super::coding(file.method, quant.double_quant, scheme);
            let friendly_shape = [32, 32 * scheme.group_len(1024)];
            if let Some((problem, hint)) = cannot_hold(export.format, coding, friendly_shape) {
                return Err(Fault::new(
                    &at("format"),
                    format!(
                        "`{}` asks for more than it holds: {problem}",
                        asked_by.join(".")
                    ),
                    hint,
                ));
            }
        }
    }
    Ok(exports)
}

/// Why a layout cannot hold a weight, and what can. Shapes are the plan's to check: this one fits wherever one does.
fn cannot_hold(
    format: Format,
    coding: Coding,
    shape: [usize; 2],
) -> Option<(String, &'static str)> {
    let refusal = halfbyte_pack::Format::from(format)
        .supports(&coding, shape)
        .err()?;
    let hint = match refusal {
        halfbyte_pack::Refusal::Asymmetric => "use `format: gptq_v2`, or `sym: true`",
        halfbyte_pack::Refusal::SymmetricOnly { .. } => "set `sym: true`, or use another format",
        halfbyte_pack::Refusal::Codebook { .. } => "write `export: [{format: bitsandbytes}]`",
        halfbyte_pack::Refusal::Grid => "use `method: nf4` or `fp4`, or another format",
        _ => "use one of these widths, or another format alone",
    };
    Some((refusal.to_string(), hint))
}

fn evaluate(switch: &EvaluateSwitch, base_dir: &Path) -> Result<Option<Evaluate>, Fault> {
    let EvaluateSwitch::On(file) = switch else {
        return Ok(None);
    };
    let EvaluateFile {
        text,
        sequence_length,
        windows,
        text_column,
        chat_template,
    } = file;
    let (text_column, chat_template) = (text_column.clone(), chat_template.unwrap_or(true));
    if text == EMBEDDED_EVALUATION {
        return Ok(Some(Evaluate {
            text: Located {
                written: text.clone(),
                path: PathBuf::from(text),
            },
            sequence_length: *sequence_length,
            windows: (windows.clone()).unwrap_or_else(|| Windows::default_for(Path::new(text))),
            text_column,
            chat_template,
        }));
    }
    let at = ["evaluate", "text"];
    let path = find(text, base_dir).ok_or_else(|| {
        Fault::new(
            &at,
            not_there(text, base_dir),
            "paths are taken from the pipeline file's folder, then from the working folder",
        )
    })?;
    Ok(Some(Evaluate {
        text: Located {
            written: text.clone(),
            path,
        },
        sequence_length: *sequence_length,
        windows: windows.clone().unwrap_or_default(),
        text_column,
        chat_template,
    }))
}

fn max_memory(text: &str) -> Result<Option<u64>, Fault> {
    if text == "auto" {
        return Ok(None);
    }
    parse_bytes(text).map(Some).ok_or_else(|| {
        Fault::new(
            &["resources", "max_memory"],
            format!("found `{text}`, wanted a size"),
            "write auto, 8GiB or 512MiB",
        )
    })
}

/// The first place where a written path is: the pipeline file's folder, then the working folder.
fn find(written: &str, base_dir: &Path) -> Option<PathBuf> {
    candidates(written, base_dir)
        .into_iter()
        .find(|path| path.exists())
}

fn candidates(written: &str, base_dir: &Path) -> Vec<PathBuf> {
    let home = written
        .strip_prefix("~/")
        .and_then(|rest| Some(PathBuf::from(std::env::var_os("HOME")?).join(rest)));
    match home {
        Some(path) => vec![path],
        None if Path::new(written).is_absolute() => vec![PathBuf::from(written)],
        None => {
            let plain = written.trim_start_matches("./");
            let mut places = vec![base_dir.join(plain), PathBuf::from(written)];
            places.dedup();
            places
        }
    }
}

fn not_there(written: &str, base_dir: &Path) -> String {
    let places: Vec<String> = candidates(written, base_dir)
        .iter()
        .map(|path| format!("`{}`", path.display()))
        .collect();
    format!("nothing is at {}", places.join(" or at "))
}

/// `org/name` and the revision after an `@`, where the text looks like one.
fn hub_id(text: &str) -> Option<(&str, Option<&str>)> {
    let (id, revision) = match text.split_once('@') {
        Some((id, revision)) => (id, Some(revision)),
        None => (text, None),
    };
    let word = |word: &str| {
        !word.is_empty()
            && !word.starts_with('.')
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let (org, name) = id.split_once('/')?;
    (word(org) && word(name) && revision != Some("")).then_some((id, revision))
}
