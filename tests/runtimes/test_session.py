"""Sessions: a conversation that keeps its cache says what one that is read anew each time says."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

import edgemm
from edgemm.errors import EdgemmError, InputError, UsageError
from tests.runtimes.tiny_bundle import LIMITS, build

PICTURE = np.random.default_rng(5).integers(0, 256, (20, 30, 3), dtype=np.uint8)
TURNS = [("hello", []), ("what is this?", [PICTURE]), ("and now?", [])]


def reads(model, monkeypatch):
    """How many tokens every run of the transformer reads, as it happens."""
    engine, seen = model._engines.get("transformer"), []
    bind = engine.bind

    def counting(inputs, outputs):
        binding, run = bind(inputs, outputs), None
        run = binding.run
        binding.run = lambda: (seen.append(inputs["input_ids"].shape[1]), run())
        return binding

    monkeypatch.setattr(engine, "bind", counting)
    return seen


def test_a_second_system_message_is_refused_and_not_left_out(model):
    with pytest.raises(UsageError, match=r"the session has a system message, and messages\[0\] is another"):
        model.session(system="Be brief.").generate_text(
            [{"role": "system", "content": "Be long."}, {"role": "user", "content": "hello"}]
        )


def test_a_session_says_what_the_whole_history_gives(model):
    """The tiny tokenizer has one token a byte, so that what was written is read anew as the same tokens."""
    chat, messages = model.session(system="be brief"), [{"role": "system", "content": "be brief"}]
    for content, images in TURNS:
        messages.append({"role": "user", "content": content, "images": images})
        wanted = model.generate_text(messages, max_new_tokens=9, grammar=None)
        reply = chat.generate_text(content, images, max_new_tokens=9)
        if reply.text.isascii():  # broken characters do not come back as the bytes that they were
            assert reply.token_ids == wanted.token_ids
        messages.append({"role": "assistant", "content": reply.text})
    assert [message["content"] for message in chat.messages] == [message["content"] for message in messages]


def test_only_what_is_new_is_read(model, monkeypatch):
    seen, chat = reads(model, monkeypatch), model.session()
    chat.generate_text("hello" * 20, max_new_tokens=4)
    first = list(seen)
    chat.generate_text("x", max_new_tokens=4)
    close = len("\n") + 1 + len("user\n") + 1 + 1 + 1 + len("\n") + 1 + len("assistant\n")
    assert first[0] > 100 and seen[len(first)] == close + 1  # with the one token that was written and not read
    assert set(first[1:]) == {1}


def test_the_second_turn_depends_on_the_first(model):
    replies = set()
    for opening in ("hello", "a red heart"):
        chat = model.session()
        chat.generate_text(opening, max_new_tokens=5)
        replies.add(chat.generate_text("and?", max_new_tokens=12).token_ids)
    assert len(replies) == 2


def test_rewind_and_ask_again_gives_the_same_reply_bit_for_bit(model):
    chat = model.session()
    chat.generate_text("hello", max_new_tokens=6)
    held = chat.tokens
    second = chat.generate_text("and?", max_new_tokens=6, logprobs=2)
    chat.generate_text("more", max_new_tokens=6)
    chat.rewind(2)
    assert chat.tokens == held
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    assert chat.generate_text("and?", max_new_tokens=6, logprobs=2).logprobs == second.logprobs


def test_a_fork_goes_its_own_way(model):
    trunk = model.session()
    trunk.generate_text("hello", max_new_tokens=6)
    branch = trunk.fork()
    wanted = trunk.generate_text("one", max_new_tokens=8).token_ids
    other = branch.generate_text("two", max_new_tokens=8).token_ids
    assert other != wanted
    branch.rewind()
    assert branch.generate_text("one", max_new_tokens=8).token_ids == wanted
    trunk.generate_text("once more", max_new_tokens=8)
    assert branch.tokens < trunk.tokens


def test_a_cancelled_reply_stays_as_far_as_it_came_and_the_conversation_goes_on(model):
    chat = model.session()
    stream = chat.stream_text("hello", max_new_tokens=50)
    written = [next(stream) for _ in range(4)]
    model.cancel()
    assert list(stream)[-1].finish_reason == "cancelled"
    assert chat.messages[-1]["content"] == "".join(chunk.text for chunk in written)
    assert chat.generate_text("and?", max_new_tokens=3).finish_reason == "length"


def test_one_reply_at_a_time(model):
    chat = model.session()
    stream = chat.stream_text("hello", max_new_tokens=5)
    late = chat.stream_text("and?", max_new_tokens=5)
    next(stream)
    for act in (chat.fork, chat.close, lambda: chat.generate_text("x")):
        with pytest.raises(UsageError, match="is writing a reply"):
            act()
    list(stream)
    with pytest.raises(UsageError, match="has moved on"):
        next(late)


def test_a_full_session_ends_its_reply_with_length_and_refuses_the_next_message(tmp_path, weights):
    path = build(tmp_path / "short.bundle", weights, limits=dataclasses.replace(LIMITS, max_context=60))
    with edgemm.load(path, device="cpu", threads=1) as short:
        chat = short.session()
        assert chat.generate_text("hello", max_new_tokens=500).finish_reason == "length"
        assert chat.room == -1  # the last token needs no slot
        with pytest.raises(InputError, match=r"takes 26 tokens, this bundle holds at most 60 after 60; rewind\(\)"):
            chat.generate_text("and?")
        chat.rewind()
        assert chat.generate_text("hello", max_new_tokens=3).finish_reason == "length"


def test_eight_threads_and_eight_sessions_do_not_disturb_one_another(model):
    def talk(name, out):
        chat = model.session(system=f"you are {name}")
        for content in ("hello", "and?", "more"):
            out.append(chat.generate_text(content, max_new_tokens=8).token_ids)

    alone = [[] for _ in range(8)]
    for index, out in enumerate(alone):
        talk(index, out)
    together = [[] for _ in range(8)]
    threads = [threading.Thread(target=talk, args=(index, out)) for index, out in enumerate(together)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert len({tuple(out) for out in alone}) > 1


@pytest.mark.parametrize("turns", [0, 2])
def test_only_turns_that_were_can_be_taken_back(model, turns):
    chat = model.session()
    chat.generate_text("hello", max_new_tokens=2)
    with pytest.raises(UsageError, match=f"turns is {turns}, expected 1 to 1"):
        chat.rewind(turns)


def test_a_conversation_goes_on_after_a_reply_whose_numbers_went_wrong(model):
    """0 times NaN is NaN: what went wrong must not stay behind the slots that count."""
    chat, sound = model.session(), model.session()
    for each in (chat, sound):
        each.generate_text("hello", max_new_tokens=4)
    stream = chat.stream_text("a longer question than the next", max_new_tokens=9, ignore_eos=True)
    next(stream)
    for buffer in chat._transformer.cache.buffers.values():
        buffer[:, :, chat._place.used :] = np.nan
    with pytest.raises(EdgemmError, match="NaN or infinity"):
        list(stream)
    assert chat.messages == sound.messages
    assert chat.generate_text("b", max_new_tokens=5).token_ids == sound.generate_text("b", max_new_tokens=5).token_ids
