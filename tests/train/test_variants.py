"""The survey's other designs: each is trained, saved, loaded and exported like the default."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgemm.cli.main import main
from edgemm.errors import InputError, UsageError
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS, ModelConfig
from edgemm.model.designs import variant
from edgemm.train.run import train
from tests.model.tiny import tokens_of
from tests.train.conftest import ROOT, read_log, recipe

DESIGNS = {
    "dense": {"experts": "dense"},
    "dual": {"vision": "dual"},
    "conv": {"vision": "conv"},
    "ae": {"image_tokens": "ae"},
    "all": {"experts": "dense", "vision": "dual", "image_tokens": "ae"},
}
QUICK = {"steps": 3, "batch": 4, "log_every": 1, "threads": 1, "warmup": 1}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("dual", "conv", "ae")]  # `all` has them in it


@pytest.fixture(scope="module", params=["dense", *SLOW, "all"])
def design(request):
    return DESIGNS[request.param]


@pytest.fixture(scope="module")
def trained(design, tmp_path_factory, shapes):
    """The run folder of a few steps of both losses."""
    output = tmp_path_factory.mktemp("variants") / "-".join(design.values())
    parts = "conditioner,denoiser,projection,transformer"
    train(recipe("micro-read", output, kind="joint", data=shapes, start="micro", train=parts, **QUICK, **design))
    return output


def test_a_design_trains_is_stored_and_draws_and_reads_the_same_when_loaded(design, trained):
    losses = [line["loss"] for line in read_log(trained)]
    assert len(losses) == 3 and np.isfinite(losses).all()
    model, again = (checkpoint.load(trained / "checkpoint") for _ in range(2))
    assert model.config == variant_of(design)
    noise = tokens_of(model, 2)
    assert noise.shape[2] == (16 if "ae" in design.values() else 192)
    drawn = model.draw(["a red circle", "two stars"], noise)
    assert torch.equal(drawn, again.draw(["a red circle", "two stars"], noise))
    assert drawn.shape == (2, 3, 32, 32) and 0 <= drawn.min() <= drawn.max() <= 1
    side = model.config.vision.image_size
    ids, _ = model.generate("What is this?", torch.rand(1, 3, side, side), 4, stop=False)
    assert len(ids) == 4


def variant_of(design) -> ModelConfig:
    return variant(PRESETS["micro"](), **design)


def test_a_design_survives_its_config_file(design):
    config = variant_of(design)
    assert ModelConfig.from_json(config.to_json()) == config


def test_the_prompt_reaches_a_dense_denoiser_through_the_transformers_own_cache():
    model = checkpoint.build(variant_of(DESIGNS["dense"])).requires_grad_(False)
    torch.nn.init.normal_(model.denoiser.head.weight, std=0.1)
    assert not [name for name, _ in model.denoiser.named_parameters() if "layers" in name]  # stored once
    noise, time = tokens_of(model, 1), torch.tensor([0.5])
    prefix = model.prefix(["a red circle"])
    cached, _, _ = model.prompt_cache(["a red circle"])
    assert torch.equal(prefix.keys[2], cached[2][0][:, :, model.conditioner.skip :])
    red, blue = (model.denoiser(noise, time, model.prefix([text])) for text in ("a red circle", "a big blue star"))
    assert (red - blue).abs().max() > 1e-3
    twice = model.prefix(["a red circle", "a big blue star"])  # padded: what is beyond a prompt's end changes nothing
    both = model.denoiser(noise.repeat(2, 1, 1), time.repeat(2), twice)
    torch.testing.assert_close(both[:1], red, atol=1e-5, rtol=1e-4)


def test_dual_vision_puts_the_squares_own_pixels_beside_the_pretrained_features():
    model = checkpoint.build(variant_of(DESIGNS["dual"])).requires_grad_(False)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = model.image_encoder.features(pixels)
    assert features.shape == (1, 4, 1280 + 3072)
    eye = model.image_encoder.encoder.eye
    assert torch.equal(features[:, :, :1280], eye(pixels))
    assert torch.equal(features[0, 0, 1280:], torch.nn.functional.pixel_unshuffle(pixels * 2 - 1, 32)[0, :, 0, 0])
    assert not any(name.startswith("image_encoder.encoder.") for name in checkpoint.stored_state(model))


def test_an_autoencoder_learns_pictures_and_standardises_its_latents(tmp_path, shapes):
    changes = {**QUICK, "steps": 50, "batch": 8, "learning_rate": 4e-3, "warmup": 5, "ema": 0.8}
    run = recipe("micro-shapes", tmp_path, kind="autoencode", data=shapes, start="micro", image_tokens="ae", **changes)
    train(run)
    psnr = [line["psnr_db"] for line in read_log(tmp_path)]
    assert np.mean(psnr[-5:]) > psnr[0] + 3
    model = checkpoint.load(tmp_path / "checkpoint")
    pixels = torch.ones(1, 3, 32, 32)
    assert model.to_tokens(pixels).shape == (1, 16, 16)
    assert (model.to_pixels(model.to_tokens(pixels)) - pixels).abs().mean() < 0.2
    assert model.autoencoder.spread.min() > 0 and (model.autoencoder.spread != 1).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kind": "autoencode"}, InputError, "micro draws pixels, it has no autoencoder"),
        ({"train": "queries"}, UsageError, "train names queries, micro has: transformer, conditioner, denoiser, proj"),
        ({"kind": "read", "experts": "dense"}, UsageError, "reads all 6 layers .* none is left for an adapter"),
    ],
)
def test_what_a_design_cannot_do_is_refused(tmp_path, shapes, changes, error, message):
    with pytest.raises(error, match=message):
        train(recipe("micro-shapes", tmp_path, data=shapes, **{"start": "micro", **QUICK, **changes}))


@pytest.mark.parametrize(
    ("line", "value", "has"),
    [
        ("experts", "dense", "mot"),
        ("vision", "conv", "single"),
        ("image_tokens", "ae", "patch"),
        ("graphs", "rows", "text"),
        ("motion", "4", "none"),
    ],
)
def test_a_design_that_a_checkpoint_does_not_have_is_refused(tmp_path, shapes, line, value, has):
    start = tmp_path / "start"
    checkpoint.save(checkpoint.build("micro", 0), start)
    asked = recipe("micro-shapes", tmp_path / "run", data=shapes, start=start, **{**QUICK, line: value})
    with pytest.raises(UsageError, match=f"{line} is {value}, and {start} has {has}: designs are chosen for a new"):
        train(asked)


def test_a_checkpoint_goes_on_under_the_line_that_made_it(tmp_path, shapes):
    start = tmp_path / "start"
    checkpoint.save(checkpoint.build(variant(PRESETS["micro"](), vision="conv", motion="4"), 0), start)
    both = {"vision": "conv", "motion": "4", **QUICK, "steps": 1}
    train(recipe("micro-shapes", tmp_path / "run", data=shapes, start=start, **both))
    assert (tmp_path / "run" / "checkpoint" / "config.json").is_file()


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("image_tokens", {"kind": "ae"}, "image_tokens channels is 0, expected 1 or more"),
        ("image_tokens", {"channels": 4}, "are for kind 'ae' or 'vq' only"),
        ("image_tokens", {"kind": "ae", "channels": 4, "hidden": 4, "patch": 32 // 3}, "not a multiple of patch 10"),
        ("vision", {"encoder": "dual"}, "gives feature_width 4352 at stride 32, not 192 at 8"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(part, changes, message):
    import dataclasses

    with pytest.raises(ValueError, match=message):
        dataclasses.replace(getattr(PRESETS["micro"](), part), **changes)


def test_flags_choose_a_design(tmp_path, shapes, capsys):
    words = ["train", "--config", str(ROOT / "recipes" / "micro-shapes.toml"), "--image-tokens", "ae"]
    for key, value in {**QUICK, "data": shapes, "output": tmp_path, "steps": 1}.items():
        words += ["--set", f"{key}={value}"]
    assert main(words) == 0
    assert ModelConfig.read(tmp_path / "checkpoint" / "config.json").image_tokens.kind == "ae"


@pytest.mark.slow
def test_a_design_is_exported_and_agrees_with_torch(trained, tmp_path, capsys):
    assert main(["export", str(trained / "checkpoint"), "--output", str(tmp_path / "x.bundle")]) == 0, (
        capsys.readouterr()
    )
    assert main(["verify", str(tmp_path / "x.bundle")]) == 0, capsys.readouterr()
