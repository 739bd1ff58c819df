"""The public face: what `edgemm` hands out, what a type checker sees of it, and how results look in a shell."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest

import edgemm
from edgemm.runtimes.image_call import ImageMetrics, ImageResult, Picture
from edgemm.runtimes.interleaved import InterleavedResult
from edgemm.runtimes.text_call import TextMetrics, TextResult

ROOT = Path(__file__).resolve().parent.parent

SAMPLE = """
import edgemm
from edgemm import DenoiseProgress, ImageResult, InterleavedResult, Model, Picture, Session, TextChunk, TextResult

def right(model: Model) -> tuple[TextResult, Picture]:
    options: edgemm.TextKeywords = {"temperature": 0.5}
    for chunk in model.stream_text([{"role": "user", "content": "x"}], **options):
        piece: TextChunk = chunk
    with model.session(system="short") as chat:
        told: Session = chat
        chat.generate_text("and?", images=["a.png"], prompt_lookup_num_tokens=4, stop=["."])
    for event in model.stream_image("a heart", preview=True):
        if isinstance(event, DenoiseProgress):
            print(event.step)
        else:
            whole: ImageResult = event
    for event in model.generate("x", drawing={"seed": 1}, max_images=2, max_new_tokens=9):
        last: TextChunk | DenoiseProgress | ImageResult | InterleavedResult = event
    return model.generate_text("x", max_new_tokens=2, seed=None), model.generate_image("x", num_images=2).image

def wrong(model: Model) -> None:
    model.generate_text("x", max_tokens=2)
    model.generate_text("x", max_new_tokens="2")
    model.generate_text(7)
    model.generate_texts("x", temprature=1.0)
    model.generate_image("x", steps=4)
    model.generate("x", drawing={"sed": 1})
    model.session().stream_text("x", guess_ahead=4)
    model.talking
    model.generate_text("x").tokens
    edgemm.load("x", devise="cpu")
"""


def test_every_public_name_is_handed_out_once():
    assert len(set(edgemm.__all__)) == len(edgemm.__all__)
    for name in edgemm.__all__:
        assert getattr(edgemm, name) is not None
        assert name in dir(edgemm)


def test_names_that_are_fetched_late_are_those_that_type_checkers_see():
    tree = ast.parse(Path(edgemm.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom) and node.module.startswith("edgemm")]
    seen = {alias.name: node.module for node in imports for alias in node.names if alias.name in edgemm.__all__}
    assert seen == edgemm.LAZY
    assert all(getattr(importlib.import_module(module), name) for name, module in seen.items())


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Modell'"):
        edgemm.Modell  # noqa: B018
    assert not hasattr(edgemm, "talking")


def test_events_and_results_may_be_imported_by_name_without_a_backend():
    code = (
        "from edgemm import Model, TextResult, DenoiseProgress, UsageError; import sys; "
        "assert not {'torch', 'onnxruntime', 'tokenizers', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_type_checker_takes_the_right_calls_and_refuses_each_wrong_one(tmp_path):
    pytest.importorskip("pyright")
    sample = tmp_path / "app.py"
    sample.write_text(SAMPLE)
    settings = {"include": ["."], "extraPaths": [str(ROOT)], "pythonVersion": "3.10", "typeCheckingMode": "basic"}
    settings |= {"reportMissingImports": False, "reportUnusedExpression": False}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    told = json.loads(ran.stdout)["generalDiagnostics"]
    lines = SAMPLE.splitlines()
    refused = {lines[each["range"]["start"]["line"]].strip() for each in told if each["severity"] == "error"}
    wrong = [line.strip() for line in SAMPLE.partition("def wrong")[2].splitlines()[1:]]
    assert refused == set(wrong) and len(wrong) == 10


METRICS = TextMetrics(*[0] * len(typing.get_type_hints(TextMetrics)))


def test_a_result_is_one_short_line_in_a_shell():
    pixels = np.zeros((3, 48, 64), dtype=np.float32)
    picture = Picture(pixels, 7)
    assert repr(picture) == "Picture(64 x 48, seed=7)"
    metrics = ImageMetrics(*[0] * 8)
    drawn = ImageResult((picture, Picture(pixels, 8)), "stop", metrics)
    assert repr(drawn) == "ImageResult([Picture(64 x 48, seed=7), Picture(64 x 48, seed=8)], finish_reason='stop')"
    reply = TextResult("a heart", (1, 2), "stop", None, METRICS)
    assert repr(reply) == "TextResult('a heart', 2 tokens, finish_reason='stop')"
    whole = InterleavedResult(("Here:\n", picture), ("a heart",), (1,), "length")
    assert repr(whole) == r"InterleavedResult(['Here:\n', Picture(64 x 48, seed=7)], finish_reason='length')"


def test_a_long_text_is_clipped():
    told = repr(TextResult("long " * 1000, tuple(range(1000)), "length", None, METRICS))
    assert len(told) < 120 and "..." in told and "1000 tokens" in told
