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


def test_where_nothing_is_smoothed_inputs_with_outliers_keep_16_bits():
    names = [
        f"transformer.layers.{number}.{part}_proj"
        for number in range(30)
        for part in ("self_attn.q", "self_attn.o", "mlp.up", "mlp.down")
    ]
    spec = quantize_without_data({name: torch.ones(2, 64) for name in names}, QuantizeOptions("w8a8", "int8", ""))
    finer = {name for name in names if spec.layer(name).activations == "token16"}
    assert {name for name in names if "mlp.down" in name} < finer
    numbers = {part: [int(name.split(".")[2]) for name in names if part in name and name in finer] for part in (
        "attn.q", "attn.o", "mlp.up")}  # fmt: skip
    assert numbers == {"attn.q": list(range(30)), "attn.o": [], "mlp.up": [27, 28, 29]}


def test_what_was_seen_to_bear_8_bits_has_one_term_but_where_drawing_reads():
    names = [f"transformer.layers.{number}.{part}_proj" for number in range(4) for part in ("self_attn.q", "mlp.down")]
    weights, asked = {name: torch.ones(2, 64) for name in names}, QuantizeOptions("w8a8", "int8", "")
    seen = names[2:]
    for drawing_depth, wanted in ((0, seen), (3, [name for name in seen if "down" in name or "layers.3." in name])):
        spec = quantize_without_data(weights, asked, drawing_depth, one_term=seen, calibration="a page")
        assert [name for name in names if spec.layer(name).activations == "token"] == wanted
        assert spec.document.calibration == "a page"
