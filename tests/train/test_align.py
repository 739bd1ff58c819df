"""The cheap start for reading: image tokens that point where their label's embedding points."""

from __future__ import annotations

import pytest
import torch

from edgemm.model import checkpoint
from edgemm.train.align import align_projection, label_directions
from edgemm.train.run import train
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
