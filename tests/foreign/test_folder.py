#!/usr/bin/env python3
"""Check folder.py against the byte vectors of the formats (JSON files made by the real packers).

usage: test_folder.py VECTORS_DIR      (needs numpy only); exit 0 when every vector agrees
"""
import json, pathlib, sys

import numpy as np

import folder as F


def scales_of(vector):
    return np.array(vector["scales_f16_bits_out_by_group"], np.uint16).view(np.float16).astype(np.float32)


def i32(values):
    return np.array(values, np.int64).astype(np.int32)


def check_gptq(v):
    codes, zeros, scales = np.array(v["codes_out_by_in"]), np.array(v["zero_points_out_by_group"]), scales_of(v)
    group_of = np.array(v["g_idx"])
    want = scales[:, group_of] * (codes - zeros[:, group_of])
    ok = np.array_equal(F.pack_rows(codes, v["bits"]).T, i32(v["qweight_i32"]))
    for version, field in (("gptq", "qzeros_v1_i32"), ("gptq_v2", "qzeros_v2_i32")):
        if field not in v or (version == "gptq" and zeros.min() < 1):
            continue
        part = dict(qweight=i32(v["qweight_i32"]), qzeros=i32(v[field]), g_idx=group_of, scales=scales.T)
        ok &= np.array_equal(F.gptq_weight(part, v["bits"], version), want)
    return ok


def check_pack_quantized(v):
    half = 1 << (v["bits"] - 1)
    codes, scales = np.array(v["codes_signed_out_by_in"]) + half, scales_of(v)
    part = dict(weight_packed=i32(v["weight_packed_i32"]), weight_scale=scales,
                weight_shape=np.array(v["weight_shape"]))
    zeros = np.full(scales.shape, half)
    if not v["symmetric"]:
        zeros = np.array(v["zero_points_signed_out_by_group"]) + half
        part["weight_zero_point"] = i32(v["weight_zero_point_i32"])
    columns = codes.shape[1]
    want = F.spread(scales, columns) * (codes - F.spread(zeros, columns))
    ok = np.array_equal(F.pack_rows(codes, v["bits"]), part["weight_packed"])
    got = F.pack_quantized_weight(part, dict(num_bits=v["bits"], group_size=v["group_size"]))
    return ok and np.array_equal(got, want)


def main():
    failed = passed = 0
    for pattern, check in (("gptq_b*.json", check_gptq), ("ct_pack*.json", check_pack_quantized)):
        for path in sorted(pathlib.Path(sys.argv[1]).glob(pattern)):
            ok = bool(check(json.loads(path.read_text())))
            print(f"{'ok    ' if ok else 'FAILED'} {path.name}")
            passed, failed = passed + ok, failed + (not ok)
    print(f"{passed} passed, {failed} failed")
    sys.exit(bool(failed or not passed))


if __name__ == "__main__":
    main()
