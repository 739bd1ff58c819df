"""How pictures and messages may be given to a model: one or a list, in messages of others' forms, drawn by itself."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

import edgemm
from edgemm.errors import InputError, UsageError
from tests.runtimes.tiny_bundle import build

PIXELS = np.random.default_rng(3).integers(0, 256, (20, 20, 3), dtype=np.uint8)
ASKED = "What is this?"


@pytest.fixture(scope="module")
def png():
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")
    return stream.getvalue()


def said(model, prompt, **given):
    return model.generate_text(prompt, max_new_tokens=6, **given).token_ids


def test_one_picture_is_a_list_of_one(model, png):
    wanted = said(model, ASKED, images=[PIXELS])
    assert wanted != said(model, ASKED)
    for one in (PIXELS, png, io.BytesIO(png), Image.fromarray(PIXELS), PIXELS[None], iter([PIXELS])):
        assert said(model, ASKED, images=one) == wanted
    assert said(model, [{"role": "user", "content": ASKED, "images": PIXELS}]) == wanted


def test_a_model_reads_what_it_drew(model):
    drawn = model.generate_image("a red heart", num_inference_steps=1)
    wanted = said(model, ASKED, images=[drawn.image.to_array()])
    assert said(model, ASKED, images=[drawn]) == wanted
    assert said(model, ASKED, images=drawn.images) == wanted


def test_messages_may_have_the_forms_of_transformers_and_openai(model, png, tmp_path):
    (tmp_path / "a.png").write_bytes(png)
    encoded = base64.b64encode(png).decode()
    url = f"data:image/png;base64,{encoded}"
    wanted = said(model, ASKED, images=[PIXELS])
    for part in (
        {"type": "image", "image": Image.fromarray(PIXELS)},
        {"type": "image", "path": str(tmp_path / "a.png")},
        {"type": "image", "url": url},
        {"type": "image", "base64": encoded},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "input_image", "image_url": url},
    ):
        text = {"type": "text", "text": ASKED}
        for content in ([part, text], [text, part]):
            assert said(model, [{"role": "user", "content": content}]) == wanted
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert said(model, [{"role": "user", "content": parts}]) == said(model, "a\nb")


@pytest.mark.parametrize("part", [{"type": "image"}, {"type": "audio", "audio": "x"}, "text", {"type": "text"}, None])
def test_a_part_that_nobody_knows_is_refused_by_its_place(model, part):
    with pytest.raises(UsageError, match=r"messages\[0\].content\[0\] is .*expected"):
        said(model, [{"role": "user", "content": [part]}])


@pytest.mark.parametrize("prompt", [7, b"x", {"role": "user", "content": "x"}, None])
def test_a_prompt_that_is_none_is_refused(model, prompt):
    with pytest.raises(UsageError, match=r"the prompt is .*expected a string or a list of messages"):
        said(model, prompt)


def test_tokens_are_counted_as_they_are_read(model, tmp_path):
    for images in ([], [PIXELS], [PIXELS, PIXELS]):
        result = model.generate_text(ASKED, images=images, max_new_tokens=1)
        assert model.count_tokens(ASKED, images) == result.metrics.prompt_tokens
    messages = [{"role": "user", "content": [{"type": "image", "path": "nowhere.png"}, {"type": "text", "text": "x"}]}]
    assert model.count_tokens(messages) == model.count_tokens("x", PIXELS)  # no picture is opened


def test_a_bundle_without_eyes_says_so(tmp_path_factory):
    path = build(tmp_path_factory.mktemp("blind") / "blind.bundle", without=("image_encoder",))
    with edgemm.load(path, device="cpu", threads=1) as blind:
        for ask in (blind.count_tokens, blind.generate_text, blind.session().generate_text):
            with pytest.raises(InputError, match="does not read pictures: it has no image_encoder; leave images out"):
                ask(ASKED, images=[PIXELS])
