"""`edgemm export`: a whole bundle that is what its manifest says, or one line, an exit code, and nothing on disk."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgemm.bundle.bundle import open_bundle
from edgemm.bundle.onnx_file import external_locations
from edgemm.cli.main import main
from edgemm.errors import UsageError
from edgemm.export import variants
from edgemm.verify import export_native as bundle_export
from tests.export.nano import PRECISIONS, left_behind, needs_opset_24
from tests.export.test_reference import COMPONENTS, specs_of

ROOT = Path(__file__).resolve().parents[2]
BUSY_S = 600  # a subprocess on a machine that trains at the same time


@pytest.fixture
def fails(capsys, checkpoint_path, references, monkeypatch, tmp_path):
    """Runs `edgemm export` in-process, without tracing anew; it has to fail with one line, which it gives."""
    monkeypatch.setattr(bundle_export, "trace", references)

    def run(code, *words, source=checkpoint_path, output=tmp_path / "x.bundle"):
        assert main(["export", str(source), "--output", str(output), *map(str, words)]) == code
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("edgemm: "), lines
        return lines[0]

    return run


# What is in a bundle


@needs_opset_24
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_file_is_the_one_in_the_manifest(bundles, precision):
    folder = bundles[precision]
    manifest = open_bundle(folder).manifest  # hashes every file
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {*manifest.files, "manifest.json"}
    for name, record in manifest.files.items():
        content = (folder / name).read_bytes()
        assert (record.sha256, record.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))


@needs_opset_24
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_manifest_says_what_the_graphs_take_and_give(bundles, precision):
    manifest = open_bundle(bundles[precision], verify=False).manifest
    assert tuple(manifest.components) == COMPONENTS
    for component in COMPONENTS:
        variant = manifest.variant(component, "cpu")
        graph = onnx.load(str(bundles[precision] / variant.graph), load_external_data=False)
        assert specs_of(graph.graph.input) == variant.inputs
        assert specs_of(graph.graph.output) == variant.outputs
        domains = {opset.domain: opset.version for opset in graph.opset_import}
        assert domains[""] == 24
        assert variant.dialect == "opset24+com.microsoft" if "com.microsoft" in domains else "opset24"


@needs_opset_24
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_lie_in_one_file_beside_each_graph(bundles, precision):
    manifest = open_bundle(bundles[precision], verify=False).manifest
    for component in COMPONENTS:
        variant = manifest.variant(component, "cpu")
        assert external_locations(bundles[precision] / variant.graph) == (
            {Path(variant.data).name} if variant.data else set()
        )
    assert [c for c in COMPONENTS if manifest.variant(c, "cpu").data is None] == ["image_decoder"]


@needs_opset_24
@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_in_a_bundle_says_where_it_was_made(bundles, precision, checkpoint_path):
    local = {str(ROOT), str(checkpoint_path.parent), str(bundles[precision].parent), sys.prefix, str(Path.home()) + "/"}
    for path in bundles[precision].rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [place for place in local if place.encode() in content], path
            if path.suffix == ".onnx":
                assert not re.search(rb"[\w/]+\.py\b|pkg\.torch|onnx\.infer|File \"", content), path


@needs_opset_24
def test_precisions_are_what_they_are_called(bundles):
    """What is inside each graph is in test_lower_cpu.py."""
    real = {
        p: {c: open_bundle(bundles[p], verify=False).manifest.variant(c, "cpu").precision for c in COMPONENTS}
        for p in PRECISIONS
    }
    float_parts = {"image_decoder": "fp32"}
    assert real["fp32"] == dict.fromkeys(COMPONENTS, "fp32")
    assert real["int8"] == dict.fromkeys(COMPONENTS, "int8") | float_parts
    assert real["int4"] == real["int8"] | {"transformer": "int4", "image_encoder": "int4"}
    manifests = {p: open_bundle(bundles[p], verify=False).manifest for p in PRECISIONS}
    assert [manifests[p].quantization for p in PRECISIONS] == [None, real["int8"], real["int4"]]


@needs_opset_24
def test_fewer_bits_take_less_room(bundles, model):
    text = model.config.transformer
    tables = {"transformer": 4 * text.max_context * text.head_width}  # bytes; rotary angles are float32 everywhere

    def size(precision, component):
        files = (bundles[precision] / "components" / component).iterdir()
        return sum(path.stat().st_size for path in files) - tables.get(component, 0)

    # Half of the layers are as in int8, where drawing reads; in so small a model they are most of the bytes.
    assert size("int4", "transformer") < 0.9 * size("int8", "transformer") < 0.4 * size("fp32", "transformer")
    for component in ("conditioner", "denoiser"):
        assert size("int8", component) < 0.5 * size("fp32", component)


@needs_opset_24
def test_everybody_may_read_every_file(bundles):
    for path in bundles["int8"].rglob("*"):
        assert path.stat().st_mode & stat.S_IROTH, path


@needs_opset_24
def test_what_torch_said_and_drew_travels_along(bundles, model):
    document = json.loads((bundles["int8"] / "parity.json").read_text())
    assert len(document["comparisons"]) == 5 + 2 * 3 + 2 * 2  # a drawing twice: PSNR, and SSIM
    assert all(comparison["passed"] for comparison in document["comparisons"])
    assert [len(case["tokens"]) for case in document["text_cases"]] == [32] * 3
    assert [case["picture_seed"] is None for case in document["text_cases"]] == [True, True, False]


@needs_opset_24
def test_licences_are_those_of_the_checkpoint(bundles):
    manifest = open_bundle(bundles["fp32"], verify=False).manifest
    assert [(entry.what, entry.licence) for entry in manifest.licences] == [("weights of nano", "cc0-1.0")]
    assert "weights of nano: cc0-1.0; from checkpoint nano" in (bundles["fp32"] / "NOTICE").read_text()
    assert (bundles["fp32"] / "README.md").read_text().endswith("# nano\n")
    assert manifest.limits.max_context == 512  # what the transformer was trained for is less than the usual 2048


@needs_opset_24
def test_the_command_line_gives_the_same_graphs_in_a_process_of_its_own(checkpoint_path, bundles, tmp_path):
    """Another process, another hash seed, no trace from before: the same bytes."""
    output = tmp_path / "again.bundle"
    command = [sys.executable, "-m", "edgemm", "export", str(checkpoint_path), "--output", str(output)]
    ran = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True, timeout=BUSY_S
    )
    assert ran.returncode == 0, ran.stderr
    noise = [line for line in ran.stderr.splitlines() if not re.search(r" \(\d+ s\)$", line)]  # what is being done
    assert noise == []
    lines = ran.stdout.splitlines()
    assert lines[0] == "nano: family mot, 0.3M parameters; target cpu, fp32"
    assert len(lines) == 15 and all(line.startswith("-[✓] ") for line in lines[1:-1])
    assert lines[-1].startswith(f"Wrote {output} (") and "every comparison passed" in lines[-1]
    first, second = (open_bundle(path, verify=False).manifest.files for path in (bundles["fp32"], output))
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} <= {"parity.json"}  # it may hold last digits
    assert left_behind(tmp_path) == ["again.bundle"]


# What is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "jetson"], "target 'jetson' is none of: cpu, web, cuda, rtx"),
        (["--precision", "fp8"], "precision 'fp8' is none of what target cpu has: fp32, int8, int4"),
        (
            ["--target", "cpu,rtx", "--precision", "fp16"],
            "target cpu has: fp32, int8, int4; one a target: --precision cpu=",
        ),
        (["--target", "rtx", "--precision", "cpu=int8"], "precision is given for 'cpu', and the targets are: rtx"),
        (["--target", ","], "no target is named"),
    ],
)
def test_an_unknown_choice_names_those_there_are(fails, tmp_path, words, message):
    assert message in fails(2, *words)
    assert left_behind(tmp_path) == []


@needs_opset_24
@pytest.mark.parametrize("slots", [-1, 0, 20, 513])
def test_a_context_out_of_range_names_the_range(fails, tmp_path, slots):
    assert re.search(rf"max_context is {slots}, expected \d+ .* to 512", fails(2, "--max-context", slots))
    assert left_behind(tmp_path) == []


@needs_opset_24
def test_a_small_context_is_compared_on_shorter_replies(export, tmp_path):
    """The recorded prompts take most of it; what is left decides how long torch's reply is."""
    with pytest.raises(UsageError) as refused:
        export(tmp_path / "x", max_context=1)
    least = int(re.findall(r"expected (\d+)", str(refused.value))[0])
    path = export(tmp_path / "small.bundle", max_context=least + 3)
    assert open_bundle(path).manifest.limits.max_context == least + 3
    assert {len(case["tokens"]) for case in json.loads((path / "parity.json").read_text())["text_cases"]} == {4}


@needs_opset_24
@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_half_written_checkpoint(fails, checkpoint_path, tmp_path, missing):
    half = tmp_path / "half"
    shutil.copytree(checkpoint_path, half)
    (half / missing).unlink()
    assert f"{missing} is missing" in fails(3, source=half)
    assert left_behind(tmp_path) == ["half"]


@needs_opset_24
def test_a_cut_off_weights_file(fails, checkpoint_path, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(checkpoint_path, half)
    content = (half / "model.safetensors").read_bytes()
    (half / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "model.safetensors" in fails(3, source=half)
    assert left_behind(tmp_path) == ["half"]


@needs_opset_24
def test_no_checkpoint_at_all(fails, tmp_path):
    assert "not a folder; a checkpoint is a folder with config.json" in fails(3, source=tmp_path / "none")


@needs_opset_24
def test_a_bundle_that_stands_there_stays_unless_it_may_be_replaced(fails, export, bundles, tmp_path):
    there = tmp_path / "x.bundle"
    shutil.copytree(bundles["int8"], there)
    before = (there / "manifest.json").read_bytes()
    assert "exists already" in fails(3, output=there)
    assert (there / "manifest.json").read_bytes() == before
    export(there, precision="fp32", overwrite=True)
    assert open_bundle(there).manifest.quantization is None
    assert left_behind(tmp_path) == ["x.bundle"]


@needs_opset_24
def test_a_folder_that_is_no_bundle_is_never_replaced(fails, tmp_path):
    (tmp_path / "x.bundle").mkdir()
    (tmp_path / "x.bundle" / "thesis.txt").write_text("years of work")
    assert "is no bundle" in fails(3, "--overwrite")
    assert left_behind(tmp_path / "x.bundle") == ["thesis.txt"]


@needs_opset_24
def test_an_onnx_runtime_that_is_too_old_is_told_before_anything_is_traced(fails, monkeypatch):
    monkeypatch.setattr(bundle_export, "OPSET", 98)
    assert re.search(r"opset 98, which ONNX Runtime [\d.]+ does not read: pip install", fails(4))


# What goes wrong on the way


def scaled(model, output, factor):
    """Multiply what a node makes: the graph stays valid, and computes something else."""
    (place,) = [place for place, value in enumerate(model.graph.outputs) if value.name == output]
    before = model.graph.outputs[place]
    before.name = "before"
    by = ir.tape.Tape(model.graph).initializer(ir.tensor(np.array(factor, dtype=np.float32)), "factor")
    node = ir.node("Mul", [before, by], outputs=[ir.val(output, type=before.type, shape=before.shape)])
    model.graph.append(node)
    model.graph.outputs[place] = node.outputs[0]
    return model


@needs_opset_24
@pytest.mark.parametrize(
    ("component", "output", "precision", "factor"),
    [
        ("denoiser", "prediction", "fp32", 1.001),
        ("denoiser", "prediction", "int8", 1.5),
        ("transformer", "logits", "fp32", 1.001),
        ("image_decoder", "pixels", "int4", 0.99),
        ("conditioner", "prompt_vector", "int8", float("nan")),
    ],
)
def test_a_component_that_differs_leaves_no_bundle(fails, monkeypatch, tmp_path, component, output, precision, factor):
    def wrongly(lower):
        def run(name, *how):
            graph, real = lower(name, *how)
            return (scaled(graph, output, factor) if name == component else graph), real

        return run

    monkeypatch.setattr(variants, "lower", wrongly(variants.lower))
    line = fails(7, "--precision", precision)
    assert f"the bundle differs from the model, and was not kept: {component} (" in line
    assert left_behind(tmp_path) == []


@needs_opset_24
def test_a_graph_that_cannot_be_run_leaves_no_bundle(fails, monkeypatch, tmp_path):
    lower = variants.lower

    def lower_wrongly(name, *how):
        graph, real = lower(name, *how)
        graph.graph[-1].op_type = "NoSuchOperator"
        return graph, real

    monkeypatch.setattr(variants, "lower", lower_wrongly)
    assert "image_encoder (fp32) does not run: " in fails(7)
    assert left_behind(tmp_path) == []


@needs_opset_24
def test_a_wrong_unconditional_prefix_leaves_no_bundle(fails, monkeypatch, tmp_path):
    """Every component is right, and what stands around them is not."""
    stored = bundle_export.stored_prefix
    monkeypatch.setattr(bundle_export, "stored_prefix", lambda model, prompt: stored(model, "x"))
    assert "not kept: denoise loop, 'red heart', 6 steps, guidance 2: values not close enough" in fails(7)
    assert left_behind(tmp_path) == []


@needs_opset_24
def test_a_wrong_template_leaves_no_bundle(fails, monkeypatch, tmp_path):
    made = bundle_export.manifest_of

    def mistaken(*arguments):
        manifest = made(*arguments)
        assert manifest.loops.text
        text = dataclasses.replace(manifest.loops.text, image_close="")
        return dataclasses.replace(manifest, loops=dataclasses.replace(manifest.loops, text=text))

    monkeypatch.setattr(bundle_export, "manifest_of", mistaken)
    assert "not kept: next tokens, 'What is this?' with a picture: values not close enough" in fails(7)
    assert left_behind(tmp_path) == []


@needs_opset_24
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_time_limit_or_a_closed_terminal_leaves_nothing(checkpoint_path, monkeypatch, tmp_path, number):
    monkeypatch.setattr(bundle_export, "trace", lambda graph: signal.raise_signal(number))
    before = signal.getsignal(number)
    assert main(["export", str(checkpoint_path), "--output", str(tmp_path / "x.bundle")]) == 128 + number
    assert left_behind(tmp_path) == []
    assert signal.getsignal(number) is before


@needs_opset_24
@pytest.mark.parametrize("stage", ["trace", "lower", "compare_component", "torch_answers", "parity_document"])
def test_ctrl_c_at_any_stage_leaves_nothing(fails, monkeypatch, tmp_path, stage):
    module = variants if hasattr(variants, stage) else bundle_export
    monkeypatch.setattr(module, stage, lambda *_: signal.raise_signal(signal.SIGINT))
    assert fails(130) == "edgemm: interrupted"
    assert left_behind(tmp_path) == []


@needs_opset_24
def test_ctrl_c_while_torch_is_tracing(checkpoint_path, tmp_path):
    command = [sys.executable, "-m", "edgemm", "export", str(checkpoint_path), "--output", str(tmp_path / "x.bundle")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    while not process.stdout.readline().startswith("-[✓] image_encoder"):  # the transformer is next
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=BUSY_S)
    assert (process.returncode, err.splitlines()[-1]) == (130, "edgemm: interrupted"), "after what a slow log was told"
    assert left_behind(tmp_path) == []


@pytest.fixture
def full_disk(tmp_path):
    """A disk of 512 kB: enough for two or three components."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@needs_opset_24
def test_a_disk_that_fills_up(fails, full_disk, monkeypatch):
    monkeypatch.setattr(bundle_export, "bytes_per_weight", lambda scheme: 0.0)  # else it is refused beforehand: below
    assert re.search(r"x\.bundle: the disk is full: needs more than \d+ bytes", fails(5, output=full_disk / "x.bundle"))
    assert left_behind(full_disk) == []


@needs_opset_24
def test_a_disk_that_is_too_small_is_told_before_anything_is_traced(fails, full_disk, monkeypatch):
    monkeypatch.setattr(bundle_export, "trace", None)
    assert re.search(r"needs \d+ bytes, \d+ are free on that disk", fails(5, output=full_disk / "x.bundle"))
    assert left_behind(full_disk) == []


@needs_opset_24
@pytest.mark.parametrize("late", ["add_bytes", "inventory"])
def test_a_disk_that_fills_up_late(fails, monkeypatch, tmp_path, late):
    """Not everybody may mount a small disk."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bundle_export.BundleWriter, late, full)
    assert "the disk is full" in fails(5)
    assert left_behind(tmp_path) == []
