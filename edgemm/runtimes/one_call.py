"""Drawing with the bundle's graph of the whole loop: one run of one engine a picture (export/one_call.py).

Steps and guidance are in the graph, so a caller may leave them out or name what it has; there are no previews, and
nobody is heard while it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from edgemm.bundle.components import OneCall
from edgemm.bundle.drawing import DenoiseLoop
from edgemm.errors import InputError, UsageError
from edgemm.runtimes.backend.engine import check_finite
from edgemm.runtimes.denoise_loop import DrawRequest
from edgemm.runtimes.engines import Engines
from edgemm.runtimes.image_call import DenoiseProgress, DrawingClock, DrawingOptions, ImageResult, Picture

__all__ = ["as_the_graph_has_it", "draw_in_one_call"]

FIXED = ("negative_prompt", "image", "image_guidance_scale")  # of the loop's options, what one graph does not take


def as_the_graph_has_it(options: DrawingOptions, call: OneCall) -> DrawingOptions:
    """With the steps and guidance of the graph; UsageError where a caller asks for others."""
    for name in FIXED:
        if getattr(options, name) is not None:
            raise UsageError(f"one_call draws from words alone, with what is in its graph: leave {name} out")
    if options.preview:
        raise UsageError("one_call is one run, without previews: leave preview or one_call out")
    in_graph = {"num_inference_steps": call.num_inference_steps, "guidance_scale": call.guidance_scale}
    for name, value in in_graph.items():
        asked = getattr(options, name)
        if asked is not None and asked != value:
            raise UsageError(f"{name} is {asked:g}, the graph of one call has {value:g}: leave it out, or export again")
    return replace(options, num_inference_steps=call.num_inference_steps, guidance_scale=call.guidance_scale)


def draw_in_one_call(
    request: DrawRequest, loop: DenoiseLoop, engines: Engines, cancelled: Callable[[], bool], clock: DrawingClock
) -> Iterator[DenoiseProgress | ImageResult]:
    """One ImageResult, after a run for each picture."""
    start = time.perf_counter()
    engine = engines.whole("draw")
    clock.load_s = time.perf_counter() - start
    ids, fixed = request.prompts.prompt.input_ids, engine.inputs["input_ids"].shape[1]
    if isinstance(fixed, int) and len(ids) > fixed:
        raise InputError(f"the drawing prompt takes {len(ids)} tokens, this bundle draws from at most {fixed}")
    padded = np.zeros((1, fixed if isinstance(fixed, int) else len(ids)), dtype=np.int64)
    padded[0, : len(ids)] = ids
    x = np.zeros((1, *loop.state_shape(request.height, request.width)), dtype=np.float32)
    pixels = np.zeros((1, 3, request.height, request.width), dtype=np.float32)
    inputs = {"input_ids": padded, "prompt_length": np.array([len(ids)], dtype=np.int64), "noise": x}
    binding = engine.bind(inputs, {"pixels": pixels})
    pictures: list[Picture] = []
    for seed, noise in zip(request.seeds, request.noises):
        if cancelled():
            break
        start = time.perf_counter()
        x[0] = noise
        binding.run()
        check_finite(pixels, "one call, pixels")
        clock.steps_s += [(time.perf_counter() - start) / request.steps] * request.steps
        pictures.append(Picture(pixels[0].copy(), seed))
    finished = len(pictures) == len(request.seeds)
    yield ImageResult(tuple(pictures), "stop" if finished else "cancelled", clock.metrics(len(ids)))
