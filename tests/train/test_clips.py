"""Clips are taught as they are drawn and read: all frames of one in a batch's row, in their order."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from edgemm.data.clips import FRAMES, build_clips
from edgemm.data.format import read_dataset
from edgemm.errors import InputError, UsageError
from edgemm.evaluate.checkpoint_subject import CheckpointSubject
from edgemm.evaluate.subject import DrawSettings, shown
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS
from edgemm.model.designs import variant
from edgemm.model.prompts import read_prompt
from edgemm.train.recipe_file import read_stages
from edgemm.train.run import train, train_stages, with_frames
from edgemm.train.samples import load_pictures
from edgemm.train.tasks.read import ReadTask, ends_of, up_to
from tests.model.tiny import varied_micro
from tests.train.conftest import ROOT, read_log, recipe


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "clips"
    folder.mkdir()
    build_clips(folder, 64, 24, 0)
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "fixed"
    folder.mkdir()
    build_clips(folder, 64, 24, 0, fixed=True)
    return folder


def test_frames_are_resized_alone_and_stand_in_their_order(asked):
    dataset = read_dataset(asked)
    tall = load_pictures(asked, dataset.samples[:3], 32, FRAMES)
    assert tall.shape == (3, 3, FRAMES * 32, 32)
    half = shown(dataset, dataset.samples[0]).reshape(FRAMES, 32, 2, 32, 2, 3).mean(axis=(2, 4))  # another filter
    found = tall[0].numpy().reshape(3, FRAMES, 32, 32).transpose(1, 2, 3, 0)
    assert np.abs(found.astype(float) - half).mean() < 3
    assert np.abs(found[::-1].astype(float) - half).mean() > 3
    with pytest.raises(InputError, match="64 x 512 pixels, expected 3 squares"):
        load_pictures(asked, dataset.samples[:1], 32, 3)


@pytest.mark.parametrize("motion", ["none", "4"])
def test_what_is_taught_about_a_clip_is_what_the_model_is_asked(asked, tmp_path, motion):
    """Logits of an answer's first token: training's, from features and rows, and those of generate on the frames."""
    model = varied_micro(variant(PRESETS["micro"](), vision="conv", motion=motion))
    task = ReadTask(model, recipe("micro-clips-read", tmp_path / "run", data=asked, batch=4))
    dataset = read_dataset(asked)
    samples = dataset.split("train")
    question = next(q for q in dataset.questions if q.sample == samples[2].id and q.kind == "direction")
    row, prompt, answer = next(
        each
        for each in task.questions["direction"]
        if each[0] == 2 and question.answer == model.tokenizer.decode(each[2]).strip()
    )
    with torch.no_grad():
        hidden, targets, pictured = task.answered(model, task.features[[row], [0]].float(), [prompt], [answer])
    taught = model.transformer.logits(hidden[0])
    squares = load_pictures(asked, [samples[2]], 32, FRAMES)[0].unflatten(1, (FRAMES, 32)).transpose(0, 1).float() / 255
    _, said = model.generate(question.question, squares, max_new_tokens=1, stop=False, clip=True)
    assert pictured.all() and int(targets[0]) == answer[0]
    assert (taught - said[0]).abs().max() < 0.02 * said[0].abs().max()  # features are kept in bfloat16


@pytest.mark.parametrize("motion", ["none", "4"])
def test_a_cut_clip_is_asked_about_as_a_shorter_one(motion):
    model = varied_micro(variant(PRESETS["micro"](), vision="conv", motion=motion))
    ends = ends_of(model, 8)
    whole = read_prompt(model.config, model.tokenizer, "what moves?", 8, clip=True)
    assert ends[-1] == (whole.image_index >= 0).sum()
    for frames in (2, 5, 8):
        wanted = read_prompt(model.config, model.tokenizer, "what moves?", frames, clip=True)
        found = up_to(whole, ends[frames - 1])
        for name in ("input_ids", "image_index", "attention_limit", "users_own"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_of_a_batch_clips_of_one_thing_are_cut(asked, tmp_path):
    model, given = varied_micro(), {"data": asked, "batch": 64}
    whole, cut = (
        ReadTask(model, recipe("micro-clips-read", tmp_path / f"run-{share}", cut_share=share, **given))
        for share in (0.0, 0.9)
    )
    rows = whole._batch(0)[0]
    shorter = np.array([len(a) < len(b) for a, b in zip(cut.asked(0)[1], whole.asked(0)[1], strict=True)])
    objects = [len(sample.scene["objects"]) for sample in read_dataset(asked).split("train")]
    alone = np.array([objects[row] == 1 for row in rows])
    assert 0.3 < shorter[alone].mean() < 1 and not shorter[~alone].any()


def test_views_of_a_clip_are_refused(asked, tmp_path):
    with pytest.raises(UsageError, match="each frame of a clip would change alone"):
        ReadTask(varied_micro(), recipe("micro-clips-read", tmp_path / "run", data=asked, views=2))


def test_frames_are_guessed_apart_from_the_first_step_on():
    """From one prompt alone each frame gets a layout of its own, as large a part of it as what frames have in common;
    what told them apart grew from nothing before, and 1,000 steps were over when it was heard."""
    model = with_frames(varied_micro(), FRAMES)
    with torch.no_grad():
        layout = model.conditioner(*model.prompt_cache(["a red circle moving left slowly"])).layout[0]
        places = model.denoiser._places()
        noise = model.denoiser.embed(torch.randn(64, model.config.image_tokens.token_width))
    assert len(layout) == len(places) == model.config.image_tokens.token_count
    guessed, told = (one.unflatten(0, (FRAMES, -1)) for one in (layout, places))
    assert (guessed - guessed.mean(0)).std() > 0.2 * guessed.mean(0).std()
    assert (told - told.mean(0)).std() > 0.2 * noise.std()


def test_a_model_of_still_pictures_learns_to_draw_clips(drawn, tmp_path):
    start = tmp_path / "start"
    checkpoint.save(varied_micro(), start)
    output = tmp_path / "run" / "last"
    few = {"first.steps": 6, "more.steps": 2, "last.steps": 2, "batch": 8, "log_every": 1, "sample_every": 100}
    told = {"threads": 1, "data": drawn, "start": start, "output": output.parent, **few}
    stages = read_stages(ROOT / "recipes" / "micro-clips.toml", [f"{key}={value}" for key, value in told.items()])
    assert train_stages(stages)
    losses = [line["loss"] for line in read_log(output.parent / "first")]
    assert losses[-1] < losses[0]
    model = checkpoint.load(output / "checkpoint")
    assert model.config.image_tokens.frames == FRAMES and model.denoiser.frames == FRAMES
    tall = CheckpointSubject(output / "checkpoint", DrawSettings(num_inference_steps=1), 1).draw(["a red circle"], [0])
    assert tall.shape == (1, FRAMES * 32, 32, 3)
    with pytest.raises(UsageError, match=r"frames is 4, .* draws clips of 8"):
        train(dataclasses.replace(stages[0], output=str(tmp_path), start=str(output / "checkpoint"), frames=4))
