"""A connector as a bundle: its queries are strings of the template and rows of the transformer's graph, so the thin
runtime draws and reads with the loops of every other design, and as torch does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgemm.bundle.picture import load_picture
from edgemm.cli.main import main
from edgemm.model import checkpoint
from edgemm.model.designs import variant
from edgemm.runtimes.schedule import initial_noise
from edgemm.verify.export_native import export_bundle
from tests.engines.tiny_engines import needs_rtx
from tests.export.nano import nano, needs_opset_24, random_nano

pytestmark = needs_opset_24
PROMPT = "a red circle left of a blue star"
PIXELS = 1e-4


@pytest.fixture(scope="module")
def model():
    return random_nano(variant(nano(), experts="connector"))


@pytest.mark.parametrize("guidance", [2.0, 1.0])
def test_two_pictures_are_torchs(model, runtime, guidance):
    tokens = model.config.image_tokens
    noise = np.stack([initial_noise(seed, tokens.token_count, tokens.token_width) for seed in (7, 8)])
    wanted = model.draw([PROMPT] * 2, torch.from_numpy(noise), model.with_sampler(guidance_scale=guidance)).numpy()
    found = runtime.generate_image(PROMPT, guidance_scale=guidance, seed=7, num_images=2)
    for picture, pixels in zip(found.images, wanted, strict=True):
        assert np.abs(picture.pixels - pixels).max() <= PIXELS


def test_guidance_leads_away_from_a_negative_prompt(runtime):
    plain, led = (runtime.generate_image(PROMPT, seed=1, negative_prompt=words) for words in (None, "a green square"))
    assert np.abs(plain.pixels - led.pixels).max() > 1e-3


@pytest.mark.parametrize("pictures", [0, 1])
def test_replies_are_torchs_and_no_query_is_ever_said(model, runtime, pictures):
    side = model.config.vision.image_size
    shown = [np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8) for seed in range(pictures)]
    pixels = (
        torch.stack([torch.from_numpy(load_picture(one, side, (255, 255, 255))) for one in shown]) if shown else None
    )
    wanted, _ = model.generate("What is this?", pixels, 16, stop=False)
    reply = runtime.generate_text("What is this?", images=shown, max_new_tokens=16, ignore_eos=True)
    assert list(reply.token_ids) == wanted and len(set(wanted)) > 1
    said = runtime._engines.get("transformer").outputs["logits"].shape[1]
    assert said == model.config.transformer.vocab_size


def test_the_denoiser_of_the_bundle_reads_as_many_slots_as_there_are_queries(model, bundle, capsys):
    document = json.loads((bundle / "manifest.json").read_text())
    assert set(document["components"]) == {"image_encoder", "transformer", "conditioner", "denoiser", "image_decoder"}
    inputs = document["components"]["denoiser"]["variants"]["cpu-fp32"]["inputs"]
    slots = {entry["shape"][1] for entry in inputs if entry["name"] == "prefix_mask"}
    assert slots == {model.config.transformer.queries}
    assert document["loops"]["denoise"]["template"]["close"].endswith("<|query_15|>")
    assert main(["verify", str(bundle)]) == 0, capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_bundles_pass_their_comparisons(saved, tmp_path, precision):
    export_bundle(saved, tmp_path / "x.bundle", precision=precision)


@pytest.mark.slow
@needs_rtx
def test_every_component_builds_with_tensorrt_for_rtx(saved, tmp_path):
    bundle, root = tmp_path / "rtx.bundle", Path(__file__).resolve().parents[2]
    export_bundle(saved, bundle, target="rtx")
    command = [sys.executable, "benchmarks/rtx_build.py", str(bundle), "--sm", "86"]
    ran = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True)
    document = json.loads(ran.stdout.splitlines()[-1])
    assert ran.returncode == 0 and document["problems"] == []
    assert len(document["results"]) == 5


@pytest.mark.slow
def test_one_graph_draws_and_reads_what_the_loops_do(model, tmp_path):
    """The gate compares them (verify/loops.py); here it is asked whether it did."""
    checkpoint.save(model, tmp_path / "checkpoint")
    export_bundle(tmp_path / "checkpoint", tmp_path / "one.bundle", one_call=("draw", "read"), steps=3)
    compared = json.loads((tmp_path / "one.bundle" / "parity.json").read_text())["comparisons"]
    rows = [row for row in compared if row["what"].startswith("one call")]
    drawn = [row["value"] for row in rows if row["measure"] == "max_difference"]
    assert drawn and max(drawn) <= 1e-5
    assert [row["value"] for row in rows if row["measure"] == "reply"] == [1, 1, 1]
