"""Mobile-O: what its own code read, said, drew and edited, by our modules and by the exported bundle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from edgemm.bundle.picture import load_picture
from edgemm.families import mobileo
from edgemm.families.folder import find_foreign
from edgemm.families.hf_checkpoint import Checkpoint
from edgemm.families.sana import LatentDecoder, SanaConditioner, SanaDenoiser
from tests.families.golden import Cases, worst

READ, DRAWN = ("read0", "read1", "read2"), ("draw0", "draw1", "edit0")
RUNS = [(name, run) for name in DRAWN for run in ("run0", "run1", "run2") if (name, run) < ("edit0", "run1")]


@pytest.fixture(scope="module")
def cases():
    return Cases("mobileo")


@pytest.fixture(scope="module")
def checkpoint(cases):
    torch.set_grad_enabled(False)
    found = find_foreign(cases.folder / "checkpoint")
    assert found is not None
    found = dataclasses.replace(found, others={"sana": cases.folder / "sana"})
    yield Checkpoint(found.folder, found.architecture, mobileo.open_model(found))
    torch.set_grad_enabled(True)


def states(cases, checkpoint, name: str):
    """What the language model says of a prompt: logits (s, v) and the connector's hidden states (layers, s, w)."""
    model, ids = checkpoint.model, cases.tensor(f"{name}.input_ids")[0]
    x = model.model.embed_tokens(ids.clamp(min=0))
    if f"{name}.pixel_values" in cases:
        tokens, place = mobileo.Eye(model.model)(cases.tensor(f"{name}.pixel_values"))[0], int((ids < 0).nonzero())
        x = torch.cat([x[:place], tokens, x[place + 1 :]])
    answer = model(inputs_embeds=x[None], output_hidden_states=True)
    count = len(model.model.diffusion_connector.fusion.layer_weights)
    return answer.logits[0], torch.stack(answer.hidden_states[-count:])[:, 0]


@pytest.mark.parametrize("name", READ)
def test_pictures_and_words_are_answered_as_recorded(cases, checkpoint, name):
    if f"{name}.picture" in cases:
        whole, picture = checkpoint.model.model, cases.tensor(f"{name}.picture").numpy()
        pixels = cases.tensor(f"{name}.pixel_values")
        side = pixels.shape[-1]
        assert worst(load_picture(picture, side, (0, 0, 0), fit="pad_first"), pixels[0]) <= 1e-6
        features = whole.vision_tower.vision_tower.model(pixels)
        assert worst(features, cases.tensor(f"{name}.vision_features")) <= 2e-5
        assert worst(whole.mm_projector(features), cases.tensor(f"{name}.projected")) <= 2e-5
    logits, _ = states(cases, checkpoint, name)
    recorded = cases.tensor(f"{name}.all_logits")
    assert worst(logits[-len(recorded) :], recorded) <= 5e-4


@pytest.mark.parametrize("name", DRAWN)
def test_prompts_become_the_recorded_conditions(cases, checkpoint, name):
    whole = checkpoint.model.model
    _, hidden = states(cases, checkpoint, name)
    assert worst(hidden, cases.tensor(f"{name}.hidden_states")) <= 5e-4
    hidden = cases.tensor(f"{name}.hidden_states")
    count, spare = hidden.shape[1], 5
    filled = torch.nn.functional.pad(hidden, (0, 0, 0, spare), value=9.0)  # slots that nobody wrote
    mask = (torch.arange(count + spare) < count)[None, :, None].float()
    connector = whole.diffusion_connector.fusion
    for states_, key in ((filled, "condition"), (torch.zeros_like(filled), "condition_unconditional")):
        found = connector([layer[None] for layer in states_], mask)[0, :count]
        assert worst(found, cases.tensor(f"{name}.{key}")) <= 1e-4
    rows = torch.stack([torch.zeros_like(filled), filled], dim=1)[:, :, None]  # (layers, 2, 1, slots, w)
    _, *pairs = SanaConditioner(connector, whole.dit)(*rows, torch.tensor([count, count]))
    for block, both in enumerate(zip(pairs[::2], pairs[1::2])):
        for part, found in zip(("key", "value"), both):
            found = found[:, :, :count].transpose(1, 2).flatten(2)
            assert worst(found, cases.tensor(f"{name}.cross_{part}.{block}")) <= 1e-4


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_each_step_says_what_was_recorded(cases, checkpoint, name, run):
    whole, at = checkpoint.model.model, f"{name}.{run}"
    hidden = cases.tensor(f"{name}.hidden_states")
    rows = torch.stack([torch.zeros_like(hidden), hidden], dim=1)[:, :, None]
    conditioner = SanaConditioner(whole.diffusion_connector.fusion, whole.dit)
    prefix, denoiser = conditioner(*rows, torch.tensor([hidden.shape[1]] * 2)), SanaDenoiser(whole.dit)
    latents, after = cases.tensor(f"{name}.noise"), cases.tensor(f"{at}.latents")
    for step, time in enumerate(cases.tensor(f"{at}.timesteps")):
        found = denoiser(latents.expand(2, -1, -1, -1), time.float().expand(2), *prefix)
        assert worst(found[1], cases.tensor(f"{at}.v_cond")[step]) <= 5e-4
        if f"{at}.v_uncond" in cases:
            assert worst(found[0], cases.tensor(f"{at}.v_uncond")[step]) <= 5e-4
        latents = after[step : step + 1]
    pixels = LatentDecoder(whole.vae)(latents)[0].clamp(0, 1)
    if f"{at}.pixels" in cases:
        assert worst(pixels, cases.tensor(f"{at}.pixels")) <= 1e-5
    image = (pixels * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(image - cases.tensor(f"{at}.image").numpy()).max() <= 1


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_the_loop_in_torch_draws_what_was_recorded(cases, checkpoint, name, run):
    """The oracle of the export, held against the published code."""
    at = f"{name}.{run}"
    image = cases.tensor(f"{name}.picture").numpy() if f"{name}.picture" in cases else None
    height, width, _ = cases.tensor(f"{at}.image").shape
    steps, guidance = int(cases.number(f"{at}.steps")), cases.number(f"{at}.guidance")
    drawn = mobileo.Drawn(
        cases.text(f"{name}.prompt"), cases.tensor(f"{name}.noise")[0], steps, guidance, height, width, image
    )
    pixels = mobileo.draw(checkpoint, drawn).clamp(0, 1)
    found = (pixels * 255).round().permute(1, 2, 0)
    assert worst(found, cases.tensor(f"{at}.image").double()) <= 1
