"""Choosing a device: what was asked for is what runs, or an error says how to get it."""

from __future__ import annotations

import dataclasses
import platform
import sys
import threading

import numpy as np
import pytest

import edgemm
from edgemm.bundle.bundle import open_bundle
from edgemm.bundle.components import TensorSpec
from edgemm.errors import BundleError, MissingError, UsageError
from edgemm.runtimes import engines as backends
from edgemm.runtimes.backend.engine import GraphFiles, ThreadPlan
from edgemm.runtimes.backend.ort_backend import open_engine

ONE_THREAD = ThreadPlan(1, False, "a test")


def test_a_device_that_is_not_there_is_an_error_with_its_cure(bundle_path, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        MissingError, match=r"'cuda' was asked for: .* no CUDAExecutionProvider; pip install 'edgemm\[cuda\]'"
    ):
        edgemm.load(bundle_path, device="cuda")


@pytest.mark.parametrize(
    "device", ["abacus", "cpu:1", "cuda:", "cuda:-1", "cuda:\N{SUPERSCRIPT TWO}", "rtx:" + "9" * 5000]
)
def test_an_unknown_device_lists_the_known_ones(bundle_path, device):
    with pytest.raises(
        UsageError,
        match=f"device is '{device[:40]}', expected one of: auto, jetson-thor, jetson-orin, jetson-orin-jp6, rtx, cuda",
    ):
        edgemm.load(bundle_path, device=device)


def test_auto_says_what_it_passed_over(monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    choice = backends.select("auto", ["cpu", "cuda"])
    assert (choice.device, choice.target) == ("cpu", "cpu")
    assert "not cuda, because ort_cuda here has CPUExecutionProvider" in choice.why


@pytest.mark.parametrize("offered, target", [(["web"], "web"), (["web", "cpu"], "cpu")])
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_cpu_runs_what_was_made_for_a_browser_where_nothing_was_made_for_it(device, offered, target):
    choice = backends.select(device, offered)
    assert (choice.device, choice.target) == ("cpu", target)


def test_auto_passes_over_a_cuda_package_where_the_driver_is_missing(monkeypatch, tmp_path):
    """onnxruntime-gpu lists its provider on every machine; what the driver says is another matter."""
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    # an empty file of the driver's name comes first: no library, as on a machine without a driver
    (tmp_path / "libcuda.so.1").write_bytes(b"")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    choice = backends.select("auto", ["cpu", "cuda"])
    assert (choice.device, choice.target) == ("cpu", "cpu")
    assert "not cuda, because no CUDA driver" in choice.why
    with pytest.raises(MissingError, match="'cuda' was asked for: no CUDA driver"):
        backends.select("cuda", ["cpu", "cuda"])


def test_a_bundle_for_another_target_says_so():
    with pytest.raises(BundleError, match=r"no target 'cpu', only: jetson-orin"):
        backends.select("cpu", ["jetson-orin"])
    with pytest.raises(BundleError, match=r"nothing here runs this bundle.*--target cpu"):
        backends.select("auto", ["jetson-orin"])


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_without_onnxruntime_the_cure_is_named(monkeypatch, device):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "edgemm.runtimes.backend.ort_backend", raising=False)
    with pytest.raises(MissingError, match=r"pip install 'edgemm\[ort\]'"):
        backends.select(device, ["cpu"])


def test_ctrl_c_while_a_library_is_imported_is_no_missing_package(monkeypatch):
    def interrupted(name):
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr(backends.importlib, "import_module", interrupted)
    with pytest.raises(KeyboardInterrupt):
        backends.load_backend("onnxruntime")


def open_denoiser(bundle_path, provider="CPUExecutionProvider", change=lambda variant: variant):
    bundle = open_bundle(bundle_path)
    variant = change(bundle.manifest.variant("denoiser", "cpu"))
    graph, data = bundle.file(variant.graph), bundle.file(variant.data)
    return open_engine(GraphFiles("denoiser", graph, data, variant), provider, ONE_THREAD, threading.Lock())


def test_a_provider_that_does_not_exist_is_no_silent_fallback(bundle_path):
    with pytest.raises(MissingError, match="has no NoSuchProvider"):
        open_denoiser(bundle_path, provider="NoSuchProvider")


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_provider_that_onnxruntime_quietly_replaces_is_found_out(bundle_path, monkeypatch):
    """The name is listed, and the session uses the CPU all the same: what a missing driver looks like."""
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: listed)
    with pytest.raises(
        MissingError, match="asked ONNX Runtime for CUDAExecutionProvider, it uses CPUExecutionProvider"
    ):
        open_denoiser(bundle_path, provider="CUDAExecutionProvider")


@pytest.mark.parametrize("field", ["dtype", "shape", "name"])
def test_a_manifest_that_lies_about_a_graph_is_refused(bundle_path, field):
    lies = {"dtype": "int64", "shape": ("b", 5, 12), "name": "noisier_tokens"}

    def lie(variant):
        first, *rest = variant.inputs
        assert first == TensorSpec("noisy_tokens", "float32", ("b", 4, 12))
        return dataclasses.replace(variant, inputs=(dataclasses.replace(first, **{field: lies[field]}), *rest))

    with pytest.raises(BundleError, match="nois"):
        open_denoiser(bundle_path, change=lie)


def test_a_graph_that_onnxruntime_cannot_load_is_one_line_with_its_file(tmp_path, bundle_path):
    from onnx import helper

    variant = open_bundle(bundle_path).manifest.variant("image_decoder", "cpu")
    graph = helper.make_graph([helper.make_node("NoSuchOperator", ["tokens"], ["pixels"])], "g", [], [])
    (tmp_path / "odd.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(BundleError, match=r"odd\.onnx: ONNX Runtime .* cannot load it: ") as refused:
        files = GraphFiles("image_decoder", tmp_path / "odd.onnx", None, variant)
        open_engine(files, "CPUExecutionProvider", ONE_THREAD, threading.Lock())
    assert "\n" not in str(refused.value)


def test_an_onnxruntime_that_is_too_old_is_told_apart_from_a_bundle_that_is_damaged(tmp_path, bundle_path, monkeypatch):
    """What 1.29 says of a graph for CPUs: an attribute that it does not know."""
    from onnx import TensorProto, helper

    variant = open_bundle(bundle_path).manifest.variant("image_decoder", "cpu")
    node = helper.make_node("Relu", ["tokens"], ["pixels"], newer=1)
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])] for name in ("tokens", "pixels")]
    model = helper.make_model(helper.make_graph([node], "g", *ends), opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    (tmp_path / "new.onnx").write_bytes(model.SerializeToString())
    monkeypatch.setattr("onnxruntime.__version__", "1.29.0")
    wanted = (
        r"new\.onnx: ONNX Runtime 1\.29\.0 cannot load it; bundles for CPUs want 1\.30 or newer: "
        r"pip install -U 'onnxruntime>=1\.30' \(Python 3\.11 or newer\); it says: .*newer"
    )
    with pytest.raises(MissingError, match=wanted) as refused:
        files = GraphFiles("image_decoder", tmp_path / "new.onnx", None, variant)
        open_engine(files, "CPUExecutionProvider", ONE_THREAD, threading.Lock())
    assert "\n" not in str(refused.value)


def test_arrays_that_do_not_fit_are_refused_before_their_address_is_used(model):
    from edgemm.errors import EdgemmError

    decoder = model._engines.get("image_decoder")
    pixels = np.zeros((1, 3, 4, 4), dtype=np.float32)
    for tokens in (
        np.zeros((1, 4, 11), dtype=np.float32),
        np.zeros((1, 4, 12), dtype=np.float64),
        np.zeros((1, 12, 4), dtype=np.float32).transpose(0, 2, 1),
        np.zeros((2, 4, 12), dtype=np.float32),  # b differs from that of the pixels
    ):
        with pytest.raises(EdgemmError, match=r"image_decoder: (tokens|pixels)"):
            decoder.bind({"tokens": tokens}, {"pixels": pixels})
    with pytest.raises(EdgemmError, match="missing or left over"):
        decoder.bind({}, {"pixels": pixels})


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="another floating-point unit")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("threads", [1, 2])
def test_an_engine_counts_denormals_as_zero_and_numpy_keeps_them(tmp_path, bundle_path, threads):
    """IEEE 754: 1e-38 / 8 is no normal float32.  In a thread that never built a session, as users' threads are."""
    from onnx import helper, numpy_helper

    variant = open_bundle(bundle_path).manifest.variant("image_decoder", "cpu")
    shape, rows = (1, 4, 12), []
    specs = [TensorSpec(name, "float32", shape) for name in ("tokens", "pixels")]
    ends = [[helper.make_tensor_value_info(spec.name, 1, shape)] for spec in specs]
    eighth = numpy_helper.from_array(np.float32(0.125), "eighth")
    node = helper.make_node("Mul", ["tokens", "eighth"], ["pixels"])
    model = helper.make_model(
        helper.make_graph([node], "g", *ends, [eighth]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    (tmp_path / "mul.onnx").write_bytes(model.SerializeToString())
    variant = dataclasses.replace(variant, inputs=(specs[0],), outputs=(specs[1],))
    files = GraphFiles("image_decoder", tmp_path / "mul.onnx", None, variant)
    plan = dataclasses.replace(ONE_THREAD, count=threads)

    def run():
        engine = open_engine(files, "CPUExecutionProvider", plan, threading.Lock())
        tokens, pixels = np.full(shape, 1e-38, np.float32), np.ones(shape, np.float32)
        for _ in range(2):
            engine.bind({"tokens": tokens}, {"pixels": pixels}).run()
            rows.append((pixels.max(), np.float32(1e-38) / np.float32(8)))

    threads_of_users = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads_of_users:
        thread.start()
        thread.join()
    run()
    assert len(rows) == 6
    assert all(flushed == 0 and kept > 0 for flushed, kept in rows)
