"""Makes autoawq_search.json: scales and clip limits that AutoAWQ chooses for numbers of our own.

    python make_autoawq_search.py PATH/TO/AutoAWQ/awq/quantize/quantizer.py COMMIT > autoawq_search.json

Only the search methods are taken from that file, so that nothing but torch need be installed.
"""

import ast
import json
import random
import sys
from types import SimpleNamespace

import torch

METHODS = [
    "pseudo_quantize_tensor",
    "_module_forward",
    "_search_best_scale",
    "_compute_best_scale",
    "_compute_loss",
    "_compute_best_clip",
    "_sanitize_kwargs",
]
TOKENS, IN, OUT, GROUP = 64, 32, 64, 16


def searcher(path):
    """A class of the search methods alone, what they call of the package replaced by nothing."""
    tree = ast.parse(open(path).read())
    whole = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "AwqQuantizer")
    whole.body = [n for n in whole.body if isinstance(n, ast.FunctionDef) and n.name in METHODS]
    nothing = lambda *args, **kwargs: None
    names = {
        "torch": torch,
        "nn": torch.nn,
        "clear_memory": nothing,
        "get_op_name": nothing,
        "get_best_device": lambda: "cpu",
        "logging": SimpleNamespace(debug=nothing),
        "inspect": __import__("inspect"),
    }
    exec("from typing import Dict, List, Tuple, Optional, Union", names)
    exec(compile(ast.Module([whole], []), path, "exec"), names)
    return names["AwqQuantizer"]


class Both(torch.nn.Module):
    """Two linears on one input, their outputs side by side."""

    def __init__(self, weight):
        super().__init__()
        self.parts = torch.nn.ModuleList()
        for rows in weight.split(OUT // 2):
            linear = torch.nn.Linear(IN, OUT // 2, bias=False)
            linear.weight.data = rows.clone()
            self.parts.append(linear)

    def state_dict(self, *args, **kwargs):
        """Copies: the search keeps the weights by `.cpu()`, which is a copy on a GPU only, and scales in place."""
        return {name: value.clone() for name, value in super().state_dict(*args, **kwargs).items()}

    def forward(self, x):
        return torch.cat([part(x) for part in self.parts], dim=-1)


@torch.no_grad()
def main():
    draw = random.Random(7)
    loud = [12 if k % 11 == 3 else 1 for k in range(IN)]
    x = [[round(16 * loud[k] * draw.gauss(0, 1)) for k in range(IN)] for _ in range(TOKENS)]
    w = [[round(1024 * draw.gauss(0, 0.1)) for _ in range(IN)] for _ in range(OUT)]
    inputs = torch.tensor(x, dtype=torch.float32) / 16
    weight = torch.tensor(w, dtype=torch.float32) / 1024
    kind = searcher(sys.argv[1])
    cases = []
    for duo in [True, False]:
        quantizer = kind.__new__(kind)
        quantizer.__dict__.update(
            w_bit=4, group_size=GROUP, zero_point=True, duo_scaling=duo, max_chunk_memory=1 << 30,
            n_parallel_calib_samples=None,
        )
        losses, compute_loss = [], quantizer._compute_loss

        def kept(*args, compute_loss=compute_loss, losses=losses):
            losses.append(float(compute_loss(*args)))
            return losses[-1]

        quantizer._compute_loss = kept
        module = Both(weight)
        found = quantizer._search_best_scale(
            None, None, list(module.parts), inputs.clone(), module2inspect=module, kwargs={}
        )
        cases.append({"duo_scaling": duo, "losses": losses, "scales": found[2].tolist()})
    limits = quantizer._compute_best_clip(weight.clone(), inputs.clone())
    json.dump(
        {
            "made_by": f"AutoAWQ {sys.argv[2]} _search_best_scale and _compute_best_clip, torch {torch.__version__}, f32",
            "bits": 4, "group_size": GROUP, "x_times_16": x, "w_times_1024": w, "members": [OUT // 2, OUT // 2],
            "cases": cases, "clip_limits": limits.reshape(OUT, -1).tolist(),
        },
        sys.stdout,
    )
    print()


main()
