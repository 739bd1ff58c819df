"""Attention, rotary embedding and norm against torch's fused attention and the reference Llama."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from edgemm.model.transformer import RMSNorm, apply_rotary, attend, rotary_tables, visible_up_to


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
def test_attention_with_shared_keys_equals_torchs_own(heads, groups):
    queries, keys, values = random(2, heads, 5, 8), random(2, groups, 7, 8, seed=1), random(2, groups, 7, 8, seed=2)
    mask = visible_up_to(torch.tensor([[2, 3, 4, 6, 6], [0, 1, 2, 3, 4]]), 7)
    expected = scaled_dot_product_attention(queries, keys, values, mask, enable_gqa=True)
    torch.testing.assert_close(attend(queries, keys, values, mask), expected, atol=1e-6, rtol=1e-5)


def test_attention_without_a_mask_equals_torchs_own():
    queries, keys, values = random(1, 2, 3, 4), random(1, 2, 5, 4, seed=1), random(1, 2, 5, 4, seed=2)
    expected = scaled_dot_product_attention(queries, keys, values)
    torch.testing.assert_close(attend(queries, keys, values, None), expected, atol=1e-6, rtol=1e-5)


def test_a_mask_for_all_queries_is_the_same_mask_for_each():
    queries, keys, values = random(2, 2, 3, 4), random(2, 2, 5, 4, seed=1), random(2, 2, 5, 4, seed=2)
    mask = torch.tensor([[True, False, True, True, False], [True] * 5])[:, None, None]
    expected = scaled_dot_product_attention(queries, keys, values, mask)
    torch.testing.assert_close(attend(queries, keys, values, mask), expected, atol=1e-6, rtol=1e-5)


def test_a_hidden_key_has_no_weight_at_all():
    queries, keys, values = random(1, 2, 3, 4), random(1, 2, 5, 4, seed=1), random(1, 2, 5, 4, seed=2)
    mask = visible_up_to(torch.tensor([[1, 1, 3]]), 5)
    before = attend(queries, keys, values, mask)
    keys[:, :, 4], values[:, :, 4] = 1e4, 1e4
    assert torch.equal(attend(queries, keys, values, mask), before)


def test_visible_slots_are_those_up_to_the_limit():
    assert visible_up_to(torch.tensor([[0, 2]]), 3)[0, 0].tolist() == [[True, False, False], [True, True, True]]


def test_rotary_embedding_equals_the_reference_llamas(llama):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    positions, queries, keys = torch.tensor([[0, 1, 17, 200]]), random(1, 4, 4, 16), random(1, 2, 4, 16, seed=1)
    cos, sin = llama.model.rotary_emb(queries, positions)
    tables = rotary_tables(positions, 16, 5_000.0)
    for ours, expected in zip((queries, keys), apply_rotary_pos_emb(queries, keys, cos, sin), strict=True):
        torch.testing.assert_close(apply_rotary(ours, *tables), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_equals_the_reference_llamas(dtype):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    ours, reference = RMSNorm(8, 1e-3), LlamaRMSNorm(8, 1e-3)
    weight, x = random(8), random(3, 8, seed=1).to(dtype) * 0.05  # small, so that epsilon counts
    ours.weight.data.copy_(weight)
    reference.weight.data.copy_(weight)
    # In bfloat16 the reference rounds once more, before the weight.
    tolerance = 1e-6 if dtype is torch.float32 else 2**-7
    found, expected = ours(x), reference(x).to(dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
