//! Other tools' spellings, and words of ours that this version does not do yet: the tables.
//!
//! A row tells where a key may stand and, by its value, what it means here: a key of ours, several of them, nothing at all, or
//! an error that has the right spelling. What takes a section apart is in `forms`.

use serde_json::Value;

use super::error::Fault;
use super::forms;
use super::translate::{Here, Translator, snake};

/// A block of another tool's settings, such as `quantization_config`, in the tables' column of places.
pub(super) const BLOCK: &str = "(block)";

/// A spelling of another tool: read where it stands in one of the places, by what its value is.
pub(super) struct Spelling {
    /// Sections as key paths; `*` is any place of a list; empty for the root.
    pub(super) at: &'static [&'static str],
    /// In small letters and `_`; camel case and dashes are undone before.
    pub(super) theirs: &'static [&'static str],
    /// The first that fits is taken.
    pub(super) cases: &'static [Case],
}

/// What a value must be, and what it means then.
pub(super) struct Case(pub(super) When, pub(super) &'static [Then]);

pub(super) enum When {
    Any,
    Null,
    /// A truth, in quotes too.
    Flag(bool),
    /// One of these words, whatever its letters; or a number so written.
    Words(&'static [&'static str]),
    Text,
    List,
    Section,
    Like(fn(&Value) -> bool),
}

/// A key of ours is a whole path, or begins with a dot and goes to the section at hand (from the root and from a block:
/// `quant`).
pub(super) enum Then {
    /// The value as it is.
    Ours(&'static str),
    /// True there is false here.
    Inverse(&'static str),
    /// Whatever the value, these.
    Sets(&'static [(&'static str, Plain)]),
    /// These, where nothing else is said.
    Soft(&'static [(&'static str, Plain)]),
    /// What is so by default; an error where it is said otherwise.
    Says(&'static str, Plain),
    /// Changes nothing here, and why.
    Idle(&'static str),
    /// Cannot be, why, and what to write; `{value}` is the value.
    Wrong(&'static str, &'static str),
    /// Read by a function.
    Form(fn(&mut Translator, &Here, &Value) -> Result<(), Fault>),
}

/// A value in a table.
pub(super) enum Plain {
    Bool(bool),
    Int(i64),
    Word(&'static str),
    /// A list of one export.
    Exports(&'static str),
}

use Plain::{Bool, Exports, Int, Word};
use Then::{Form, Idle, Inverse, Ours, Says, Sets, Soft, Wrong};
use When::{Any, Flag, Like, List, Null, Section, Text, Words};

/// Rows whose value is ours as it is.
macro_rules! same {
    ($at:expr, $theirs:expr, $ours:literal) => {
        Spelling {
            at: $at,
            theirs: $theirs,
            cases: &[Case(Any, &[Ours($ours)])],
        }
    };
}

/// Rows that are read by cases.
macro_rules! by {
    ($at:expr, $theirs:expr, $($when:expr => [$($then:expr),*]),* $(,)?) => {
        Spelling {
            at: $at,
            theirs: $theirs,
            cases: &[$(Case($when, &[$($then),*])),*],
        }
    };
}

/// Where a scheme may stand.
const SCHEME: &[&str] = &["", "quant", BLOCK, "rules.*"];
/// Where settings of the whole may stand.
const WHOLE: &[&str] = &["", "quant", BLOCK];
const SOLVER: &[&str] = &["quant", BLOCK, ""];
const TEXT: &[&str] = &["calibration", BLOCK, ""];
/// Everywhere that people paste to.
const ANYWHERE: &[&str] = &["", "quant", BLOCK, "calibration", "rules.*"];

const NO_TYPES: &str = "weights are whole numbers on a grid here, or the 16 levels of nf4 and fp4";
const HEAD_STAYS: &str =
    "only the linears of the decoder blocks are quantized, and lm_head stays as it is";

#[rustfmt::skip]
pub(super) const SPELLINGS: &[Spelling] = &[
    // The scheme.
    same!(SCHEME, &["w_bit", "w_bits", "wbits", "num_bits", "nbits", "n_bits", "weight_bits"], ".bits"),
    same!(SCHEME, &["q_group_size", "groupsize", "w_group_size", "weight_group_size"], ".group_size"),
    same!(SCHEME, &["symmetric"], ".sym"),
    by!(SCHEME, &["zero_point", "asym", "asymmetric"], Any => [Inverse(".sym")]),
    by!(SCHEME, &["scheme", "preset"], Text => [Form(forms::scheme)], Null => []),
    by!(SCHEME, &["strategy"],
        Words(&["group"]) => [Idle("how many columns share a scale is told by `group_size`")],
        Words(&["channel"]) => [Sets(&[(".group_size", Int(-1))])],
        Words(&["tensor"]) => [Sets(&[(".group_size", Int(0))])],
        Words(&["token", "block", "tensor_group", "attn_head"]) => [Wrong(
            "scales are shared by a group of columns, by a row or by a whole weight",
            "write `strategy: group` with a `group_size`, or `strategy: channel`, which is `group_size: -1` here")]),
    by!(SCHEME, &["type", "data_type"],
        Words(&["int", "int_sym", "int_asym"]) => [Idle("weights are whole numbers anyway")],
        Text => [Wrong(NO_TYPES, "take it out; for nf4 write `method: nf4` and `export: [{format: bitsandbytes}]`")]),
    by!(SCHEME, &["dynamic"],
        Flag(false) => [Idle("scales of weights are always stored")],
        Flag(true) => [Wrong("scales of weights are stored, and none is taken while the model runs", "take it out")],
        Section => [Form(forms::dynamic)]),
    by!(SCHEME, &["targets"], Any => [Form(forms::targets)]),
    by!(SCHEME, &["observer", "observer_kwargs"], Any => [Idle("ranges are searched by the recipe's own rule")]),
    by!(SCHEME, &["act_bits", "input_bits", "a_bits"],
        Words(&["16", "32"]) => [Idle("activations are never quantized")],
        Any => [Wrong("only weights are quantized, and activations stay in 16 bits", "take it out")]),
    by!(SCHEME, &["input_activations", "output_activations", "kv_cache_scheme", "sparsity_config", "transform_config"],
        Null => [],
        Like(is_empty) => [Idle("it is empty")],
        Any => [Wrong("only weights are quantized", "take it out")]),

    // The solver.
    by!(SOLVER, &["actorder", "act_order"],
        Null => [Sets(&[(".desc_act", Bool(false))])],
        Words(&["weight", "static"]) => [Sets(&[(".desc_act", Bool(true))])],
        Words(&["group", "dynamic"]) => [Sets(&[(".desc_act", Bool(true))]), Soft(&[(".static_groups", Bool(false))])],
        Words(&["none"]) => [Sets(&[(".desc_act", Bool(false))])],
        Flag(true) => [Ours(".desc_act")],
        Flag(false) => [Ours(".desc_act")]),
    same!(SOLVER, &["percdamp", "dampening_frac", "damp"], ".damp_percent"),
    by!(SOLVER, &["true_sequential"],
        Flag(true) => [Says("propagation", Word("sequential")),
            Idle("the stages of a block are solved one after the other by default, each on what the ones before it left")],
        Flag(false) => [Wrong("a block's linears are always solved stage by stage, q, k and v first and down last",
            "take it out, or write `propagation: float` for statistics of the float model throughout")]),
    by!(SOLVER, &["damp_auto_increment"],
        Any => [Idle("where a matrix cannot be factored, its damping is raised until it can, with a warning")]),
    by!(SOLVER, &["act_group_aware"],
        Any => [Idle("`desc_act: true` with `static_groups: true` is what orders columns here and keeps groups whole")]),
    by!(SOLVER, &["mse"], Any => [Idle("ranges are searched by the recipe's own rule")]),
    by!(SOLVER, &["block_size"], Any => [Idle("how many columns are solved at once is ours to choose, and the result is the same")]),
    by!(SOLVER, &["gptaq", "v2"],
        Flag(true) => [Sets(&[("propagation", Word("asymmetric"))])],
        Flag(false) => [Idle("it is off")],
        Section => [Sets(&[("propagation", Word("asymmetric"))])]),
    by!(SOLVER, &["rotation", "adapter", "foem"],
        Flag(false) => [Idle("it is off")],
        Any => [Wrong("halfbyte has no such step", "take it out")]),
    by!(SOLVER, &["lm_head", "quant_lm_head", "quantize_lm_head"],
        Flag(false) => [Idle(HEAD_STAYS)],
        Any => [Wrong(HEAD_STAYS, "write `lm_head: false`, or take it out")]),

    // AWQ.
    by!(SOLVER, &["apply_clip"],
        Flag(true) => [Idle("ranges are always searched")],
        Flag(false) => [Wrong("ranges are always searched", "take it out")]),
    by!(SOLVER, &["duo_scaling"],
        Words(&["both"]) => [Idle("how channel scales are searched is ours to choose")],
        Flag(true) => [Idle("how channel scales are searched is ours to choose")],
        Flag(false) => [Idle("how channel scales are searched is ours to choose")]),
    by!(SOLVER, &["n_grid", "max_chunk_memory"], Any => [Idle("how channel scales are searched is ours to choose")]),
    by!(SOLVER, &["mappings"], Any => [Idle("which layers are scaled together follows from the model")]),

    // bitsandbytes.
    same!(SOLVER, &["bnb_4bit_use_double_quant", "use_double_quant", "compress_statistics"], ".double_quant"),
    by!(WHOLE, &["load_in_4bit"],
        Flag(true) => [Soft(&[("method", Word("fp4")), (".group_size", Int(64)), (".double_quant", Bool(false)),
            ("export", Exports("bitsandbytes"))]), Says(".bits", Int(4))],
        Flag(false) => [Idle("it is off")]),
    by!(WHOLE, &["load_in_8bit"],
        Flag(false) => [Idle("it is off")],
        Any => [Wrong("LLM.int8() decides while the model runs which columns stay in 16 bits, and no file says so",
            "write `method: absmax`, `quant: {bits: 8, group_size: -1}` and `export: [{format: int-quantized}]` for 8 bits by the largest magnitude of a row")]),
    by!(WHOLE, &["bnb_4bit_quant_type"],
        Words(&["nf4", "fp4"]) => [Ours("method")]),
    by!(WHOLE, &["bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "llm_int8_threshold", "llm_int8_enable_fp32_cpu_offload",
        "llm_int8_has_fp16_weight"], Any => [Idle("it tells how the model runs, not what is stored")]),

    // What is quantized and what is not.
    by!(&["", "quant", BLOCK], &["ignore_layers", "modules_to_not_convert", "fp_layers", "llm_int8_skip_modules"],
        Any => [Form(forms::parts)]),
    by!(&["", BLOCK, "quant"], &["layer_config"], Section => [Form(forms::layer_config)]),
    by!(&["", BLOCK, "quant"], &["config_groups"], Section => [Form(forms::config_groups)]),
    by!(&[""], &["ignore"], Text => [Form(forms::one_name)]),
    by!(&[BLOCK, "quant"], &["ignore"], Text => [Form(forms::one_name)], List => [Ours("ignore")], Null => []),
    by!(&[BLOCK, "", "quant"], &["to_quant_block_names", "modules_in_block_to_quantize", "inside_layer_modules"],
        Any => [Wrong("all linears of the decoder blocks are quantized but those that `ignore` and `rules` leave out",
            "write `rules: [{match: '*.down_proj', bits: 4}, {match: '*', skip: true}]` to quantize down_proj alone")]),
    same!(&["rules.*"], &["pattern", "name", "module", "modules", "layer"], ".match"),
    by!(&["rules.*"], &["regex"], Text => [Form(forms::regex)]),

    // Methods and formats.
    by!(WHOLE, &["quant_method", "quantization_method", "algorithm"],
        Words(&["compressed-tensors"]) => [Soft(&[("export", Exports("compressed-tensors"))])],
        Words(&["bitsandbytes", "bitsandbytes_4bit", "bnb"]) => [Soft(&[("method", Word("fp4")), ("export", Exports("bitsandbytes"))])],
        Words(&["auto-round", "autoround", "intel/auto-round", "signround"]) => [Wrong(
            "AutoRound's rounding by gradient is no method here", "write `method: gptq`, with `recipe: best` for the lowest loss")],
        Words(&["none", "bf16", "fp16"]) => [Wrong("that quantizes nothing", "write `method: gptq`")],
        Any => [Ours("method")]),
    by!(&["", "quant", BLOCK], &["checkpoint_format", "packing_format"], Any => [Form(forms::export)]),
    by!(&["export.*"], &["format", "checkpoint_format", "type", "name"], Text => [Form(forms::format)]),
    by!(&[BLOCK, "quant"], &["format"], Any => [Form(forms::export)]),
    by!(&[""], &["format", "formats"], Any => [Form(forms::export)]),
    by!(&[""], &["export"], Text => [Form(forms::export)], Like(has_words) => [Form(forms::export)], Like(one_entry) => [Form(forms::export)]),
    by!(WHOLE, &["version"],
        Words(&["gemm"]) => [Soft(&[("export", Exports("awq"))])],
        Words(&["gemv", "gemv_fast", "marlin", "exllama", "exllamav2", "ipex", "llm-awq"]) => [Wrong(
            "of AWQ's layouts the GEMM one is written, which every reader takes", "write `version: GEMM`, or `export: [{format: awq}]`")],
        Like(is_version) => [Idle("it is the version of another tool or of its file")]),

    // The model.
    by!(&[""], &["model"], Text => [Form(forms::model)]),
    by!(&[""], &["model_name_or_path", "pretrained_model_name_or_path", "model_id", "model_path", "model_name", "base_model",
        "base_model_name_or_path", "model_stub"], Text => [Form(forms::model)]),
    by!(&[BLOCK], &["model_name_or_path", "model_file_base_name"], Any => [Idle("the model is named by `model: {source: ...}`")]),
    by!(&["model"], &["source", "name", "path", "id", "repo_id", "model_id", "model_path", "name_or_path", "model_name_or_path",
        "pretrained_model_name_or_path"], Like(is_address) => [Form(forms::model)], Text => [Ours("model.source")]),

    // The calibration text.
    same!(TEXT, &["nsamples", "n_samples", "num_calibration_samples", "max_calib_samples", "calibration_samples"], "calibration.num_samples"),
    same!(TEXT, &["max_seq_length", "max_calib_seq_len", "seqlen", "seq_len", "seq_length", "max_length"], "calibration.sequence_length"),
    same!(&["evaluate"], &["max_seq_length", "seqlen", "seq_len", "max_length"], ".sequence_length"),
    same!(&[BLOCK, ""], &["seed"], "calibration.seed"),
    by!(TEXT, &["concatenate_data", "concat"],
        Flag(true) => [Sets(&[("calibration.packing", Word("concat"))])],
        Flag(false) => [Sets(&[("calibration.packing", Word("truncate"))])]),
    by!(TEXT, &["dataset", "datasets", "calibration_dataset", "calib_data", "calib_dataset", "calibration_data", "dataset_path",
        "dataset_id", "dataset_name", "calibration_texts"], Any => [Form(forms::texts)]),
    by!(&["calibration"], &["path", "paths", "file", "files", "data_path", "texts", "source"], Any => [Form(forms::texts)]),
    by!(&[BLOCK, ""], &["sources"], Any => [Form(forms::texts)]),
    by!(&["calibration"], &["sources"], Text => [Form(forms::texts)], Like(has_words) => [Form(forms::texts)],
        Like(one_entry) => [Form(forms::texts)]),
    by!(&[""], &["calibration"], Text => [Form(forms::texts)], List => [Form(forms::texts)]),
    by!(&["calibration.sources.*"], &["path", "dataset", "file", "name", "id", "dataset_id"], Text => [Form(forms::source)]),
    same!(&["calibration.sources.*"], &["text_field", "field", "column"], ".text_column"),
    by!(TEXT, &["text_column", "text_field"], Text => [Form(forms::text_column)]),
    by!(&["calibration", BLOCK, ""], &["split", "splits", "calib_split"], Any => [Wrong(
        "which files of a data set are read cannot be chosen", "take it out, or download one split and give its path")]),
    by!(&[""], &["evaluate"], Text => [Ours("evaluate.text")]),
    same!(&["gate"], &["max_kld"], ".max_kl"),

    // Grids and budgets.
    same!(&["sweep"], &["w_bit", "wbits", "num_bits", "nbits"], ".bits"),
    same!(&["sweep"], &["q_group_size", "groupsize"], ".group_size"),
    same!(&["sweep"], &["symmetric"], ".sym"),
    same!(&["sweep"], &["quant_method"], ".method"),
    same!(&["budget"], &["avg_bits", "target_bits", "target_bpw", "bpw"], ".bits_per_weight"),
    same!(&["budget"], &["options"], ".bits"),

    // Whole blocks.
    by!(&["", "quant", "model"], &["quantization_config", "quantize_config", "quant_config", "bnb_config", "quantization_kwargs"],
        Section => [Form(forms::block)]),
    by!(&["", BLOCK], &["weights"], Section => [Form(forms::block)]),
    by!(&[""], &["recipe"], Section => [Form(forms::block)]),

    // AutoRound's training.
    by!(WHOLE, &["iters", "lr", "minmax_lr", "enable_minmax_tuning", "nblocks"], Any => [Wrong(
        "it is a setting of AutoRound's rounding by gradient, which halfbyte does not do",
        "take it out; `recipe: best` is the lowest loss here, and `tune: {epochs: 1}` tunes scales by gradient")]),
    by!(WHOLE, &["enable_quanted_input"],
        Flag(true) => [Says("propagation", Word("sequential")), Idle("statistics are taken on what the quantized stages before leave")],
        Flag(false) => [Sets(&[("propagation", Word("float"))])]),

    // What is no setting of the result.
    by!(&[""], &["output_dir", "save_dir", "save_path", "quant_path", "output_path", "out", "out_dir", "export_dir", "output"],
        Any => [Wrong("where results go is told when the program starts, not in the file", "take it out, and run `halfbyte run FILE --out {value}`")]),
    by!(ANYWHERE, &["batch_size", "n_parallel_calib_samples", "gradient_accumulate_steps", "device_map", "low_gpu_mem_usage",
        "low_cpu_mem_usage", "offload_device", "offload_to_disk", "offload_to_disk_path", "offload_hessians", "offload_folder",
        "max_memory_map", "enable_torch_compile", "amp", "use_cache", "cache_examples_on_gpu", "num_proc", "num_workers",
        "preprocessing_num_workers", "hessian_chunk_size", "parallel_packing", "wait_for_submodule_finalizers",
        "auto_forward_data_parallelism", "vram_strategy", "gc_mode", "use_fast", "use_triton", "safetensors",
        "use_safetensors", "overwrite_cache", "pipeline", "sequential_targets", "sequential_update", "sequential_prefetch"],
        Any => [Idle("how memory and time are spent is told under `resources`, and the result is the same")]),
    by!(&[BLOCK], &["device"], Any => [Idle("the device is told by `resources: {device: ...}`, and auto is the best there is")]),
    by!(ANYWHERE, &["use_exllama", "disable_exllama", "exllama_config", "max_input_length", "use_cuda_fp16", "backend",
        "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "is_marlin_format", "cache_block_outputs", "torch_dtype", "dtype",
        "attn_implementation", "trust_remote_code"],
        Any => [Idle("it tells how another tool runs or loads the model, not what is stored")]),
    by!(ANYWHERE, &["pack_dtype", "scale_dtype", "zp_dtype", "block_structure"],
        Any => [Idle("the format decides how numbers are stored")]),
    by!(ANYWHERE, &["meta", "quantizer", "autoround_version", "quantization_status", "global_compression_ratio",
        "_load_in_4bit", "_load_in_8bit", "run_compressed", "compression_config", "tokenizer", "tokenizer_name",
        "processor", "mock_quantization", "fail_safe", "failsafe", "moe_calibrate_all_experts"],
        Any => [Idle("it is a record or a switch of another tool")]),
];

/// llm-compressor's modifiers, and the method each stands for.
pub(super) const MODIFIERS: &[(&str, &str)] = &[
    ("GPTQModifier", "gptq"),
    ("AWQModifier", "awq"),
    ("QuantizationModifier", "rtn"),
];

/// The method of several modifiers together.
pub(super) const TOGETHER: &[(&[&str], &str)] = &[
    (&["awq", "gptq"], "awq+gptq"),
    (&["awq", "rtn"], "awq"),
    (&["gptq", "rtn"], "gptq"),
];

/// Words for numbers, by the keys that they may stand at.
#[rustfmt::skip]
pub(super) const WORDS: &[(&[&str], &[&str], Plain)] = &[
    (&["group_size"], &["per-channel", "channel", "channelwise", "channel-wise", "per-row", "row", "per-column"], Int(-1)),
    (&["group_size"], &["per-tensor", "tensor", "tensorwise"], Int(0)),
];

/// What may stand before and after the number of bits.
pub(super) const BITS_AFFIXES: (&[&str], &[&str]) = (
    &["", "int", "w", "i", "int-"],
    &["", "bit", "bits", "-bit", "-bits", "b"],
);

/// Schemes by name that cannot be: how the name begins, why, and what to write.
#[rustfmt::skip]
pub(super) const NO_SCHEMES: &[(&[&str], &str, &str)] = &[
    (&["nvfp4", "mxfp4", "fp4"],
        "weights are whole numbers on a grid here, or the 16 levels of nf4 and fp4 as bitsandbytes stores them",
        "write `quant: {bits: 4, group_size: 32}`, or `method: nf4` with `export: [{format: bitsandbytes}]`"),
    (&["mxfp8", "fp8"], "weights are whole numbers on a grid here", "write `quant: {bits: 8, group_size: -1}`"),
    (&["w8a8", "int8", "w8afp8"], "only weights are quantized, and activations stay in 16 bits",
        "write `scheme: W8A16`, or `quant: {bits: 8, group_size: -1}`"),
    (&["w4a8", "w4a4", "w4afp8", "int4"], "only weights are quantized, and activations stay in 16 bits",
        "write `scheme: W4A16`, or `quant: {bits: 4}`"),
    (&["unquantized", "bf16", "fp16"], "that quantizes nothing", "write `scheme: W4A16`, or `rules: [{match: NAME, skip: true}]` for some linears"),
    (&["gguf", "q2-k", "q3-k", "q4-k", "q5-k", "q6-k", "q4-0", "q4-1", "q8-0"], "it is a type of GGUF, which this version does not write",
        "write `scheme: W4A16`"),
];

/// Formats by other names, as ours or, where they cannot be, what to write.
#[rustfmt::skip]
pub(super) const FORMATS: &[(&[&str], Result<&str, &str>)] = &[
    (&["compressed-tensors", "pack-quantized", "llm-compressor", "llmcompressor", "auto-round:llm-compressor"], Ok("compressed-tensors")),
    (&["int-quantized", "naive-quantized"], Ok("int-quantized")),
    (&["gptq", "auto-gptq", "autogptq", "gptqmodel", "auto-round:auto-gptq", "auto-round:gptq"], Ok("gptq")),
    (&["gptq-v2"], Ok("gptq_v2")),
    (&["awq", "gemm", "auto-awq", "autoawq", "auto-round:auto-awq", "awq-gemm"], Ok("awq")),
    (&["bitsandbytes", "bnb", "bnb-4bit"], Ok("bitsandbytes")),
    (&["marlin", "exllama", "exllamav2", "bitblas", "gptq-p", "qqq", "gptq-marlin"],
        Err("write `gptq`, which such readers load and repack")),
    (&["gemv", "gemv-fast", "llm-awq"], Err("write `awq`, the GEMM layout, which every reader takes")),
    (&["auto-round", "fake", "exl2", "exl3", "mxfp4", "nvfp4", "nvfp4-pack-quantized", "float-quantized", "fp8", "onnx", "hqq",
        "safetensors", "dense", "marlin-24"],
        Err("use compressed-tensors, gptq, gptq_v2, awq, int-quantized or bitsandbytes")),
];

/// Data sets by the short names that other tools have for them, and where they are on the hub.
#[rustfmt::skip]
pub(super) const DATASETS: &[(&[&str], Result<&str, &str>)] = &[
    (&["pileval"], Ok("mit-han-lab/pile-val-backup")),
    (&["pile-10k"], Ok("NeelNanda/pile-10k")),
    (&["ultrachat-200k", "ultrachat"], Ok("HuggingFaceH4/ultrachat_200k")),
    (&["open-platypus", "platypus"], Ok("garage-bAInd/Open-Platypus")),
    (&["wikitext", "wikitext2", "wikitext-2"], Err("download its train split and write `path: FILE`: `Salesforce/wikitext` as a whole holds the text that people score on, too")),
    (&["c4", "c4-new"], Err("download one of its files and write `path: FILE`: `allenai/c4` as a whole is hundreds of gigabytes")),
];

/// Something of ours that is planned: never ignored, answered by name.
struct Later {
    /// The key path; `*` is any place of a list.
    path: &'static str,
    /// The values that are not there yet; empty for any value.
    values: &'static [&'static str],
    hint: &'static str,
}

#[rustfmt::skip]
const LATER: &[Later] = &[
    Later { path: "export.*.format", values: &["gguf", "mlx"], hint: "use compressed-tensors, gptq, gptq_v2, awq, int-quantized or bitsandbytes" },
];

/// What to answer when a value, or a key whatever its value, is planned only.
pub(super) fn later(path: &[String], value: Option<&Value>) -> Option<Fault> {
    let word = match value {
        Some(Value::String(word)) => word.to_lowercase(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let later = LATER.iter().find(|later| {
        fits(later.path, path) && (later.values.is_empty() || later.values.contains(&word.as_str()))
    })?;
    let problem = if later.values.is_empty() {
        "known, but not in this version".to_owned()
    } else {
        format!("`{word}` is known, but not in this version")
    };
    Some(Fault {
        path: path.to_vec(),
        problem,
        hint: Some(later.hint.to_owned()),
    })
}

/// The key of ours that another tool's key stands for, where it stands in a section that does not know it.
pub(super) fn home(key: &str) -> Option<String> {
    let name = snake(key);
    let spelling = SPELLINGS
        .iter()
        .find(|s| s.theirs.contains(&name.as_str()))?;
    let section = spelling
        .at
        .iter()
        .find(|at| !at.is_empty() && **at != BLOCK && **at != "model" && !at.contains('*'))?;
    spelling
        .cases
        .iter()
        .flat_map(|case| case.1)
        .find_map(|then| match then {
            Ours(ours) | Inverse(ours) | Sets([(ours, _), ..]) => {
                Some(match ours.strip_prefix('.') {
                    Some(key) => format!("{section}.{key}"),
                    None => (*ours).to_owned(),
                })
            }
            Form(_) if *section == "calibration" => Some("calibration.sources".to_owned()),
            _ => None,
        })
}

/// Whether a path fits a pattern with `*` for list places.
fn fits(pattern: &str, path: &[String]) -> bool {
    let pattern: Vec<&str> = pattern.split('.').filter(|p| !p.is_empty()).collect();
    pattern.len() == path.len() && pattern.iter().zip(path).all(|(p, s)| *p == "*" || p == s)
}

/// A section or list with nothing in it.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(section) => section.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// A list with a word in it.
fn has_words(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|list| list.iter().any(Value::is_string))
}

/// A section that is one entry of a list; in an override, list places are keys.
fn one_entry(value: &Value) -> bool {
    let is_place = |key: &String| key.parse::<usize>().is_ok();
    value
        .as_object()
        .is_some_and(|section| !section.keys().any(is_place))
}

fn is_version(value: &Value) -> bool {
    match value {
        Value::Number(_) => true,
        Value::String(word) => word
            .trim_start_matches(['v', 'V'])
            .starts_with(|c: char| c.is_ascii_digit()),
        _ => false,
    }
}

fn is_address(value: &Value) -> bool {
    value
        .as_str()
        .is_some_and(|text| super::hub::address(text, super::hub::Kind::Model).is_some())
}
