"""Drawing as one graph: what the loop draws, from the components' own weights, built by NVIDIA's builder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import edgemm
from edgemm.bundle.bundle import open_bundle
from edgemm.bundle.drawing import DenoiseLoop, DenoiseTemplate
from edgemm.cli.main import main
from edgemm.errors import BundleError, UsageError
from edgemm.export.canvas import Canvas, Symbol
from edgemm.model import checkpoint, designs
from edgemm.runtimes import schedule
from edgemm.runtimes.schedule import Trajectory
from edgemm.verify.export_native import export_bundle
from tests.engines.tiny_engines import build_for_rtx, needs_rtx
from tests.export.nano import nano, needs_opset_24
from tests.export.test_rtx_designs import DESIGNS
from tests.model.tiny import random_micro

pytestmark = needs_opset_24
PROMPT = "a red circle left of a blue star"
STEPS = 3


@pytest.fixture(scope="module")
def one(checkpoint_path, export, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("one") / "one.bundle"
    return export(path, target="cpu,rtx,jetson-orin-jp6", one_call=("draw", "read"), steps=STEPS)


@pytest.fixture(scope="module")
def opened(one):
    with edgemm.load(one, device="cpu", threads=1) as runtime:
        yield runtime


@pytest.mark.parametrize("seed", [1, 2**40])
def test_one_graph_draws_what_the_loop_draws(opened, seed):
    loop, graph = (
        opened.generate_image(PROMPT, num_inference_steps=STEPS, seed=seed, one_call=way) for way in (False, True)
    )
    assert np.abs(graph.pixels - loop.pixels).max() <= 1e-5
    assert graph.metrics.steps == STEPS and graph.metrics.prompt_tokens == loop.metrics.prompt_tokens


def test_it_has_no_weights_of_its_own(one):
    manifest = open_bundle(one).manifest
    for variant in (variant for call in manifest.one_call.values() for variant in call.variants.values()):
        assert variant.data is None and variant.shares
        assert set(variant.shares) <= {
            other.data for c in manifest.components.values() for other in c.variants.values()
        }
        size = manifest.files[variant.graph].size_bytes
        assert size < sum(manifest.files[path].size_bytes for path in variant.shares) / 2


def test_the_gate_compared_it_for_every_target(one):
    compared = json.loads((one / "parity.json").read_text())["comparisons"]
    rows = [row for row in compared if "one call" in row["what"]]
    assert {row["what"].partition(":")[0] for row in rows} == {"cpu", "rtx", "jetson-orin-jp6"}
    assert {row["measure"] for row in rows} == {"max_difference", "psnr_db", "reply"}
    assert all(row["passed"] for row in rows)
    assert all(row["value"] == 1 for row in rows if row["measure"] == "reply" and row["what"].startswith("cpu"))


@needs_rtx
def test_it_is_one_engine_of_tensorrt_for_rtx(one, tmp_path):
    assert {"one_call.draw", "one_call.read", "one_call.token"} <= build_for_rtx(one, tmp_path)


def test_verify_holds_it_against_its_targets_rules(one, tmp_path, capsys):
    assert main(["verify", str(one), "--no-parity"]) == 0
    assert f"and {len(open_bundle(one).manifest.every_variant)} graphs" in capsys.readouterr().out


def test_other_steps_than_the_graphs_are_refused(opened):
    with pytest.raises(UsageError, match=f"num_inference_steps is 5, the graph of one call has {STEPS}"):
        opened.generate_image(PROMPT, num_inference_steps=5, one_call=True)
    with pytest.raises(UsageError, match="negative_prompt"):
        opened.generate_image(PROMPT, negative_prompt="blue", one_call=True)


def test_a_bundle_without_it_says_how_to_get_it(runtimes):
    with pytest.raises(edgemm.InputError, match="edgemm export --one-call draw"):
        runtimes["fp32"].generate_image(PROMPT, one_call=True)


def test_a_graph_that_names_another_file_is_refused(one, tmp_path):
    shutil.copytree(one, tmp_path / "b.bundle")
    manifest = json.loads((tmp_path / "b.bundle" / "manifest.json").read_text())
    variant = manifest["one_call"]["draw"]["variants"]["cpu"]
    variant["shares"] = [path for path in variant["shares"] if "denoiser" not in path]
    (tmp_path / "b.bundle" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"draw-cpu.onnx: reads weights from 'denoiser.*allows only"):
        edgemm.load(tmp_path / "b.bundle", device="cpu")


LATE = pytest.param({"one_call": ("draw",), "steps": 65}, marks=pytest.mark.slow)  # refused after the whole export


@pytest.mark.parametrize("words", [{"steps": 4}, {"one_call": ("paint",)}, LATE])
def test_what_cannot_be_one_graph_is_refused(checkpoint_path, tmp_path, words):
    with pytest.raises(UsageError, match=r"steps|paint"):
        export_bundle(checkpoint_path, tmp_path / "no.bundle", **words)
    assert not list(tmp_path.iterdir())


LOOP = DenoiseLoop(
    template=DenoiseTemplate("", ""), prefix_layers=(0,), skip=0, prediction="velocity", num_inference_steps=4,
    guidance_scale=3.0, guidance_interval=(0.0, 1.0), shift=3.0, token_count=6, token_width=4, image_size=8,
)  # fmt: skip


@pytest.mark.parametrize("zero", ["noise", "picture"])
@pytest.mark.parametrize("renorm", ["none", "global", "token"])
@pytest.mark.parametrize("solver", ["euler", "dpmsolver++_2m", "unipc_2"])
def test_written_down_mathematics_are_the_runtimes(solver, renorm, zero, tmp_path):
    """What schedule.py computes of arrays, and what a graph computes that they wrote."""
    loop = replace(LOOP, solver=solver, renorm=renorm, time_zero=zero)
    canvas = Canvas(tmp_path, {})
    canvas.graph.opset_imports[""] = 24
    shapes = {"x": (6, 4), "told": (4, 2, 6, 4)}
    given = {name: canvas.input(name, ir.DataType.FLOAT, shape) for name, shape in shapes.items()}

    def say(k: int, row: int) -> Symbol:
        row_k = canvas.make("Gather", given["told"], canvas.constant(k), axis=0)
        return Symbol(canvas, canvas.make("Gather", row_k, canvas.constant(row), axis=0), 2)

    def drawn(x: Any, said: Callable[[int, int], Any]) -> Any:
        way = Trajectory(4, loop)
        for k in range(4):
            prediction = schedule.guide(said(k, 0), said(k, 1), 3.0)
            if renorm != "none":
                prediction = schedule.renormed(prediction, said(k, 0), 0.2, renorm == "token")
            x = way.step(x, prediction, way.clean(x, prediction))
        return x

    canvas.output("y", drawn(Symbol(canvas, given["x"], 2), say).value, ir.DataType.FLOAT, (6, 4))
    model = ir.Model(canvas.graph, ir_version=10)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    wanted = drawn(arrays["x"], lambda k, row: arrays["told"][k, row])
    assert np.abs(session.run(None, arrays)[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert onnx.checker.check_model(ir.to_proto(model)) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_is_one_graph(name, tmp_path):
    checkpoint.save(random_micro(designs.variant(nano(), **DESIGNS[name])), tmp_path / "made")
    export_bundle(tmp_path / "made", tmp_path / "made.bundle", target="cpu", one_call=("draw", "read"), steps=STEPS)
    compared = json.loads((tmp_path / "made.bundle" / "parity.json").read_text())["comparisons"]
    rows = [row for row in compared if "one call" in row["what"]]
    assert {row["measure"] for row in rows} == {"max_difference", "reply"} and all(r["passed"] for r in rows)
    with edgemm.load(tmp_path / "made.bundle", device="cpu", threads=1) as model:
        loop, graph = (
            model.generate_image(PROMPT, num_inference_steps=STEPS, seed=1, one_call=way) for way in (False, True)
        )
    assert np.abs(graph.pixels - loop.pixels).max() <= 1e-5
