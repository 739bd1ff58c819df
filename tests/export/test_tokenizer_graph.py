"""Prompts as graphs of onnxruntime-extensions: the ids of the runtime's own prompts, and the text of ids."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.bundle.prompt import Tokenizer, drawing_prompt
from edgemm.errors import UsageError
from edgemm.export.manifest import loops_of
from edgemm.export.tokenizer_graph import tokenizer_graphs
from edgemm.model import checkpoint
from tests.export.nano import needs_opset_24

pytestmark = needs_opset_24
CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
HARD = (
    "naïve café 你好 🎉 привет", "  two  spaces", "a\n\nb\t c", "123456 7", "don't I'll we've", "<|im_start|>user",
    "e\u0301 \u00a0 x", "\u200d👨‍👩‍👧", "\n", "HELLO World's 'S", "¿Qué? ¡Sí!", "한국어 テスト", "…—“q”",
    " \u3000full width", "A\r\nB", "foo_bar-baz/qux", "العربية", "ไทย", "0x1F600 €5.99 50%", "\U0001f1e9\U0001f1ea ½ ²",
)  # fmt: skip


def corpus() -> list[str]:
    texts = resources.files("edgemm.quantize") / "texts"
    lines = [line for name in ("evaluation.txt", "prompts.txt") for line in (texts / name).read_text().splitlines()]
    return [*HARD, *(line for line in lines if line.strip())]


def described(name: str) -> tuple[Any, bytes, Tokenizer]:
    """What tokenizer_graphs asks of a manifest, the file, and what opens it."""
    file = CHECKPOINTS / name / "tokenizer.json"
    loops = loops_of(checkpoint.load(CHECKPOINTS / name))
    return SimpleNamespace(loops=loops, components={"image_encoder": None}), file.read_bytes(), Tokenizer(file)


@pytest.fixture(scope="module")
def told():
    return described("sticker-nano")


@pytest.fixture(scope="module")
def graphs(told):
    extensions = pytest.importorskip("onnxruntime_extensions", reason="pip install 'edgemm[tokenizer-graph]'")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(extensions.get_library_path())
    made = tokenizer_graphs(*told).items()
    return {
        path: onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]) for path, graph in made
    }


def run(session, text: str) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"text": np.array([text], dtype=object)}), strict=True))


def test_drawing_prompts_are_the_runtimes(graphs, told):
    manifest, _, tokenizer = told
    for text in corpus():
        prompt = drawing_prompt(text, manifest.loops.denoise.template, tokenizer) if text.strip() else None
        if prompt is not None:
            found = run(graphs["tokenizer/draw_prompt.onnx"], text)
            assert found["input_ids"][0].tolist() == prompt.input_ids.tolist(), text
            assert found["prompt_length"].tolist() == [len(prompt)]


@pytest.mark.parametrize("name, pictures", [("ask", []), ("ask_about", [None])])
def test_questions_are_the_runtimes(graphs, told, name, pictures):
    manifest, _, tokenizer = told
    for text in corpus()[:40]:
        if text.strip():
            prompt = chat_prompt(as_messages(text, pictures), manifest.loops.text, tokenizer)
            found = run(graphs[f"tokenizer/{name}_prompt.onnx"], text)
            assert {key: array[0].tolist() for key, array in found.items()} == {
                key: getattr(prompt, key).tolist() for key in found
            }, text


def test_ids_are_read_aloud(graphs, told):
    tokenizer = told[2]
    for text in corpus():
        ids = tokenizer.encode(text, special=False)
        said = graphs["tokenizer/decode.onnx"].run(None, {"ids": np.array(ids)})[0]
        assert said[0] == text
    with_stop = np.array([*tokenizer.encode("a star", special=False), 2])  # <|im_end|>
    assert graphs["tokenizer/decode.onnx"].run(None, {"ids": with_stop})[0][0] == "a star"


def test_a_tokenizer_that_does_more_is_refused_by_name():
    with pytest.raises(UsageError, match=r"pre_tokenizer.use_regex False; use a tokenizer library, or ship ids"):
        tokenizer_graphs(*described("micro-shapes"))
