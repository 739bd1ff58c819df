"""The examples run as they stand, on a tiny bundle."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runtimes.tiny_bundle import build
from tests.runtimes.tiny_weights import TINY
from tests.serve.conftest import running

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return build(tmp_path_factory.mktemp("examples") / "tiny.bundle")


@pytest.fixture(scope="module")
def model(bundle):
    import edgemm

    with edgemm.load(bundle, device="cpu", threads=1) as opened:
        yield opened


def picture(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_the_camera_says_what_is_new(bundle, model, tmp_path, capsys):
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    example("camera").main([str(bundle), "--frames", str(tmp_path / "*.png")])
    said = capsys.readouterr().out
    with model.watch("What is this?", window=8, every=1, max_new_tokens=12) as stream:
        for number in range(3):
            stream.push(tmp_path / f"{number}.png")
    assert stream.events and all(event.text in said for event in stream.events)
    assert said.count(" ms)") == len(stream.events)


def test_a_folder_is_shown_in_the_order_of_its_numbers_and_an_empty_one_is_refused(bundle, tmp_path, capsys):
    camera = example("camera")
    for name in ("10.png", "2.png", "1.png"):
        picture(tmp_path / name, 0)
    shown = [(t, Path(path).name) for t, path in camera.from_files(str(tmp_path / "*.png"))]
    assert shown == [(0.0, "1.png"), (1.0, "2.png"), (2.0, "10.png")]
    with pytest.raises(SystemExit):
        camera.main([str(bundle), "--frames", str(tmp_path / "*.jpg")])
    assert "there is no picture" in capsys.readouterr().err


def test_the_chat_keeps_its_session_shows_and_draws(bundle, model, tmp_path, monkeypatch, capsys):
    shown = picture(tmp_path / "shown.png", 7)
    lines = iter(["hello", str(shown), "what is it?", "/back", "/draw a heart"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or (_ for _ in ()).throw(EOFError))
    example("chat").main([str(bundle)])
    said = capsys.readouterr().out
    chat = model.session()
    for content, images in (("hello", []), ("what is it?", [shown])):
        assert chat.generate_text(content, images).text in said
    assert "▀" in said


def test_the_web_handler_streams_text_draws_and_refuses(model):
    httpx = pytest.importorskip("httpx", reason="needs the extras serve and dev")
    pytest.importorskip("starlette", reason="needs the extras serve and dev")
    with running(example("web_handler").application(model)) as url:
        said = httpx.get(f"{url}/say", params={"prompt": "hello"})
        assert (said.status_code, said.text) == (200, model.generate_text("hello", max_new_tokens=64).text)
        drawn = np.asarray(Image.open(io.BytesIO(httpx.get(f"{url}/draw", params={"prompt": "a heart"}).content)))
        assert np.array_equal(drawn, model.generate_image("a heart").image.to_array())
        refused = httpx.get(f"{url}/draw")
        assert (refused.status_code, refused.text) == (400, "prompt is empty, expected some text\n")
        assert httpx.get(f"{url}/nothing").status_code == 404
        asked = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
        reply = httpx.post(f"{url}/ai/v1/chat/completions", json=asked).json()
        assert reply["choices"][0]["message"]["content"] == model.generate_text("hello", max_new_tokens=5).text


def test_the_sticker_sheet_has_a_row_an_idea(bundle, model, tmp_path):
    (tmp_path / "ideas.txt").write_text("a heart\n\na fish\n")
    out = tmp_path / "sheet.png"
    example("stickers").main([str(bundle), str(tmp_path / "ideas.txt"), "--output", str(out), "--each", "3"])
    sheet = np.asarray(Image.open(out))
    size = TINY.draw_size
    assert sheet.shape == (4 + 2 * (size + 4), 4 + 3 * (size + 4), 3)
    second = sheet[4 : 4 + size, 8 + size : 8 + 2 * size]
    assert np.array_equal(second, model.generate_image("a heart", seed=1).image.to_array())
