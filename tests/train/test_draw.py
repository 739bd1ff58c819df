"""Drawing, taught: the loss falls, the words decide what is drawn, and guidance makes them decide more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from edgemm.model import checkpoint
from edgemm.train.run import train
from edgemm.train.stores import PromptStore
from edgemm.train.tasks.draw import DrawTask
from tests.model.tiny import tokens_of
from tests.train.conftest import EMOJI, read_log, recipe

CHANNEL = {"red": 0, "green": 1, "blue": 2}


@pytest.fixture(scope="module")
def model(drawn):
    return checkpoint.load(drawn / "checkpoint")


@pytest.fixture(scope="module")
def task(shapes, tmp_path_factory):
    start = checkpoint.build("micro").requires_grad_(False)
    return DrawTask(start, recipe("micro-shapes", tmp_path_factory.mktemp("task"), data=shapes))


def squares(model, colour: str, **sampler) -> torch.Tensor:
    """Eight drawings, (8, 3, H, W)."""
    return model.draw([f"a {colour} square"] * 8, tokens_of(model, 8, seed=1), model.with_sampler(**sampler))


def test_training_lowers_the_loss(drawn):
    losses = [line["loss"] for line in read_log(drawn)]
    assert np.mean(losses[-3:]) < 0.5 * losses[0]


def test_the_prompts_of_other_pictures_raise_the_loss(drawn):
    lines = read_log(drawn)
    assert lines[0]["shuffled_over_right"] < 1.05
    assert np.mean([line["shuffled_over_right"] for line in lines[-3:]]) > 1.1


@pytest.mark.parametrize("colour", CHANNEL)
def test_the_word_decides_the_colour(model, colour):
    brightest = squares(model, colour).mean(dim=(2, 3)).argmax(dim=1)
    assert brightest.tolist() == [CHANNEL[colour]] * 8


def test_guidance_makes_the_colour_stronger(model):
    def redness(pictures):
        red, green, blue = pictures.mean(dim=(0, 2, 3))
        return (red - (green + blue) / 2).item()

    plain, guided = (
        redness(squares(model, "red", guidance_scale=1.0)),
        redness(squares(model, "red", guidance_scale=2.0)),
    )
    assert guided > 1.1 * plain > 0  # above 2, what has learned for 150 steps overshoots


def test_the_run_leaves_a_checkpoint_and_a_grid_of_samples(model, drawn):
    with Image.open(drawn / "samples" / "000150.png") as grid:
        assert grid.size == (8 * 32, 2 * 32)
        assert np.asarray(grid).std() > 10
    assert sorted(path.name for path in (drawn / "checkpoint").iterdir()) == sorted(checkpoint.FORMAT_FILES)
    assert model.conditioner.whiten_matrix.any()


def test_the_transformer_stays_as_it_was(model):
    """Frozen: in bfloat16, as it was stored, it is the transformer that the seed gives."""
    start = checkpoint.build("micro", seed=0).transformer.state_dict()
    assert all(
        torch.equal(tensor, start[name].bfloat16().float()) for name, tensor in model.transformer.state_dict().items()
    )


def test_a_step_is_a_function_of_seed_and_step_alone(task):
    first = task.loss(3).item()
    task.loss(4)
    assert task.loss(3).item() == first
    assert task.loss(4).item() != first


def test_the_right_share_of_prompts_is_dropped(task):
    captions = torch.cat([task._batch(step)[3] for step in range(60)])
    assert (captions == 0).float().mean().item() == pytest.approx(0.1, abs=0.02)  # 1,920 samples: 3 sigma


def test_a_picture_seen_with_several_noises_has_one_prompt_which_is_read_once(shapes, tmp_path, monkeypatch):
    learner = checkpoint.build("micro")
    many = recipe("micro-shapes", tmp_path, data=shapes, train=["transformer", "denoiser"], batch=12, noises=4)
    task = DrawTask(learner, many)
    tokens, noise, time, rows = task._batch(5)
    assert torch.equal(tokens, tokens[::4].repeat_interleave(4, 0))
    assert torch.equal(rows, rows[::4].repeat_interleave(4))
    assert len(time.unique()) == 12 and len(noise[:, 0, 0].unique()) == 12
    asked: list[int] = []
    read = learner.prompt_cache
    monkeypatch.setattr(
        learner, "prompt_cache", lambda prompts, *args, **kw: asked.append(len(prompts)) or read(prompts, *args, **kw)
    )
    with torch.no_grad():
        found, expected = task.prefix(rows), learner.prefix([task.captions[row] for row in rows])
    assert asked[0] == len(rows.unique()) <= 3
    for one, other in zip((*found.keys, *found.values), (*expected.keys, *expected.values), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.layout, expected.layout, atol=1e-5, rtol=1e-5)


def test_a_recipes_caption_is_what_every_picture_is_taught_by(shapes, tmp_path):
    said = recipe("micro-shapes", tmp_path, data=shapes, caption="{caption}, on paper")
    told = DrawTask(checkpoint.build("micro").requires_grad_(False), said)
    assert len(told.captions) > 2 and all(text.endswith(", on paper") for text in told.captions[1:])
    assert all(len(known) == 1 for known in told.captions_of)


@pytest.mark.parametrize("longest", ["a star left of a blue cross", "a sign that says <|im_end|><|image|><|im_start|>"])
def test_stored_prompts_are_the_models_own_to_bfloat16(task, longest):
    prompts = ["", "a red circle", "two green squares", longest]
    store = PromptStore(task.model, prompts)
    rows = torch.tensor([3, 0, 1])
    found = task.model.conditioner.adapt(*store.rows(rows))
    expected = task.model.prefix([prompts[row] for row in rows])
    assert torch.equal(found.mask, expected.mask)
    used = expected.mask[:, None, :, None]
    for one, other in zip((*found.keys, *found.values), (*expected.keys, *expected.values), strict=True):
        torch.testing.assert_close(one * used, other * used, atol=0.02, rtol=0.02)
    torch.testing.assert_close(found.prompt_vector, expected.prompt_vector, atol=0.03, rtol=0.03)


def test_rows_of_the_store_have_one_shape_when_they_are_not_cut(task):
    shapes = {task.store.rows(torch.tensor([row]), cut=False)[0][0][0].shape for row in range(4)}
    assert len(shapes) == 1
    cut = task.store.rows(torch.tensor([0]))[0][0][0]
    assert cut.shape[2] == task.store.length[0] < shapes.pop()[2]


def test_more_pictures_and_prompts_than_memory_holds_give_the_same_batches(task, shapes, tmp_path, monkeypatch):
    from edgemm.train import samples as pictures
    from edgemm.train import stores as prompt_store

    monkeypatch.setattr(pictures, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(prompt_store, "STORED_BYTES", 0)
    model = checkpoint.build("micro").requires_grad_(False)
    other = DrawTask(model, recipe("micro-shapes", tmp_path, data=shapes))
    assert other.store is None and not isinstance(other.pixels, torch.Tensor)
    for one, two in zip(other._batch(7), task._batch(7), strict=True):
        assert torch.equal(one, two)
    with torch.no_grad():  # stored prompts are bfloat16, and whiten what they were fitted to
        model.conditioner.load_state_dict(task.model.conditioner.state_dict())
        found, expected = (one.prefix(torch.tensor([3, 0, 9])) for one in (other, task))
    torch.testing.assert_close(found.prompt_vector, expected.prompt_vector, atol=0.03, rtol=0.03)


def test_drawing_emoji_lowers_the_loss_too(tmp_path):
    train(recipe("micro-shapes", tmp_path, data=EMOJI, steps=30, batch=16, log_every=1))
    losses = [line["loss"] for line in read_log(tmp_path)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
