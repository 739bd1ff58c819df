"""Stages, both losses at once, and drawing from a picture: what learns, what stays, and what the pictures are worth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from edgemm.data.edits import build_edits
from edgemm.data.writer import new_folder
from edgemm.errors import InputError
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS
from edgemm.train.recipe_file import read_stages
from edgemm.train.run import train, train_stages
from edgemm.train.tasks.draw import EditTask
from edgemm.train.tasks.joint import JointTask
from tests.heard import hearing
from tests.train.conftest import read_log, recipe

QUICK = {"start": "micro", "steps": 2, "batch": 4, "log_every": 1, "lora_first_layer": 4}
EDIT = {key: value for key, value in QUICK.items() if key != "lora_first_layer"} | {"kind": "edit"}
EVERYTHING = "conditioner,denoiser,projection,transformer"


def edits_of(folder, count: int):
    with new_folder(folder) as inside:
        build_edits(inside, 64, count, 0, None, ())
    return folder


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
    return edits_of(tmp_path_factory.mktemp("data") / "edits", 24)


def changed(before, after) -> set[str]:
    old, new = before.state_dict(), after.state_dict()
    return {name.split(".")[0] for name in old if not torch.equal(old[name].bfloat16().float(), new[name])}


def test_stages_run_in_order_and_finished_ones_are_not_touched_again(tmp_path, shapes):
    (tmp_path / "recipe.toml").write_text(
        f'data = "{shapes}"\noutput = "{tmp_path / "run"}"\nstart = "micro"\nbatch = 4\nsteps = 2\nlog_every = 1\n'
        "threads = 1\nlora_first_layer = 4\n"
        '[[stages]]\nname = "draw"\nkind = "draw"\n[[stages]]\nname = "read"\nkind = "read"\n'
    )
    stages = read_stages(tmp_path / "recipe.toml")
    assert train_stages(stages)
    start = checkpoint.build("micro", 0)
    drawn, read = (checkpoint.load(tmp_path / "run" / name / "checkpoint") for name in ("draw", "read"))
    assert changed(start, drawn) == {"conditioner", "denoiser"}
    assert changed(drawn, read) == {"transformer", "image_encoder"}
    kept = (tmp_path / "run" / "draw" / "state.pt").stat().st_mtime_ns
    (tmp_path / "run" / "read" / "checkpoint" / "tokenizer.json").unlink()
    train_stages(stages)
    assert (tmp_path / "run" / "draw" / "state.pt").stat().st_mtime_ns == kept
    checkpoint.load(tmp_path / "run" / "read" / "checkpoint")  # the last one wrote its result again
    with hearing() as heard:
        train_stages(read_stages(tmp_path / "recipe.toml", ["draw.steps=3", "draw.seed=1"]))
    (told,) = (line for line in heard.lines if "stays as it is" in line)
    assert told.startswith(f"{tmp_path / 'run' / 'draw'}: ") and "seed was 0, is 1, steps were 2, are 3" in told


def test_joint_training_adds_the_two_losses_and_teaches_every_part(tmp_path, shapes):
    settings = recipe("micro-read", tmp_path, kind="joint", data=shapes, **QUICK, train=EVERYTHING, flow_weight=3)
    model = checkpoint.build("micro", 0).requires_grad_(False)
    task = JointTask(model, settings)
    assert task.loss(0).item() == pytest.approx(task.reading.loss(0).item() + 3 * task.drawing.loss(0).item(), rel=1e-5)
    task.loss(0).backward()
    names = [name for name, _ in task.named_parameters()]
    assert len(names) == len(set(names))
    for part in (model.transformer, model.image_encoder, model.denoiser.head):
        assert all(parameter.grad is not None for parameter in part.parameters())
    train(settings)
    after = checkpoint.load(tmp_path / "checkpoint")
    assert changed(checkpoint.build("micro", 0), after) == {"transformer", "image_encoder", "conditioner", "denoiser"}
    assert {"flow", "cross_entropy", "token_accuracy", "shuffled_over_right"} <= set(read_log(tmp_path)[-1])


def test_joint_training_with_an_adapter_leaves_drawing_to_drawing(tmp_path, shapes):
    train(recipe("micro-read", tmp_path, kind="joint", data=shapes, **QUICK))
    after = checkpoint.load(tmp_path / "checkpoint")
    before = checkpoint.build("micro", 0)
    for layer in range(max(before.config.denoiser.prefix_layers) + 1):
        for old, new in zip(
            before.transformer.layers[layer].parameters(), after.transformer.layers[layer].parameters()
        ):
            assert torch.equal(old.bfloat16().float(), new)


def test_an_edit_is_drawn_from_its_picture_and_resumes(tmp_path, edits):
    settings = {**EDIT, "data": edits}
    train(recipe("micro-shapes", tmp_path / "whole", **settings, decay=0))
    train(recipe("micro-shapes", tmp_path / "parts", **{**settings, "steps": 1}, decay=0))
    train(recipe("micro-shapes", tmp_path / "parts", **settings, decay=0))
    whole, parts = (read_log(tmp_path / name) for name in ("whole", "parts"))
    assert [line["loss"] for line in whole] == [line["loss"] for line in parts]
    assert "other_picture_over_right" in whole[-1]
    model = checkpoint.load(tmp_path / "whole" / "checkpoint")
    assert model.config.edits
    task = EditTask(model.requires_grad_(False), recipe("micro-shapes", tmp_path / "whole", **settings))
    noise = torch.zeros(2, model.config.image_tokens.token_count, model.config.image_tokens.token_width)
    one, other = task.pictures([1])[0], task.pictures([3])[0]
    with torch.no_grad():
        prefixes = [model.prefix(["make it red"], [picture]) for picture in (one, other)]
    assert not torch.equal(prefixes[0].keys[1], prefixes[1].keys[1])
    assert model.draw(["make it red"] * 2, noise, pictures=[one, None]).shape == (2, 3, 32, 32)


def test_no_task_teaches_visual_words_along_with_what_it_teaches(tmp_path, shapes, edits):
    config = PRESETS["micro"]()
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, words=64, word_tokens=12))
    everything = {"kind": "joint", "data": shapes, **QUICK, "train": EVERYTHING}
    for task, told in (
        (JointTask, recipe("micro-read", tmp_path, **everything)),
        (EditTask, recipe("micro-shapes", tmp_path, **EDIT, data=edits)),
    ):
        model = checkpoint.build(config, 0).requires_grad_(False)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        taught = {names[id(parameter)] for _, parameter in task(model, told).named_parameters()}
        assert "image_encoder.up_proj.weight" in taught
        assert not {name for name in taught if name.startswith("image_encoder.words.")}


def test_a_dataset_without_edits_is_refused(tmp_path, shapes):
    with pytest.raises(InputError, match=r"no edits in splits .*; make some: edgemm data edits"):
        train(recipe("micro-shapes", tmp_path, data=shapes, **EDIT))


@pytest.mark.slow
def test_a_model_learns_to_look_at_the_picture(tmp_path):
    """Somebody else's picture with the right instruction is worse than the right one: at birth it is the same."""
    changes = {"data": edits_of(tmp_path / "edits", 600), "kind": "edit", "start": "micro", "log_every": 20, "ema": 0.9}
    train(recipe("micro-shapes", tmp_path / "run", **changes, steps=240, batch=16))
    worth = [line["other_picture_over_right"] for line in read_log(tmp_path / "run")]
    assert np.mean(worth[-5:]) > 1.015 > np.mean(worth[:3])
