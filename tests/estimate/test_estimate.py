"""The estimator: counts against sums done by hand, predictions against rows it has not seen, and the verb's manners."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemm.bundle.bundle import open_bundle
from edgemm.cli.main import main
from edgemm.errors import BundleError
from edgemm.estimate.calibration import (
    UNSEEN_SPREAD,
    Observation,
    Speed,
    calibrate,
    leave_device_out,
    leave_one_out,
    published_observations,
)
from edgemm.estimate.devices import DEVICES, PowerMode
from edgemm.estimate.estimate import JUDGED, NOT_JUDGED, Run, Workload, estimate, runs_of, seconds
from edgemm.estimate.graph_costs import read_graph_costs
from edgemm.estimate.published_rows import ROWS, SHAPES
from tests.runtimes.tiny_bundle import build
from tests.runtimes.tiny_weights import TINY

NANO = DEVICES["orin-nano-8gb"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(build(tmp_path_factory.mktemp("bundles") / "tiny.bundle"))


@pytest.fixture(scope="module")
def calibration():
    return calibrate("orin-nano-8gb", NANO.mode(None), published_observations())


def write_graph(path, nodes, weights, inputs, outputs):
    infos = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in side.items()] for side in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", *infos, initializer=tensors)), str(path))
    return path


def test_a_product_of_tokens_costs_two_operations_a_weight_and_row(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = {"w": np.zeros((3, 5), np.float32)}
    path = write_graph(tmp_path / "g.onnx", nodes, weights, {"x": ["b", "n", 3]}, {"y": ["b", "n", 5]})
    costs = read_graph_costs(path, 1000)
    assert (costs.operations_a_row, costs.operations_a_call, costs.products) == (30, 0, 1)
    assert costs.read_bytes == 1000


def test_a_product_of_one_vector_a_picture_is_not_multiplied_by_tokens(tmp_path):
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
    weights = {"w": np.zeros((5, 3), np.float32)}
    path = write_graph(tmp_path / "g.onnx", nodes, weights, {"x": ["b", 3]}, {"y": ["b", 5]})
    costs = read_graph_costs(path, 100)
    assert (costs.operations_a_row, costs.operations_a_call) == (0, 30)


def test_a_convolution_costs_its_kernel_at_every_place_of_its_output(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1])]
    weights = {"w": np.zeros((8, 3, 3, 3), np.float32)}
    path = write_graph(tmp_path / "g.onnx", nodes, weights, {"x": [1, 3, 16, 16]}, {"y": [1, 8, 8, 8]})
    assert read_graph_costs(path, 900).operations_a_call == 2 * 8 * 3 * 9 * 64


def test_a_table_that_is_only_looked_up_is_not_read_through(tmp_path):
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    weights = {"table": np.zeros((10, 4), np.float32), "ids": np.zeros(2, np.int64)}
    path = write_graph(tmp_path / "g.onnx", nodes, weights, {}, {"y": [2, 4]})
    assert read_graph_costs(path, 500).read_bytes == 500 - 10 * 4 * 4


def test_a_token_of_the_tiny_bundle_is_what_its_weights_say(bundle):
    """Every weight of the layers once for each token, the head once a call, attention over the context."""
    work = Workload(prompt_tokens=20, new_tokens=8)
    token = runs_of(bundle, "cpu", work)["token"]
    raw = TINY.kv_heads * TINY.head_width
    layer = 2 * TINY.width * TINY.heads * TINY.head_width + 2 * TINY.width * raw + 4 * TINY.width**2
    attention = 4 * TINY.layers * TINY.width * 24
    assert token.operations == 2 * (TINY.layers * layer + TINY.vocab * TINY.width) + attention
    variant = bundle.manifest.variant("transformer", "cpu")
    stored = sum(bundle.manifest.files[path].size_bytes for path in (variant.graph, variant.data))
    cache = 2 * TINY.layers * raw * 24 * 4
    assert token.read_bytes == stored + cache  # the embedding is the head too, so it is read


def test_guidance_doubles_a_steps_arithmetic_and_not_its_weights(bundle):
    plain = replace(bundle.manifest.loops.denoise, guidance_scale=1.0)
    manifest = replace(bundle.manifest, loops=replace(bundle.manifest.loops, denoise=plain))
    guided, single = (runs_of(b, "cpu", Workload())["step"] for b in (bundle, replace(bundle, manifest=manifest)))
    assert guided.operations == 2 * single.operations
    assert guided.read_bytes < 2 * single.read_bytes


def test_time_is_the_roofline_and_the_launches():
    speed = Speed(bytes_per_s=100, fp16_per_s=1000, int8_per_s=2000, layer_s=0.5)
    assert seconds(Run(200, 1000, 4, False), speed) == 2 + 2  # memory bounds
    assert seconds(Run(200, 8000, 4, False), speed) == 8 + 2  # arithmetic bounds
    assert seconds(Run(200, 8000, 4, True), speed) == 4 + 2  # in int8


def test_shapes_have_the_parameters_of_the_published_models():
    """Qwen's own model cards: 0.44, 1.4, 3.6 and 6.95 billion parameters outside of the embedding."""
    found = {name: shape.body / 1e9 for name, shape in SHAPES.items()}
    cards = {"Qwen3-0.6B": 0.44, "Qwen3-1.7B": 1.4, "Qwen3-4B": 3.6, "Qwen3-8B": 6.95}
    assert found == pytest.approx(cards, rel=0.02)


def test_models_left_out_are_predicted_within_the_bars():
    errors = [abs(predicted / run.seconds - 1) for run, predicted in leave_one_out(published_observations())]
    assert np.median(errors) <= 0.10 and max(errors) <= 0.25


def test_a_device_without_rows_of_its_own_is_predicted_within_what_its_estimate_promises():
    judged = leave_device_out(published_observations())
    assert {observation.device for observation, _ in judged} == {"orin-nano-8gb", "orin-nx-16gb", "agx-orin-64gb"}
    errors = [abs(predicted / observation.seconds - 1) for observation, predicted in judged]
    assert max(errors) <= UNSEEN_SPREAD and np.median(errors) <= 0.10


def test_a_model_left_out_does_not_help_to_predict_itself():
    observations = published_observations()
    spoiled = [replace(o, seconds=o.seconds * 3) if o.model == "Qwen3-8B" else o for o in observations]
    before, after = (
        [predicted for o, predicted in leave_one_out(rows) if o.model == "Qwen3-8B"] for rows in (observations, spoiled)
    )
    assert before == after


def test_calibration_finds_the_numbers_that_made_the_rows():
    """Rows of a made-up device that reaches 80 % of its bandwidth and pays 100 us a layer."""
    mode = NANO.mode(None)
    rows = [
        Observation("orin-nano-8gb", mode.name, str(size), size, layers, size / (0.8 * 68e9) + layers * 1e-4)
        for size, layers in ((4e8, 28), (1e9, 28), (2e9, 36), (4e9, 36), (3e8, 60), (6e9, 10))
    ]
    others = [o for o in published_observations() if o.device != "orin-nano-8gb"]
    found = calibrate("orin-nano-8gb", mode, [*others, *rows]).middle
    assert found.bytes_per_s == pytest.approx(0.8 * 68e9, rel=0.03)  # the prior of other devices weighs a little
    assert found.layer_s == pytest.approx(1e-4, rel=0.05)


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_and_mode_has_an_interval_around_its_figures(name, bundle):
    for mode in DEVICES[name].modes:
        found = estimate(
            bundle, DEVICES[name], mode, calibrate(name, mode, published_observations()), Workload(steps=3)
        )
        assert found.figures.keys() >= {"token_ms", "step_ms", "image_s", "memory_gb"}
        for figure in found.figures.values():
            assert 0 < figure.value.low < figure.value.middle < figure.value.high < 1e6


def test_a_device_without_rows_is_less_sure(bundle):
    def width(name):
        mode = DEVICES[name].mode(None)
        value = estimate(bundle, DEVICES[name], mode, calibrate(name, mode, published_observations()), Workload())
        return value.figures["token_ms"].value.high / value.figures["token_ms"].value.low

    assert width("rtx-4090") > width("thor-t5000")


def test_only_tokens_in_a_mode_with_rows_are_called_judged(bundle, calibration):
    found = estimate(bundle, NANO, NANO.mode(None), calibration, Workload())
    assert {name for name, figure in found.figures.items() if figure.standing == JUDGED} == {"token_ms"}
    mode = NANO.mode("MAXN_SUPER")
    carried = estimate(bundle, NANO, mode, calibrate("orin-nano-8gb", mode, published_observations()), Workload())
    assert carried.figures["token_ms"].standing == NOT_JUDGED


def test_a_bundle_for_either_jetpack_is_one_for_the_board(bundle, calibration):
    """Orin runs both; only a bundle for neither is counted in the graphs of another target."""
    manifest = bundle.manifest
    chosen = dict(manifest.targets["cpu"])

    def remarks(targets, asked=None):
        told = replace(bundle, manifest=replace(manifest, targets=dict.fromkeys(targets, chosen)))
        found = estimate(told, NANO, NANO.mode(None), calibration, Workload(), asked)
        return found.target, [remark for remark in found.remarks if "counted in" in remark]

    assert remarks(["cpu", "jetson-orin-jp6"]) == ("jetson-orin-jp6", [])
    assert remarks(["cpu", "jetson-orin-jp6"], "jetson-orin-jp6") == ("jetson-orin-jp6", [])
    assert remarks(["cpu", "jetson-orin-jp6", "jetson-orin"]) == ("jetson-orin", [])
    target, (remark,) = remarks(["cpu"])
    assert target == "cpu" and "the bundle has none for jetson-orin or jetson-orin-jp6" in remark
    _, (remark,) = remarks(["cpu", "jetson-orin-jp6"], "cpu")
    assert "none" not in remark


def test_a_picture_takes_its_steps_and_what_is_done_once(bundle, calibration):
    figures = estimate(bundle, NANO, NANO.mode(None), calibration, Workload(steps=7)).figures
    once = sum(figures[f"{part}_ms"].value.middle for part in ("prefill", "conditioner", "image_decode"))
    assert figures["image_s"].value.middle == pytest.approx((once + 7 * figures["step_ms"].value.middle) / 1e3)


def test_a_bundle_that_the_memory_cannot_hold_does_not_fit(bundle, calibration):
    small = replace(NANO, memory_gb=1.5, system_gb=1.5)
    assert estimate(bundle, small, NANO.mode(None), calibration, Workload()).fits == "no"
    assert estimate(bundle, NANO, NANO.mode(None), calibration, Workload()).fits == "yes"


def test_a_mode_cannot_have_no_memory_bandwidth():
    with pytest.raises(ValueError, match="memory_gb_s of 'off' is 0"):
        PowerMode("off", 0, 1, 1)


def test_every_published_row_is_of_a_known_device_and_model():
    assert {row.device for row in ROWS} <= set(DEVICES) and {row.decoder for row in ROWS} <= set(SHAPES)


def test_the_page_says_that_it_is_an_estimate_and_what_was_not_judged(bundle, capsys):
    assert main(["estimate", str(bundle.path), "--device", "orin-nano-8gb", "--power", "15w"]) == 0
    page = capsys.readouterr().out
    assert "Estimate, not a measurement" in page and "not judged against any device" in page and "15W" in page


def test_json_is_one_document_that_calls_itself_an_estimate(bundle, capsys):
    assert main(["estimate", str(bundle.path), "--device", "thor-t5000", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "estimate, not a measurement"
    assert document["figures"]["step_ms"]["value"].keys() == {"low", "middle", "high"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--device", "toaster"], "orin-nano-8gb, orin-nx-16gb"),
        (["--device", "orin-nano-8gb", "--power", "3W"], "known: 15W, MAXN_SUPER"),
        (["--device", "orin-nano-8gb", "--target", "rtx"], "it has: cpu"),
        (["--device", "orin-nano-8gb", "--steps", "0"], "steps is 0"),
        ([], "--list"),
    ],
)
def test_what_it_does_not_know_is_a_usage_error_with_the_list(bundle, words, told, capsys):
    assert main(["estimate", str(bundle.path), *words]) == 2
    assert told in capsys.readouterr().err


def test_the_list_needs_no_bundle_and_gives_sources(capsys):
    assert main(["estimate", "--list"]) == 0
    page = capsys.readouterr().out
    assert all(name in page for name in DEVICES) and "data sheet" in page


def test_without_onnx_it_says_how_to_get_it(bundle, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert main(["estimate", str(bundle.path), "--device", "orin-nano-8gb"]) == 4
    assert "pip install 'onnx" in capsys.readouterr().err


def bench_file(path, bundle, token_ms, step_ms=None, board="NVIDIA Jetson Orin Nano Developer Kit"):
    card = {
        "bundle_sha256": sha256(bundle.file("manifest.json").read_bytes()).hexdigest(),
        "target": "cpu",
        "board": board,
        "cpu": "some cpu",
    }
    rows = {"time_per_output_token_ms": {"p50": token_ms}} | ({"denoise_step_ms": {"p50": step_ms}} if step_ms else {})
    document = {"card": card, "plan": {}, "measured": {"prompt_tokens": 128, "new_tokens": 64}, "rows": rows}
    path.write_text("| a table |\n\n" + json.dumps(document) + "\n")
    return str(path)


def test_a_fit_moves_the_estimate_to_what_was_measured(bundle, tmp_path, capsys):
    """Measured at about three times the estimate: the new estimate is nearer to it than to the old one."""
    words = ["estimate", str(bundle.path), "--device", "orin-nano-8gb", "--json"]
    assert main(words) == 0
    old = json.loads(capsys.readouterr().out)["figures"]["token_ms"]["value"]["middle"]
    assert main([*words, "--fit", bench_file(tmp_path / "b.json", bundle, 3 * old)]) == 0
    new = json.loads(capsys.readouterr().out)
    assert new["figures"]["token_ms"]["value"]["middle"] == pytest.approx(3 * old, rel=0.15)
    assert "1 timed runs in this mode" in new["remarks"][0]


@pytest.mark.parametrize("case", ["other bundle", "other board", "not a bench file", "too fast"])
def test_a_bench_file_that_says_nothing_of_this_device_is_refused(bundle, tmp_path, case, capsys):
    path = tmp_path / "b.json"
    bench_file(
        path, bundle, 1e-9 if case == "too fast" else 3.0, board="a PC" if case == "other board" else "Orin Nano"
    )
    if case == "not a bench file":
        path.write_text("hello\n")
    if case == "other bundle":
        path.write_text(path.read_text().replace('"bundle_sha256": "', '"bundle_sha256": "0'))
    assert main(["estimate", str(bundle.path), "--device", "orin-nano-8gb", "--fit", str(path)]) == 3
    told = {"other bundle": "of a bundle", "other board": "a PC", "not a bench file": "JSON", "too fast": "wrong mode"}
    assert told[case] in capsys.readouterr().err


def test_a_bench_file_of_another_power_mode_is_refused(bundle, tmp_path, capsys):
    path = Path(bench_file(tmp_path / "b.json", bundle, 3.0))
    used, other = (mode.name for mode in NANO.modes[:2])
    path.write_text(path.read_text().replace('"cpu": "some cpu"', f'"power_mode": "{other}"'))
    words = ["estimate", str(bundle.path), "--device", "orin-nano-8gb", "--fit", str(path)]
    assert main(words) == 3
    assert f"measured in mode {other}, expected {used}: give it as --power" in capsys.readouterr().err
    assert main([*words, "--power", other]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-p", "600"), "prompt_tokens 600 and new_tokens 64 are 664, the bundle holds 600 at most"),
        (("--steps", "51"), "steps is 51, the bundle takes 50 at most"),
    ],
)
def test_more_than_the_bundle_does_is_not_estimated(bundle, capsys, words, message):
    estimated = ["estimate", str(bundle.path), "--device", "orin-nano-8gb"]
    assert main([*estimated, *words]) == 2
    assert message in capsys.readouterr().err
    assert main([*estimated, "-p", "536", "--steps", "50"]) == 0


def test_a_graph_without_an_operator_is_no_graph(tmp_path):
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"empty\.onnx: holds no operator"):
        read_graph_costs(tmp_path / "empty.onnx", 0)
