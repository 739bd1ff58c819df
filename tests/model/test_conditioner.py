"""What the denoiser gets to know of a prompt, and that padding is not part of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from edgemm.model import checkpoint
from edgemm.model.conditioner import pool_prompt
from tests.model.tiny import micro, random_micro, tokens_of


def correlated(count: int, features: int) -> torch.Tensor:
    """Features of very different means and spreads that move together."""
    random = torch.Generator().manual_seed(0)
    mixed = torch.randn(count, features, generator=random) @ torch.randn(features, features, generator=random)
    scale = torch.logspace(-2, 2, features)
    return mixed * scale + 10 * scale


def test_whitened_prompts_have_zero_mean_unit_variance_and_no_correlation():
    conditioner = checkpoint.build(micro()).conditioner
    pooled = correlated(2000, len(conditioner.whiten_mean))
    conditioner.fit_whitening(pooled)
    whitened = (pooled - conditioner.whiten_mean) @ conditioner.whiten_matrix
    assert whitened.shape == (2000, 64)
    torch.testing.assert_close(whitened.mean(0), torch.zeros(64), atol=1e-3, rtol=0)
    # A direction of the mean variance loses 0.1 % to the damping; those kept here have at least that.
    torch.testing.assert_close(whitened.T @ whitened / 2000, torch.eye(64), atol=2e-3, rtol=0)


def test_a_whitening_that_follows_leaves_prompts_where_the_denoiser_knows_them():
    """Prompts that moved together, and were mixed a little, come out as before; a fresh fit turns them anyhow."""
    conditioner, random = checkpoint.build(micro()).conditioner, torch.Generator().manual_seed(2)
    pooled = torch.randn(60, len(conditioner.whiten_mean), generator=random)
    conditioner.fit_whitening(pooled)
    before = (pooled - conditioner.whiten_mean) @ conditioner.whiten_matrix
    moved = 3 * pooled + 0.1 * torch.randn(pooled.shape, generator=random) + 5
    assert ((moved - conditioner.whiten_mean) @ conditioner.whiten_matrix - before).abs().max() > 2
    conditioner.fit_whitening(moved, follow=True)
    after = (moved - conditioner.whiten_mean) @ conditioner.whiten_matrix
    torch.testing.assert_close(after, before, atol=0.3, rtol=0)
    variance = (after.T @ after / 60).diagonal().sum()
    torch.testing.assert_close(variance, (before.T @ before / 60).diagonal().sum(), atol=0, rtol=0.01)


def test_directions_without_variance_stay_small():
    conditioner = checkpoint.build(micro()).conditioner
    pooled = correlated(2000, 3) @ torch.randn(3, 512, generator=torch.Generator().manual_seed(1))
    conditioner.fit_whitening(pooled)
    whitened = (pooled - conditioner.whiten_mean) @ conditioner.whiten_matrix
    assert whitened[:, :3].std() > 0.5
    assert whitened[:, 3:].abs().max() < 0.01


def test_what_never_varied_in_training_says_nothing_later():
    conditioner = checkpoint.build(micro()).conditioner
    pooled = correlated(200, 512)
    pooled[:, 7] = 3.0
    conditioner.fit_whitening(pooled)
    assert not conditioner.whiten_matrix[7].any()


@pytest.mark.parametrize("count", [1, 2, 10])
def test_few_prompts_are_whitened_too(count):
    conditioner = checkpoint.build(micro()).conditioner
    pooled = torch.randn(count, len(conditioner.whiten_mean), generator=torch.Generator().manual_seed(0))
    conditioner.fit_whitening(pooled)
    assert ((pooled - conditioner.whiten_mean) @ conditioner.whiten_matrix).abs().max() < 4


def test_prompts_that_were_pooled_in_bfloat16_are_followed_too():
    """As on CPUs whose autocast is bfloat16: products of two types are refused there."""
    conditioner = checkpoint.build(micro()).conditioner
    pooled = torch.randn(40, len(conditioner.whiten_mean), generator=torch.Generator().manual_seed(0)).bfloat16()
    conditioner.fit_whitening(pooled)
    before = conditioner.whiten_matrix.clone()
    conditioner.fit_whitening(pooled, follow=True)
    torch.testing.assert_close(conditioner.whiten_matrix, before, rtol=1e-3, atol=1e-3)


def test_pooling_is_the_mean_over_the_users_tokens_then_over_all():
    values = torch.tensor([1.0, 2.0, 4.0, 100.0]).reshape(1, 1, 4, 1)
    pooled = pool_prompt([values, 10 * values], torch.tensor([[0.0, 1.0, 1.0, 0.0]]), torch.tensor([[1, 1, 1, 0]]))
    torch.testing.assert_close(pooled, torch.tensor([[3.0, 30.0, 7 / 3, 70 / 3]]))


def test_the_empty_prompt_pools_to_nothing_of_its_own():
    pooled = pool_prompt([torch.ones(1, 1, 3, 1)], torch.zeros(1, 3), torch.ones(1, 3))
    assert pooled.tolist() == [[0.0, 1.0]]


def test_slots_beyond_the_prompt_change_nothing(model):
    cached, mask, length = model.prompt_cache(["a red circle"])
    expected = model.conditioner(cached, mask, length)
    used = mask.shape[1]
    longer = [(torch.cat((k, k * 7 + 1), 2), torch.cat((v, v * -3), 2)) for k, v in cached]
    found = model.conditioner(longer, torch.cat((mask, torch.zeros(1, used)), 1), length)
    kept = expected.mask.shape[1]
    assert found.mask.tolist() == [[True] * kept + [False] * used]
    torch.testing.assert_close(found.prompt_vector, expected.prompt_vector, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.layout, expected.layout, atol=1e-6, rtol=1e-5)
    for layer in range(len(expected.keys)):
        torch.testing.assert_close(found.keys[layer][:, :, :kept], expected.keys[layer], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.values[layer][:, :, :kept], expected.values[layer], atol=1e-6, rtol=1e-5)


def test_the_templates_opening_never_reaches_the_denoiser(model):
    cached, mask, length = model.prompt_cache(["a red circle"])
    expected = model.conditioner(cached, mask, length)
    for keys, values in cached:
        keys[:, :, : model.conditioner.skip] = 50.0
        values[:, :, : model.conditioner.skip] = 50.0
    found = model.conditioner(cached, mask, length)
    for one, other in zip((*found.keys, *found.values, *found[2:]), (*expected.keys, *expected.values, *expected[2:])):
        assert torch.equal(one, other)


def test_the_unconditional_prompt_has_the_same_vector_whatever_whitening_says(model):
    prefix = model.prefix([""])
    origin = model.conditioner.prompt_mlp(torch.zeros(1, 64))
    assert torch.equal(prefix.prompt_vector, origin)
    assert not torch.equal(model.prefix(["a red circle"]).prompt_vector, origin)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_model_without_a_layout_draws():
    config = micro()
    bare = random_micro(micro(denoiser=dataclasses.replace(config.denoiser, layout_width=0)))
    assert bare.prefix(["a red circle"]).layout.shape == (1, 16, 0)
    assert bare.draw(["a red circle"], tokens_of(bare, 1)).isfinite().all()
