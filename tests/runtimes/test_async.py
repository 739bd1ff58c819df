"""astream_text and astream_image: the same events, a free event loop, and an end when nobody listens any more."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

import edgemm
from edgemm.errors import InputError, UsageError


class Slow:
    """A real engine whose runs take a while longer and are counted."""

    def __init__(self, engine, runs):
        self._engine, self._runs = engine, runs
        self.component, self.inputs, self.outputs = engine.component, engine.inputs, engine.outputs

    def bind(self, inputs, outputs):
        binding, runs = self._engine.bind(inputs, outputs), self._runs

        class Bound:
            def run(self):
                runs.append(1)
                time.sleep(0.005)
                binding.run()

        return Bound()


@pytest.fixture
def slow(bundle_path):
    runs = []
    with edgemm.load(bundle_path, device="cpu", threads=1) as opened:
        opened._engines.watch(lambda engine: Slow(engine, runs))
        yield opened, runs


async def gathered(events):
    return [event async for event in events]


def test_events_are_those_of_the_iterators(model):
    async def both():
        return await asyncio.gather(
            gathered(model.astream_text("hello", max_new_tokens=12)),
            gathered(model.astream_image("a heart", seed=3, preview=[2])),
        )

    text, image = asyncio.run(both())
    assert text[-1].result.token_ids == model.generate_text("hello", max_new_tokens=12).token_ids
    assert np.array_equal(image[-1].pixels, model.generate_image("a heart", seed=3).pixels)
    assert [event.preview is not None for event in image[:-1]] == [False, True, False, False]


def test_the_event_loop_stays_free(slow):
    """Ticks of 1 ms go on while steps of 5 ms run; a loop that waited for the reply would have no tick at all."""
    model, _ = slow

    async def ticking():
        done, ticks = asyncio.ensure_future(gathered(model.astream_text("hello", max_new_tokens=40))), 0
        while not done.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks

    assert asyncio.run(ticking()) > 20


@pytest.mark.parametrize("how", ["close", "cancel"])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_who_stops_listening_stops_the_work(slow, how, kind):
    model, runs = slow

    def events():
        if kind == "text":
            return model.astream_text("hello", max_new_tokens=500, ignore_eos=True)
        return model.astream_image("a heart", num_inference_steps=50)

    async def stopping():
        stream = events()
        if how == "close":
            await anext(stream)
            await stream.aclose()
        else:
            task = asyncio.ensure_future(gathered(stream))
            while not runs:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        before = len(runs)
        await asyncio.sleep(0.05)
        assert len(runs) <= before + 1

    asyncio.run(stopping())
    assert not model._calls._running
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edgemm_") and thread.is_alive()]


def test_names_are_checked_at_once_and_the_rest_with_the_first_event(model):
    with pytest.raises(UsageError, match="did you mean 'temperature'"):
        model.astream_text("hello", temprature=1)
    for stream in (model.astream_text("hello", ["no.png"]), model.astream_text("x" * 700)):
        with pytest.raises(InputError):
            asyncio.run(gathered(stream))
