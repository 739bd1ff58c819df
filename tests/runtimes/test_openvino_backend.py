"""OpenVINO beside ONNX Runtime: the same graphs, component by component or all of them, give the same answers."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import edgemm
from edgemm.errors import MissingError, UsageError
from edgemm.runtimes.engines import assign, select

openvino = pytest.importorskip("openvino")

PICTURE = np.random.default_rng(5).integers(0, 256, (20, 30, 3), dtype=np.uint8)
TOLERANCE = 2e-5  # two libraries' float32, over at most 6 steps


@pytest.fixture(scope="module")
def other(bundle_path):
    with edgemm.load(bundle_path, device="cpu", threads=1, backend="openvino") as opened:
        yield opened


def answers(model):
    text = model.generate_text("hello", max_new_tokens=20, logprobs=0)
    seen = model.generate_text("what?", images=[PICTURE], max_new_tokens=12)
    return text, seen, model.generate_image("a red heart", num_inference_steps=6, seed=3).pixels


def test_everything_on_openvino_says_and_draws_the_same(model, other):
    (text, seen, pixels), (own_text, own_seen, own_pixels) = answers(other), answers(model)
    assert (text.token_ids, seen.token_ids) == (own_text.token_ids, own_seen.token_ids)
    found, wanted = ([told.logprob for told in reply.logprobs] for reply in (text, own_text))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_allclose(pixels, own_pixels, atol=TOLERANCE)
    assert {choice.backend for choice in other.choices.values()} == {"openvino"}


@pytest.mark.parametrize("component", ["image_encoder", "transformer", "conditioner", "denoiser", "image_decoder"])
def test_one_component_on_openvino_and_the_others_on_onnx_runtime(bundle_path, model, component):
    with edgemm.load(bundle_path, device="cpu", threads=1, backend={component: "openvino"}) as mixed:
        assert [name for name, choice in mixed.choices.items() if choice.backend == "openvino"] == [component]
        found, wanted = answers(mixed), answers(model)
    assert [reply.token_ids for reply in found[:2]] == [reply.token_ids for reply in wanted[:2]]
    np.testing.assert_allclose(found[2], wanted[2], atol=TOLERANCE)


def test_the_cache_is_written_in_place_and_grows(other, model):
    prompt = "x" * 230
    wanted = model.generate_text(prompt, max_new_tokens=40).token_ids
    assert other.generate_text(prompt, max_new_tokens=40).token_ids == wanted
    prompts = ["hello", "a", "What is this?"]
    assert [r.token_ids for r in other.generate_texts(prompts, max_new_tokens=12)] == [
        r.token_ids for r in model.generate_texts(prompts, max_new_tokens=12)
    ]


def test_bfloat16_is_there_or_refused_and_never_silently_float32(bundle_path, model):
    step = {"num_inference_steps": 1, "guidance_scale": 1.0, "seed": 3}
    with edgemm.load(bundle_path, device="cpu", threads=1, backend={"denoiser": "openvino-bf16"}) as half:
        try:
            pixels = half.generate_image("a red heart", **step).pixels
        except MissingError as error:
            assert "asked OpenVINO for CPU bf16" in str(error)
            return
    difference = np.abs(pixels - model.generate_image("a red heart", **step).pixels).max()
    assert TOLERANCE < difference < 0.1


def test_wrong_names_and_devices_are_refused_before_anything_is_loaded(bundle_path):
    for backend, message in (
        ("tflite", "is 'tflite', expected one of: onnxruntime, openvino"),
        ({"painter": "openvino"}, "component 'painter', expected some of"),
    ):
        with pytest.raises(UsageError, match=message):
            edgemm.load(bundle_path, device="cpu", backend=backend)
    cuda = select("cpu", ("cpu",)).__class__("cuda", "onnxruntime", "cuda", "CUDAExecutionProvider", "asked")
    with pytest.raises(UsageError, match="runs on the CPU, the device is cuda"):
        assign(cuda, ("denoiser",), "openvino")


def test_without_the_package_the_error_says_what_to_install(bundle_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "edgemm.runtimes.backend.openvino_backend", None)
    with pytest.raises(MissingError, match=r"openvino is not installed .*: pip install 'edgemm\[openvino\]'"):
        edgemm.load(bundle_path, device="cpu", backend={"denoiser": "openvino"})
