"""Janus: what is read, said and drawn is the library's, with guidance and without, one picture or two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList

from edgemm import DrawingOptions
from edgemm.errors import UsageError
from edgemm.runtimes import codes_loop, kv_cache
from tests.families.oracle import check_reading, drawn_by_lot, library_of
from tests.families.tiny.pictures import picture
from tests.families.tiny.words import SPOKEN

OTHER = {"seed": 4, "side": 20, "patch": 4, "codes": 70, "hidden_size": 40, "num_hidden_layers": 3}  # top_k counts
PROMPT = "a small boat"


@pytest.fixture(scope="module", params=[{}, OTHER], ids=["one", "other"])
def pair(request, exported):
    folder, model = exported("janus", **request.param)
    return model, *library_of(folder, "JanusForConditionalGeneration")


def codes_of_library(library, processor, guidance: float, seeds: tuple[int, ...], **options) -> torch.Tensor:
    says = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    text = processor.apply_chat_template(says, add_generation_prompt=True)
    inputs = processor(text=text, generation_mode="image", return_tensors="pt")
    half = LogitsProcessorList([lambda ids, scores: scores.chunk(2)[0]])  # its loop crashes at guidance 1
    options |= {"logits_processor": half} if guidance == 1 else {}
    with drawn_by_lot(*seeds):
        return library.generate(
            **inputs, generation_mode="image", guidance_scale=guidance, num_return_sequences=len(seeds), **options
        )


def pixels_of_library(library, processor, codes: torch.Tensor) -> np.ndarray:
    """(b, 3, H, W) in [0, 1]."""
    drawn = library.decode_image_tokens(codes).detach().numpy()  # (b, H, W, 3)
    eye = processor.image_processor
    return (drawn * np.array(eye.image_std) + np.array(eye.image_mean)).clip(0, 1).transpose(0, 3, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_two_sampled_pictures_are_the_librarys(pair, guidance):
    model, library, processor = pair
    codes = codes_of_library(library, processor, guidance, (7, 8), do_sample=True)
    assert len(set(codes[0].tolist())) > 4 and codes[0].tolist() != codes[1].tolist()
    wanted = pixels_of_library(library, processor, codes)
    found = model.generate_image(PROMPT, guidance_scale=guidance, seed=7, num_images=2)
    assert found.finish_reason == "stop" and [image.seed for image in found.images] == [7, 8]
    for image, pixels in zip(found.images, wanted):
        assert np.abs(image.pixels - pixels).max() <= 1e-4
    alone = model.generate_image(PROMPT, guidance_scale=guidance, seed=8)
    assert np.abs(alone.pixels - wanted[1]).max() <= 1e-4, "a picture depends on what is drawn beside it"


@pytest.mark.slow
def test_the_likeliest_picture_is_the_librarys(pair):
    model, library, processor = pair
    codes = codes_of_library(library, processor, 3.0, (0,), do_sample=False)
    found = model.generate_image(PROMPT, guidance_scale=3, temperature=0)
    assert np.abs(found.pixels - pixels_of_library(library, processor, codes)[0]).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("shapes", [[(40, 40)], [(70, 31), (33, 50)], []])
def test_pictures_and_words_are_answered_as_by_the_library(pair, shapes):
    model, library, processor = pair
    pictures = [picture(seed, *shape) for seed, shape in enumerate(shapes)]
    content = [*[{"type": "image"}] * len(shapes), {"type": "text", "text": SPOKEN[0]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, images=pictures or None, return_tensors="pt")
    check_reading(model, library, inputs, SPOKEN[0], pictures)


@pytest.mark.slow
def test_options_of_the_other_way_of_drawing_are_refused(pair):
    model, *_ = pair
    with pytest.raises(UsageError, match="num_inference_steps: this bundle draws token by token"):
        model.generate_image(PROMPT, num_inference_steps=4)
    with pytest.raises(UsageError, match="negative_prompt"):
        model.generate_image(PROMPT, negative_prompt="ugly")


@pytest.mark.slow
def test_a_long_prompt_is_read_in_pieces_that_cancel_is_heard_between(pair, monkeypatch):
    model, *_ = pair
    whole = model.generate_image(PROMPT, guidance_scale=3, seed=4).pixels
    monkeypatch.setattr(kv_cache, "PIECE", 5)
    monkeypatch.setattr(codes_loop, "PIECE", 5)
    assert np.abs(model.generate_image(PROMPT, guidance_scale=3, seed=4).pixels - whole).max() <= 1e-4
    asked = []
    (result,) = model._image.start(PROMPT, DrawingOptions())(lambda: asked.append(1) or len(asked) > 1)
    assert (result.finish_reason, result.images, len(asked)) == ("cancelled", (), 2)


@pytest.mark.slow
def test_a_cancelled_drawing_gives_no_picture(pair):
    model, *_ = pair
    stream = model.stream_image(PROMPT)
    first = next(stream)
    model.cancel()
    *_, last = stream
    assert first.step == 1 and last.finish_reason == "cancelled" and not last.images
