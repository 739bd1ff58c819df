"""A student cut from its teacher: which layers stay, and that what it keeps does what it did."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from edgemm.errors import UsageError
from edgemm.model import checkpoint
from edgemm.train.shrink import block_influence, kept_layers, nano_depths, shrink, spread_over, student_expert
from edgemm.train.stores import PromptStore
from edgemm.train.tasks.distill import feature_loss, kept_words, word_loss
from tests.model.tiny import micro, random_micro, tokens_of

CAPTIONS = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("dog", "square", "star")]
QUESTIONS, ANSWERS = ["What is this?", "Is this a dog?"], ["a dog", "yes"]


@pytest.fixture(scope="module")
def teacher():
    model = random_micro()
    model.conditioner.fit_whitening(PromptStore(model, CAPTIONS).pooled())
    return model


def influence_of(model) -> list[float]:
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return block_influence(model, QUESTIONS, ANSWERS, pixels)


def test_a_layer_that_does_nothing_has_no_influence():
    model = random_micro()
    layer = model.transformer.layers[2]
    for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
        nn.init.zeros_(projection.weight)
    influence = influence_of(model)
    assert influence[2] == pytest.approx(0, abs=1e-6)
    assert min(influence[:2] + influence[3:]) > 1e-3


@pytest.mark.parametrize(
    ("read", "deepest", "count", "kept"),
    [
        ([0, 3], 3, 4, [0, 3, 4, 5]),  # 4 is the most influential above 3, then 5
        ([0, 3], 3, 5, [0, 1, 3, 4, 5]),
        ([0, 1, 2, 3], 3, 3, [0, 3, 4]),  # no room for all that are read
        ([0, 3], 3, 2, [3, 4]),
    ],
)
def test_layers_that_drawing_reads_stay_and_the_least_influential_go(read, deepest, count, kept):
    assert kept_layers([0.9, 0.3, 0.1, 0.2, 0.5, 0.4], read, deepest, count) == kept


def test_a_student_without_room_is_refused():
    with pytest.raises(UsageError, match="a student of 7 transformer layers: expected 2 to 6"):
        kept_layers([0.1] * 6, [0], 3, 7)


def test_half_of_the_weights_is_at_most_half(teacher):
    depth, blocks = nano_depths(teacher)
    expert = student_expert(teacher.config, blocks)
    student, _ = shrink(teacher, depth, expert, [0.1] * 6, CAPTIONS, "nano")

    def weights(model) -> int:
        return sum(p.numel() for part in (model.transformer, model.denoiser) for p in part.parameters())

    assert weights(student) <= weights(teacher) / 2
    assert student.config.transformer.depth == depth and student.config.denoiser.depth == blocks == 2


def test_a_student_of_every_layer_is_its_teacher(teacher):
    student, kept = shrink(teacher, 6, teacher.config.denoiser, [0.1] * 6, CAPTIONS, "same")
    assert kept == list(range(6)) and student.config == dataclasses.replace(teacher.config, name="same")
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(*(m.generate("What?", pixels, 3, stop=False)[1] for m in (student, teacher)))
    cached, mask, length = teacher.prompt_cache(CAPTIONS)
    ours, theirs = (model.conditioner(cached, mask, length) for model in (student, teacher))
    assert torch.equal(ours.keys[3], theirs.keys[3])
    # The whitened prompts are found by least squares over few captions, so they agree up to the ridge.
    assert (ours.prompt_vector - theirs.prompt_vector).std() < 0.2 * theirs.prompt_vector.std()


def test_what_drawing_reads_of_the_prompt_is_the_teachers_where_nothing_below_was_cut(teacher):
    expert = dataclasses.replace(teacher.config.denoiser, depth=2, prefix_layers=(0, 1))
    student, kept = shrink(teacher, 5, expert, [0.9, 0.8, 0.7, 0.6, 0.1, 0.5], CAPTIONS, "cut")
    assert kept == [0, 1, 2, 3, 5] and student.config.denoiser.prefix_layers == (0, 3)
    ours, theirs = (model.prompt_cache(CAPTIONS[:2])[0] for model in (student, teacher))
    for one, other in zip(ours, (theirs[0], theirs[3]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(student.denoiser.blocks[1].qkv_proj.weight, teacher.denoiser.blocks[3].qkv_proj.weight)
    assert student.draw(CAPTIONS[:2], tokens_of(student, 2)).std() > 0.05


def test_a_base_gives_only_the_layers_that_are_kept(teacher, tmp_path, monkeypatch):
    """A stand-in for the package of the base; the real one is 135M parameters."""
    state = teacher.transformer.state_dict()
    monkeypatch.setattr(checkpoint, "load_transformer_weights", lambda base, config, tokenizer: state)
    based = random_micro(micro())
    based.config = dataclasses.replace(based.config, base="some-base")
    student, _ = shrink(based, 5, student_expert(based.config, 2), [0.9, 0.8, 0.7, 0.6, 0.1, 0.5], CAPTIONS, "cut")
    assert student.config.base_layers == (0, 1, 2, 3, 5)
    checkpoint.save(student, tmp_path / "cut")
    loaded = checkpoint.load(tmp_path / "cut")
    assert torch.equal(
        loaded.transformer.layers[4].mlp.up_proj.weight, teacher.transformer.layers[5].mlp.up_proj.weight
    )
    smaller, _ = shrink(student, 4, student_expert(student.config, 2), [0.9, 0.1, 0.7, 0.6, 0.5], CAPTIONS, "again")
    assert smaller.config.base_layers == (0, 2, 3, 5)


def test_evenly_spread_rows_hold_the_first_and_the_last():
    assert spread_over(4, 8) == [0, 2, 5, 7] and spread_over(1, 5) == [0] and spread_over(3, 3) == [0, 1, 2]


def test_the_word_loss_is_the_divergence_that_torch_computes():
    random = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(5, 30, generator=random) for _ in range(2))
    words, known = kept_words(theirs, 2.0, 30)
    soft = nn.functional.kl_div(
        (ours / 2).log_softmax(-1), (theirs / 2).log_softmax(-1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(word_loss(ours, words, known, 2.0), 4 * soft, atol=1e-4, rtol=1e-3)
    few, known = kept_words(theirs, 2.0, 8)  # lumping words together never raises the divergence
    assert 0 < word_loss(ours, few, known, 2.0) < 4 * soft
    assert word_loss(theirs, few, known, 2.0) == pytest.approx(0, abs=1e-5)


def test_the_feature_loss_knows_directions_alone():
    features = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    assert feature_loss(features * 3, features) == pytest.approx(0, abs=1e-6)
    assert feature_loss(-features, features) == pytest.approx(2, abs=1e-6)
