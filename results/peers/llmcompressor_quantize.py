#!/usr/bin/env python3
"""Quantize a model folder with llm-compressor on the CPU and save its own compressed-tensors checkpoint.

usage: llmcompressor_quantize.py MODEL_DIR OUT_DIR --calib FILE.jsonl [--samples 64] [--tokens 512] [--bits 4]
                                 [--group-size 64] [--asym] [--variant gptq|awq] [--json FILE]
needs: pip install llmcompressor      (0.14.0.1)

Both modifiers with their defaults. AWQModifier only scales channels, so QuantizationModifier rounds after it. It pins
memory for a GPU whether there is one or not, which fails without a driver and is left out here.
"""
import common


def main():
    args = common.arguments(__doc__, ["gptq", "awq"])
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache
    from torch.utils.data import DataLoader

    if not torch.cuda.is_available():
        IntermediatesCache.pin_memory = lambda *_, **__: None

    weights = dict(num_bits=args.bits, type="int", symmetric=not args.asym, strategy="group",
                   group_size=args.group_size)
    scheme = dict(config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"])
    recipe = {"gptq": [GPTQModifier(**scheme)], "awq": [AWQModifier(), QuantizationModifier(**scheme)]}[args.variant]
    ids = common.calibration_ids(args)
    samples = [{"input_ids": torch.tensor(sample), "attention_mask": torch.ones(len(sample), dtype=torch.long)}
               for sample in ids]
    model = common.load_model(args, torch.float32)
    loaded = common.usage()
    oneshot(model=model, dataset=DataLoader(samples, batch_size=4), recipe=recipe, num_calibration_samples=len(ids))
    solved = common.usage()

    linears = sum(getattr(module, "weight_scale", None) is not None for module in model.modules())
    model.save_pretrained(args.out, save_compressed=True, quantization_format="pack-quantized")
    common.copy_tokenizer(args)
    zero_bits = args.bits if args.asym else 0
    common.record(args, "llmcompressor", dict(modifier=args.variant, **weights), ids,
                  ["llmcompressor", "compressed-tensors"], loaded, solved, linears,
                  args.bits + (16 + zero_bits) / args.group_size)


if __name__ == "__main__":
    main()
