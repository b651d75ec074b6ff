#!/usr/bin/env python3
"""Make the golden vectors: tiny random models of each family, with the logits transformers gives for them.

usage: make_golden.py [OUT_DIR]        (default: the folder of this script)
needs: pip install torch transformers safetensors numpy      (versions used: versions.json)

Each case is a model folder as a user would have it, plus expected.safetensors:
    input_ids  i64 [2, T]      two sequences, no padding, positions 0..T
    logits     f32 [2, T, V]   computed in float32, eager attention, from the folder read back from disk
Weights are large (std 0.2 on width 32) and norms stray from 1, so a wrong rotation, mask or bias moves the logits
by far more than the 1e-4 the tests allow. CASES says what each is there to catch. Cases about the rotation or the
window store their weights in bf16 for size only: logits are float32 of the same values all the same.
"""
import copy, json, pathlib, shutil, sys

import numpy, safetensors, torch, transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

TOKENS = 24
SMALL = dict(hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
             vocab_size=48, max_position_embeddings=128, rms_norm_eps=1e-3, tie_word_embeddings=False,
             bos_token_id=1, eos_token_id=2)


def rope(kind, **fields):
    """A low base, so that 24 positions reach every frequency band of a head of 8."""
    return {"rope_type": kind, "rope_theta": 1000.0, **fields}


def old_spelling(config):
    """config.json as transformers 4 wrote it: torch_dtype, rope_theta, rope_scaling with `type`."""
    config["torch_dtype"] = config.pop("dtype")
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **parameters}
    config["transformers_version"] = "4.40.0"
    config.pop("head_dim", None)


def only_what_old_files_had(config):
    """Older still: fields that are left to their defaults are absent."""
    old_spelling(config)
    for field in ("num_key_value_heads", "rms_norm_eps", "attention_bias", "mlp_bias", "rope_theta", "rope_scaling"):
        config.pop(field, None)


def without_layer_types(config):
    """Qwen2 before layer_types: which layers slide follows from max_window_layers alone."""
    config.pop("layer_types")


BF16 = {"dtype": torch.bfloat16}

# name -> (configuration, options); options: dtype, shards, rewrite (of config.json)
CASES = {
    # Llama: the plain block; grouped heads and an untied head
    "llama": (LlamaConfig(**SMALL), {}),
    # the head is the embedding; one key head for four queries, head_dim not hidden / heads
    "llama_tied_head_dim": (LlamaConfig(**{**SMALL, "tie_word_embeddings": True, "num_key_value_heads": 1,
                                           "head_dim": 16}), {}),
    # biases on q, k, v, o and on gate, up, down
    "llama_biases": (LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True), {}),
    # every position divided by the factor
    "llama_rope_linear": (LlamaConfig(**SMALL, rope_parameters=rope("linear", factor=4.0)), BF16),
    # 24 tokens on a context of 16: the base grows with the length
    "llama_rope_dynamic": (LlamaConfig(**{**SMALL, "max_position_embeddings": 16},
                                       rope_parameters=rope("dynamic", factor=2.0)), BF16),
    # the same model of context 32: 24 tokens fit, and nothing may change
    "llama_rope_dynamic_short": (LlamaConfig(**{**SMALL, "max_position_embeddings": 32},
                                             rope_parameters=rope("dynamic", factor=2.0)), BF16),
    # wavelengths 6, 35, 199, 1117 against bands 16 and 64: kept, blended, divided
    "llama_rope_llama3": (LlamaConfig(**SMALL, rope_parameters=rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)), BF16),
    # ramp over the dimensions, and the attention factor 0.1 ln(factor) + 1 by default
    "llama_rope_yarn": (LlamaConfig(**SMALL, rope_parameters=rope(
        "yarn", factor=4.0, original_max_position_embeddings=32)), BF16),
    # yarn with every optional field
    "llama_rope_yarn_fields": (LlamaConfig(**SMALL, rope_parameters=rope(
        "yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=0.8, beta_fast=4.0, beta_slow=0.5,
        truncate=False)), BF16),
    "llama_bf16": (LlamaConfig(**SMALL), BF16),
    "llama_f16": (LlamaConfig(**SMALL), {"dtype": torch.float16}),
    "llama_old_spelling": (LlamaConfig(**SMALL, rope_parameters=rope("linear", factor=2.0)),
                           {"rewrite": old_spelling}),
    "llama_defaults_absent": (LlamaConfig(**{**SMALL, "num_key_value_heads": 4}),
                              {"rewrite": only_what_old_files_had}),
    "llama_sharded": (LlamaConfig(**SMALL), {"shards": 2}),
    # each token sees itself and the 7 before it
    "mistral_sliding_window": (MistralConfig(**SMALL, sliding_window=8, head_dim=16), BF16),
    "mistral_no_window": (MistralConfig(**SMALL, sliding_window=None), BF16),
    # biases on q, k, v but not on o; a window is named but not switched on, and must be ignored
    "qwen2": (Qwen2Config(**SMALL, use_sliding_window=False, sliding_window=8, max_window_layers=0), {}),
    "qwen2_tied": (Qwen2Config(**{**SMALL, "tie_word_embeddings": True}), {}),
    # layer 0 sees everything, layers 1 and 2 slide
    "qwen2_sliding_window": (Qwen2Config(**{**SMALL, "num_hidden_layers": 3}, use_sliding_window=True, sliding_window=8,
                                         max_window_layers=1), BF16),
    "qwen2_sliding_window_old": (Qwen2Config(**{**SMALL, "num_hidden_layers": 3}, use_sliding_window=True,
                                             sliding_window=8, max_window_layers=1),
                                 {**BF16, "rewrite": without_layer_types}),
    # a norm per head on q and k, heads wider than hidden / heads
    "qwen3": (Qwen3Config(**SMALL, head_dim=24), {}),
    "qwen3_tied": (Qwen3Config(**{**SMALL, "tie_word_embeddings": True}, head_dim=16), {}),
}


def randomize(model, generator):
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.data = 1.0 + 0.3 * noise
        elif "embed_tokens" in name:
            parameter.data = 0.7 * noise
        else:
            parameter.data = 0.2 * noise


def make(folder, config, options, seed):
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(seed)
    # One configuration object may serve several cases, and transformers writes into it.
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager")
    randomize(model, generator)
    model.to(options.get("dtype", torch.float32))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=size // options["shards"] + 4096 if "shards" in options else "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    if "rewrite" in options:
        written = json.loads((folder / "config.json").read_text())
        options["rewrite"](written)
        (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    files = list(folder.glob("*.safetensors"))
    assert len(files) == options.get("shards", 1), f"{folder.name}: {len(files)} weight files"

    input_ids = torch.randint(0, config.vocab_size, (2, TOKENS), generator=generator)
    read_back, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], f"{folder.name}: {info}"
    with torch.no_grad():
        logits = read_back.eval()(input_ids, use_cache=False).logits
    save_file({"input_ids": input_ids, "logits": logits.contiguous()}, folder / "expected.safetensors")
    return logits


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent
    torch.set_num_threads(1)
    for seed, (name, (config, options)) in enumerate(CASES.items()):
        logits = make(out / name, config, options, seed)
        size = sum(f.stat().st_size for f in (out / name).iterdir())
        print(f"{name:28} {size / 1e3:6.0f} kB   logits rms {logits.square().mean().sqrt():.3f}")
    versions = {"python": sys.version.split()[0], "torch": torch.__version__.split("+")[0],
                "transformers": transformers.__version__, "safetensors": safetensors.__version__,
                "numpy": numpy.__version__}
    (out / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
