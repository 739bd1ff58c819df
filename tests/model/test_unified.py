"""The whole model: its short cuts (a cached prefix, a static cache, batches) give what the long way gives."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from edgemm.model import flow, unified
from edgemm.model.image_tokens import tokens_to_pixels
from edgemm.model.prompts import draw_prompt, read_prompt
from edgemm.model.unified import Unified
from tests.model.tiny import micro, tokens_of

PROMPTS = ["a red circle", "two blue stars left of a green square", "x"]


def drawn_the_long_way(model: Unified, prompt: str, noise: torch.Tensor) -> torch.Tensor:
    """One picture, with the prompt read again at every step: all layers, a static cache as on a device, none kept."""
    config, slots = model.config, 64

    def predict(text: str):
        def at(x: torch.Tensor, time: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
            asked = draw_prompt(config, model.tokenizer, text)
            shape = (1, config.transformer.kv_heads, slots, config.transformer.head_width)
            past = [(torch.full(shape, 2.0), torch.full(shape, -2.0)) for _ in model.transformer.layers]
            start = torch.zeros(1, dtype=torch.long)
            embedded = model.transformer.embed_tokens(torch.from_numpy(asked.input_ids)[None])
            _, cached = model.transformer(embedded, torch.arange(len(asked))[None], past, start)
            mask = torch.zeros(1, slots)
            mask[0, : len(asked)] = torch.from_numpy(asked.users_own)
            layers = [cached[layer] for layer in config.denoiser.prefix_layers]
            return model.denoiser(x, time, model.conditioner(layers, mask, torch.tensor([len(asked)])))

        return at

    return tokens_to_pixels(flow.sample(predict(prompt), predict(""), noise, config.sampler), config.image_tokens)


def test_drawing_over_a_cached_prefix_equals_reading_the_prompt_at_every_step(model):
    noise = tokens_of(model, len(PROMPTS))
    drawn = model.draw(PROMPTS, noise)
    assert drawn.shape == (3, 3, 32, 32)
    for row, prompt in enumerate(PROMPTS):
        expected = drawn_the_long_way(model, prompt, noise[row : row + 1])
        assert expected.std() > 0.1
        torch.testing.assert_close(drawn[row : row + 1], expected, atol=1e-5, rtol=0)


def test_prompts_of_different_lengths_in_one_batch_draw_as_each_alone(model):
    noise = tokens_of(model, len(PROMPTS))
    together = model.draw(PROMPTS, noise)
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(together[row], model.draw([prompt], noise[row : row + 1])[0], atol=1e-5, rtol=0)


def test_the_same_noise_draws_the_same_picture_and_other_noise_another(model):
    noise = tokens_of(model, 1)
    assert torch.equal(model.draw(["x"], noise), model.draw(["x"], noise))
    assert (model.draw(["x"], noise) - model.draw(["x"], tokens_of(model, 1, seed=1))).abs().max() > 0.01


def test_a_changed_prompt_guidance_or_number_of_steps_changes_the_picture(model):
    noise = tokens_of(model, 1)
    plain = model.draw(["a red circle"], noise)
    others = [
        model.draw(["a red circles"], noise),
        model.draw(["a red circle"], noise, model.with_sampler(guidance_scale=1.0)),
        model.draw(["a red circle"], noise, model.with_sampler(guidance_interval=(0.0, 0.4))),
        model.draw(["a red circle"], noise, model.with_sampler(num_inference_steps=3)),
        model.draw(["a red circle"], noise, model.with_sampler(shift=3.0)),
    ]
    assert all((other - plain).abs().max() > 1e-3 for other in others)


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_replies_from_a_static_cache_equal_whole_passes_without_one(model, pictures):
    pixels = torch.rand(pictures, 3, 32, 32, generator=torch.Generator().manual_seed(0)) if pictures else None
    ids, logits = model.generate("What is this?", pixels, max_new_tokens=8, stop=False)
    assert len(ids) == len(logits) == 8
    prompt = read_prompt(model.config, model.tokenizer, "What is this?", pictures)
    whole = torch.tensor([[*prompt.input_ids, *ids[:-1]]])
    index = torch.tensor([[*prompt.image_index, *[-1] * 7]])
    limit = torch.tensor([[*prompt.attention_limit, *range(len(prompt), len(prompt) + 7)]])
    rows = torch.zeros(1, 1, 128) if pixels is None else model.image_encoder(pixels).flatten(0, 1)[None]
    hidden, _ = model.transformer(model.transformer.embed(whole, rows, index), limit)
    expected = model.transformer.logits(hidden)[0, len(prompt) - 1 :]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)  # logits of a size of tens
    assert ids == expected.argmax(-1).tolist()


def test_the_picture_and_its_place_change_the_reply(model):
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    _, one = model.generate("What is this?", pixels[:1], max_new_tokens=1)
    _, other = model.generate("What is this?", pixels[1:], max_new_tokens=1)
    _, both = model.generate("What is this?", pixels, max_new_tokens=1)
    _, swapped = model.generate("What is this?", pixels.flip(0), max_new_tokens=1)
    assert (one - other).abs().max() > 1e-3
    assert (both - swapped).abs().max() > 1e-3


def test_a_reply_stops_at_the_stop_token_and_keeps_its_logits(model, monkeypatch):
    ids, _ = model.generate("hello", max_new_tokens=6, stop=False)
    monkeypatch.setattr(unified, "stop_ids", lambda config, tokenizer: [ids[2]])
    stopped, logits = model.generate("hello", max_new_tokens=6)
    assert stopped == ids[: ids.index(ids[2])]
    assert len(logits) == len(stopped) + 1


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(model):
    config = micro(transformer=dataclasses.replace(model.config.transformer, vocab_size=200))
    with pytest.raises(ValueError, match="the tokenizer has 264 tokens, the transformer's embedding 200 rows"):
        Unified(config, model.tokenizer_json)
