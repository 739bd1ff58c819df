"""A model is loaded without drawing the weights that it then reads, and none is left as memory happened to be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgemm.model import checkpoint
from edgemm.model.designs import variant
from edgemm.model.undrawn import Undrawn
from tests.model.tiny import micro


@pytest.fixture
def new_memory_is_nan():
    """torch fills it so, to find who reads what nobody wrote."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


DESIGNS = {
    "of patches": {},
    "of codes": {"image_tokens": "vq", "objective": "ar"},
    "of latents": {"image_tokens": "ae"},
    "dense": {"experts": "dense"},
    "a connector": {"experts": "connector"},
    "of experts": {"mixture": "4-top-2"},
    "with an eye": {"vision": "dual"},
    "with graphs": {"graphs": "rows"},
    "with motion": {"motion": "16"},
}


@pytest.mark.parametrize("design", DESIGNS)
def test_every_number_of_a_loaded_model_is_the_saved_ones(design, tmp_path, new_memory_is_nan):
    model = checkpoint.build(variant(micro(), **DESIGNS[design]))
    checkpoint.save(model, tmp_path / "model")
    before = torch.get_rng_state()
    loaded = checkpoint.load(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)
    found = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    wanted = dict(model.named_parameters()) | dict(model.named_buffers())
    assert found.keys() == wanted.keys()
    assert {name for name in found if not torch.equal(found[name], wanted[name])} == set()


def test_what_is_not_random_is_as_ever(new_memory_is_nan):
    with Undrawn():
        made = nn.ModuleList([nn.Linear(2, 3), nn.Embedding(2, 3), nn.LayerNorm(3)])
    assert made[0].weight.isnan().all() and made[1].weight.isnan().all()
    assert made[2].weight.eq(1).all() and made[2].bias.eq(0).all()
    assert not nn.Linear(2, 3).weight.isnan().any()
