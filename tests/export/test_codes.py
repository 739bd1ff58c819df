"""A model of codes as a bundle: what the thin runtime reads, says and draws is what torch does, in the same two loops
that serve foreign families."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import edgemm
from edgemm.bundle.picture import load_picture
from edgemm.cli.main import main
from edgemm.errors import ResourceError, UsageError
from edgemm.evaluate.checkpoint_subject import by_lot
from edgemm.model.codes import write_codes
from edgemm.runtimes.cache_budget import WORK_BYTES
from edgemm.runtimes.codes_loop import BLOCK, image_prompt
from edgemm.verify.export_native import export_bundle
from tests.engines.tiny_engines import needs_rtx
from tests.export.nano import needs_opset_24
from tests.model.tiny_codes import random_codes

pytestmark = needs_opset_24
PROMPTS = ("a red circle", "two small stars")
PIXELS = 1e-4


@pytest.fixture(scope="module")
def model():
    return random_codes()


def test_prompts_of_unequal_length_draw_side_by_side_what_they_draw_alone(model):
    together = write_codes(model, PROMPTS, guidance=3.0)
    alone = torch.cat([write_codes(model, [prompt], guidance=3.0) for prompt in PROMPTS])
    assert torch.equal(together, alone)
    assert len(together.unique()) > 4, "weights that always say the same prove nothing"
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, write_codes(model, PROMPTS, guidance=1.0))


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_two_sampled_pictures_are_torchs(model, runtime, guidance):
    sampler = model.with_sampler(guidance_scale=guidance)
    found = runtime.generate_image(PROMPTS[0], guidance_scale=guidance, seed=7, num_images=2)
    wanted = model.draw_codes([PROMPTS[0]] * 2, sampler, by_lot(sampler, (7, 8))).numpy()
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1
    for picture, pixels in zip(found.images, wanted, strict=True):
        assert np.abs(picture.pixels - pixels).max() <= PIXELS


def test_what_would_change_nothing_is_refused(runtime):
    with pytest.raises(UsageError, match="negative_prompt needs guidance, guidance_scale is 1"):
        runtime.generate_image(PROMPTS[0], negative_prompt=PROMPTS[1], guidance_scale=1)
    with pytest.raises(UsageError, match="one_call: this bundle draws token by token"):
        runtime.generate_image(PROMPTS[0], one_call=True)


def test_a_memory_limit_holds_what_pictures_of_codes_take(bundle, runtime):
    """Of four that would be drawn side by side there is room for two: the others come after them, and are the same."""
    loop, plan = runtime.manifest.loops.image_tokens, runtime.memory
    count = len(image_prompt(PROMPTS[0], loop, runtime.tokenizer)) + loop.length
    slots = 2 * BLOCK * -(-count // BLOCK)  # of a picture and its unconditional row
    limit_mb = (plan.weights_bytes + WORK_BYTES + 2.5 * slots * plan.slot_bytes) / 1e6
    with edgemm.load(bundle, device="cpu", memory_limit_mb=limit_mb) as limited:
        budget, taken, stream = limited._engines.budget, [], limited.stream_image(PROMPTS[0], seed=7, num_images=4)
        *_, drawn = (taken.append(budget.taken_bytes) or event for event in stream)
        assert max(taken) == 2 * slots * plan.slot_bytes < budget.most_bytes
        alone = [runtime.generate_image(PROMPTS[0], seed=seed).pixels for seed in range(7, 11)]
        for picture, pixels in zip(drawn.images, alone, strict=True):
            assert np.abs(picture.pixels - pixels).max() <= PIXELS
        chat = limited.session()
        chat.generate_text("x", max_new_tokens=1)
        with pytest.raises(ResourceError, match="the memory limit leaves"):
            limited.generate_image(PROMPTS[0])


def test_a_negative_prompt_takes_the_place_of_the_empty_one(model, runtime):
    found = runtime.generate_image(PROMPTS[0], negative_prompt=PROMPTS[1], temperature=0)
    plain = runtime.generate_image(PROMPTS[0], temperature=0)
    assert np.abs(plain.pixels - model.draw_codes([PROMPTS[0]])[0].numpy()).max() <= PIXELS
    assert np.abs(found.pixels - plain.pixels).max() > 0.1


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_replies_are_torchs_and_no_code_is_ever_said(model, runtime, pictures):
    side = model.config.vision.image_size
    shown = [np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8) for seed in range(pictures)]
    pixels = (
        torch.stack([torch.from_numpy(load_picture(one, side, (255, 255, 255))) for one in shown]) if shown else None
    )
    wanted, logits = model.generate("What is this?", pixels, 16, stop=False)
    reply = runtime.generate_text("What is this?", images=shown, max_new_tokens=16, ignore_eos=True)
    assert list(reply.token_ids) == wanted and max(wanted) < model.config.first_code
    assert len(set(wanted)) > 1 and torch.isinf(logits[:, model.config.first_code :]).all()


def test_the_picture_reaches_the_reply_as_codes(model):
    pixels = torch.zeros(2, 1, 3, 16, 16)
    pixels[1, :, 0] = 1
    (_, black), (_, red) = (model.generate("What is this?", one, 1, stop=False) for one in pixels)
    first = model.config.first_code
    assert (black[0, :first] - red[0, :first]).abs().max() > 1e-3


def test_the_bundle_has_the_loops_of_other_families_and_verifies(bundle, capsys):
    document = json.loads((bundle / "manifest.json").read_text())
    assert set(document["components"]) == {"transformer", "vq_encoder", "vq_decoder"}
    assert document["loops"]["denoise"] is None and document["loops"]["image_tokens"]["unconditional"] == "prompt"
    assert main(["verify", str(bundle)]) == 0, capsys.readouterr()


@pytest.mark.slow
def test_int4_keeps_tokenizer_of_pictures_in_float(saved, tmp_path):
    export_bundle(saved, tmp_path / "x.bundle", precision="int4")
    targets = json.loads((tmp_path / "x.bundle" / "manifest.json").read_text())["targets"]["cpu"]
    assert targets == {"vq_encoder": "cpu-fp32", "transformer": "cpu-int4", "vq_decoder": "cpu-fp32"}


@pytest.mark.slow
@needs_rtx
def test_every_component_builds_with_tensorrt_for_rtx(saved, tmp_path):
    bundle, root = tmp_path / "rtx.bundle", Path(__file__).resolve().parents[2]
    export_bundle(saved, bundle, target="rtx")
    command = [sys.executable, "benchmarks/rtx_build.py", str(bundle), "--sm", "86"]
    ran = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True)
    document = json.loads(ran.stdout.splitlines()[-1])
    assert ran.returncode == 0 and document["problems"] == []
    assert len(document["results"]) == 3
