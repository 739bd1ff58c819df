"""Adapters as inputs of NVIDIA's graphs: one engine for all of them, whatever the precision of its weights.

ONNX Runtime's CPU says what the graphs compute; TensorRT for RTX builds them.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from edgemm.bundle.bundle import Bundle, open_bundle
from edgemm.cli.main import main
from edgemm.errors import InputError
from edgemm.runtimes import schedule
from edgemm.runtimes.backend.engine import plan_threads
from edgemm.runtimes.engines import Choice, Engines
from edgemm.runtimes.model import Model
from tests.engines.tiny_engines import needs_rtx
from tests.export.nano import needs_opset_24
from tests.export.test_adapters import peft_adapter

pytestmark = needs_opset_24

PRECISIONS = {"rtx": "int8", "jetson-orin-jp6": "fp16"}
DEPTH = 2


@pytest.fixture(scope="module")
def bundle(export, tmp_path_factory) -> Bundle:
    words = ",".join(f"{target}={precision}" for target, precision in PRECISIONS.items())
    path = tmp_path_factory.mktemp("adaptable") / "nano.bundle"
    return open_bundle(export(path, target=",".join(PRECISIONS), precision=words, adapters=()))


@pytest.fixture(scope="module")
def adapted(model, tmp_path_factory):
    """A folder of PEFT's, and the model that PEFT merges it into."""
    folder = tmp_path_factory.mktemp("adapters") / "a"
    return folder, peft_adapter(model, folder, 1, 4)


@pytest.fixture(scope="module")
def opened(bundle, adapted):
    plan = plan_threads(1)
    choices = {t: Choice("cpu", "onnxruntime", t, "CPUExecutionProvider", "a test") for t in PRECISIONS}
    models = {t: Model(Engines(bundle, choice, plan)) for t, choice in choices.items()}
    for each in models.values():
        each.load_adapter("a", adapted[0])
    yield models
    for each in models.values():
        each.close()


def drawn(runtime, adapter):
    runtime.set_adapter(adapter)
    return runtime.generate_image("red heart", seed=1).pixels


def test_a_float16_graph_draws_what_the_merged_model_does(opened, adapted, model):
    tokens = model.config.image_tokens
    noise = torch.from_numpy(schedule.initial_noise(1, tokens.token_count, tokens.token_width))[None]
    with torch.no_grad():
        wanted = adapted[1].draw(["red heart"], noise, model.config.sampler)[0].numpy()
    found = {name: drawn(opened["jetson-orin-jp6"], name) for name in ("a", None)}
    np.testing.assert_allclose(found["a"], wanted, atol=3e-2)  # six steps of float16
    assert np.abs(found["a"] - found[None]).max() > 0.1, "an adapter that changes nothing proves nothing"


def test_int8_weights_stay_as_they_are_below_an_adapter(opened):
    plain, adapted, again, plain_again = (drawn(opened["rtx"], name) for name in (None, "a", "a", None))
    assert np.array_equal(plain, plain_again) and np.array_equal(adapted, again)
    assert np.abs(adapted - plain).max() > 0.1


def test_factors_are_float32_at_the_edge_and_lie_where_the_engine_wants_them(bundle, opened):
    for target in PRECISIONS:
        specs = [s for s in bundle.manifest.variant("denoiser", target).inputs if s.name.startswith("adapter.")]
        assert len(specs) == 2 * 4 * DEPTH and {spec.dtype for spec in specs} == {"float32"}

    class OnGpu:
        component, made = "denoiser", 0

        def zeros(self, shape, dtype):
            self.made += 1
            return np.zeros(shape, dtype)

    engine, runtime = OnGpu(), opened["rtx"]
    runtime.set_adapter("a")
    adapter = runtime.adapters.active
    first, second = adapter._placed_for(engine), adapter._placed_for(engine)
    assert first is second and 0 < engine.made <= 2 * 4 * DEPTH, "placed once"
    for name, factor in adapter.factors["denoiser"].items():
        np.testing.assert_array_equal(first[name], factor)
    assert runtime.adapters._none._placed_for(runtime._engines.get("image_encoder")) is None


def test_a_larger_rank_is_refused_with_what_to_do(opened, model, tmp_path):
    peft_adapter(model, tmp_path / "large", 2, 17)
    with pytest.raises(InputError, match="has rank 17, this bundle takes 16: export with --adapter-rank 17"):
        opened["rtx"].load_adapter("large", tmp_path / "large")


@needs_rtx
def test_one_engine_takes_every_adapter(bundle, tmp_path, capsys):
    words = ["build", str(bundle.path), "--target", "rtx", "--sm", "86", "--json", "--opt-level", "0"]
    assert main([*words, "--cache", str(tmp_path)]) == 0
    engines = {row["component"]: row for row in json.loads(capsys.readouterr().out)["engines"]}
    assert {row["rung"] for row in engines.values()} == {"as asked"}
    assert engines["transformer"]["layers"]["ATTENTION_INPUT"] == DEPTH
    assert engines["transformer"]["layers"]["KV_CACHE_UPDATE"] == 2 * DEPTH
    assert engines["denoiser"]["layers"]["ATTENTION_INPUT"] == DEPTH
