"""BAGEL: what its own code read, said, drew and edited, by our modules and by the exported bundle."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from edgemm.families import bagel
from edgemm.families.bagel_answers import Context, guided
from edgemm.families.bagel_graphs import Denoiser, ImageDecoder, ImageEncoder, LatentEncoder, as_places, as_tokens
from edgemm.families.folder import find_foreign
from tests.families.golden import Cases, worst

DRAWN = ("draw0", "draw1", "edit0")
SLOTS = 128


@pytest.fixture(scope="module")
def cases():
    return Cases("bagel")


@pytest.fixture(scope="module")
def model(cases):
    torch.set_grad_enabled(False)
    found = find_foreign(cases.folder / "checkpoint")
    assert found is not None
    yield bagel.open_model(found)
    torch.set_grad_enabled(True)


@pytest.fixture(scope="module")
def words(cases) -> tuple[int, int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cases.folder / "checkpoint")
    return tuple(tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"]))


def picture(cases, name: str) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return (cases.tensor(name)[None] + 1) / 2


def grid(rows: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Tokens (h w, p) as latents (1, p, h, w)."""
    return rows.T.reshape(1, -1, height, width)


@pytest.mark.parametrize("name", ["read0", "read1", "read2"])
def test_pictures_and_words_are_answered_as_recorded(cases, model, words, name):
    context = Context(model, SLOTS)
    if f"{name}.vit_pixels" in cases:
        pixels = picture(cases, f"{name}.vit_pixels")
        features = model.vit_model.vision_model(2 * pixels - 1)[0]
        assert worst(features, cases.tensor(f"{name}.vision_features")) <= 2e-5
        assert worst(ImageEncoder(model)(pixels)[0], cases.tensor(f"{name}.image_tokens")) <= 2e-5
        context.picture(pixels, *words)
    context.text(cases.tensor(f"{name}.text_ids").tolist())
    assert (context.used, context.place) == (cases.number(f"{name}.kv_len"), cases.number(f"{name}.next_position"))
    ids = cases.tensor(f"{name}.greedy_ids").tolist()
    logits = torch.stack([context.text([token]) for token in ids])
    assert worst(logits, cases.tensor(f"{name}.greedy_logits")) <= 5e-5
    assert logits.argmax(-1).tolist()[:-1] == ids[1:]


def contexts(cases, model, words, name: str) -> list[Context]:
    """With everything, without the text, and of an edit without the picture."""
    ids = cases.tensor(f"{name}.text_ids").tolist()
    made = [Context(model, SLOTS) for _ in range(3 if name.startswith("edit") else 2)]
    if name.startswith("edit"):
        mean, deviation = LatentEncoder(model)(picture(cases, f"{name}.vae_pixels"))
        (noise,) = as_tokens(cases.tensor(f"{name}.posterior_noise"), model.sizes.latent_patch)
        clean = mean + deviation * noise
        assert worst(as_places(clean, model.sizes.latent_patch), cases.tensor(f"{name}.vae_latent")) <= 5e-5
        for context in made[:2]:
            context.latents(clean, Denoiser(model, *words))
            context.picture(picture(cases, f"{name}.vit_pixels"), *words)
        assert made[1].used == cases.number(f"{name}.text_free_kv_len")
        assert made[1].place == cases.number(f"{name}.text_free_position")
        made[2].text(ids)
    made[0].text(ids)
    return made


@pytest.mark.parametrize("name", DRAWN)
def test_prompts_leave_the_recorded_keys_and_values(cases, model, words, name):
    context = contexts(cases, model, words, name)[0]
    assert (context.used, context.place) == (cases.number(f"{name}.kv_len"), cases.number(f"{name}.position"))
    for layer in range(model.sizes.depth):
        for part, cache in zip(("key", "value"), context.past[2 * layer : 2 * layer + 2]):
            kept = cache[0, :, : context.used].transpose(0, 1)  # (slots, g, d)
            assert worst(kept, cases.tensor(f"{name}.prefix_{part}.{layer}")) <= 5e-5


@pytest.mark.parametrize(
    ("name", "run"), [("draw0", "run0"), ("draw0", "run1"), ("draw0", "run2"), ("draw0", "run3"), ("draw1", "run0"),
                      ("draw1", "run1"), ("draw1", "run2"), ("draw1", "run3"), ("edit0", "run0")]
)  # fmt: skip
def test_latents_go_the_recorded_way(cases, model, words, name, run):
    made, at = contexts(cases, model, words, name), f"{name}.{run}"
    if f"{at}.t" not in cases:
        pytest.skip(f"{at} was not recorded")
    denoiser, prefixes = Denoiser(model, *words), [context.prefix() for context in made]
    height, width, _ = cases.tensor(f"{at}.image").shape
    size = height // model.sizes.cell, width // model.sizes.cell
    latents, bound = grid(cases.tensor(f"{name}.noise"), *size), 2e-4 if len(made) == 3 else 1e-4
    low, high = cases.tensor(f"{at}.cfg_interval").tolist()
    scales = (cases.number(f"{at}.cfg_text_scale"), cases.number(f"{at}.cfg_img_scale"))
    renorm, least = cases.text(f"{at}.cfg_renorm_type"), cases.number(f"{at}.cfg_renorm_min")
    times = torch.linspace(1, 0, int(cases.number(f"{at}.num_timesteps")))
    times = cases.number(f"{at}.timestep_shift") * times / (1 + (cases.number(f"{at}.timestep_shift") - 1) * times)
    assert worst(times[:-1], cases.tensor(f"{at}.t")) <= 1e-6
    for step, (now, later) in enumerate(pairwise(times)):
        found = [denoiser(latents, now[None], *prefix)[0][0].flatten(1).T for prefix in prefixes]
        assert worst(found[0], cases.tensor(f"{at}.v_cond")[step]) <= bound
        if low < now <= high and scales[0] > 1:
            assert worst(found[1], cases.tensor(f"{at}.v_text_free")[step]) <= bound
            if len(made) == 3:
                assert worst(found[2], cases.tensor(f"{at}.v_image_free")[step]) <= bound
            velocity = guided(found[0], found[1], found[2 if len(made) == 3 else 0], scales, renorm, least)
        else:
            velocity = found[0]
        latents = latents - (now - later) * grid(velocity, *size)
        assert worst(latents[0].flatten(1).T, cases.tensor(f"{at}.latents")[step]) <= bound
    pixels = ImageDecoder(model)(grid(cases.tensor(f"{at}.latents")[-1], *size))[0]
    if f"{at}.pixels" in cases:
        assert worst(2 * pixels - 1, cases.tensor(f"{at}.pixels")) <= 1e-5
    image = (pixels.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0)  # cut, not rounded
    assert np.abs(image.numpy().astype(int) - cases.tensor(f"{at}.image").numpy()).max() <= 1
