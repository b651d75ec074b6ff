//! Results in words, for a person at a terminal.

use std::fmt::Write;

use halfbyte_pipeline::{Evaluation, Run, Swept, report};

/// The table of linears, then the summary, so that the summary stands last on the screen.
pub(crate) fn run(run: &Run) -> String {
    let record = &run.record;
    format!(
        "{}\n{}",
        report::linears_table(record),
        report::summary_text(record)
    )
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

/// Perplexity, and the distance from the reference where there is one.
pub(crate) fn evaluation(evaluation: &Evaluation) -> String {
    let Evaluation {
        windows,
        tokens,
        perplexity,
        perplexity_se,
        against,
    } = evaluation;
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
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_pipeline::Against;

    #[test]
    fn an_evaluation_tells_the_distance_only_where_there_is_a_reference() {
        let mut scored = Evaluation {
            windows: 8,
            tokens: 8184,
            perplexity: 22.787,
            perplexity_se: 0.9,
            against: None,
        };
        let alone = "scored          8184 tokens in 8 windows\nperplexity      22.787 ± 0.900\n";
        assert_eq!(evaluation(&scored), alone);
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
            evaluation(&scored),
            format!(
                "{alone}reference       19.884 ± 0.800, ln ratio +0.1363 ± 0.0100\n\
                 KL              mean 0.1351 ± 0.0020, median 0.0800, 99 % below 1.100, largest 9.500\n\
                 same top token  80.8 ± 0.4 %\n"
            )
        );
    }
}
