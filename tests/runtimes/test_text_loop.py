"""Replies: the loop over the K/V cache against the reference that has none, and everything that ends a reply."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

import edgemm
from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.bundle.manifest import Limits, Loops
from edgemm.bundle.picture import load_picture
from edgemm.bundle.prompt import Tokenizer
from edgemm.errors import EdgemmError, InputError, UsageError
from edgemm.runtimes.kv_cache import BLOCK
from edgemm.runtimes.text_loop import INCOMPLETE as HALF
from edgemm.runtimes.text_loop import _logprob
from tests.runtimes import reference
from tests.runtimes.tiny_bundle import LIMITS, build, text_loop
from tests.runtimes.tiny_weights import TINY, Weights

PICTURE = np.random.default_rng(5).integers(0, 256, (20, 30, 3), dtype=np.uint8)
OTHER = np.random.default_rng(6).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def tokens_of(model, prompt, images=()):
    return chat_prompt(as_messages(prompt, images), model.manifest.loops.text, model.tokenizer)


def until_stop(model, ids):
    stops = [index for index, token in enumerate(ids) if token in model.manifest.loops.text.stop_token_ids]
    return ids[: stops[0]] if stops else ids


@pytest.mark.parametrize("prompt", ["hello", "What is this? ❤", "a"])
def test_greedy_reply_is_the_references(model, weights, prompt):
    expected = until_stop(model, reference.greedy(weights, tokens_of(model, prompt), None, 24))
    assert len(set(expected)) >= 4  # or the test could not tell one position from another
    assert list(model.generate_text(prompt, max_new_tokens=24).token_ids) == expected


@pytest.mark.parametrize("pictures", [[PICTURE], [PICTURE, OTHER]], ids=["one", "two"])
def test_greedy_reply_to_pictures_is_the_references(model, weights, pictures):
    rows = [reference.image_encoder(weights, load_picture(picture, TINY.read_size)) for picture in pictures]
    expected = until_stop(
        model, reference.greedy(weights, tokens_of(model, "what?", pictures), np.concatenate(rows), 24)
    )
    assert list(model.generate_text("what?", images=pictures, max_new_tokens=24).token_ids) == expected


def test_the_picture_changes_the_reply(model):
    replies = {
        model.generate_text("what?", images=[picture], max_new_tokens=12).token_ids for picture in (PICTURE, OTHER)
    }
    assert len(replies) == 2


def test_a_conversation_with_history_is_the_references(model, weights):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi", "images": [OTHER]},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and now?"},
    ]
    row = reference.image_encoder(weights, load_picture(OTHER, TINY.read_size))
    expected = until_stop(model, reference.greedy(weights, tokens_of(model, messages), row, 16))
    assert list(model.generate_text(messages, max_new_tokens=16).token_ids) == expected


def test_growing_the_cache_over_a_block_gives_the_same_tokens(model, weights):
    prompt = "x" * (BLOCK - 30)
    tokens = tokens_of(model, prompt)
    assert len(tokens) < BLOCK < len(tokens) + 40
    expected = reference.greedy(weights, tokens, None, 40)
    assert until_stop(model, expected) == expected
    assert list(model.generate_text(prompt, max_new_tokens=40).token_ids) == expected


def test_streamed_text_joined_is_the_whole(model):
    chunks = list(model.stream_text("hello", max_new_tokens=60))
    result = chunks[-1].result
    assert [chunk.finished for chunk in chunks] == [False] * 60 + [True]
    assert "".join(chunk.text for chunk in chunks) == result.text == model.tokenizer.decode(result.token_ids)
    assert sum((chunk.token_ids for chunk in chunks), ()) == result.token_ids
    for chunk in chunks:
        chunk.text.encode("utf-8")


def test_a_reply_ends_at_the_most_new_tokens(model):
    result = model.generate_text("hello", max_new_tokens=7)
    assert (result.finish_reason, len(result.token_ids), result.metrics.new_tokens) == ("length", 7, 7)


def test_a_stop_token_ends_a_reply_and_is_no_part_of_it(tmp_path, weights, model):
    free = model.generate_text("hello", max_new_tokens=12).token_ids
    stop = next(token for i, token in enumerate(free) if i >= 3 and token not in free[:i])
    path = build(tmp_path / "stops.bundle", weights, Loops(text_loop(stop_token_ids=(stop,))))
    with edgemm.load(path, device="cpu", threads=1) as stopping:
        result = stopping.generate_text("hello", max_new_tokens=12)
    assert result.finish_reason == "stop"
    assert result.token_ids == free[: free.index(stop)]


def test_ignoring_stop_tokens_gives_every_token_that_was_asked_for(tmp_path, weights, model):
    expected = reference.greedy(weights, tokens_of(model, "hello"), None, 24)
    loops = Loops(dataclasses.replace(text_loop(), stop_token_ids=(expected[3],)), None)
    with edgemm.load(build(tmp_path / "b", weights, loops), device="cpu") as stopping:
        assert len(stopping.generate_text("hello", max_new_tokens=24).token_ids) < 24
        whole = stopping.generate_text("hello", max_new_tokens=24, ignore_eos=True)
    assert list(whole.token_ids) == expected and whole.finish_reason == "length"


def test_a_watched_engine_is_the_one_that_runs(bundle_path):
    with edgemm.load(bundle_path, device="cpu", threads=1) as watched:
        bound = []

        class Watch:
            def __init__(self, engine):
                self.engine = engine

            def __getattr__(self, name):
                return getattr(self.engine, name)

            def bind(self, inputs, outputs):
                bound.append(self.engine.component)
                return self.engine.bind(inputs, outputs)

        watched._engines.watch(Watch)
        watched.generate_text("hello", max_new_tokens=2, ignore_eos=True)
        assert set(bound) == {"transformer"}


def test_a_stop_string_ends_a_reply_before_itself(model):
    whole = model.generate_text("hello", max_new_tokens=40).text
    stop = whole[10:12]
    chunks = list(model.stream_text("hello", max_new_tokens=40, stop=["never there", stop]))
    assert chunks[-1].finish_reason == "stop"
    assert "".join(chunk.text for chunk in chunks) == whole[: whole.index(stop)] == chunks[-1].result.text


def test_a_stop_string_in_what_was_held_back_ends_a_reply_as_a_stop(model):
    """Half a letter at the end is shown as U+FFFD, and only then is the stop string there."""
    whole = next(
        reply
        for count in range(1, 40)
        if (reply := model.generate_text("hello", max_new_tokens=count)).text[-1] == HALF
    )
    cut = model.generate_text("hello", max_new_tokens=len(whole.token_ids), stop=[whole.text[-2:]])
    assert (whole.finish_reason, cut.finish_reason) == ("length", "stop")
    assert cut.text == whole.text[:-2]


def test_a_token_is_told_with_the_blank_before_its_word():
    """As sentencepiece's tokenizers have it, whose texts begin without one."""
    tokenizers = pytest.importorskip("tokenizers")
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581a", "\u2581cat", "s"]
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE({piece: token for token, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    made.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer, logits = Tokenizer("tokenizer.json", made.to_str()), np.zeros(len(pieces), dtype=np.float32)
    said = [made.token_to_id(piece) for piece in ("\u2581a", "\u2581cat", "<0x21>", "s", "<0xE2>")]
    logits[said] = range(5, 0, -1)
    told = [_logprob(token, logits, 5, tokenizer) for token in said]
    assert [each.token for each in told] == [" a", " cat", "!", "s", HALF]
    assert [text for _, text, _ in told[0].top] == [" a", " cat", "!", "s", HALF]
    assert tokenizer.decode(said) == "a cat!s" + HALF


def test_a_reply_ends_when_the_cache_is_full(tmp_path, weights, model):
    path = build(tmp_path / "short.bundle", weights, limits=dataclasses.replace(LIMITS, max_context=40))
    with edgemm.load(path, device="cpu", threads=1) as short:
        result = short.generate_text("hello", max_new_tokens=1000)
        assert result.finish_reason == "length"
        assert result.metrics.prompt_tokens + result.metrics.new_tokens == 41  # the last token needs no slot
        assert result.token_ids == model.generate_text("hello", max_new_tokens=len(result.token_ids)).token_ids


def test_a_prompt_longer_than_the_cache_is_refused_with_both_numbers(model):
    with pytest.raises(InputError, match=r"takes 719 tokens, this bundle holds at most 600"):
        model.generate_text("x" * 700)


def test_cancel_keeps_what_was_written(model):
    whole = model.generate_text("hello", max_new_tokens=50)
    stream = model.stream_text("hello", max_new_tokens=50)
    chunks = [next(stream) for _ in range(5)]
    thread = threading.Thread(target=model.cancel)
    thread.start()
    thread.join()
    chunks += list(stream)
    result = chunks[-1].result
    assert result.finish_reason == "cancelled"
    assert len(result.token_ids) == 5
    assert result.token_ids == whole.token_ids[:5]
    assert result.text == model.tokenizer.decode(result.token_ids)
    assert (
        model.generate_text("hello", max_new_tokens=50).token_ids == whole.token_ids
    )  # the next call is not cancelled


def test_a_timeout_ends_a_reply_like_cancel(model):
    result = model.generate_text("hello", max_new_tokens=500, timeout_s=1e-9)
    assert (result.finish_reason, result.token_ids, result.text) == ("cancelled", (), "")


def test_closing_a_stream_leaves_the_model_usable(model):
    stream = model.stream_text("hello", max_new_tokens=50)
    next(stream)
    stream.close()
    assert model.generate_text("hello", max_new_tokens=3).finish_reason == "length"


def test_interleaved_streams_do_not_disturb_each_other(model):
    alone = [model.generate_text(prompt, max_new_tokens=20).token_ids for prompt in ("hello", "what is")]
    streams = [model.stream_text(prompt, max_new_tokens=20) for prompt in ("hello", "what is")]
    for _ in range(20):
        for stream in streams:
            next(stream)
    assert [list(stream)[-1].result.token_ids for stream in streams] == alone


def test_threads_share_a_model_safely(model):
    prompts = ["hello", "what is", "a", "b"]
    alone = [model.generate_text(prompt, max_new_tokens=30).token_ids for prompt in prompts]
    together: dict[int, tuple[int, ...]] = {}

    def work(index):
        together[index] = model.generate_text(prompts[index], max_new_tokens=30).token_ids

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[index] for index in range(len(prompts))] == alone


def test_sampling_is_repeated_by_its_seed(model):
    drawn = [model.generate_text("hello", max_new_tokens=20, temperature=1.5, seed=seed) for seed in (3, 3, 4)]
    assert drawn[0].token_ids == drawn[1].token_ids != drawn[2].token_ids
    own = model.generate_text("hello", max_new_tokens=20, temperature=1.5)
    again = model.generate_text("hello", max_new_tokens=20, temperature=1.5, seed=own.seed)
    assert again.token_ids == own.token_ids


def test_nan_in_the_weights_is_reported_with_its_stage(tmp_path):
    weights = Weights()
    weights.arrays["final_norm"] = np.full_like(weights["final_norm"], np.nan)
    with edgemm.load(build(tmp_path / "nan.bundle", weights), device="cpu", threads=1) as broken:
        with pytest.raises(EdgemmError, match="transformer, logits after the prompt of 24 tokens: NaN"):
            broken.generate_text("hello")
        stream = broken.stream_text("hello")
        assert next(stream).finish_reason == "error"
        with pytest.raises(EdgemmError):
            next(stream)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"temperature": -1.0}, "temperature is -1.0, expected 0 to 100"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0, expected at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0, expected above 0"),
        ({"min_p": 1.5}, "min_p is 1.5, expected 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
        ({"stop": "word"}, "stop is 'word', expected a list"),
        ({"stop": [""]}, "expected a list of strings that are not empty"),
        ({"timeout_s": 0.0}, "timeout_s is 0.0, expected above 0"),
        ({"prompt": []}, "messages is empty"),
        ({"prompt": [{"role": "robot", "content": "x"}]}, r"messages\[0\].role is 'robot', expected one of: system"),
        ({"prompt": [{"role": "user"}]}, r"messages\[0\] is .* expected role, content"),
        ({"prompt": [{"role": "user", "content": 3}]}, r"messages\[0\].content is int, expected a string"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "the last message is the assistant's"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_by_name(model, options, message):
    with pytest.raises(UsageError, match=message):
        model.stream_text(**{"prompt": "hello", **options})  # before the first chunk is asked for


def test_a_closed_model_says_so(bundle_path):
    closed = edgemm.load(bundle_path, device="cpu", threads=1)
    closed.close()
    with pytest.raises(UsageError, match="the model is closed"):
        closed.generate_text("hello")


def test_a_picture_beyond_the_bundles_limit_is_refused_before_it_is_decoded(tmp_path, weights):
    limits = Limits(max_context=600, max_image_pixels=100, max_steps=50)
    with edgemm.load(build(tmp_path / "strict.bundle", weights, limits=limits), device="cpu") as strict:
        with pytest.raises(InputError, match=r"20 = 600 pixels, at most 100 are allowed"):
            strict.generate_text("what?", images=[PICTURE])


def test_metrics_add_up(model):
    metrics = model.generate_text("what?", images=[PICTURE], max_new_tokens=10).metrics
    assert metrics.new_tokens == 10
    assert metrics.prompt_tokens == len(tokens_of(model, "what?", [PICTURE]))
    assert 0 < metrics.prefill_ms <= metrics.time_to_first_token_ms <= metrics.total_ms
    assert 0 < metrics.image_encode_ms < metrics.time_to_first_token_ms
    assert metrics.decode_tokens_per_s > 0
