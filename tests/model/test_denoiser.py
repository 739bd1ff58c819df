"""The image expert: what its output depends on, and what it must not see."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from edgemm.model import checkpoint
from edgemm.model.conditioner import Prefix
from tests.model.tiny import micro, tokens_of


@pytest.fixture(scope="module")
def prefix(model) -> Prefix:
    return model.prefix(["a red circle", "two stars"])


def predict(model, prefix, time=0.3, x=None):
    x = tokens_of(model, 2) if x is None else x
    return model.denoiser(x, torch.full((len(x),), time), prefix)


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("which", ["keys", "values"])
def test_every_layer_reads_its_own_keys_and_values_of_the_prefix(model, prefix, layer, which):
    before = predict(model, prefix)
    tensors = [tensor.clone() for tensor in getattr(prefix, which)]
    tensors[layer][:, :, 0] += 1.0
    assert (predict(model, prefix._replace(**{which: tensors})) - before).abs().max() > 1e-3


@pytest.mark.parametrize("part", ["prompt_vector", "layout"])
def test_the_pooled_prompt_enters_too(model, prefix, part):
    before = predict(model, prefix)
    changed = prefix._replace(**{part: getattr(prefix, part) + 1.0})
    assert (predict(model, changed) - before).abs().max() > 1e-3


def test_slots_out_of_use_have_no_weight_at_all(model, prefix):
    before = predict(model, prefix)
    assert not prefix.mask[1].all()  # the second prompt is shorter
    keys, values = [k.clone() for k in prefix.keys], [v.clone() for v in prefix.values]
    for tensor in (*keys, *values):
        tensor.transpose(1, 2)[~prefix.mask] = 1e3
    assert torch.equal(predict(model, prefix._replace(keys=keys, values=values)), before)


def test_pictures_of_a_batch_do_not_see_one_another(model, prefix):
    x = tokens_of(model, 2)
    before = predict(model, prefix, x=x)
    x[1] = 3.0
    after = predict(model, prefix, x=x)
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


def test_every_token_of_a_picture_sees_every_other(model, prefix):
    x = tokens_of(model, 2)
    before = predict(model, prefix, x=x)
    x[0, 5] += 1.0
    assert (predict(model, prefix, x=x) != before)[0].any(-1).all()


def test_time_changes_the_prediction(model, prefix):
    assert (predict(model, prefix, 0.3) - predict(model, prefix, 0.31)).abs().max() > 1e-3


def test_a_new_denoiser_predicts_the_mean_picture():
    model = checkpoint.build(micro())
    assert not predict(model, model.prefix(["a", "b"])).any()


def test_a_denoiser_that_is_told_the_step_starts_as_one_that_is_not_and_can_learn_to_heed_it(prefix, model):
    told = checkpoint.build(micro(denoiser=dataclasses.replace(micro().denoiser, step_size=True))).denoiser
    told.load_state_dict(model.denoiser.state_dict(), strict=False)
    x, time = tokens_of(model, 2), torch.full((2,), 0.3)
    with pytest.raises(ValueError, match="has to be told the step size"):
        told(x, time, prefix)
    short, long = (told(x, time, prefix, torch.full((2,), size)) for size in (0.1, 0.5))
    assert torch.equal(short, predict(model, prefix)) and torch.equal(long, short)
    torch.nn.init.normal_(told.step_mlp[2].weight, std=0.1)
    short, long = (told(x, time, prefix, torch.full((2,), size)) for size in (0.1, 0.5))
    assert (short - long).abs().max() > 1e-3
