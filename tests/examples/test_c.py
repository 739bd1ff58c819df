"""examples/c: built by gcc, it refuses spoiled bundles in one line, and draws and says what the runtime does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from tests.export.nano import needs_opset_24
from tests.export.test_pages import snippets, with_programs

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("gcc", "make")
COPIED = ROOT / "examples" / "c" / "include"  # `make headers` fetches it; no test does
ARM = ROOT / "build" / "arm64"  # make test-arm64
HEADERS = ("cjson/cJSON.h", "png.h", "openssl/evp.h")  # of Debian's libcjson-dev, libpng-dev, libssl-dev


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the program is built."""
    missing = [tool for tool in NEEDED if shutil.which(tool) is None]
    missing += [name for name in HEADERS if not Path("/usr/include", name).exists()]
    if not COPIED.is_dir():
        missing.append("make -C examples/c headers")
    if missing:
        pytest.skip(f"examples/c needs {', '.join(missing)}")
    made = tmp_path_factory.mktemp("c") / "examples" / "c"
    shutil.copytree(ROOT / "examples" / "c", made, ignore=shutil.ignore_patterns("*.so*", "edgemm_c"))
    built = make(made, "edgemm_c")
    assert built.returncode == 0, built.stderr
    return made


def make(folder: Path, *what: str) -> subprocess.CompletedProcess[str]:
    words = ["make", "-C", str(folder), f"PYTHON={sys.executable}", *what]
    return subprocess.run(words, capture_output=True, text=True, timeout=600)


def run(folder: Path, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    given = {key: value for key, value in os.environ.items() if key != "EDGEMM_EXTENSIONS"} | more
    return subprocess.run(
        [folder / "edgemm_c", *map(str, words)], capture_output=True, text=True, env=given, timeout=900
    )


def written(bundle: Path, **changes: object) -> Path:
    """The least that its checks of a bundle look at."""
    bundle.mkdir()
    (bundle / "weights.data").write_bytes(b"numbers")
    record = {"sha256": hashlib.sha256(b"numbers").hexdigest(), "size_bytes": 7}
    manifest = {"schema_version": 1, "files": {"weights.data": record}, **changes}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def weights(content: bytes) -> Callable[[Path], object]:
    return lambda bundle: (bundle / "weights.data").write_bytes(content)


def without(bundle: Path) -> None:
    (bundle / "weights.data").unlink()


def folder_instead(bundle: Path) -> None:
    without(bundle)
    (bundle / "weights.data").mkdir()


def pipe_instead(bundle: Path) -> None:
    without(bundle)
    os.mkfifo(bundle / "weights.data")


def told(found: str, instead: str) -> Callable[[Path], object]:
    """The manifest with these letters instead of those."""

    def change(bundle: Path) -> None:
        text = (bundle / "manifest.json").read_text()
        assert found in text
        (bundle / "manifest.json").write_text(text.replace(found, instead))

    return change


GRAPH = "tokenizer/draw_prompt.onnx"  # the first that it opens


def named(path: str) -> Callable[[Path], object]:
    """The manifest says that this is one more file of the bundle."""
    return told('"files": {', f'"files": {{{json.dumps(path)}: {{"sha256": "{64 * "0"}", "size_bytes": 7}}, ')


def graph(content: bytes) -> Callable[[Path], object]:
    """A graph whose size and hash are those of the manifest."""

    def change(bundle: Path) -> None:
        (bundle / GRAPH).parent.mkdir()
        (bundle / GRAPH).write_bytes(content)
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["files"][GRAPH] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        (bundle / "manifest.json").write_text(json.dumps(manifest))

    return change


def reading(location: str, where: str = "weights") -> bytes:
    """A graph with numbers in another file: weights, a node's attribute, an inner graph, a function."""
    stored = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    stored.external_data.add(key="location", value=location)
    constant = helper.make_node("Constant", [], ["y"], value=stored)
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]
    inner = helper.make_graph([constant], "inner", [], outputs)
    nodes = {
        "weights": [helper.make_node("Identity", ["w"], ["y"])],
        "attribute": [constant],
        "inner": [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)],
        "function": [helper.make_node("F", [], ["y"], domain="own")],
    }[where]
    made = helper.make_graph(nodes, "g", [], outputs, [stored] if where == "weights" else [])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    body = helper.make_function("own", "F", [], ["y"], [constant], opsets[:1])
    functions = [body] if where == "function" else []
    return helper.make_model(made, opset_imports=opsets, functions=functions).SerializeToString()


@pytest.mark.parametrize(
    "spoil, said",
    [
        (weights(b"numbErs"), "weights.data: was altered"),
        (weights(b"numbers and more"), "weights.data: has 16 bytes"),
        (weights(b"numb"), "weights.data: has 4 bytes"),
        (without, "weights.data: cannot be read"),
        (folder_instead, "weights.data: cannot be read"),
        (pipe_instead, "weights.data: cannot be read"),
        (lambda bundle: (bundle / "manifest.json").unlink(), "manifest.json: cannot be read"),
        (lambda bundle: (bundle / "manifest.json").write_text("{"), "not the JSON object that was expected"),
        (lambda bundle: (bundle / "manifest.json").write_text("[1]"), "not the JSON object that was expected"),
        (told("weights.data", "../weights.data"), "leaves the bundle"),
        (told('"schema_version": 1', '"schema_version": 2'), "schema_version is 2, this program reads 1"),
        (told('"sha256": "', '"sha256": "00'), "its SHA-256 in the manifest has 66 digits, not 64"),
        (told('"sha256"', '"sha1"'), "field 'sha256' is missing"),
        (told('"schema_version": 1', '"schema_version": "1"'), 'schema_version is "1", this program reads 1'),
        (told('"size_bytes": 7', '"size_bytes": 1e999'), "'size_bytes' is no number from 0"),
        (told('"size_bytes": 7', '"size_bytes": -7'), "'size_bytes' is no number from 0"),
        (told('"size_bytes": 7', '"size_bytes": "7"'), "'size_bytes' is no number from 0"),
        (told('"size_bytes": 7', '"size_bytes": 7e14'), "has 7 bytes"),
        (lambda bundle: (bundle / "manifest.json").write_text('{"schema_version": 1, "files": ["a"]}'), "no object"),
        (lambda bundle: (bundle / "manifest.json").write_text('{"schema_version": 1, "files": {"a": 1}}'), "a: cannot"),
        (named("/etc/passwd"), "path '/etc/passwd' leaves the bundle"),
        (named("a/../../b"), "leaves the bundle"),
        (named("."), "cannot be read: is it a file"),
        (named("no\nsuch\x1b[31m file"), "no such [31m file: cannot be read"),
        (graph(b"this is no graph"), "draw_prompt.onnx: not an ONNX graph"),
        (graph(reading("w.data")[:9]), "draw_prompt.onnx: not an ONNX graph"),
        (graph(reading("w.data")), "reads weights from 'tokenizer/w.data', which the manifest does not name"),
        (graph(reading("w.data", "attribute")), "reads weights from 'tokenizer/w.data'"),
        (graph(reading("w.data", "inner")), "reads weights from 'tokenizer/w.data'"),
        (graph(reading("w.data", "function")), "reads weights from 'tokenizer/w.data'"),
        (graph(reading("/etc/passwd")), "reads weights from 'tokenizer//etc/passwd'"),
        (graph(reading("../../secret")), "reads weights from 'tokenizer/../../secret'"),
    ],
)
def test_a_spoiled_bundle_is_one_line_and_nothing_is_drawn(folder, tmp_path, spoil, said):
    spoil(written(tmp_path / "b.bundle"))
    given = {"EDGEMM_EXTENSIONS": "none.so"}
    found = run(folder, tmp_path / "b.bundle", "draw", "a star", tmp_path / "star.png", **given)
    assert (found.returncode, found.stderr.count("\n")) == (3, 1)
    assert said in found.stderr
    assert not (tmp_path / "star.png").exists()


def test_what_is_missing_is_named(folder, tmp_path):
    bundle = written(tmp_path / "b.bundle")
    assert run(folder, bundle).returncode == 2
    for seed in ("-1", "10000000000000000000", ""):
        found = run(folder, bundle, "draw", "a star", tmp_path / "star.png", seed)
        assert found.returncode == 2 and f"seed is '{seed}', expected 0 to 10^19 - 1" in found.stderr
    found = run(folder, bundle, "draw", "a star", tmp_path / "star.png", 10**19 - 1)
    assert found.returncode == 4 and "EDGEMM_EXTENSIONS is not set" in found.stderr
    found = run(folder, bundle, "draw", "a star", tmp_path / "star.png", EDGEMM_EXTENSIONS="none.so")
    assert found.returncode == 3 and "--one-call draw,read,tokenize" in found.stderr


def saved(bundle: Path, path: str, inputs: dict[str, Any], outputs: dict[str, Any], nodes: list[Any]) -> None:
    """A graph of the bundle, which its manifest names."""
    (bundle / path).parent.mkdir(exist_ok=True)
    told = ([helper.make_tensor_value_info(name, *kind) for name, kind in one.items()] for one in (inputs, outputs))
    made = helper.make_graph(nodes, "g", *told)
    content = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    (bundle / path).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][path] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "pixels, most, said",
    [("Sigmoid", 9, ""), ("Sqrt", 9, "pixels: number "), ("Sigmoid", 4, "the prompt takes 5 tokens, more than")],
)
def test_no_picture_is_made_of_numbers_that_are_no_pixels_or_of_a_prompt_too_long(folder, tmp_path, pixels, most, said):
    """Of numbers below 0 the square root is NaN; a longer prompt is read where the model knows no places."""
    pytest.importorskip("onnxruntime_extensions", reason="pip install 'edgemm[tokenizer-graph]'")
    assert make(folder, "extensions.so").returncode == 0
    call = {"draw": {"variants": {"cpu": {"graph": "components/draw.onnx"}}}}
    bundle = written(tmp_path / "b.bundle", limits={"max_context": most}, one_call=call)
    ids, length = {"input_ids": (TensorProto.INT64, [1, 5])}, {"prompt_length": (TensorProto.INT64, [1])}
    five = helper.make_tensor("five", TensorProto.INT64, [1], [5])
    nodes = [
        helper.make_node("Constant", [], ["prompt_length"], value=five),
        helper.make_node("Shape", ["text"], ["one"]),
        helper.make_node("Sub", ["one", "one"], ["zero"]),
        helper.make_node("Expand", ["one", "prompt_length"], ["row"]),
        helper.make_node("Unsqueeze", ["row", "zero"], ["input_ids"]),
    ]
    saved(bundle, GRAPH, {"text": (TensorProto.STRING, [1])}, ids | length, nodes)
    shape = (TensorProto.FLOAT, [1, 3, 4, 4])
    nodes = [helper.make_node(pixels, ["noise"], ["pixels"])]
    saved(bundle, "components/draw.onnx", ids | length | {"noise": shape}, {"pixels": shape}, nodes)
    given = {"EDGEMM_EXTENSIONS": str(folder / "extensions.so")}
    found = run(folder, bundle, "draw", "a star", tmp_path / "star.png", 7, **given)
    assert (found.returncode, said in found.stderr) == (3 if said else 0, True), found.stderr
    assert (tmp_path / "star.png").exists() is (not said)


def test_the_pages_snippet_is_the_programs_own():
    page, program = (ROOT / "docs" / "embedding-c.md").read_text(), (ROOT / "examples" / "c" / "edgemm.c").read_text()
    assert page.split("```c\n")[1].split("```")[0] in program
    assert len(program.splitlines()) <= 300


@pytest.fixture(scope="module")
def page(folder) -> tuple[Path, str]:
    """The bundle that docs/embedding-c.md makes with the shipped model, and what its commands print."""
    pytest.importorskip("onnxruntime_extensions", reason="pip install 'edgemm[tokenizer-graph]'")
    home = folder.parents[1]
    (home / "checkpoints").symlink_to(ROOT / "checkpoints")
    code = snippets("embedding-c.md", "sh")[0].replace("../../.venv/bin/python", sys.executable)
    words, given = ["bash", "-e", "-c", code], with_programs(home)
    done = subprocess.run(words, cwd=home, env=given, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return home / "nano.bundle", done.stdout


@pytest.fixture(scope="module")
def sticker(page):
    """The shipped model, and its runtime."""
    import edgemm

    with edgemm.load(page[0], device="cpu", threads=1) as runtime:
        yield page[0], runtime


@pytest.fixture(scope="module")
def extensions(folder, page) -> dict[str, str]:
    return {"EDGEMM_EXTENSIONS": str(folder / "extensions.so")}  # the page's commands built it


@pytest.mark.slow
@needs_opset_24
def test_the_pages_commands_run(folder, page, sticker):
    reply = sticker[1].generate_text("What is this?", images=[folder / "heart.png"]).text.strip()
    assert reply and page[1].strip().endswith(f"\n{reply}")


@pytest.mark.slow
@needs_opset_24
def test_it_draws_and_says_what_the_runtime_does(folder, sticker, extensions, tmp_path):
    from edgemm.runtimes.schedule import initial_noise

    bundle, runtime = sticker
    loop = runtime.manifest.loops.denoise
    initial_noise(7, *loop.state_shape(loop.height, loop.width)).tofile(tmp_path / "noise.f32")
    drawn = run(folder, bundle, "draw", "red heart", tmp_path / "c.png", tmp_path / "noise.f32", **extensions)
    assert drawn.returncode == 0, drawn.stderr
    wanted = runtime.generate_image("red heart", num_inference_steps=4, seed=7).pixels
    found = np.asarray(Image.open(tmp_path / "c.png"), dtype=np.float32).transpose(2, 0, 1) / 255
    assert np.abs(found - wanted).max() <= 0.5 / 255 + 1e-5
    said = run(folder, bundle, "ask", tmp_path / "c.png", "What is this?", **extensions)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == runtime.generate_text("What is this?", images=[tmp_path / "c.png"]).text.strip()


def changed(manifest: Any, place: str, value: Any) -> None:
    *way, last = place.split(".")
    for name in way:
        manifest = manifest[name]
    manifest[last] = value


@pytest.mark.slow
@needs_opset_24
@pytest.mark.parametrize(
    "verb, place, value, said",
    [
        ("ask", "limits.max_context", 1e300, "'max_context' is no number from 0"),
        ("ask", "limits.max_context", "many", "'max_context' is no number from 0"),
        ("ask", "limits.max_context", 3, "more than the bundle holds"),
        ("ask", "limits.max_image_pixels", 100, "more pixels than the bundle reads"),
        ("ask", "loops.text.background", [255], "'background' is no number from 0 to 255"),
        ("ask", "loops.text.background", [1e9, 0, 0], "'background' is no number from 0 to 255"),
        ("ask", "loops.text", 7, "'background' is missing"),
        ("ask", "one_call.read.variants.cpu.graph", "components/token-cpu.onnx", "reads no pictures"),
        ("ask", "one_call.token.variants.cpu.graph", "components/draw-cpu.onnx", "edgemm_c: error: "),
        ("draw", "limits.max_context", 3, "the prompt takes"),
        ("draw", "one_call.draw.variants.cpu.graph", "components/read-cpu.onnx", "edgemm_c: error: "),
        ("draw", "one_call.draw.variants.cpu.graph", "manifest.json", "not in the bundle"),
        ("draw", "one_call.draw.variants.cpu.graph", 7, "'graph' is no string"),
        ("draw", "one_call.draw.variants", {}, "field 'cpu' is missing"),
        ("draw", "one_call", [], "field 'draw' is missing"),
    ],
)
def test_a_manifest_that_lies_is_one_line(folder, sticker, extensions, tmp_path, verb, place, value, said):
    copy = tmp_path / "b.bundle"
    shutil.copytree(sticker[0], copy, copy_function=os.link)
    manifest = json.loads((copy / "manifest.json").read_text())
    changed(manifest, place, value)
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    words = ("a star", tmp_path / "star.png") if verb == "draw" else (folder / "heart.png", "What is this?")
    found = run(folder, copy, verb, *words, **extensions)
    assert (found.returncode, found.stderr.count("\n"), found.stdout) == (3, 1, ""), found.stderr
    assert said in found.stderr and not (tmp_path / "star.png").exists()


@pytest.mark.slow
@needs_opset_24
def test_on_arm_it_draws_and_says_what_it_does_here(folder, sticker, extensions, tmp_path):
    """An emulated Cortex-A76.  Kernels of int8 round by another rule there: 10 of 255 at most were seen, 51 dB."""
    tools = [tool for tool in ("aarch64-linux-gnu-gcc", "qemu-aarch64-static") if shutil.which(tool) is None]
    if tools or not list(ARM.with_name("arm64-1.32.0").glob("onnxruntime_extensions/*.so")):
        pytest.skip(f"needs {', '.join(tools) or 'make test-arm64'}")
    built = make(folder, "arm64", f"ARM={ARM}")
    assert built.returncode == 0, built.stderr
    given = os.environ | {"EDGEMM_EXTENSIONS": str(folder / "arm64" / "extensions.so"), "QEMU_CPU": "cortex-a76"}

    def arm(*words: object) -> subprocess.CompletedProcess[str]:
        command = ["qemu-aarch64-static", "-L", ARM, folder / "arm64" / "edgemm_c", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=given, timeout=1800)

    places = {"here": tmp_path / "here.png", "arm": tmp_path / "arm.png"}
    assert run(folder, sticker[0], "draw", "red heart", places["here"], 7, **extensions).returncode == 0
    drawn = arm(sticker[0], "draw", "red heart", places["arm"], 7)
    assert drawn.returncode == 0, drawn.stderr
    here, there = (np.asarray(Image.open(place), np.float32) for place in places.values())
    assert 10 * np.log10(255**2 / max(np.square(here - there).mean(), 1e-9)) > 40
    question = (sticker[0], "ask", places["here"], "What is this?")
    assert arm(*question).stdout == run(folder, *question, **extensions).stdout != ""
    spoiled = written(tmp_path / "spoiled")
    weights(b"nombers")(spoiled)
    refused = arm(spoiled, "draw", "a", tmp_path / "none.png")
    assert refused.returncode == 3 and "was altered" in refused.stderr


@pytest.mark.slow
@needs_opset_24
def test_valgrind_finds_nothing_of_ours(folder, sticker, extensions, tmp_path):
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    words = ["valgrind", "-q", "--error-exitcode=9", f"--suppressions={folder / 'onnxruntime.supp'}"]
    program = [folder / "edgemm_c", sticker[0], "draw", "red heart", tmp_path / "c.png"]
    found = subprocess.run(
        [*words, *program], capture_output=True, text=True, env=os.environ | extensions, timeout=1800
    )
    assert found.returncode == 0, found.stderr[-3000:]
