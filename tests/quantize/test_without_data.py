"""Weights rounded as they are: two layers that are one weight get the same numbers, which are made once."""

from __future__ import annotations

import numpy as np
import torch

from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.without_data import quantize_without_data

READ = "transformer.layers.0.mlp.gate_proj"
DRAWN = "denoiser.layers.0.mlp.gate_proj"
ALONE = "transformer.layers.0.self_attn.o_proj"


class Counted(dict):
    """How often somebody asked for a weight."""

    def __init__(self, weights):
        super().__init__(weights)
        self.asked = dict.fromkeys(weights, 0)

    def __getitem__(self, name):
        self.asked[name] += 1
        return super().__getitem__(name)


def test_a_weight_that_two_components_use_is_rounded_once(tmp_path):
    random = torch.Generator().manual_seed(0)
    weights = Counted({name: torch.randn(48, 64, generator=random) for name in (READ, ALONE)})
    spec = quantize_without_data(
        weights, QuantizeOptions("int4", "w4a8", ""), twins={DRAWN: READ}, towers=True, scratch=tmp_path
    )
    before = dict(weights.asked)
    read = {part: spec.tensors[f"{READ}.{part}"].copy() for part in ("codes", "scales", "zeros")}
    spec.tensors[f"{ALONE}.codes"]  # the last one's numbers are another's now
    for part, numbers in read.items():
        found = spec.tensors[f"{DRAWN}.{part}"]
        assert found.dtype == numbers.dtype and np.array_equal(found, numbers)
    assert {name: weights.asked[name] - before[name] for name in weights} == {READ: 1, ALONE: 1}
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    del spec
    assert not list(tmp_path.iterdir())  # nothing is left of it
