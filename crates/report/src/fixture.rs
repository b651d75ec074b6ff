//! A small run for the tests: two blocks of two linears.

use serde_json::json;

use crate::*;

pub(crate) fn run() -> RunRecord {
    let linears = [
        linear(0, "self_attn.q_proj", 0.001, 0.002),
        linear(0, "mlp.down_proj", 0.004, 0.008),
        linear(1, "self_attn.q_proj", 0.004, 0.008),
        LinearRecord {
            warnings: vec![
                "damping raised, Cholesky failed twice".into(),
                "3 dead columns".into(),
            ],
            hessian: HessianKind::AttentionMixed,
            row_hessian: true,
            ..linear(1, "mlp.down_proj", 0.001, 0.032)
        },
    ];
    RunRecord {
        schema_version: SCHEMA_VERSION,
        version: "0.1.0".into(),
        pipeline: json!({"method": "gptq", "quant": {"bits": 4}}),
        model: ModelRecord {
            source: "org/name".into(),
            revision: Some("main".into()),
            architecture: "llama".into(),
            blocks: 2,
            parameters: 6_300_000,
            dtype: "BF16".into(),
        },
        calibration: CalibrationRecord {
            sources: vec!["calibration_data/".into()],
            sha256: "00ff".into(),
            samples: 64,
            tokens_used: 29_491,
            tokens_random: 3_584,
            tokens_generated: 7_168,
            tokens_held_out: 3_277,
            tokens_dropped: 120,
            tokens_truncated: 0,
        },
        linears: linears.to_vec(),
        budget: None,
        codes: Vec::new(),
        tune: None,
        summary: SummaryRecord {
            bits_per_weight: 4.5,
            bytes_before: 12_600_000,
            bytes_after: 4_200_000,
            seconds: 92.4,
            cpu_seconds: 178.2,
            peak_rss_bytes: Some(512 << 20),
            blocks_resumed: 0,
            phases: [("mlp input", 40.2), ("attention", 22.0), ("solve", 18.9)]
                .map(|(name, seconds)| PhaseRecord {
                    name: name.into(),
                    seconds,
                    cpu_seconds: 1.9 * seconds,
                    peak_rss_growth_bytes: (seconds as u64) << 20,
                })
                .to_vec(),
            warnings: vec!["the calibration text is short".into()],
        },
        exports: vec![ExportRecord {
            format: "compressed-tensors".into(),
            path: "out".into(),
            bytes: 4_200_000,
        }],
        evaluation: Some(EvaluationRecord {
            text: "wiki.txt".into(),
            sequence_length: 1024,
            windows: 24,
            tokens: 24_552,
            vocab_size: Some(49_152),
            verdict: Some(Verdict::Good),
            perplexity_float: 20.0,
            perplexity_float_se: 0.51,
            perplexity: 21.0,
            perplexity_se: 0.55,
            kl_mean: 0.1273,
            kl_mean_se: 0.0021,
            kl_median: 0.0512,
            kl_p99: 1.214,
            top1_agreement: 0.8134,
            stream_error: vec![0.0004, 0.0021],
            worst_tokens: vec![TokenRecord {
                window: 3,
                position: 17,
                kl: 4.25,
                before: "the cat\nsat".into(),
                token: " on".into(),
                after: " the <b>mat</b>".into(),
                probability_float: 0.91,
                probability: 0.02,
                top_float: " on".into(),
                top: " in".into(),
            }],
        }),
    }
}

fn linear(block: usize, linear: &str, loss: f64, heldout: f64) -> LinearRecord {
    LinearRecord {
        block,
        linear: linear.into(),
        out_features: 64,
        in_features: 64,
        bits: 4,
        group_size: 32,
        sym: true,
        method: "gptq".into(),
        bits_per_weight: 4.5,
        tokens: 1000,
        relative_loss: loss,
        relative_loss_heldout: Some(heldout),
        relative_loss_rtn: 4.0 * loss,
        sqnr_db: Some(22.5),
        cosine: Some(0.999),
        damp_asked: None,
        damp_used: 0.01,
        dead_columns: 0,
        condition: Some(1500.0),
        clipped_share: 0.001,
        seconds: 0.25,
        warnings: vec![],
        relative_loss_rtn_heldout: Some(3.0 * heldout),
        bytes_before: 8192,
        bytes_after: 2304,
        hessian: HessianKind::Input,
        int8_outlier_columns: Some(vec![3, 17]),
        int8_bits_per_weight: Some(8.75),
        int8_relative_loss: Some(0.003),
        int8_relative_loss_split: Some(0.001),
        row_hessian: false,
        target_alpha: Some(0.75),
        target_shift: None,
        effective_rank: Some(12.5),
        outlier_channels: Some(vec![40, 7]),
        finer_group_loss: Some(0.8),
        predicted_kl: None,
        fallback: None,
        calibration_curve: Vec::new(),
    }
}
