"""Reading, taught after drawing: the loss falls, and drawing stays as it was to the last bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgemm.errors import InputError, UsageError
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS
from edgemm.model.prompts import read_prompt, reply_ids
from edgemm.train.run import train
from edgemm.train.tasks.read import ReadTask
from tests.model.tiny import tokens_of
from tests.train.conftest import EMOJI, read_log, recipe


@pytest.fixture(scope="module")
def before(drawn):
    return checkpoint.load(drawn / "checkpoint")


@pytest.fixture(scope="module")
def after(read):
    return checkpoint.load(read / "checkpoint")


@pytest.fixture(scope="module")
def task(drawn, tmp_path_factory):
    start = checkpoint.load(drawn / "checkpoint").requires_grad_(False)
    settings = recipe("micro-read", tmp_path_factory.mktemp("task"), data=EMOJI, batch=8)
    return ReadTask(start, settings)


def test_training_lowers_the_loss_and_raises_the_share_of_right_tokens(read):
    lines = read_log(read)
    assert np.mean([line["loss"] for line in lines[-5:]]) < 0.75 * lines[0]["loss"]
    assert np.mean([line["token_accuracy"] for line in lines[-5:]]) > lines[0]["token_accuracy"] + 0.03


def test_drawing_is_the_same_to_the_last_bit(before, after):
    noise = tokens_of(before, 2)
    prompts = ["a red circle", "two blue stars"]
    assert torch.equal(before.draw(prompts, noise), after.draw(prompts, noise))


def test_layers_that_the_denoiser_reads_were_not_touched_and_those_above_were(before, after):
    old, new = before.transformer.state_dict(), after.transformer.state_dict()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    targets = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    assert moved == {f"layers.{layer}.{target}.weight" for layer in (4, 5) for target in targets}


def test_what_is_loaded_says_what_the_trained_model_said(drawn, tmp_path):
    """PEFT's wrapped model at the end of training and the merged one of the checkpoint."""
    start = checkpoint.load(drawn / "checkpoint").requires_grad_(False)
    settings = recipe("micro-read", tmp_path, data=EMOJI)
    trained = ReadTask(start, settings)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_" in name:
                random = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.05
                parameter.copy_(random.bfloat16())  # what the checkpoint can hold, so that nothing is rounded
    trained.save(tmp_path / "checkpoint")
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    loaded = checkpoint.load(tmp_path / "checkpoint")
    expected = start.generate("What is this?", pixels, 4, stop=False)[1]
    found = loaded.generate("What is this?", pixels, 4, stop=False)[1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    untrained = checkpoint.load(drawn / "checkpoint").generate("What is this?", pixels, 4, stop=False)[1]
    assert (expected - untrained).abs().max() > 1e-3


def test_a_recipe_that_would_touch_what_the_denoiser_reads_is_refused(before, tmp_path):
    for layer in (0, 3, 6, 99):
        settings = recipe("micro-read", tmp_path, data=EMOJI, lora_first_layer=layer)
        with pytest.raises(UsageError, match=f"lora_first_layer is {layer}, expected 4 to 5"):
            ReadTask(before, settings)


def test_reading_goes_on_with_the_adapter_it_came_with(read, after, tmp_path):
    """At a rate of nothing a second stage gives back the model of the first: neither lost nor added twice."""
    settings = {"data": EMOJI, "start": read / "checkpoint", "steps": 2, "batch": 4, "learning_rate": 0}
    train(recipe("micro-read", tmp_path, **settings))
    again = checkpoint.load(tmp_path / "checkpoint").state_dict()
    expected = after.state_dict()
    assert {name for name in expected if not torch.equal(again[name], expected[name])} == set()


def test_an_adapter_that_was_stored_in_bfloat16_is_trained_in_float32(read, tmp_path):
    start = checkpoint.load(read / "checkpoint", merge=False).requires_grad_(False)
    task = ReadTask(start, recipe("micro-read", tmp_path, data=EMOJI))
    stored = load_file(read / "checkpoint" / checkpoint.ADAPTER / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert {parameter.dtype for _, parameter in task.named_parameters()} == {torch.float32}


def test_a_projection_that_is_not_taught_stays_as_it_was_aligned_over_a_resume(drawn, tmp_path):
    changes = {"data": EMOJI, "start": drawn / "checkpoint", "batch": 4, "align_steps": 3, "train_projection": "false"}

    def projection(name: str, steps: int) -> torch.Tensor:
        train(recipe("micro-read", tmp_path / name, **changes, steps=steps))
        return checkpoint.load(tmp_path / name / "checkpoint").image_encoder.up_proj.weight

    aligned = projection("stopped", 1)
    before = checkpoint.load(drawn / "checkpoint").image_encoder.up_proj.weight
    assert not torch.equal(aligned, before)
    assert torch.equal(projection("stopped", 3), aligned)  # neither trained nor aligned again
    projection("whole", 3)
    assert [line["loss"] for line in read_log(tmp_path / "stopped")][-1] == read_log(tmp_path / "whole")[-1]["loss"]


@pytest.fixture(scope="module")
def wordy(tmp_path_factory):
    """A micro with 64 visual words of twelve bytes, none of them taught yet."""
    config = PRESETS["micro"]()
    vision = dataclasses.replace(config.vision, words=64, word_tokens=12)
    folder = tmp_path_factory.mktemp("wordy") / "checkpoint"
    checkpoint.save(checkpoint.build(dataclasses.replace(config, vision=vision)), folder)
    return folder


def test_answers_teach_the_projection_and_leave_the_visual_words_as_they_were_taught(wordy, tmp_path):
    changes = {"data": EMOJI, "start": wordy, "batch": 4, "word_steps": 20, "pictures": 16, "learning_rate": 1e-2}

    def encoder(name: str, steps: int) -> dict[str, torch.Tensor]:
        train(recipe("micro-read", tmp_path / name, **changes, steps=steps))
        return checkpoint.load(tmp_path / name / "checkpoint").image_encoder.state_dict()

    one, three = encoder("stopped", 1), encoder("whole", 3)
    resumed = encoder("stopped", 3)
    born = checkpoint.load(wordy).image_encoder.state_dict()
    assert not torch.equal(one["words.proj.weight"], born["words.proj.weight"])
    moved = {name for name in one if not torch.equal(one[name], three[name])}
    assert {"up_proj.weight", "down_proj.weight"} <= moved
    assert not {name for name in moved if name.startswith("words.")}
    assert {name for name in three if not torch.equal(three[name], resumed[name])} == set()


@pytest.mark.parametrize(("change", "name"), [("lora_rank=4", "r is 8"), ("lora_targets=k_proj", "target_modules is")])
def test_an_adapter_of_another_shape_than_the_recipes_is_refused(read, tmp_path, change, name):
    key, value = change.split("=")
    with pytest.raises(InputError, match=f"transformer_adapter: {name}"):
        train(recipe("micro-read", tmp_path, data=EMOJI, start=read / "checkpoint", **{key: value}))


def test_drawing_taught_after_reading_keeps_what_was_learned(read, after, shapes, tmp_path):
    train(recipe("micro-shapes", tmp_path, data=shapes, start=read / "checkpoint", steps=1, batch=4))
    again, expected = checkpoint.load(tmp_path / "checkpoint"), after.transformer.state_dict()
    for name, tensor in again.transformer.state_dict().items():
        assert torch.equal(tensor, expected[name].bfloat16().float())


def test_only_the_answer_is_scored_and_each_token_from_the_one_before(task):
    """One question, step by step: the scored rows are the logits of `generate` while it says the answer."""
    rows, prompts, answers, _ = task._batch(0)
    logits, targets, _ = task._scored(0)
    assert targets.tolist() == [token for answer in answers for token in answer]
    picture = task.features[rows[0], task._batch(0)[3].integers(task.features.shape[1], size=len(rows))[0]]
    tokens = task.model.image_encoder.project(picture[None].float())
    ids = torch.tensor([[*prompts[0].input_ids, *answers[0][:-1]]])
    extra = len(answers[0]) - 1
    index = torch.tensor([[*prompts[0].image_index, *[-1] * extra]])
    limit = torch.tensor([[*prompts[0].attention_limit, *range(len(prompts[0]), ids.shape[1])]])
    with torch.no_grad():
        hidden, _ = task.model.transformer(task.model.transformer.embed(ids, tokens, index), limit)
        expected = task.model.transformer.logits(hidden)[0, len(prompts[0]) - 1 :]
    torch.testing.assert_close(logits[: extra + 1].detach(), expected, atol=1e-4, rtol=1e-4)


def test_half_of_the_questions_ask_for_the_name(task):
    names = {(tuple(prompt.input_ids), tuple(answer)) for _, prompt, answer in task.questions["label"]}
    for step in range(3):
        _, prompts, answers, _ = task._batch(step)
        asked = [
            (tuple(prompt.input_ids), tuple(answer)) in names for prompt, answer in zip(prompts, answers, strict=True)
        ]
        assert sum(asked) == 4


def test_text_replies_are_scored_apart_and_with_their_own_weight(drawn, tmp_path):
    """An eighth of the batch is text; its share of the loss is the mean of its tokens times the weight."""
    start = checkpoint.load(drawn / "checkpoint").requires_grad_(False)
    settings = {"data": EMOJI, "batch": 16, "replies": 8, "reply_tokens": 5, "reply_weight": 0.25}
    task = ReadTask(start, recipe("micro-read", tmp_path, **settings))
    _, prompts, _, _ = task._batch(0)
    assert [max(prompt.image_index) for prompt in prompts[:3]] == [-1, -1, 15]
    logits, targets, pictured = task._scored(0)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert (~pictured).sum() == sum(len(answer) for answer in task._batch(0)[2][:2])
    expected = losses[pictured].mean() + 0.25 * losses[~pictured].mean()
    torch.testing.assert_close(task.loss(0), expected)
    assert set(task.measures(0)) == {"token_accuracy", "reply_accuracy"}


def test_prompts_and_answers_are_those_of_the_dataset(task):
    row, prompt, answer = task.questions["label"][0]
    assert row == 0
    expected = read_prompt(task.model.config, task.model.tokenizer, "What is this?", 1)
    assert prompt.input_ids.tolist() == expected.input_ids.tolist()
    assert prompt.image_index.tolist() == expected.image_index.tolist()
    assert answer == reply_ids(task.model.config, task.model.tokenizer, "red heart")


def test_the_first_view_is_the_picture_itself_and_the_others_are_changed(task):
    views = task.features.float()
    assert views.shape[1] == 2
    assert (views[:, 0] - views[:, 1]).abs().amax(dim=(1, 2)).min() > 0.05


def test_a_split_without_questions_is_refused(before, tmp_path, monkeypatch):
    import edgemm.train.tasks.read as module

    pick = module.pick_samples

    def without_questions(*arguments):
        dataset, samples = pick(*arguments)
        object.__setattr__(dataset, "questions", ())
        return dataset, samples

    monkeypatch.setattr(module, "pick_samples", without_questions)
    with pytest.raises(InputError, match="no question is about the pictures of splits"):
        ReadTask(before, recipe("micro-read", tmp_path, data=EMOJI))


def test_the_stored_adapter_is_in_pefts_own_layout(read):
    tensors = load_file(read / "checkpoint" / checkpoint.ADAPTER / "adapter_model.safetensors")
    assert "base_model.model.layers.4.self_attn.q_proj.lora_A.weight" in tensors
    assert len(tensors) == 2 * 2 * 4  # two layers, four targets, A and B


def test_blended_features_keep_at_least_half_of_their_own_picture(drawn, tmp_path):
    start = checkpoint.load(drawn / "checkpoint").requires_grad_(False)
    blended = ReadTask(start, recipe("micro-read", tmp_path, data=EMOJI, batch=8, blend=0.5))
    rows, views = np.arange(8), np.zeros(8, dtype=int)
    own = blended.features[rows, views].float()
    found = blended._blended(rows, views, np.random.default_rng(0))
    again = blended._blended(rows, views, np.random.default_rng(0))
    assert torch.equal(found, again)
    towards = (blended.features[None, :, 0].float() - own[:, None]).flatten(2)  # (rows, pictures, numbers)
    moved = (found - own).flatten(1)
    share = (towards @ moved[..., None])[..., 0] / towards.square().sum(-1).clamp(min=1e-9)  # along each of them
    missed = (moved[:, None] - share[..., None] * towards).norm(dim=-1)
    best = missed.argmin(1)  # the picture that was mixed in: it alone explains the whole difference
    assert (missed.gather(1, best[:, None])[:, 0] < 1e-2 * moved.norm(dim=1) + 1e-4).all()
    taken = share.gather(1, best[:, None])
    assert taken.min() >= 0 and 0.2 < taken.max() <= 0.5
