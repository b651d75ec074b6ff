"""Model folders read and written by numpy alone: the float ones, GPTQ (v1, v2) and compressed-tensors pack-quantized.

Written from the formats' definitions, not from halfbyte, so that it can disagree with it.
Weights are float32 [out, in]; w = scale * (code - zero), codes and zeros unsigned.
"""
import json, math, pathlib, re, shutil, struct

import numpy as np

WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


# ---- safetensors -------------------------------------------------------------------------------------------------

def read_file(path):
    """One safetensors file: name -> array. BF16 comes back as float32, everything else as it is stored."""
    data = np.memmap(path, np.uint8, "r")
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    header = json.loads(data[8 : 8 + length].tobytes())
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = data[8 + length + begin : 8 + length + end]
        assert end - begin == WIDTH[entry["dtype"]] * math.prod(entry["shape"]), f"{path}: {name} has a wrong length"
        if entry["dtype"] == "BF16":
            array = (np.frombuffer(raw.tobytes(), np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}
            array = np.frombuffer(raw.tobytes(), kind[entry["dtype"]])
        tensors[name] = array.reshape(entry["shape"])
    return tensors


def read_folder(folder):
    """All tensors of a model folder as they are stored, single file or sharded."""
    folder = pathlib.Path(folder)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted({folder / f for f in json.loads(index.read_text())["weight_map"].values()})
    else:
        files = sorted(folder.glob("*.safetensors"))
    tensors = {}
    for file in files:
        tensors.update(read_file(file))
    return tensors


def bf16_bits(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # round half to even


def write_file(path, tensors, bf16=()):
    """The inverse of read_file; names in `bf16` are stored as BF16."""
    kinds = {"float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64"}
    header, offset, bodies = {"__metadata__": {"format": "pt"}}, 0, []
    for name, x in tensors.items():
        body = (bf16_bits(x) if name in bf16 else np.ascontiguousarray(x)).tobytes()
        kind = "BF16" if name in bf16 else kinds[x.dtype.name]
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [offset, offset + len(body)]}
        offset += len(body)
        bodies.append(body)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for body in bodies:
            f.write(body)


# ---- bitstreams --------------------------------------------------------------------------------------------------

def unpack_rows(words, bits, count):
    """i32 [R, words] -> codes [R, count]: code n is bits [n*bits, n*bits+bits) of the row's words, low bit first."""
    rows = words.shape[0]
    flat = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    flat = flat[:, : count * bits].reshape(rows, count, bits)
    return (flat.astype(np.int32) << np.arange(bits, dtype=np.int32)).sum(2, dtype=np.int32)


def pack_rows(codes, bits):
    """The inverse of unpack_rows; the last word of a row is filled with zero bits."""
    rows, count = codes.shape
    flat = ((codes[:, :, None] >> np.arange(bits)) & 1).astype(np.uint8).reshape(rows, count * bits)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 32)))
    return np.packbits(flat, axis=1, bitorder="little").view("<i4")


# ---- dequantizing ------------------------------------------------------------------------------------------------

def spread(groups, columns, group_of=None):
    """[out, G] -> [out, in]: each column gets the value of its group."""
    if group_of is None:
        group_of = np.arange(columns) // math.ceil(columns / groups.shape[1])
    return groups[:, group_of]


def gptq_weight(part, bits, version):
    """GPTQ tensors of one linear -> float32 [out, in]. v1 stores zero - 1, v2 the zero itself."""
    group_of, scales = part["g_idx"], part["scales"].astype(np.float32).T
    codes = unpack_rows(part["qweight"].T, bits, group_of.size)
    zeros = unpack_rows(part["qzeros"], bits, scales.shape[0]).T
    if version == "gptq":
        zeros = zeros + 1
    return spread(scales, codes.shape[1], group_of) * (codes - spread(zeros, codes.shape[1], group_of))


def pack_quantized_weight(part, scheme):
    """compressed-tensors pack-quantized tensors of one linear -> float32 [out, in]."""
    bits, (rows, columns) = scheme["num_bits"], part["weight_shape"]
    scales = part["weight_scale"].astype(np.float32)
    codes = unpack_rows(part["weight_packed"], bits, columns)
    if "weight_zero_point" in part:
        zeros = unpack_rows(np.ascontiguousarray(part["weight_zero_point"].T), bits, rows).T
    else:
        zeros = np.full(scales.shape, 1 << (bits - 1))
    group_of = part.get("weight_g_idx")
    if group_of is None and scheme.get("group_size") and scales.shape[1] > 1:
        group_of = np.arange(columns) // scheme["group_size"]
    return spread(scales, columns, group_of) * (codes - spread(zeros, columns, group_of))


def scheme_of(config, name):
    """The weight scheme of a linear: the first config group that names it exactly, by class or by a regex."""
    for group in config["config_groups"].values():
        for target in group["targets"]:
            hit = re.match(target[3:], name) if target.startswith("re:") else target in (name, "Linear")
            if hit:
                return group["weights"]
    raise SystemExit(f"no config group of quantization_config names {name}")


def gptq_bits_of(config, name):
    """The bits of a linear, with the first matching rule of `dynamic`, if any."""
    for rule, override in (config.get("dynamic") or {}).items():
        if not rule.startswith("-:") and re.match(rule.removeprefix("+:"), name):
            return override.get("bits", config["bits"])
    return config["bits"]


def dequantized(folder):
    """A folder of any of the formats -> (name -> float32 array, names of the quantized linears)."""
    config = json.loads((pathlib.Path(folder) / "config.json").read_text()).get("quantization_config")
    stored = read_folder(folder)
    if config is None:
        return {n: x.astype(np.float32) for n, x in stored.items()}, []
    suffix = {"gptq": ".qweight", "compressed-tensors": ".weight_packed"}.get(config["quant_method"])
    if suffix is None:
        raise SystemExit(f"{folder}: quant_method {config['quant_method']} is not one of gptq, compressed-tensors")
    quantized = [n.removesuffix(suffix) for n in stored if n.endswith(suffix)]
    out = {}
    for name in quantized:
        prefix = name + "."
        part = {n.removeprefix(prefix): stored.pop(n) for n in [n for n in stored if n.startswith(prefix)]}
        if suffix == ".qweight":
            version = config.get("checkpoint_format") or config.get("format") or "gptq"
            if version not in ("gptq", "gptq_v2"):
                raise SystemExit(f"{folder}: checkpoint_format {version} is not one of gptq, gptq_v2")
            weight = gptq_weight(part, gptq_bits_of(config, name), version)
        else:
            weight = pack_quantized_weight(part, scheme_of(config, name))
        out[name + ".weight"] = np.ascontiguousarray(weight, np.float32)
        if "bias" in part:
            out[name + ".bias"] = part["bias"].astype(np.float32)
    out.update({n: x.astype(np.float32) for n, x in stored.items()})
    return out, quantized


def float_model(folder):
    """transformers' model of the folder's architecture, float32, holding the dequantized weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights, quantized = dequantized(folder)
    state = {n: torch.from_numpy(np.ascontiguousarray(x)) for n, x in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [n for n in missing if not (n == "lm_head.weight" and config.tie_word_embeddings)]
    unexpected = [n for n in unexpected if not n.endswith("rotary_emb.inv_freq")]
    if missing or unexpected:
        raise SystemExit(f"{folder}: missing {missing[:4]}, unexpected {unexpected[:4]}")
    model.tie_weights()
    return model.eval(), quantized


def copy_rest(source, out):
    """Everything of a model folder that is not weights or config.json."""
    out.mkdir(parents=True, exist_ok=True)
    for file in pathlib.Path(source).iterdir():
        if file.is_file() and file.suffix != ".safetensors" and not file.name.endswith((".index.json", "config.json")):
            shutil.copy(file, out / file.name)
    for name in ("tokenizer_config.json", "generation_config.json"):
        if (pathlib.Path(source) / name).exists():
            shutil.copy(pathlib.Path(source) / name, out / name)
