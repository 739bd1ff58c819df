"""The drawing loop as one graph: prompt ids and noise in, pixels out, the denoiser once a step.

Steps, times, guidance and solver are those of runtimes/schedule.py, written down by canvas.py's Symbols.
Axes: b batch, s tokens of the prompt, T cache slots, t prefix slots; of what is drawn (n, p) or (c, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemm.bundle.components import Variant, pattern
from edgemm.bundle.drawing import DenoiseLoop
from edgemm.export.canvas import Canvas, Symbol
from edgemm.export.passes.rewriting import dims, nodes_of
from edgemm.runtimes import schedule
from edgemm.runtimes.prompt_prefix import BLOCK
from edgemm.runtimes.schedule import Trajectory

__all__ = ["compose_drawing", "read_at_once"]

SLOT_AXIS = {"prefix_key.*": 2, "prefix_value.*": 2, "prefix_mask": 1}
OWN_INPUTS = ("noisy_tokens", "latents", "time", "step_size")


class ComposedLoop:
    """The denoise loop's parts on a canvas: what prompt_prefix.py and denoise_loop.py do with engines."""

    def __init__(
        self, canvas: Canvas, loop: DenoiseLoop, unconditional: Mapping[str, np.ndarray], negative: Sequence[int]
    ) -> None:
        self.canvas, self.loop, self.unconditional, self.negative = canvas, loop, unconditional, negative

    def prefix(
        self, ids: ir.Value, length: ir.Value, own: tuple[int, int], slots: ir.Value, blank: bool = False
    ) -> dict[str, ir.Value]:
        """The conditioner's outputs for a prompt (1, s), of which `length` (1) tokens count, in a cache of `slots`.

        The user's own words stand between so many first and last tokens.  `blank`: on keys and values of zeros.
        """
        canvas, specs = self.canvas, {spec.name: spec for spec in self.canvas.variants["transformer"].inputs}
        size = canvas.make("Shape", ids)  # (2): 1, s
        count = canvas.make("Gather", size, canvas.constant([1]))  # (1)
        past = {name: self._zeros(spec.shape, spec.dtype, slots) for name, spec in specs.items() if "past_" in name}
        kept = past
        if not blank:
            width = specs["image_tokens"].fixed(2, "width")
            one = canvas.constant([1])
            inputs = {
                "input_ids": ids,
                "image_tokens": canvas.constant(np.zeros((1, 1, width)), np.float32),
                # -1 everywhere; Myelin (TensorRT for RTX 1.7) fails on a mask that it knows beforehand
                "image_index": canvas.make("Sub", canvas.make("Mul", ids, canvas.constant([0])), one),
                "write_index": canvas.constant([0]),
                "attention_limit": canvas.make("Unsqueeze", self._places(count), canvas.constant([0])),
                "logits_index": canvas.make("Sub", length, one),
                "draft_index": canvas.constant(np.zeros((1, 1))),
            }
            inputs = {name: value for name, value in inputs.items() if name in specs}
            given = canvas.run("transformer", {**inputs, **past})
            kept = {name: given[name.replace("past_", "present_", 1)] for name in past}
        wanted = {spec.name for spec in canvas.variants["conditioner"].inputs}
        more = {"prefix_length": length}
        if "prompt_mask" in wanted:
            more["prompt_mask"] = self._between(slots, length, own)
        return canvas.run("conditioner", {**{n: v for n, v in kept.items() if n in wanted}, **more})

    def unguided(
        self, prompt: Mapping[str, ir.Value], ids: ir.Value, length: ir.Value, own: tuple[int, int], room: ir.Value
    ) -> Mapping[str, ir.Value]:
        """What guidance leads away from, with as many slots as the prompt's prefix, of a cache of `room` (1)."""
        canvas, kind = self.canvas, self.loop.unconditional
        slots = canvas.make("Gather", canvas.make("Shape", prompt["prefix_mask"]), canvas.constant([1]))  # (1)
        if kind == "file":
            return {name: self._padded(name, self.unconditional[name], slots) for name in prompt}
        if kind == "mask":
            seen = canvas.make("Less", self._places(slots), canvas.constant(self.loop.seen_slots))
            return {**prompt, "prefix_mask": canvas.make("And", prompt["prefix_mask"], seen)}
        if kind == "zeros":
            return self.prefix(ids, length, own, room, blank=True)
        if kind == "prompt":
            fixed, read = dims(ids)[1], len(self.negative)
            more = fixed - read if isinstance(fixed, int) else 0
            other = canvas.constant([[*self.negative, *[0] * more]])
            return self.prefix(other, canvas.constant([read]), own, room)
        types = {spec.name: spec.dtype for spec in canvas.variants["denoiser"].inputs}
        return {name: self._filled(canvas.make("Shape", value), 0, types[name]) for name, value in prompt.items()}

    def steps(self, noise: ir.Value, ndim: int, rows: Mapping[int, Mapping[str, ir.Value]], way: Trajectory) -> Symbol:
        """From noise (1, ...) to what the decoder reads, without its batch axis; `rows` has the prefixes of 1 and 2."""
        x: Any = Symbol(self.canvas, self.canvas.make("Squeeze", noise, self.canvas.constant([0])), ndim)
        guidance, interval = self.loop.guidance_scale, self.loop.guidance_interval
        for _ in range(way.steps):
            b = 2 if schedule.is_guided(way.now, guidance, interval) else 1
            found = self._predicted(x, rows[b], b, way)
            prediction: Any = found[0]
            if b == 2:
                prediction = schedule.guide(found[0], found[1], guidance)
                if self.loop.renorm != "none":
                    each = self.loop.renorm != "global"
                    prediction = schedule.renormed(prediction, found[0], self.loop.renorm_min, each)
            clean = way.clean(x, prediction)
            x = way.step(x, prediction, clean)
        return x

    def _predicted(self, x: Symbol, prefix: Mapping[str, ir.Value], b: int, way: Trajectory) -> list[Any]:
        canvas, specs = self.canvas, {spec.name for spec in self.canvas.variants["denoiser"].inputs}
        batch = canvas.make("Unsqueeze", x.value, canvas.constant([0]))
        if b > 1:
            batch = canvas.make("Concat", *[batch] * b, axis=0)
        told = schedule.told(way.now, self.loop)
        own = {
            "noisy_tokens": batch,
            "latents": batch,
            "time": canvas.constant([told] * b, np.float32),
            "step_size": canvas.constant([way.later - way.now] * b, np.float32),
        }
        given = canvas.run("denoiser", {**{n: v for n, v in own.items() if n in specs}, **prefix})["prediction"]
        axis = canvas.constant([0])
        if b == 1:
            return [Symbol(canvas, canvas.make("Squeeze", given, axis), x.ndim)]
        parts = canvas.make_many("Split", [given], b, axis=0, num_outputs=b)
        return [Symbol(canvas, canvas.make("Squeeze", part, axis), x.ndim) for part in parts]

    def _zeros(self, shape: Sequence[int | str], dtype: str, slots: ir.Value) -> ir.Value:
        """(1, g, T, d) of a cache that is as long as the prompt."""
        heads, width = shape[1], shape[3]
        size = self.canvas.make(
            "Concat", self.canvas.constant([1, heads]), slots, self.canvas.constant([width]), axis=0
        )
        return self._filled(size, 0, dtype)

    def _filled(self, size: ir.Value, number: float, dtype: Any) -> ir.Value:
        return self.canvas.make("ConstantOfShape", size, value=ir.Tensor(np.array([number], dtype=dtype)))

    def slots(self, ids: ir.Value) -> ir.Value:
        """(1): T of a cache for the prompt, and at least for the unconditional one, as prompt_prefix.py has it."""
        canvas, fixed = self.canvas, dims(ids)[1]
        if isinstance(fixed, int):
            return canvas.constant([fixed])
        count = canvas.make("Gather", canvas.make("Shape", ids), canvas.constant([1]))
        least = max((array.shape[1] for name, array in self.unconditional.items() if name == "prefix_mask"), default=0)
        least = max(least + self.loop.skip, len(self.negative))
        blocks = canvas.make("Div", canvas.make("Add", count, canvas.constant([BLOCK - 1])), canvas.constant([BLOCK]))
        least = -(-least // BLOCK) * BLOCK
        return canvas.make("Max", canvas.make("Mul", blocks, canvas.constant([BLOCK])), canvas.constant([least]))

    def _places(self, count: ir.Value) -> ir.Value:
        """0, 1, ... up to `count` (1)."""
        canvas = self.canvas
        end = canvas.make("Squeeze", count, canvas.constant([0]))
        return canvas.make("Range", canvas.constant(0), end, canvas.constant(1))

    def _between(self, slots: ir.Value, length: ir.Value, own: tuple[int, int]) -> ir.Value:
        """(1, T) float32: 1 on the user's own words."""
        canvas, (before, after), places = self.canvas, own, self._places(slots)
        starts = canvas.make("GreaterOrEqual", places, canvas.constant(before))
        ends = canvas.make("Less", places, canvas.make("Sub", length, canvas.constant([after])))
        inside = canvas.make("Cast", canvas.make("And", starts, ends), to=int(ir.DataType.FLOAT))
        return canvas.make("Unsqueeze", inside, canvas.constant([0]))

    def _padded(self, name: str, array: np.ndarray, slots: ir.Value) -> ir.Value:
        """A constant of the bundle with empty slots behind it."""
        canvas, axis = self.canvas, SLOT_AXIS.get(pattern(name))
        types = {spec.name: spec for spec in canvas.variants["denoiser"].inputs}
        made = canvas.constant(array, types[name].dtype)
        if axis is None:
            return made
        fixed = types[name].shape[axis]
        if isinstance(fixed, int):
            widths = [(0, fixed - size if i == axis else 0) for i, size in enumerate(array.shape)]
            return canvas.constant(np.pad(array, widths), types[name].dtype)
        more = canvas.make("Sub", slots, canvas.constant([array.shape[axis]]))
        size = [canvas.constant([n]) if i != axis else more for i, n in enumerate(array.shape)]
        empty = self._filled(canvas.make("Concat", *size, axis=0), 0, types[name].dtype)
        return canvas.make("Concat", made, empty, axis=axis)


def read_at_once(model: ir.Model) -> bool:
    """A prompt that fills its whole cache is the cache: engines write in place only into what comes from outside.

    TensorScatter(zeros of s slots, x of s tokens, 0)   ->   x
    """
    found = nodes_of(model, "TensorScatter") if isinstance(dims(model.graph.inputs[0])[1], int) else []
    for node in found:
        update = node.inputs[1]
        assert update is not None
        node.outputs[0].replace_all_uses_with(update)
        model.graph.remove(node, safe=True)
    return bool(found)


def compose_drawing(
    folder: Path,
    variants: Mapping[str, Variant],
    loop: DenoiseLoop,
    steps: int,
    own: tuple[int, int],
    unconditional: Mapping[str, np.ndarray],
    negative: Sequence[int] = (),
) -> ir.Model:
    """`input_ids` (1, s), `prompt_length` (1), `noise` (1, ...) -> `pixels` (1, 3, H, W), clipped to [0, 1].

    `variants` are those that a target runs, in the bundle below `folder`; guidance is the loop's own.  `own`: tokens of
    the template before and after the user's words.  `unconditional` is what the bundle's file of that name holds.
    Where the negative prompt names the picture's size there is one size.
    """
    canvas = Canvas(folder, variants)
    noisy = next(spec for spec in variants["denoiser"].inputs if spec.name in OWN_INPUTS[:2])
    fixed = next((spec.shape[2] for spec in variants["conditioner"].inputs if spec.name.startswith("past_")), "s")
    ids = canvas.input("input_ids", ir.DataType.INT64, (1, fixed if isinstance(fixed, int) else "s"))
    length = canvas.input("prompt_length", ir.DataType.INT64, (1,))
    said = loop.unconditional == "prompt" and (loop.negative_template or loop.template).size_sentence
    shape = loop.state_shape(loop.height, loop.width) if said else noisy.shape[1:]
    noise = canvas.input("noise", ir.DataType.FLOAT, (1, *shape))
    composed = ComposedLoop(canvas, loop, unconditional, negative)
    room = composed.slots(ids)
    alone = composed.prefix(ids, length, own, room)
    alone = {name: alone[name] for name in alone if name in {spec.name for spec in variants["denoiser"].inputs}}
    rows = {1: alone}
    way = Trajectory(steps, loop)
    if any(schedule.is_guided(time, loop.guidance_scale, loop.guidance_interval) for time in way.times[:-1]):
        other = composed.unguided(alone, ids, length, own, room)
        rows[2] = {name: canvas.make("Concat", value, other[name], axis=0) for name, value in alone.items()}
    drawn = composed.steps(noise, len(noisy.shape) - 1, rows, way)
    decoder = variants["image_decoder"]
    batch = canvas.make("Unsqueeze", drawn.value, canvas.constant([0]))
    pixels = canvas.run("image_decoder", {decoder.inputs[0].name: batch})["pixels"]
    low, high = (canvas.constant(number, np.float32) for number in (0, 1))
    sides = (loop.height, loop.width) if said else decoder.outputs[0].shape[2:]
    canvas.output("pixels", canvas.make("Clip", pixels, low, high), ir.DataType.FLOAT, (1, 3, *sides))
    return canvas.model()
