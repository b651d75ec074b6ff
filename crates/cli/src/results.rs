//! Results in words, for a person at a terminal.

use std::fmt::Write;

use halfbyte_pipeline::report::{self, Verdict};
use halfbyte_pipeline::{
    Evaluation, Generation, GenerationCost, PartSensitivity, Run, Sensitivity, Swept,
    verdict_scores,
};
use serde::Serialize;

/// The table of linears, then the summary, so that the summary stands last on the screen, and where to go from there.
pub(crate) fn run(run: &Run) -> String {
    let record = &run.record;
    let mut text = format!(
        "{}\n{}",
        report::linears_table(record),
        report::summary_text(record)
    );
    let page = report::page_path(&run.out);
    if page.is_file() {
        text += &format!("{:<15} {}\n", "page", page.display());
    }
    let out = quoted(&run.out.display().to_string());
    text += &format!("{:<15} halfbyte generate {out} --prompt Hello\n", "try it");
    text
}

/// A path as a shell takes it.
fn quoted(path: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=~".contains(c);
    match path.chars().all(is_plain) {
        true => path.to_owned(),
        false => format!("'{}'", path.replace('\'', "'\\''")),
    }
}

/// The winner's run first, then the table of cells; or what the other shards have still to do.
pub(crate) fn sweep(swept: &Swept) -> String {
    let mut text = match &swept.winner {
        Some(winner) => format!("{}\n", report::summary_text(&winner.record)),
        None => String::new(),
    };
    match &swept.record {
        Some(record) => {
            text += &report::sweep_text(record);
            text += &format!(
                "{:<15} {}\n",
                "written",
                swept.out.join("halfbyte").display()
            );
        }
        None => text += swept.waiting.as_deref().unwrap_or_default(),
    }
    text
}

/// Scores with what they say of the model.
#[derive(Serialize)]
pub(crate) struct Scored {
    #[serde(flatten)]
    evaluation: Evaluation,
    /// None where there was no reference.
    verdict: Option<Verdict>,
}

impl Scored {
    pub(crate) fn new(evaluation: Evaluation) -> Self {
        let verdict = verdict_scores(&evaluation).map(|scores| scores.verdict());
        Self {
            evaluation,
            verdict,
        }
    }

    /// What is to be said against the model, if anything.
    pub(crate) fn warning(&self) -> Option<String> {
        verdict_scores(&self.evaluation)?.warning()
    }
}

/// Perplexity, and the distance from the reference where there is one.
pub(crate) fn evaluation(scored: &Scored) -> String {
    let Evaluation {
        windows,
        tokens,
        vocab_size: _,
        perplexity,
        perplexity_se,
        against,
        generation,
        packed: _,
        kept_dense: _,
    } = &scored.evaluation;
    let mut text = format!(
        "scored          {tokens} tokens in {windows} windows\nperplexity      {perplexity:.3} ± {perplexity_se:.3}\n"
    );
    if let Some(against) = against {
        // Writing into a String cannot fail.
        let _ = write!(
            text,
            "reference       {:.3} ± {:.3}, ln ratio {:+.4} ± {:.4}\n\
             KL              mean {:.4} ± {:.4}, median {:.4}, 99 % below {:.3}, largest {:.3}\n\
             same top token  {:.1} ± {:.1} %\n",
            against.perplexity_float,
            against.perplexity_float_se,
            against.ln_ratio,
            against.ln_ratio_se,
            against.kl_mean,
            against.kl_mean_se,
            against.kl_median,
            against.kl_p99,
            against.kl_max,
            100.0 * against.top1_agreement,
            100.0 * against.top1_agreement_se,
        );
    }
    if let Some(generation) = generation {
        let _ = write!(
            text,
            "generation      {} prompts, {} tokens each: same for {:.1} ± {:.1} tokens, to the end {:.0} %, ROUGE-L {:.3} ± {:.3}\n\
             speed           {}\n\
             of reference    {}\n",
            generation.prompts,
            generation.max_new_tokens,
            generation.agreement_length,
            generation.agreement_length_se,
            100.0 * generation.identical,
            generation.rouge_l,
            generation.rouge_l_se,
            cost(&generation.cost),
            cost(&generation.cost_float),
        );
    }
    if let Some(warning) = scored.warning() {
        text += &format!("{:<15} {warning}\n", "warning");
    }
    text
}

fn cost(cost: &GenerationCost) -> String {
    format!(
        "{:.1} tokens/s with {} of weights and {} of keys and values",
        cost.tokens_per_second,
        report::bytes(cost.weight_bytes),
        report::bytes(cost.cache_bytes)
    )
}

/// A line a part, then all of them together and how far they add up.
pub(crate) fn sensitivity(found: &Sensitivity) -> String {
    let (mut sum, mut predicted) = (0.0, 0.0);
    for part in &found.parts {
        sum += part.kl_mean;
        predicted += part.predicted_kl;
    }
    let name = found.parts.iter().map(|part| part.part.len()).max();
    let name = name.unwrap_or(0).max("sum of parts".len());
    let mut text = format!(
        "{:<name$}  linears   bits  KL predicted  share  KL measured alone  share\n",
        "part"
    );
    let share = |of: f64, all: f64| if all > 0.0 { 100.0 * of / all } else { 0.0 };
    let mut line = |part: &PartSensitivity, shares: [f64; 2]| {
        let measured = format!("{:.3e} ± {:.0e}", part.kl_mean, part.kl_mean_se);
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "{:<name$}  {:>7}  {:>5.3}  {:>12.3e}  {:>3.0} %  {measured:>17}  {:>3.0} %",
            part.part, part.linears, part.bits_per_weight, part.predicted_kl, shares[0], shares[1],
        );
    };
    for part in &found.parts {
        let shares = [
            share(part.predicted_kl, predicted),
            share(part.kl_mean, sum),
        ];
        line(part, shares);
    }
    line(&found.whole, [100.0, share(found.whole.kl_mean, sum)]);
    text += &format!(
        "{} tokens in {} windows; the parts' own add up to {sum:.3e}, shares are of that\n",
        found.tokens, found.windows
    );
    text
}

/// The same as a table for programs; the last line is the whole model.
pub(crate) fn sensitivity_csv(found: &Sensitivity) -> String {
    let mut text =
        "part,linears,weights,bits_per_weight,predicted_kl,kl_mean,kl_mean_se\n".to_owned();
    for part in found.parts.iter().chain([&found.whole]) {
        let PartSensitivity {
            part,
            linears,
            weights,
            bits_per_weight,
            predicted_kl,
            kl_mean,
            kl_mean_se,
        } = part;
        text += &format!(
            "{part},{linears},{weights},{bits_per_weight},{predicted_kl},{kl_mean},{kl_mean_se}\n"
        );
    }
    text
}

/// Speed and memory of a generation.
pub(crate) fn generation(generation: &Generation) -> String {
    let (cost, tokens) = (&generation.cost, generation.tokens.len());
    format!(
        "{} tokens of prompt, {:.1} tokens/s; {tokens} new, {:.1} tokens/s\n\
         {} of weights, {} of keys and values, {} at the peak",
        generation.prompt_tokens,
        cost.prompt_tokens_per_second,
        cost.tokens_per_second,
        report::bytes(cost.weight_bytes),
        report::bytes(cost.cache_bytes),
        report::bytes(cost.memory_bytes_peak),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_pipeline::{Against, Agreement};

    #[test]
    fn a_path_is_quoted_where_a_shell_would_take_it_apart() {
        assert_eq!(quoted("out/Qwen3-0.6B_w4"), "out/Qwen3-0.6B_w4");
        assert_eq!(quoted("my models/it's"), "'my models/it'\\''s'");
    }

    #[test]
    fn an_evaluation_tells_the_distance_only_where_there_is_a_reference() {
        let mut scored = Evaluation {
            windows: 8,
            tokens: 8184,
            vocab_size: 49_152,
            perplexity: 22.787,
            perplexity_se: 0.9,
            against: None,
            generation: None,
            packed: false,
            kept_dense: vec![],
        };
        let words = |scored: &Evaluation| evaluation(&Scored::new(scored.clone()));
        let alone = "scored          8184 tokens in 8 windows\nperplexity      22.787 ± 0.900\n";
        assert_eq!(words(&scored), alone);
        scored.against = Some(Against {
            perplexity_float: 19.884,
            perplexity_float_se: 0.8,
            ln_ratio: 0.1363,
            ln_ratio_se: 0.01,
            kl_mean: 0.1351,
            kl_mean_se: 0.002,
            kl_median: 0.08,
            kl_p99: 1.1,
            kl_max: 9.5,
            top1_agreement: 0.808,
            top1_agreement_se: 0.004,
            stream_error: vec![],
            worst_tokens: vec![],
        });
        assert_eq!(
            words(&scored),
            format!(
                "{alone}reference       19.884 ± 0.800, ln ratio +0.1363 ± 0.0100\n\
                 KL              mean 0.1351 ± 0.0020, median 0.0800, 99 % below 1.100, largest 9.500\n\
                 same top token  80.8 ± 0.4 %\n"
            )
        );
        scored.perplexity = 60_000.0;
        let broken = Scored::new(scored.clone());
        assert!(evaluation(&broken).contains("\nwarning         broken: perplexity 60000.0 where"));
        assert_eq!(serde_json::to_value(&broken).unwrap()["verdict"], "broken");
        scored.perplexity = 22.787;
        scored.against = None;
        let cost_of = |tokens_per_second, mebibytes: u64| GenerationCost {
            tokens_per_second,
            weight_bytes: mebibytes << 20,
            cache_bytes: 3 << 19,
        };
        scored.generation = Some(Agreement {
            prompts: 8,
            max_new_tokens: 64,
            agreement_length: 20.25,
            agreement_length_se: 3.0,
            identical: 0.125,
            rouge_l: 0.5,
            rouge_l_se: 0.06,
            cost_float: cost_of(10.0, 256),
            cost: cost_of(30.0, 104),
        });
        assert_eq!(
            words(&scored),
            format!(
                "{alone}generation      8 prompts, 64 tokens each: same for 20.2 ± 3.0 tokens, to the end 12 %, ROUGE-L 0.500 ± 0.060\n\
                 speed           30.0 tokens/s with 104.0 MiB of weights and 1.5 MiB of keys and values\n\
                 of reference    10.0 tokens/s with 256.0 MiB of weights and 1.5 MiB of keys and values\n"
            )
        );
    }
}
