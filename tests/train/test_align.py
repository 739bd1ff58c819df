"""The cheap start for reading: image tokens that point where their label's embedding points."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from edgemm.errors import InputError
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS
from edgemm.train.run import train
from edgemm.train.tasks.align import align_projection, label_directions, learn_words, spell_words
from tests.train.conftest import EMOJI, read_log, recipe

LABELS = ["cat", "red heart", "pizza", "bus"]


@pytest.fixture
def model():
    return checkpoint.build("micro").requires_grad_(False)


@pytest.fixture
def features():
    """Two views of each label's picture, (4, 2, 16, 192), the views nearly alike."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(4, 1, 16, 192, generator=random) + 0.1 * torch.randn(4, 2, 16, 192, generator=random)


def nearest(model, features) -> list[int]:
    """For each picture's first view, the label whose direction its tokens point to."""
    with torch.no_grad():
        pooled = model.image_encoder.project(features[:, 0]).mean(1) - model.transformer.embed_tokens.weight.mean(0)
    return (pooled @ label_directions(model, LABELS).T).argmax(1).tolist()


def test_directions_are_unit_vectors_around_their_mean(model):
    directions = label_directions(model, LABELS)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(4))
    table = model.transformer.embed_tokens.weight
    means = torch.stack([table[model.encode(f" {label}")].mean(0) for label in LABELS])
    torch.testing.assert_close(torch.cosine_similarity(directions, means - means.mean(0)), torch.ones(4))


def test_aligned_pictures_point_to_their_own_labels(model, features):
    assert nearest(model, features) != [0, 1, 2, 3]
    model.image_encoder.requires_grad_(True)
    loss = align_projection(model, features, LABELS, steps=60, seed=0)
    assert nearest(model, features) == [0, 1, 2, 3]
    assert loss < torch.tensor(4.0).log()  # better than a guess


def test_nothing_but_the_projection_moves(model, features):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.image_encoder.requires_grad_(True)
    align_projection(model, features, LABELS, steps=2, seed=0)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("image_encoder.") for name in moved)
    assert all(parameter.grad is None for parameter in model.parameters())  # nothing is left for the first step


def test_a_recipe_aligns_before_its_first_step(tmp_path):
    """The rate is 0, so only alignment can have changed the projection; started twice, it comes out the same."""
    start = checkpoint.build("micro").image_encoder.up_proj.weight.bfloat16().float()
    found = []
    for run in ("one", "two"):
        changes = {"start": "micro", "data": EMOJI, "steps": 1, "batch": 2, "learning_rate": 0, "align_steps": 3}
        train(recipe("micro-read", tmp_path / run, **changes))
        found.append(checkpoint.load(tmp_path / run / "checkpoint").image_encoder.up_proj.weight)
        assert len(read_log(tmp_path / run)) == 1
    assert torch.equal(*found)
    assert not torch.equal(found[0], start)


@pytest.fixture
def wordy():
    """A micro with 64 visual words of twelve bytes."""
    config = PRESETS["micro"]()
    vision = dataclasses.replace(config.vision, words=64, word_tokens=12)
    return checkpoint.build(dataclasses.replace(config, vision=vision)).requires_grad_(False)


def test_a_taught_picture_is_spelled_as_its_label(wordy, features):
    words = wordy.image_encoder.words
    learn_words(wordy, features, LABELS, steps=100, seed=0)
    with torch.no_grad():
        chances = words.logits(features[:, 0]).softmax(-1)
        spelled = wordy.image_encoder.project(features[:, 0])[:, -12:]  # (4, j, w), behind the grid
    assert chances[:, 4:].sum() == 0  # words without a meaning are never seen
    table = wordy.transformer.embed_tokens.weight
    for row, label in enumerate(LABELS):
        assert chances[row].max() > 0.8
        ids = wordy.encode(f" {label}") + wordy.encode("\n") * 12
        nearest = torch.cdist(spelled[row], table).argmin(-1).tolist()
        assert nearest == ids[:12]


def test_pictures_between_two_words_are_a_mixture_of_both(wordy, features):
    learn_words(wordy, features, LABELS, steps=100, seed=0)
    between = torch.lerp(features[0, 0], features[2, 0], torch.linspace(0.2, 0.8, 7)[:, None, None])
    with torch.no_grad():
        chances = wordy.image_encoder.words.logits(between).softmax(-1)
    known = sorted(LABELS)  # each as common as the others
    cat, pizza = known.index("cat"), known.index("pizza")
    assert (chances[:, cat].diff() < 0).all()
    assert (chances[:, pizza].diff() > 0).all()


def test_more_labels_than_words_are_refused(wordy):
    with pytest.raises(InputError, match="65 labels of 12 tokens do not fit vision words 64"):
        spell_words(wordy, [f"{i}" for i in range(65)])


def test_a_model_without_words_cannot_learn_them(model, features):
    with pytest.raises(InputError, match="has no visual words"):
        learn_words(model, features, LABELS, steps=1, seed=0)
