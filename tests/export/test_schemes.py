"""The table of (target, precision): what it promises, quantization gives and the target's lowering takes."""

from __future__ import annotations

import pytest

from edgemm.errors import UsageError
from edgemm.export.lower_tensorrt import refusal
from edgemm.export.options import ExportOptions
from edgemm.export.schemes import SCHEMES, TARGETS, offered_precisions, read_schemes
from edgemm.quantize.layers import choose_layers
from edgemm.quantize.spec import HEAD, RANGED

SHAPES = {
    HEAD: (512, 128),
    **{
        f"transformer.layers.0.{name}": (128, 128) for name in ("self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj")
    },
    **{f"denoiser.{name}": (128, 128) for name in ("blocks.0.qkv_proj", "blocks.0.down_proj", "modulation")},
    "conditioner.proj": (128, 128),
    "image_encoder.up_proj": (128, 128),
}
QUANTIZED = [scheme for scheme in SCHEMES.values() if scheme.quantize]


@pytest.mark.parametrize("scheme", QUANTIZED, ids=lambda scheme: f"{scheme.target}-{scheme.precision}")
def test_every_layer_has_a_form_that_the_target_takes(scheme):
    asked = scheme.quantize
    layers = choose_layers(SHAPES, asked.text, asked.draw, drawing_depth=1, portable=asked.portable)
    quantized = [layer for layer in layers.values() if layer.bits]
    assert quantized
    if scheme.lowering == "tensorrt":
        assert {refusal(layer) for layer in quantized} == {None}
    else:  # neither knows ranges beforehand, for nothing is calibrated on but what is smoothed
        assert all(layer.form == "int" and layer.activations not in RANGED for layer in quantized)
    if scheme.lowering == "cuda":
        assert {layer.activations for name, layer in layers.items() if layer.bits and name != HEAD} <= {
            "float",
            "block",
        }


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize(("drawing_depth", "fine"), [(0, 0), (3, 2), (6, 3)])
def test_what_feeds_the_keys_that_drawing_reads_keeps_8_bits(portable, drawing_depth, fine):
    """All layers below the last that it reads, half of the model at most."""
    parts = ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj")
    shapes = {f"transformer.layers.{number}.{part}": (128, 128) for number in range(6) for part in parts}
    layers = choose_layers(shapes, "int4", "int8", drawing_depth, portable)
    for name, layer in layers.items():
        assert layer.bits == (8 if int(name.split(".")[2]) < fine else 4), name
        assert portable is False or refusal(layer) is None


def test_blocks_that_do_not_divide_a_width_become_one_scale_a_channel():
    """352 is the width behind the feed-forward layers of checkpoints/micro-shapes."""
    (layer,) = choose_layers({"transformer.layers.0.mlp.down_proj": (128, 352)}, "int4", "fp16", portable=True).values()
    assert (layer.bits, layer.group) == (8, 0) and "352 is no multiple of 64" in layer.reason


def test_a_target_without_words_gets_its_first_precision():
    assert [scheme.precision for scheme in read_schemes(",".join(TARGETS), None)] == ["fp32", "int8"] + 5 * ["fp16"]
    assert [scheme.precision for scheme in read_schemes("cpu,rtx,cpu", "rtx=nvfp4")] == ["fp32", "nvfp4"]
    assert offered_precisions("cpu") == ("fp32", "int8", "int4")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": "tpu"}, "target 'tpu' is none of: cpu, web, cuda"),
        ({"target": ","}, "no target is named"),
        ({"precision": "rtx=int8"}, "precision is given for 'rtx', and the targets are: cpu"),
        ({"target": "cpu,cuda", "precision": "fp8"}, r"no kernels for fp8; one a target: --precision cpu=...,cuda=..."),
        ({"adapters": ("lm_head",)}, "adapters names 'lm_head'"),
        ({"adapter_rank": 4}, "give --adapters, too"),
        ({"target": "rtx", "precision": "int8", "cache": "int8"}, "--cache int8 is for target cpu"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_birth(given, message):
    with pytest.raises(UsageError, match=message):
        ExportOptions(**given)
