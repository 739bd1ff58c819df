"""Drawing from a picture: its tokens stand in the prefix, before the words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import edgemm
from edgemm.bundle.bundle import Manifest
from edgemm.bundle.manifest import Loops
from edgemm.bundle.picture import load_picture
from edgemm.bundle.prompt import PictureTokens, drawing_prompt, negative_drawing_prompt
from edgemm.errors import BundleError, InputError
from edgemm.runtimes import schedule
from edgemm.runtimes.draw import denoise_request
from edgemm.runtimes.image_call import DrawingOptions
from tests.runtimes import reference
from tests.runtimes.test_denoise_loop import TOLERANCE
from tests.runtimes.tiny_bundle import SKIP, build, denoise_loop, text_loop
from tests.runtimes.tiny_weights import TINY

HALVES = np.repeat(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8), 4, axis=1).repeat(8, axis=0)  # red, blue


@pytest.fixture(scope="module")
def editor(tmp_path_factory, weights):
    loops = Loops(text_loop(), denoise_loop(edits=True))
    path = build(tmp_path_factory.mktemp("bundles") / "edits.bundle", weights, loops)
    with edgemm.load(path, device="cpu", threads=1) as opened:
        yield opened


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_an_edit_is_the_references(editor, weights, scale):
    result = editor.generate_image("make it blue", image=HALVES, guidance_scale=scale, seed=3)
    template = denoise_loop().template
    pixels = load_picture(HALVES, TINY.read_size, (255, 255, 255))
    wanted = reference.draw(
        weights,
        drawing_prompt("make it blue", template, editor.tokenizer, PictureTokens(TINY.image_tokens)),
        negative_drawing_prompt("", template, editor.tokenizer),
        SKIP,
        schedule.initial_noise(3, TINY.token_count, TINY.token_width),
        *(4, scale, (0.0, 1.0), 2.0),
        reference.image_encoder(weights, pixels),
    )
    assert np.abs(result.pixels - wanted).max() < TOLERANCE * scale
    assert result.metrics.image_encode_ms > 0


def test_the_picture_and_the_words_both_matter(editor):
    edits = [("make it blue", HALVES), ("make it blue", HALVES[:, ::-1]), ("make it round", HALVES), ("x", None)]
    drawn = [editor.generate_image(words, image=image, seed=1).pixels for words, image in edits]
    for other in drawn[1:]:
        assert np.abs(drawn[0] - other).max() > 1e-3


def test_a_picture_drawn_in_a_reply_may_be_an_edit(editor):
    grammar = 'start: "<draw>blue</draw>"'
    *_, reply = editor.generate("x", grammar=grammar, drawing={"image": HALVES, "seed": 5})
    assert (reply.images[0].pixels == editor.generate_image("blue", image=HALVES, seed=5).pixels).all()


def test_a_bundle_that_was_not_taught_to_edit_says_so(model):
    with pytest.raises(InputError, match="does not edit pictures: its model was trained to draw from words alone"):
        model.stream_image("make it blue", image=HALVES)


def test_a_prompt_has_room_for_its_picture(editor):
    limits = dataclasses.replace(editor.manifest.limits, max_context=30)
    loop, tokenizer = editor.manifest.loops.denoise, editor.tokenizer
    length = len(drawing_prompt("blue", loop.template, tokenizer, PictureTokens(TINY.image_tokens)))
    assert length == len(drawing_prompt("blue", loop.template, tokenizer)) + TINY.image_tokens
    with pytest.raises(InputError, match=f"takes {length} tokens, this bundle holds at most {length - 1}"):
        short = dataclasses.replace(limits, max_context=length - 1)
        denoise_request(DrawingOptions(), "blue", loop, short, tokenizer, editor.manifest.loops.text)


def test_a_manifest_that_edits_needs_an_image_encoder(editor):
    loops = dataclasses.replace(editor.manifest.loops, text=None)
    with pytest.raises(BundleError, match="pictures to edit need an image_encoder"):
        dataclasses.replace(editor.manifest, loops=loops)
    assert Manifest.from_json(editor.manifest.to_json()) == editor.manifest
