"""The decoder: equal to the reference Llama, the same through its cache, and blind to what it must not see."""

from __future__ import annotations

import pytest
import torch

from edgemm.model.transformer import Transformer, write_slots

TEXT, BLOCK = 4, 5  # tokens of a run of text, of a picture


@pytest.fixture(scope="module")
def transformer(llama, llama_shape) -> Transformer:
    ours = Transformer(llama_shape).requires_grad_(False)
    ours.load_state_dict(llama.model.state_dict())
    return ours


def causal(count: int, batch: int = 1) -> torch.Tensor:
    return torch.arange(count).expand(batch, -1)


def logits(transformer: Transformer, x: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    return transformer.logits(transformer(x, limit)[0])


def with_pictures() -> torch.Tensor:
    """Limits of text, picture, text, picture, text: pictures see themselves whole."""
    limit = torch.arange(3 * TEXT + 2 * BLOCK)
    for start in (TEXT, 2 * TEXT + BLOCK):
        limit[start : start + BLOCK] = start + BLOCK - 1
    return limit[None]


def test_logits_equal_the_reference_llamas(transformer, llama):
    ids = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = llama(ids).logits
    found = logits(transformer, transformer.embed_tokens(ids), causal(40, 2))
    assert expected.std() > 1  # of a size where 1e-4 means something
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_keys_and_values_equal_the_reference_llamas_cache(transformer, llama):
    ids = torch.arange(20)[None]
    cache = llama(ids, use_cache=True).past_key_values
    _, present = transformer(transformer.embed_tokens(ids), causal(20))
    for layer, (keys, values) in enumerate(present):
        torch.testing.assert_close(keys, cache.layers[layer].keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(values, cache.layers[layer].values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunks", [[7, 1, 1, 1], [1] * 10, [10], [3, 4, 3]])
def test_a_static_cache_filled_in_pieces_gives_the_logits_of_one_pass(transformer, llama_shape, chunks):
    ids = torch.randint(0, 96, (2, 10), generator=torch.Generator().manual_seed(1))
    expected = logits(transformer, transformer.embed_tokens(ids), causal(10, 2))
    # 16 slots are more than are used, and what was in them before must not matter.
    shape = (2, llama_shape.kv_heads, 16, llama_shape.head_width)
    past = [(torch.full(shape, 9.0), torch.full(shape, -9.0)) for _ in transformer.layers]
    found, start = [], 0
    for count in chunks:
        x = transformer.embed_tokens(ids[:, start : start + count])
        limit = torch.arange(start, start + count).expand(2, -1)
        hidden, past = transformer(x, limit, past, torch.full((2,), start))
        found.append(transformer.logits(hidden))
        start += count
    torch.testing.assert_close(torch.cat(found, dim=1), expected, atol=1e-5, rtol=1e-5)


def test_rows_of_a_batch_may_write_at_their_own_slots(transformer, llama_shape):
    ids = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([4, 8])  # the first row is shorter: its padding is overwritten
    shape = (2, llama_shape.kv_heads, 9, llama_shape.head_width)
    empty = [(torch.zeros(shape), torch.zeros(shape)) for _ in transformer.layers]
    _, past = transformer(transformer.embed_tokens(ids[:, :8]), causal(8, 2), empty, torch.zeros(2, dtype=torch.long))
    new = torch.tensor([[11], [12]])
    hidden, _ = transformer(transformer.embed_tokens(new), lengths[:, None], past, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = torch.cat((ids[row, :length], new[row]))[None]
        expected, _ = transformer(transformer.embed_tokens(alone), causal(length + 1))
        torch.testing.assert_close(hidden[row, 0], expected[0, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changed", range(3 * TEXT + 2 * BLOCK))
def test_a_change_moves_exactly_the_positions_that_may_see_it(transformer, changed):
    limit = with_pictures()
    x = torch.randn(1, limit.shape[1], 64, generator=torch.Generator().manual_seed(3))
    before = logits(transformer, x, limit)
    x[0, changed] += 1.0
    moved = (logits(transformer, x, limit) != before).any(dim=-1)[0]
    assert moved.tolist() == (limit[0] >= changed).tolist()


def test_padding_behind_a_row_changes_nothing_in_it(transformer):
    x = torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(4))
    before = logits(transformer, x, causal(12))
    x[:, 8:] = 100.0
    after = logits(transformer, x, causal(12))
    assert torch.equal(after[:, :8], before[:, :8])
    assert not torch.equal(after[:, 8:], before[:, 8:])


def test_stopping_early_gives_the_keys_and_values_of_the_whole_pass(transformer):
    x = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(5))
    _, whole = transformer(x, causal(6))
    _, early = transformer(x, causal(6), depth=2)
    assert len(early) == 2
    for (keys, values), (expected_keys, expected_values) in zip(early, whole, strict=False):
        assert torch.equal(keys, expected_keys)
        assert torch.equal(values, expected_values)


def test_a_picture_stands_where_its_index_says_and_ids_are_ignored_there(transformer):
    image_tokens = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(6))
    index = torch.tensor([[-1, 2, 0, -1]])
    x = transformer.embed(torch.tensor([[5, 0, 0, 7]]), image_tokens, index)
    assert torch.equal(x, transformer.embed(torch.tensor([[5, 90, 91, 7]]), image_tokens, index))
    assert torch.equal(x[0, [1, 2]], image_tokens[0, [2, 0]])
    assert torch.equal(x[0, [0, 3]], transformer.embed_tokens.weight[[5, 7]])


def test_writing_slots_leaves_the_old_cache_and_the_other_slots_alone():
    cache, update = torch.zeros(2, 1, 4, 1), torch.tensor([1.0, 2.0]).reshape(1, 1, 2, 1).repeat(2, 1, 1, 1)
    written = write_slots(cache, update, torch.tensor([0, 2]))
    assert written[:, 0, :, 0].tolist() == [[1, 2, 0, 0], [0, 0, 1, 2]]
    assert not cache.any()


def test_writing_beyond_the_cache_is_refused():
    with pytest.raises(RuntimeError, match="out of bounds"):
        write_slots(torch.zeros(1, 1, 4, 1), torch.zeros(1, 1, 2, 1), torch.tensor([3]))
