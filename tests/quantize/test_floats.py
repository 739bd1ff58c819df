"""FP8 and NVFP4 numbers against ml_dtypes, which rounds them independently of us and of torch."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest
import torch

from edgemm.errors import InputError, UsageError
from edgemm.quantize.layers import choose_layers
from edgemm.quantize.make import Method, Prepared, make_spec
from edgemm.quantize.number_formats import BLOCK, Floats, to_floats
from edgemm.quantize.simulated import QuantizedLinear
from edgemm.quantize.spec import Layer, Spec, read_spec, tensors_hash

SHAPES = {"transformer.layers.0.mlp.up_proj": (24, 64), "transformer.embed_tokens": (32, 64)}
NAME = "transformer.layers.0.mlp.up_proj"
KQUANT = Prepared({"text": Method(rounds="kquant")})


def weight(n: int = 24, k: int = 64) -> torch.Tensor:
    """Rows of very different sizes, and one of zeros."""
    random = torch.Generator().manual_seed(0)
    found = torch.randn(n, k, generator=random) * torch.logspace(-4, 1, n)[:, None]
    found[3] = 0
    return found


def test_every_fp8_number_is_ml_dtypes_own_and_rounds_as_it_does():
    numbers = to_floats(weight(), "fp8")
    bits = numbers.codes.numpy()
    wanted = bits.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * numbers.scales.numpy()
    np.testing.assert_array_equal(numbers.dequantized().numpy(), wanted)
    asked = (weight() / numbers.scales).clamp(-448, 448).numpy()
    np.testing.assert_array_equal(bits, asked.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    np.testing.assert_array_equal(numbers.scales, numbers.scales.half().float())
    error = (numbers.dequantized() - weight()).abs() / weight().abs().amax(1, keepdim=True).clamp(min=1e-9)
    assert error.max() < 2**-4, "half a step of three bits behind the leading one"


def test_every_nvfp4_number_is_ml_dtypes_own_and_rounds_as_it_does():
    given = weight()
    numbers = to_floats(given, "nvfp4")
    scales, whole = numbers.scales.numpy(), numbers.whole.numpy()
    assert scales.shape == (24, 64 // BLOCK) and whole.shape == (1,)
    np.testing.assert_array_equal(scales, scales.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))
    each = np.repeat(scales * whole, BLOCK, axis=1)
    codes = (given.numpy() / each).astype(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(numbers.dequantized().numpy(), codes.astype(np.float32) * each)
    said = numbers.dequantized()
    largest = given.view(24, -1, BLOCK).abs().amax(-1).repeat_interleave(BLOCK, 1)
    loud = largest > largest.max() / 2**13  # of quieter blocks the scale itself is coarse
    assert ((said - given).abs() <= largest / 6 * 1.15)[loud].all(), "a step of 2 of 6, and a scale of three bits"


def test_halfway_goes_to_the_even_number_and_too_large_to_the_largest():
    halves = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 7]
    row = torch.tensor([*halves, *(-value for value in halves)])
    numbers = Floats(torch.zeros(1, 16, dtype=torch.uint8), torch.ones(1, 1), torch.ones(1), "nvfp4")
    from edgemm.quantize.number_formats import _as_e2m1

    codes = _as_e2m1(row[None])
    said = dataclasses.replace(numbers, codes=codes).dequantized()[0]
    assert said.tolist() == [0, 1, 1, 2, 2, 4, 4, 6, 0, -1, -1, -2, -2, -4, -4, -6]


@pytest.fixture
def spec() -> Spec:
    chosen = choose_layers(SHAPES, "nvfp4", "fp16")
    assert chosen.pop("transformer.embed_tokens").bits is None, "it is looked up, too"
    assert chosen == {NAME: Layer(4, BLOCK, form="nvfp4", activations="nvfp4")}
    layers = {NAME: Layer(4, BLOCK, form="nvfp4"), "denoiser.x": Layer(8, form="fp8")}
    weights = {NAME: weight(), "denoiser.x": weight(8, 32)}
    return make_spec(weights, layers)


def test_a_spec_comes_back_as_it_was_written(spec, tmp_path):
    spec.save(tmp_path / "spec")
    read = read_spec(tmp_path / "spec")
    assert read.document == spec.document
    for name in (NAME, "denoiser.x"):
        torch.testing.assert_close(read.dequantized(name), spec.dequantized(name), rtol=0, atol=0)
    assert (spec.coarsest("transformer"), spec.coarsest("denoiser")) == ("nvfp4-weights", "fp8")
    assert (tmp_path / "spec/quant.safetensors").stat().st_size < 24 * 64 + 8 * 32 + 2000, "two numbers a byte"


def test_a_spec_without_its_scale_of_scales_is_refused(spec, tmp_path):
    tensors = {name: array for name, array in spec.tensors.items() if name != f"{NAME}.whole"}
    document = dataclasses.replace(spec.document, tensors_sha256=tensors_hash(tensors))
    Spec(document, tensors).save(tmp_path / "spec")
    with pytest.raises(InputError, match=r"up_proj\.whole is missing"):
        read_spec(tmp_path / "spec")
    tensors[f"{NAME}.whole"] = np.array([np.nan], np.float32)
    Spec(document, tensors).save(tmp_path / "other")
    with pytest.raises(InputError, match="a scale is not a positive number"):
        read_spec(tmp_path / "other")


def test_targets_of_whole_numbers_are_told_which_layer_they_cannot_take(spec):
    with pytest.raises(InputError, match=r"up_proj: this target takes no nvfp4 weights, only whole numbers"):
        spec.integers(NAME)


def test_the_swapped_layer_rounds_its_inputs_too():
    given, layers = weight(8, 32), {"denoiser.x": Layer(8, form="fp8", activations="fp8")}
    made = make_spec({"denoiser.x": given}, {"denoiser.x": Layer(8, form="fp8")})
    tensors = made.tensors | {"denoiser.x.range": np.array([1.0, 3.0], np.float32)}
    spec = Spec(dataclasses.replace(made.document, layers=layers), tensors)
    linear = torch.nn.Linear(32, 8, bias=False)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    said = QuantizedLinear(linear, layers["denoiser.x"], spec, "denoiser.x")(x)
    scale = np.float32(3 / 448)
    rounded = np.clip(x.numpy() / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    np.testing.assert_allclose(said.detach(), rounded @ spec.dequantized("denoiser.x").numpy().T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: to_floats(weight(4, 24), "nvfp4", "a.b"), InputError, "a.b: 24 input channels are no multiple of 16"),
        (lambda: Layer(8, 16, form="nvfp4"), InputError, r"nvfp4 has bits, group \(4, 16\), not \(8, 16\)"),
        (lambda: Layer(8, form="fp6"), InputError, "form is 'fp6', expected one of: int, fp8, nvfp4"),
        (
            lambda: make_spec(
                {NAME: weight()}, {NAME: Layer(8, form="fp8")}, Prepared({"text": Method(rounds="kquant")})
            ),
            UsageError,
            "kquant chooses whole numbers, fp8 is rounded to nearest",
        ),
    ],
)
def test_what_makes_no_sense_is_named(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
