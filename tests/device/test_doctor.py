"""`edgemm doctor` as a person and as a program see it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re

import pytest

from edgemm.bundle.bundle import Bundle, open_bundle
from edgemm.cli import doctor as doctor_verb
from edgemm.cli.main import main
from edgemm.device import doctor as doctor_module
from edgemm.device.doctor import examine, fit_bundle, report_json, report_text
from edgemm.device.gpu import CudaDriver, Gpu
from edgemm.device.machine import read_machine
from edgemm.device.targets import EXTRAS, Extra, Verdict
from edgemm.errors import BundleError
from tests.bench.paper_bundle import WEIGHTS_BYTES, write_paper_bundle
from tests.bench.recorded import AGX_ORIN, AGX_ORIN_JP6, ORIN_NANO, PC, THOR, lay_out

RUNS = (Verdict("cpu", "ONNX Runtime", "", ""), Verdict("jetson-thor", "", "this machine is no Jetson", ""))


@pytest.fixture(autouse=True, scope="module")
def one_look():
    """Asking every provider takes seconds and child processes: one answer serves every test here."""
    with pytest.MonkeyPatch.context() as patch:
        found = doctor_module.probe_providers()
        patch.setattr(doctor_module, "probe_providers", lambda: found)
        yield


def doctor(*words: str) -> int:
    parser = argparse.ArgumentParser()
    doctor_verb.add_arguments(parser)
    return doctor_verb.run(parser.parse_args(words))


def test_json_is_one_document_with_a_version(capsys):
    code = doctor("--json")
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert document["healthy"] == (code == 0)
    assert {verdict["target"] for verdict in document["verdicts"]} >= {"cpu", "jetson-thor"}
    assert document["board"] is None or document["board"]["soc"]


def test_the_page_ends_with_what_runs(capsys):
    pytest.importorskip("onnxruntime")
    assert doctor() == 0
    page = capsys.readouterr().out
    assert "[✓] cpu" in page
    assert page.strip().splitlines()[-1].startswith("Bundles exported for cpu")
    listed = page[page.index("extras\n") :]
    assert set(re.findall(r"^  \[[✓x]\] (\S+)", listed, re.MULTILINE)) == set(EXTRAS)


def test_a_recorded_board_is_examined_like_a_live_one(tmp_path):
    report = examine(root=lay_out(tmp_path, ORIN_NANO))
    assert report.board and report.machine.cpu == "Cortex-A78AE"
    assert "Linux for Tegra 36.4.3 (JetPack 6)" in report_text(report)
    assert json.loads(json.dumps(report_json(report)))["board"]["target"] == "jetson-orin-jp6"


def test_the_verb_reads_a_recorded_board_and_says_so(tmp_path, capsys):
    root = lay_out(tmp_path, ORIN_NANO)
    main(["doctor", "--root", str(root)])
    page = capsys.readouterr().out
    assert "Orin Nano" in page and "Orin, SM 8.7, 7.99 GB" in page and f"in {root}; packages and providers" in page
    assert main(["doctor", "--root", str(tmp_path / "nowhere")]) == 3
    assert "expected a recorded machine's root" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "version", "target", "told"),
    [
        (ORIN_NANO, "10.3.0", "jetson-orin-jp6", ("JetPack 6", "Cortex-A78AE", "6 usable", "7.99 GB", "MAXN_SUPER")),
        (AGX_ORIN_JP6, "10.3.0", "jetson-orin-jp6", ("JetPack 6", "Cortex-A78AE", "12 usable", "65.9 GB", "MODE_50W")),
        (AGX_ORIN, "10.16.2", "jetson-orin", ("JetPack 7", "Cortex-A78AE", "12 usable", "65.9 GB", "MAXN")),
        (THOR, "10.16.2", "jetson-thor", ("JetPack 7", "Neoverse-V3AE", "14 usable", "132 GB", "120W")),
    ],
    ids=["Orin Nano", "AGX Orin, JetPack 6.2", "AGX Orin, JetPack 7.2", "Thor"],
)
def test_every_board_is_told_whole_and_runs_its_own_target(tmp_path, monkeypatch, files, version, target, told):
    """From the files of a board to the page: first as it comes, then with JetPack's TensorRT in the environment."""
    root = lay_out(tmp_path, files)
    bare = examine(root=root)
    lacking = {verdict.target: verdict for verdict in bare.verdicts}[target]
    assert not lacking.runs and "nvidia-jetpack" in lacking.cure
    here = {**bare.extras, "tensorrt": Extra("tensorrt", {"tensorrt": version}, ())}
    monkeypatch.setattr(doctor_module, "read_extra", here.get)
    report = examine(write_paper_bundle(tmp_path / "b", target=target), root)
    assert [verdict.target for verdict in report.verdicts if verdict.runs][-1] == target
    assert report.healthy and report.bundle and report.bundle.runs == (target,)
    page = report_text(report)
    assert files["proc/device-tree/model"].strip("\0") in page and f"TensorRT {version}" in page
    for words in told:
        assert words in page


def test_a_missing_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="does not exist"):
        examine(tmp_path / "missing.bundle")


def test_a_bundle_is_said_to_run_where_its_target_does(tmp_path):
    pytest.importorskip("onnxruntime")
    fit = examine(write_paper_bundle(tmp_path / "b")).bundle
    assert fit and (fit.name, fit.runs, fit.problem) == ("paper", ("cpu",), "")
    assert fit.weights_bytes == 5 * WEIGHTS_BYTES


@pytest.mark.parametrize(("harm", "told"), [("cut", "the manifest says"), ("gone", "missing"), ("link", "a link")])
def test_a_bundle_whose_files_are_not_there_runs_nowhere(tmp_path, capsys, harm, told):
    pytest.importorskip("onnxruntime")
    graph = next((path := write_paper_bundle(tmp_path / "b")).rglob("*.onnx"))
    content = graph.read_bytes()
    graph.unlink()
    if harm == "cut":
        graph.write_bytes(content[:-1])
    if harm == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        graph.symlink_to(tmp_path / "elsewhere")
    assert doctor(str(path)) == 4
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"paper does not run here: cpu: {graph}") and told in last


def test_a_bundle_for_another_board_makes_the_command_fail(tmp_path, capsys):
    assert doctor(str(write_paper_bundle(tmp_path / "b", target="jetson-thor"))) == 4
    assert "paper does not run here: jetson-thor: this machine is no Jetson" in capsys.readouterr().out


def test_graphs_newer_than_the_runtime_are_told(tmp_path):
    old = (Verdict("cpu", "ONNX Runtime, CPUExecutionProvider", "", "", newest_opset=23),)
    fit = fit_bundle(open_bundle(write_paper_bundle(tmp_path / "b", dialect="opset24+contrib")), old, read_machine())
    assert fit.runs == () and "opset 24" in fit.problem and "up to 23" in fit.problem


@pytest.mark.parametrize(
    ("capability", "problem"), [("8.6", "in fp8, which GPUs multiply from SM 8.9 on"), ("8.9", "")]
)
def test_a_gpu_without_kernels_for_a_bundles_numbers_is_told(tmp_path, capability, problem):
    bundle = open_bundle(write_paper_bundle(tmp_path / "b", target="rtx"))
    component = bundle.manifest.components["denoiser"]
    small = {name: dataclasses.replace(variant, precision="fp8") for name, variant in component.variants.items()}
    components = {**bundle.manifest.components, "denoiser": dataclasses.replace(component, variants=small)}
    bundle = Bundle(bundle.path, dataclasses.replace(bundle.manifest, components=components))
    cuda = CudaDriver("13.0", (Gpu("GeForce", capability, 24 << 30),), "")
    fit = fit_bundle(bundle, (Verdict("rtx", "TensorRT for RTX 1.7", "", ""),), read_machine(), cuda)
    assert problem in fit.problem and bool(fit.problem) == bool(problem)


def test_weights_larger_than_the_free_memory_are_told(tmp_path):
    small = {"proc/meminfo": "MemTotal: 8 kB\nMemAvailable: 4 kB\n"}
    bundle = open_bundle(write_paper_bundle(tmp_path / "b"))
    fit = fit_bundle(bundle, RUNS, read_machine(lay_out(tmp_path / "root", small)))
    assert "memory are free" in fit.problem


def test_every_target_of_a_bundle_is_told_with_its_precision_and_its_problem(tmp_path):
    bundle = open_bundle(write_paper_bundle(tmp_path / "b", target="jetson-thor"))
    verdict = Verdict("jetson-thor", "", "TensorRT's Python module is not there", "sudo apt-get install nvidia-jetpack")
    (each,) = fit_bundle(bundle, (verdict,), read_machine()).each
    assert (each.target, each.engine, each.problem) == ("jetson-thor", "", "TensorRT's Python module is not there")
    assert each.cure.startswith("sudo apt-get") and set(each.precision.values()) == {"fp32"}
    assert each.weights_bytes == 5 * WEIGHTS_BYTES


def test_a_page_tells_the_power_mode_tensorrt_and_each_target(tmp_path, monkeypatch):
    root = lay_out(tmp_path / "root", {**PC, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n"})
    page = report_text(examine(write_paper_bundle(tmp_path / "b"), root))
    assert "power mode governor powersave" in page and "tensorrt   " in page
    assert "bundle paper: what each of its targets would do here" in page and "denoiser fp32" in page
