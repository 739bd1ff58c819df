"""Whole loops of an exported bundle against torch: what it says, what it draws, and what matters to it."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

import edgemm
from edgemm.bundle.picture import load_picture, seeded_picture
from edgemm.export import manifest as manifest_of
from edgemm.runtimes import schedule
from edgemm.verify.export_native import torch_answers
from edgemm.verify.loops import compare_loops
from tests.export.nano import needs_opset_24

pytestmark = needs_opset_24

PIXEL_TOLERANCE = 1e-4  # over 6 steps of float32
PROMPTS = ("red heart", "a blue whale under a yellow moon")
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def drawn(model):
    """What torch draws of a prompt, with a guidance and a seed."""

    def run(prompt: str, guidance: float = 2.0, seed: int = 1) -> np.ndarray:
        tokens = model.config.image_tokens
        noise = schedule.initial_noise(seed, tokens.token_count, tokens.token_width)
        return model.draw([prompt], torch.from_numpy(noise)[None], model.with_sampler(guidance_scale=guidance))[
            0
        ].numpy()

    return run


def said(model, text, seeds):
    """Torch's greedy reply about pictures of these seeds, without what comes after a stop token."""
    size = model.config.vision.image_size
    pictures = [load_picture(seeded_picture(seed, size), size, model.config.background, 10**6) for seed in seeds]
    pixels = torch.from_numpy(np.stack(pictures)) if pictures else None
    return tuple(model.generate(text, pixels, NEW_TOKENS)[0])


@pytest.mark.parametrize("seeds", [(), (1,), (2, 3)], ids=["no picture", "a picture", "two pictures"])
@pytest.mark.parametrize("text", ["What is this?", "Count from one to ten."])
def test_every_greedy_token_is_torchs(runtimes, model, text, seeds):
    images = [seeded_picture(seed, model.config.vision.image_size) for seed in seeds]
    found = runtimes["fp32"].generate_text(text, images=images, max_new_tokens=NEW_TOKENS).token_ids
    assert found == said(model, text, seeds)
    assert len(set(found)) > NEW_TOKENS // 3, "a model that repeats itself would prove nothing"


def test_pictures_matter(model):
    """The other way round: this model does look at what it is shown."""
    replies = {said(model, "What is this?", seeds) for seeds in [(), (1,), (2,), (2, 3), (3, 2)]}
    assert len(replies) == 5


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.0, 4.5])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_drawn_pixels_are_torchs(runtimes, drawn, prompt, guidance):
    found = runtimes["fp32"].generate_image(prompt, guidance_scale=guidance, seed=1).pixels
    np.testing.assert_allclose(found, drawn(prompt, guidance), atol=PIXEL_TOLERANCE)


def test_the_prompt_changes_the_pixels_as_it_does_in_torch(runtimes, drawn):
    """A bundle whose prefix gets lost on the way draws something, too."""
    wanted = drawn(PROMPTS[0]) - drawn(PROMPTS[1])
    found = np.subtract(*(runtimes["fp32"].generate_image(prompt, seed=1).pixels for prompt in PROMPTS))
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(found, wanted, atol=2 * PIXEL_TOLERANCE)


@pytest.mark.parametrize("scale", [1.0, 4.5])
def test_guidance_changes_the_pixels_as_it_does_in_torch(runtimes, drawn, scale):
    """A bundle whose unconditional prefix gets lost on the way draws something, too."""
    wanted = drawn(PROMPTS[0], scale) - drawn(PROMPTS[0], 2.0)
    runtime = runtimes["fp32"]
    found = np.subtract(*(runtime.generate_image(PROMPTS[0], guidance_scale=g, seed=1).pixels for g in (scale, 2.0)))
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(found, wanted, atol=2 * PIXEL_TOLERANCE)


@pytest.mark.parametrize(("precision", "psnr_db", "alike"), [("int8", 35, 0.95), ("int4", 24, 0.6)])
def test_quantized_bundles_draw_nearly_the_same_and_still_listen(runtimes, drawn, precision, psnr_db, alike):
    """The change that another prompt or guidance makes points the same way (its cosine to torch's) as in torch."""

    def bundle_draws(prompt, guidance):
        return runtimes[precision].generate_image(prompt, guidance_scale=guidance, seed=1).pixels

    first, *others = [(PROMPTS[0], 2.0), (PROMPTS[1], 2.0), (PROMPTS[0], 1.0)]
    assert -10 * np.log10(np.square(bundle_draws(*first) - drawn(*first)).mean()) > psnr_db
    for other in others:
        found, wanted = bundle_draws(*first) - bundle_draws(*other), drawn(*first) - drawn(*other)
        assert (found * wanted).sum() / np.sqrt(np.square(found).sum() * np.square(wanted).sum()) > alike


@pytest.mark.parametrize(("precision", "floor"), [("int8", 0.9), ("int4", 0.5)])
def test_quantized_bundles_choose_mostly_the_same_tokens(runtimes, model, precision, floor):
    from edgemm.verify.loops import compare_loops
    from edgemm.verify.parity import read_recorded

    recorded = read_recorded(runtimes[precision].bundle)
    shares = [c.value for c in compare_loops(runtimes[precision], recorded) if c.measure == "choices"]
    assert len(shares) == 3 and np.mean(shares) > floor


def test_an_edit_is_torchs_and_is_part_of_the_gate(bundles, model, tmp_path, monkeypatch):
    """The graphs are those of a model that only draws; what is new is the prefix: the flag alone makes the bundle."""
    path = shutil.copytree(bundles["fp32"], tmp_path / "edits.bundle")
    document = json.loads((path / "manifest.json").read_text())
    document["loops"]["denoise"]["edits"] = True
    (path / "manifest.json").write_text(json.dumps(document))
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, edits=True))
    assert manifest_of._denoise_loop(model).edits
    recorded = torch_answers(model, "fp32", 2)
    assert recorded.draws[-1].picture_seed is not None
    with edgemm.load(path, device="cpu", threads=1) as runtime:
        compared = {comparison.what: comparison for comparison in compare_loops(runtime, recorded)}
        edit = next(comparison for what, comparison in compared.items() if "from a picture" in what)
        assert edit.passed and all(comparison.passed for comparison in compared.values())
        case, picture = recorded.draws[-1], seeded_picture(7, 16)
        other = runtime.generate_image(
            case.prompt, num_inference_steps=case.steps, guidance_scale=case.guidance, seed=case.seed, image=picture
        )
    assert np.abs(other.pixels - recorded.pixels[-1]).max() > 1e-3, "another picture, another drawing"
