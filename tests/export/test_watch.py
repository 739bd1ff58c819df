"""A watched stream: replies of a window in the cache against torch, against reading anew, and in constant memory."""

from __future__ import annotations

import dataclasses
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from edgemm.bundle.picture import load_picture, seeded_picture
from edgemm.errors import InputError, UsageError
from edgemm.model.transformer import apply_rotary, rotary_tables
from edgemm.runtimes.kv_cache import turned
from edgemm.runtimes.watch import Watch
from tests.export.nano import needs_opset_24, random_nano

pytestmark = needs_opset_24
WINDOW, ASKED, REPLY = 3, "what moved?", 6


@pytest.fixture(scope="module")
def model():
    return random_nano()


def frame(number: int) -> np.ndarray:
    return seeded_picture(number, 20)


def watched(runtime, frames: int, **how) -> Watch:
    stream = runtime.watch(window=WINDOW, max_new_tokens=REPLY, **how)
    for number in range(frames):
        stream.push(frame(number))
    return stream


def test_turned_keys_are_torchs_at_the_other_positions():
    keys = torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    places = torch.arange(5)[None].expand(2, 5)
    before, after = (apply_rotary(keys, *rotary_tables(places + far, 16, 10_000.0)).numpy() for far in (40, 29))
    np.testing.assert_allclose(turned(before, -11, 10_000.0), after, atol=1e-5)  # torch has its angles in float32
    half = turned(before.astype(np.float16), -11, 10_000.0)
    assert half.dtype == np.float16 and np.abs(half - after).max() < 4e-3


@pytest.mark.parametrize("frames", [1, WINDOW])
def test_a_window_that_is_not_full_says_what_generate_text_says_of_its_frames(runtime, frames):
    stream, shown = watched(runtime, frames), [frame(number) for number in range(frames)]
    assert stream.turns and stream.frames == frames
    wanted = runtime.generate_text(ASKED, images=shown, max_new_tokens=REPLY)
    assert stream.ask(ASKED).token_ids == wanted.token_ids
    assert stream.ask(ASKED).token_ids == wanted.token_ids  # nothing of a question stays
    other = stream.ask("what else?").token_ids
    assert other == runtime.generate_text("what else?", images=shown, max_new_tokens=REPLY).token_ids


def test_reading_anew_says_what_generate_text_says_of_the_last_frames(runtime):
    stream = watched(runtime, 7, reread=True)
    assert not stream.turns and stream.frames == WINDOW
    wanted = runtime.generate_text(ASKED, images=[frame(number) for number in (4, 5, 6)], max_new_tokens=REPLY)
    assert stream.ask(ASKED).token_ids == wanted.token_ids


def torch_stream(model, frames: int) -> tuple[list[torch.Tensor], int]:
    """Keys and values of a stream that torch watched, and how many slots: each key turned as a complex number."""
    config, size = model.config.transformer, model.config.vision.image_size
    sink = torch.tensor([model.encode(model.config.chat.user_open)])
    past = [
        tuple(torch.zeros(1, config.kv_heads, 64, config.head_width) for _ in "kv") for _ in model.transformer.layers
    ]
    used, m = sink.shape[1], model.config.vision.token_count
    _, past = model.transformer(model.transformer.embed_ids(sink), torch.arange(used)[None], past, torch.tensor([0]))
    for number in range(frames):
        if used == sink.shape[1] + WINDOW * m:
            past = [
                (dropped(k, sink.shape[1], m, config, True), dropped(v, sink.shape[1], m, config, False))
                for k, v in past
            ]
            used -= m
        pixels = torch.from_numpy(load_picture(frame(number), size))[None]
        x, limit = model.image_encoder(pixels), torch.full((1, m), used + m - 1)
        _, past = model.transformer(x, limit, past, torch.tensor([used]))
        used += m
    return past, used


def dropped(cache: torch.Tensor, first: int, count: int, config, is_key: bool) -> torch.Tensor:
    rest = cache[:, :, first + count :]
    if is_key:
        half = config.head_width // 2
        rates = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        pairs = torch.complex(rest[..., :half].double(), rest[..., half:].double())
        pairs = pairs * torch.polar(torch.ones(half, dtype=torch.float64), -count * rates)
        rest = torch.cat((pairs.real, pairs.imag), dim=-1).float()
    return torch.cat((cache[:, :, :first], rest, torch.zeros_like(cache[:, :, :count])), dim=2)


@torch.no_grad()
def test_after_many_frames_the_cache_and_the_replies_are_torchs(model, runtime):
    past, used = torch_stream(model, 11)
    stream = watched(runtime, 11)
    cache = stream._conversation().cache
    assert cache.used == used
    for layer, (keys, values) in enumerate(past):
        for part, wanted in (("key", keys), ("value", values)):
            found = cache.buffers[f"past_{part}.{layer}"][:, :, :used]
            np.testing.assert_allclose(found, wanted[:, :, :used].numpy(), atol=2e-4)
    prompt = stream._after(ASKED).build()
    ids, said = torch.from_numpy(prompt.input_ids)[None], []
    limit, write = torch.from_numpy(prompt.attention_limit)[None] + used, used
    while len(said) < REPLY:
        hidden, past = model.transformer(model.transformer.embed_ids(ids), limit, past, torch.tensor([write]))
        write += ids.shape[1]
        said.append(int(model.transformer.logits(hidden[0, -1]).argmax()))
        ids, limit = torch.tensor([[said[-1]]]), torch.tensor([[write]])
    found = stream.ask(ASKED)
    assert list(found.token_ids) == said[: len(found.token_ids)] and found.token_ids


def test_what_turning_leaves_in_the_cache_is_in_deeper_layers_alone(runtime):
    """The first layer's keys and values say what stands in a slot and where, so they are those of a fresh cache; deeper
    ones saw frames that are gone."""
    turned_, anew = (watched(runtime, count, reread=False) for count in (9, 0))
    for number in (6, 7, 8):
        anew.push(frame(number))
    one, other = (stream._conversation().cache for stream in (turned_, anew))
    assert one.used == other.used

    def far(part: str) -> float:
        return float(np.abs(one.buffers[part][:, :, : one.used] - other.buffers[part][:, :, : one.used]).max())

    assert max(far("past_key.0"), far("past_value.0")) < 1e-5
    assert far("past_key.1") > 1e-3


def test_memory_stays_and_frames_go(runtime):
    stream = watched(runtime, 4)
    cache = stream._conversation().cache
    buffers, used = dict(cache.buffers), cache.used
    for number in range(4, 40):
        stream.push(frame(number))
    stream.ask(ASKED)
    assert cache.used == used and all(cache.buffers[name] is buffer for name, buffer in buffers.items())


def test_an_instruction_stands_before_the_frames_and_matters(runtime):
    plain, told = watched(runtime, 2), watched(runtime, 2, instruction="answer in French")
    assert told._conversation().cache.used > plain._conversation().cache.used
    assert told.ask(ASKED).token_ids != plain.ask(ASKED).token_ids


def test_events_are_replies_to_the_instruction_that_are_new(runtime):
    with runtime.watch("what is it?", window=WINDOW, every=2, max_new_tokens=3) as stream:
        found = [stream.push(frame(number // 4), t=number / 2) for number in range(12)]
        assert all(event is None for event in found[::2])  # asked after every second frame
        told = [event for event in found if event]
        assert stream.events == tuple(told) and told
        assert all(one.text != other.text for one, other in pairwise(told))
        assert {event.t for event in told} <= {number / 2 for number in range(1, 12, 2)}
        assert stream._noted("now?", 4).splitlines()[-2] == f"{told[-1].t:g} s: {told[-1].text}".splitlines()[-1]


def test_a_reply_that_was_cut_off_is_no_event_and_the_stream_goes_on(runtime):
    with runtime.watch("what is it?", window=WINDOW, every=1, max_new_tokens=3, timeout_s=1e-6) as stream:
        assert [stream.push(frame(number)) for number in range(3)] == [None] * 3
        assert stream.events == () and stream.ask(ASKED, timeout_s=600.0).finish_reason != "cancelled"


def test_a_second_caller_is_refused_and_mixes_nothing(runtime):
    """A camera's thread pushes, and another one asks: the cache holds one of both."""
    stream, twin = watched(runtime, 2), watched(runtime, 2)
    waits, goes_on = threading.Event(), threading.Event()

    class Slow:
        def to_pil(self):
            waits.set()
            goes_on.wait(60)
            return Image.fromarray(frame(2))

    camera = threading.Thread(target=lambda: stream.push(Slow()))
    camera.start()
    waits.wait(60)
    for act in (lambda: stream.ask(ASKED), lambda: stream.push(frame(3)), stream.close):
        with pytest.raises(UsageError, match="this stream reads a frame or writes a reply; wait for its end"):
            act()
    goes_on.set()
    camera.join()
    twin.push(frame(2))
    assert stream.ask(ASKED).token_ids == twin.ask(ASKED).token_ids


def test_notes_that_do_not_fit_are_left_out_and_a_question_that_does_not_is_refused(runtime):
    from edgemm.runtimes.watch import WatchEvent

    stream, most = watched(runtime, 2), runtime.manifest.limits.max_context
    wanted = stream.ask(ASKED).token_ids
    stream._events.append(WatchEvent(0.0, "x" * most))
    assert stream.ask(ASKED).token_ids == wanted
    with pytest.raises(InputError, match=r"the window takes \d+ tokens with its question"):
        stream.ask("x" * most)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda stream: stream.push(frame(0), t=-1.0), "t is -1.0, expected a number that is not before"),
        (lambda stream: stream.push(frame(0), t=float("nan")), "t is nan"),
        (lambda stream: stream.push(frame(0), t="now"), "t is 'now', expected a number or None"),
        (lambda stream: stream._call.__self__.watch(every=2), "every is 2: so often the instruction is asked"),
        (lambda stream: stream.ask(" "), "question is empty"),
        (lambda stream: stream.ask("x", video="x.mp4"), "a watched stream is the video"),
        (lambda stream: stream.ask("x", fps=2.0), "a watched stream is the video"),
        (lambda stream: stream.ask("x", graph={"nodes": [{"id": 1}], "edges": []}), "a watched stream reads no graph"),
        (lambda stream: stream._call.__self__.watch("x", graph={}), "a watched stream reads no graph"),
        (lambda stream: stream._call.__self__.watch("x", video="x.mp4"), "a watched stream is the video"),
        (lambda stream: stream.ask("x", max_tokens=3), r"ask\(\) has no option 'max_tokens'"),
        (lambda stream: (stream.close(), stream.push(frame(0))), "this stream was closed"),
    ],
)
def test_what_makes_no_sense_is_refused(runtime, act, message):
    with pytest.raises(UsageError, match=message):
        act(watched(runtime, 2))


def test_a_window_that_does_not_fit_is_refused_with_its_numbers(runtime):
    with pytest.raises(
        InputError, match=r"the window takes \d+ tokens .* this bundle holds at most \d+; give a smaller"
    ):
        runtime.watch(window=1000)


@pytest.mark.slow
def test_resident_memory_does_not_grow_over_1200_frames(runtime):
    import psutil

    stream, process, seen = watched(runtime, WINDOW), psutil.Process(), []
    for number in range(1200):
        stream.push(frame(number % 50))
        if number % 20 == 0:
            stream.ask(ASKED)
        if number % 100 == 99:
            seen.append(process.memory_info().rss)
    assert dataclasses.asdict(stream.how)["window"] == WINDOW
    assert max(seen[4:]) - seen[3] <= 1 << 20, [size >> 10 for size in seen]
