"""Emu3: picture tokens stand among the words, rows end, and guidance leads away from another prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.families.oracle import check_reading, drawn_by_lot, library_of
from tests.families.tiny.pictures import picture
from tests.families.tiny.words import SPOKEN

OTHER = {"seed": 6, "side": 24, "ratio": "1:1", "area": 24 * 24, "codes": 50, "hidden_size": 40}
PROMPT = "a small boat"


@pytest.fixture(scope="module", params=[{}, OTHER], ids=["one", "other"])
def pair(request, exported):
    folder, model = exported("emu3", **request.param)
    return model, *library_of(folder, "Emu3ForConditionalGeneration")


def drawn_by_library(model, library, processor, guidance: float, seed: int, negative: str, **options) -> np.ndarray:
    """(3, H, W) in [0, 1]: its loop, with the rule of allowed tokens that its documentation gives, to the very end."""
    loop, mapping = model.manifest.loops.image_tokens, library.vocabulary_mapping
    rows, columns = loop.rows, loop.columns
    area = {"image_area": rows * columns * 64, "ratio": f"{columns}:{rows}"}
    asked = {"return_for_image_generation": True, "return_tensors": "pt", **area}
    inputs, blank = processor(text=PROMPT, **asked), processor(text=negative, **asked)
    assert [int(size) for size in inputs.pop("image_sizes")[0]] == [rows, columns]
    start, ids_of = inputs["input_ids"].shape[1], processor.tokenizer.convert_tokens_to_ids
    ends = [ids_of("<|extra_201|>"), ids_of("<|image end|>"), ids_of("<eos>")]

    def allowed(batch: int, ids: torch.Tensor) -> list[int]:
        place = len(ids) - start
        if place >= rows * (columns + 1):
            return [ends[place - rows * (columns + 1)]]
        return [mapping.eol_token_id] if place % (columns + 1) == columns else mapping.image_tokens

    order = [mapping.img2bpe[code] for code in range(len(mapping.img2bpe))]
    with drawn_by_lot(seed, order=order), pytest.MonkeyPatch.context() as patch:
        lot = torch.multinomial

        def lot_where_there_is_a_choice(chances: torch.Tensor, num_samples: int) -> torch.Tensor:
            return chances.argmax(-1)[:, None] if (chances > 0).sum() == 1 else lot(chances, num_samples)

        patch.setattr(torch, "multinomial", lot_where_there_is_a_choice)  # a row's end takes none in the runtime
        said = library.generate(
            **inputs,
            max_new_tokens=rows * (columns + 1) + 3,
            eos_token_id=ends[2],
            pad_token_id=0,
            prefix_allowed_tokens_fn=allowed,
            guidance_scale=guidance,
            negative_prompt_ids=blank["input_ids"],
            negative_prompt_attention_mask=blank["attention_mask"],
            **options,
        )[:, start:]
    assert len(set(said[0].tolist())) > 4
    drawn = library.decode_image_tokens(image_tokens=said, height=rows, width=columns)[0].numpy()
    eye = processor.image_processor
    scale, shift = (np.array(values)[:, None, None] for values in (eye.image_std, eye.image_mean))
    return (drawn * scale + shift).clip(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("guidance", "negative"), [(3.0, ""), (2.0, "the lazy dog jumps over it"), (1.0, "")])
def test_sampled_pictures_are_the_librarys(pair, guidance, negative):
    model, library, processor = pair
    wanted = [
        drawn_by_library(model, library, processor, guidance, seed, negative, do_sample=True, top_k=20)
        for seed in (3, 4)
    ]
    more = {"negative_prompt": negative} if negative else {}
    found = model.generate_image(PROMPT, guidance_scale=guidance, seed=3, num_images=2, top_k=20, **more)
    for image, pixels in zip(found.images, wanted):
        assert np.abs(image.pixels - pixels).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_pictures_and_words_are_answered_as_by_the_library(pair, pictures):
    model, library, processor = pair
    side = model.manifest.loops.text.image_size
    shown = [picture(seed, side, side) for seed in range(pictures)]  # other sizes stay as they are in the library
    content = [*[{"type": "image"}] * pictures, {"type": "text", "text": SPOKEN[0]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, images=shown or None, return_tensors="pt")
    if not shown:
        inputs.pop("image_sizes", None)
    check_reading(model, library, inputs, SPOKEN[0], shown)
