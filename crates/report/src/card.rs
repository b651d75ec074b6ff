use crate::markup::printable;
use crate::text::{bytes, count, grouped};
use crate::{ExportRecord, RunRecord};

/// A draft of a model card for a run, all its exports together, for a person to finish: what it is made from, how, and
/// what was measured. Every figure is from the record.
pub fn model_card(run: &RunRecord) -> String {
    card(run, &run.exports)
}

/// The card of one export, the README.md of its folder: as [`model_card`], with the tag and the size of this format alone.
pub fn export_card(run: &RunRecord, format: &str) -> String {
    let own = run.exports.iter().filter(|export| export.format == format);
    card(run, &own.cloned().collect::<Vec<_>>())
}

fn card(run: &RunRecord, exports: &[ExportRecord]) -> String {
    let (model, calibration) = (&run.model, &run.calibration);
    let mut out = front_matter(run, exports);
    out += &format!(
        "# {}, {:.2} bits a weight\n\n",
        short_name(&model.source),
        run.summary.bits_per_weight
    );
    out += &format!(
        "Quantized from `{}`{} with halfbyte {}: {} of {} blocks, {} parameters, {} -> {}.\n\n",
        model.source,
        model
            .revision
            .as_ref()
            .map_or_else(String::new, |revision| format!(" at `{revision}`")),
        run.version,
        model.architecture,
        model.blocks,
        count(model.parameters),
        bytes(run.summary.bytes_before),
        bytes(match exports {
            [export] => export.bytes,
            _ => run.summary.bytes_after,
        })
    );
    if let Some(verdict) = run.verdict_warning() {
        out += &format!("> **Warning: {verdict}.**\n\n");
    }
    out += "## Schemes\n\n| bits | group_size | sym | method | linears |\n|---|---|---|---|---|\n";
    for (scheme, linears) in schemes(run) {
        out += &format!("| {scheme} | {linears} |\n");
    }
    if let Some(e) = &run.evaluation {
        out += &format!(
            "\n## Measured\n\nOn {} windows of {} tokens of `{}`, the exported files read back, beside the model they are made from.\n\n\
             | | before | after |\n|---|---|---|\n\
             | perplexity | {:.3} ± {:.3} | {:.3} ± {:.3} |\n\
             | KL divergence to the model before, mean | 0 | {:.4} ± {:.4} |\n\
             | KL divergence, median and 99th percentile | 0 | {:.4}, {:.3} |\n\
             | same most likely token | 100 % | {:.1} % |\n",
            e.windows,
            e.sequence_length,
            e.text,
            e.perplexity_float,
            e.perplexity_float_se,
            e.perplexity,
            e.perplexity_se,
            e.kl_mean,
            e.kl_mean_se,
            e.kl_median,
            e.kl_p99,
            100.0 * e.top1_agreement
        );
    }
    let sources: Vec<String> = calibration
        .sources
        .iter()
        .map(|source| format!("`{source}`"))
        .collect();
    if calibration.samples == 0 {
        out += "\n## Calibration\n\nNone: the method reads no text.\n";
    } else {
        out += &format!(
            "\n## Calibration\n\n{} tokens in {} windows of {}, {} of them held out; sha256 of the windows `{}`.\n",
            grouped(calibration.tokens_used + calibration.tokens_held_out),
            calibration.samples,
            sources.join(", "),
            grouped(calibration.tokens_held_out),
            calibration.sha256
        );
    }
    let warnings = run.warnings();
    if !warnings.is_empty() {
        out += "\n## Warnings\n\n";
        for warning in &warnings {
            out += &format!("- {warning}\n");
        }
    }
    out += "\nThe figures of every linear are in `halfbyte/linears.csv`, the whole record in `halfbyte/run.json`.\n";
    printable(&out).into_owned()
}

/// The block that model hubs read. The licence is the original's, which only a person can state.
fn front_matter(run: &RunRecord, exports: &[ExportRecord]) -> String {
    let base_model = if run.model.hub {
        let id = &run.model.source;
        format!("base_model: {id}\nbase_model_relation: quantized\n")
    } else {
        String::new()
    };
    let formats: String = exports
        .iter()
        .map(|export| format!("- {}\n", export.format))
        .collect();
    format!(
        "---\n{base_model}pipeline_tag: text-generation\ntags:\n- halfbyte\n- quantized\n{formats}---\n"
    )
}

pub(crate) fn short_name(source: &str) -> &str {
    source
        .trim_end_matches('/')
        .rsplit(['/', ':'])
        .next()
        .unwrap_or(source)
}

/// The distinct schemes as table cells, each with the number of linears, in order of first use.
fn schemes(run: &RunRecord) -> Vec<(String, usize)> {
    let mut schemes: Vec<(String, usize)> = Vec::new();
    for linear in &run.linears {
        let scheme = format!(
            "{} | {} | {} | {}",
            linear.bits, linear.group_size, linear.sym, linear.method
        );
        match schemes.iter_mut().find(|(known, _)| *known == scheme) {
            Some((_, linears)) => *linears += 1,
            None => schemes.push((scheme, 1)),
        }
    }
    schemes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::run;

    #[test]
    fn the_card_says_what_was_made_from_what_and_how_good_it_is() {
        let mut run = run();
        run.linears[3].bits = 8;
        assert_eq!(
            model_card(&run),
            "\
---
base_model: org/name
base_model_relation: quantized
pipeline_tag: text-generation
tags:
- halfbyte
- quantized
- compressed-tensors
---
# name, 4.50 bits a weight

Quantized from `org/name` at `main` with halfbyte 0.1.0: llama of 2 blocks, 6.3 M parameters, 12.0 MiB -> 4.0 MiB.

## Schemes

| bits | group_size | sym | method | linears |
|---|---|---|---|---|
| 4 | 32 | true | gptq | 3 |
| 8 | 32 | true | gptq | 1 |

## Measured

On 24 windows of 1024 tokens of `wiki.txt`, the exported files read back, beside the model they are made from.

| | before | after |
|---|---|---|
| perplexity | 20.000 ± 0.510 | 21.000 ± 0.550 |
| KL divergence to the model before, mean | 0 | 0.1273 ± 0.0021 |
| KL divergence, median and 99th percentile | 0 | 0.0512, 1.214 |
| same most likely token | 100 % | 81.3 % |

## Calibration

32 768 tokens in 64 windows of `calibration_data/`, 3 277 of them held out; sha256 of the windows `00ff`.

## Warnings

- the calibration text is short

The figures of every linear are in `halfbyte/linears.csv`, the whole record in `halfbyte/run.json`.
"
        );
    }

    #[test]
    fn only_models_of_a_hub_name_a_base_model() {
        let mut run = run();
        let card = model_card(&run);
        assert!(card.contains("base_model: org/name\n"), "{card}");
        run.model.hub = false;
        // a folder that looks like an id
        run.model.source = "models/x".into();
        let card = model_card(&run);
        assert!(!card.contains("base_model"), "{card}");
    }

    #[test]
    fn the_card_of_an_export_has_its_own_tag_and_size_alone() {
        let mut run = run();
        let mut second = run.exports[0].clone();
        second.format = "awq".into();
        second.bytes = 3 << 20;
        run.exports.push(second);
        let card = export_card(&run, "awq");
        assert!(card.contains("- quantized\n- awq\n---"), "{card}");
        assert!(card.contains("12.0 MiB -> 3.0 MiB"), "{card}");
        let card = model_card(&run);
        assert!(card.contains("- compressed-tensors\n- awq\n---"), "{card}");
    }

    #[test]
    fn the_card_of_a_broken_model_says_so_before_all_figures() {
        let mut run = run();
        run.evaluation.as_mut().unwrap().perplexity = 60_000.0;
        let card = model_card(&run);
        let at = |part: &str| card.find(part).unwrap_or_else(|| panic!("{part}"));
        assert!(at("> **Warning: broken: perplexity 60000.0 where the float") < at("## Schemes"));
        assert!(at("- broken: ") < at("- the calibration text is short"));
    }
}
