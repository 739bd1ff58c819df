"""Weights that stay in their files compute what the same numbers in float32 do, and take no memory of their own."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgemm.errors import CheckpointError
from edgemm.model import kept_weights
from edgemm.model.kept_weights import (
    KeptTensor,
    MappedFile,
    mapped_tensors,
    multiply_columns,
    place_of,
    shapes_only,
    widened,
)

KINDS = [torch.float32, torch.float16, torch.bfloat16]


def stored(folder, **tensors):
    save_file(tensors, folder / "x.safetensors")
    return mapped_tensors([folder / "x.safetensors"])


def with_weight(module: nn.Module, weight, **others) -> nn.Module:
    module.weight = nn.Parameter(weight, requires_grad=False)
    for name, tensor in others.items():
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))
    return module.eval()


@pytest.mark.parametrize("dtype", KINDS)
@torch.no_grad()
def test_layers_compute_what_float32_does(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(kept_weights, "AT_ONCE", 700)  # so that a product reads its weight in parts
    real = {
        "linear": torch.randn(30, 20), "bias": torch.randn(30), "words": torch.randn(50, 8),
        "conv": torch.randn(6, 4, 3, 3), "turned": torch.randn(4, 6, 2, 2),
    }  # fmt: skip
    real = {name: tensor.to(dtype) for name, tensor in real.items()}
    found = stored(tmp_path, **real)
    assert all(isinstance(x, KeptTensor) == (x.ndim > 1) and x.dtype == torch.float32 for x in found.values())
    x, picture, ids = torch.randn(2, 5, 20), torch.randn(1, 4, 9, 9), torch.tensor([[3, 49]])
    cases = {
        "linear": (nn.Linear(20, 30), x, {"bias": "bias"}),
        "words": (nn.Embedding(50, 8), ids, {}),
        "conv": (nn.Conv2d(4, 6, 3, bias=False), picture, {}),
        "turned": (nn.ConvTranspose2d(4, 6, 2, bias=False), picture, {}),
    }
    for name, (module, given, others) in cases.items():
        one = with_weight(module, real[name].float(), **{k: real[v].float() for k, v in others.items()})(given)
        other = with_weight(module, found[name], **{k: found[v] for k, v in others.items()})(given)
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6), name


def test_the_same_memory_is_known_by_its_place(tmp_path):
    found = stored(tmp_path, a=torch.randn(3, 4), b=torch.randn(3, 4))
    layer = with_weight(nn.Linear(4, 3), found["a"])
    assert place_of(layer.weight) == place_of(found["a"].data.flatten(1)) != place_of(found["b"])


def test_a_corner_of_a_table_is_flattened_as_of_any_tensor(tmp_path):
    table = torch.randn(6, 5, 4)
    found = stored(tmp_path, table=table)["table"]
    assert torch.equal(widened(found[:3, :2].flatten(0, 1)), table[:3, :2].flatten(0, 1))
    assert torch.equal(widened(found.view(30, 4).t()[1:]), table.view(30, 4).t()[1:])


@torch.no_grad()
def test_columns_that_were_multiplied_are_so_for_every_reader_and_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_weights, "AT_ONCE", 700)
    real, factors, x = torch.randn(30, 20), torch.exp2(torch.randint(-4, 5, (20,)).float()), torch.randn(3, 20)
    found = stored(tmp_path, weight=real)["weight"]
    wanted = real * factors
    for part in (found, with_weight(nn.Linear(20, 30), found).weight):
        multiply_columns(part, factors)
        multiply_columns(part, factors)
        multiply_columns(part, 1 / factors)
        assert torch.equal(widened(part), wanted) and torch.equal(widened(part.data[3:9].t()), wanted[3:9].t())
        assert torch.equal(nn.functional.embedding(torch.tensor([7, 29]), part), wanted[[7, 29]])
        assert torch.allclose(nn.functional.linear(x, part), nn.functional.linear(x, wanted), rtol=1e-5)
        assert torch.equal(part.abs().amax(0), wanted.abs().amax(0))
    multiply_columns(found, 1 / factors)
    assert torch.equal(widened(found), real)
    plain = real.clone()
    multiply_columns(plain, factors)
    assert torch.equal(plain, real * factors)


def test_a_traced_module_has_its_weights_back_and_no_number_was_read(tmp_path):
    found = stored(tmp_path, large=torch.randn(200, 100), small=torch.randn(3, 3))
    model = nn.Sequential(
        with_weight(nn.Linear(100, 200), found["large"]), with_weight(nn.Linear(3, 3), found["small"])
    )
    large, small = model[0].weight, model[1].weight
    with shapes_only(model) as real:
        assert list(real.values()) == [large] and model[0].weight.data_ptr() in real
        assert torch.equal(model[1].weight, widened(small))
    assert model[0].weight is large and model[1].weight is small


def test_a_file_that_is_cut_is_refused(tmp_path):
    stored(tmp_path, a=torch.randn(64, 64))
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:-9])
    with pytest.raises(CheckpointError, match="damaged or cut"):
        MappedFile(tmp_path / "x.safetensors")


LOOK = """
import json, resource, sys, torch
from torch import nn
from edgemm.model import kept_weights
kept_weights.MOST = 1 << 24
found = kept_weights.mapped_tensors([__import__("pathlib").Path(sys.argv[1])])
layers = [nn.Linear(1024, 4096, bias=False, device="meta") for _ in found]
for layer, weight in zip(layers, found.values()):
    layer.weight = nn.Parameter(weight, requires_grad=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.no_grad():
    total = sum(float(layer(torch.ones(1, 1024)).sum()) for layer in layers)
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, total]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is asked of Linux")
def test_a_model_is_run_in_a_part_of_its_bytes(tmp_path):
    weights = {f"{n}": torch.full((4096, 1024), 2.0**-n, dtype=torch.bfloat16) for n in range(16)}  # 128 MiB
    save_file(weights, tmp_path / "x.safetensors")
    done = subprocess.run([sys.executable, "-c", LOOK, tmp_path / "x.safetensors"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown_kib, total = json.loads(done.stdout)
    assert grown_kib < 96 * 1024  # the file's pages 16 to 24, a copy in float32 16, and what torch loads for products
    assert np.isclose(total, sum(4096 * 1024 * 2.0**-n for n in range(16)))


def test_a_file_that_is_larger_than_all_memory_is_read(tmp_path):
    """One file of BAGEL has 29 GB; its holes take no disk here."""
    path, size = tmp_path / "x.safetensors", 1 << 39
    entries = {"most": {"dtype": "BF16", "shape": [1 << 19, 1 << 19], "data_offsets": [0, size]}}
    entries |= {"last": {"dtype": "F32", "shape": [2, 2], "data_offsets": [size, size + 16]}}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(size, 1)
        file.write(np.arange(4, dtype=np.float32).tobytes())
    found = mapped_tensors([path])
    assert found["most"].shape == (1 << 19, 1 << 19)
    assert widened(found["last"]).tolist() == [[0, 1], [2, 3]]
    assert widened(found["most"][7:8, :3]).tolist() == [[0, 0, 0]]
