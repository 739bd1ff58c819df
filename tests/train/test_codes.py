"""A model of codes: its tokenizer learns pictures, its transformer both losses, and refusals say what to give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgemm.cli.main import main
from edgemm.errors import UsageError
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS, ModelConfig
from edgemm.model.designs import variant
from edgemm.train.recipe_file import read_stages
from edgemm.train.run import train, train_stages
from tests.model.tiny_codes import tiny_codes
from tests.train.conftest import ROOT, read_log, recipe

QUICK = {"batch": 8, "log_every": 1, "threads": 1, "warmup": 1, "train": ""}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    path = tmp_path_factory.mktemp("codes") / "tiny"
    checkpoint.save(checkpoint.build(tiny_codes()), path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shapes, start):
    """The run folder of the recipe's three stages, a few steps each."""
    output = tmp_path_factory.mktemp("runs") / "codes"
    steps = {"codes.steps": 60, "draw.steps": 4, "joint.steps": 12}
    changes = {"data": shapes, "output": output, "codes.start": start, **steps, **QUICK}
    words = [f"{key}={value}" for key, value in changes.items()]
    train_stages(read_stages(ROOT / "recipes" / "micro-vq.toml", words))
    return output


def test_a_tokenizer_learns_pictures_and_uses_its_codebook(trained):
    log = read_log(trained / "codes")
    assert np.mean([line["psnr_db"] for line in log[-5:]]) > log[0]["psnr_db"] + 3
    assert log[-1]["codes_used"] > 0.3
    model = checkpoint.load(trained / "codes" / "checkpoint")
    assert model.vq is not None
    entries = model.vq.entries()
    assert torch.equal(model.vq.nearest(entries[None])[0], torch.arange(len(entries)))


def test_the_transformer_learns_codes_and_answers_and_leaves_the_tokenizer_alone(trained):
    drew, log = (read_log(trained / stage) for stage in ("draw", "joint"))
    assert log[-1]["codes"] < drew[0]["codes"] and log[-1]["answers"] < log[0]["answers"]
    before, after = (checkpoint.load(trained / stage / "checkpoint") for stage in ("codes", "joint"))
    assert before.vq is not None and after.vq is not None
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert (before.vq.encode(pixels) == after.vq.encode(pixels)).float().mean() > 0.9  # stored in bfloat16
    assert not torch.equal(before.transformer.norm.weight, after.transformer.norm.weight)


def test_a_run_that_is_resumed_goes_on_as_if_it_had_not_stopped(trained, tmp_path, shapes, start):
    first = trained / "codes" / "checkpoint"
    for steps in (3, 6):
        train(recipe("micro-shapes", tmp_path, kind="joint", data=shapes, start=first, steps=steps, decay=0, **QUICK))
    train(recipe("micro-shapes", tmp_path / "b", kind="joint", data=shapes, start=first, steps=6, decay=0, **QUICK))
    assert [line["loss"] for line in read_log(tmp_path)] == [line["loss"] for line in read_log(tmp_path / "b")]


def test_the_design_survives_its_config_file_and_its_switches_name_it():
    config = variant(PRESETS["micro"](), image_tokens="vq", objective="ar")
    assert ModelConfig.from_json(config.to_json()) == config
    assert (config.family, config.first_code, config.vision.token_count) == ("vq", 264, 64)


@pytest.mark.parametrize(
    ("preset", "words", "message"),
    [
        ("micro", {"image_tokens": "vq"}, "give image_tokens = 'vq' and objective = 'ar'"),
        ("micro", {"objective": "ar"}, "give image_tokens = 'vq' and objective = 'ar'"),
        ("micro", {"image_tokens": "vq", "objective": "ar", "experts": "dense"}, "has no experts"),
        ("small", {"image_tokens": "vq", "objective": "ar"}, "codes widen the vocabulary"),
    ],
)
def test_switches_that_do_not_go_together_are_refused(preset, words, message):
    with pytest.raises(UsageError, match=message):
        variant(PRESETS[preset](), **words)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "flow"}, "'ar' goes with vq, vq and 0"),
        ({"objective": "noise"}, "is none of: flow, ar"),
        ({"vision": PRESETS["micro"]().vision}, "'ar' goes with vq, vq and 0"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_codes(**changes)


def test_what_a_model_of_codes_cannot_do_is_refused_in_a_line(tmp_path, shapes, start, capsys):
    with pytest.raises(UsageError, match="learns to draw, read or joint"):
        train(recipe("micro-shapes", tmp_path, kind="edit", data=shapes, start=start, steps=1, **QUICK))
    assert main(["quantize", str(start), "--output", str(tmp_path / "spec")]) == 2
    assert "of family vq, which only" in capsys.readouterr().err
    assert main(["join", "--drawing", str(start), "--reading", str(start), "--output", str(tmp_path / "j")]) == 3
    assert "no halves to join" in capsys.readouterr().err
