"""Run the whole loops of an opened bundle, here and now, and compare them with what torch said and drew at export.

Needs the thin runtime and no torch, whose answers are in the bundle: `edgemm export` calls it before a bundle gets its
name, `edgemm verify` on any machine, after hashes and graph rules (cli/verify.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from edgemm.bundle.bundle import Bundle
from edgemm.bundle.chat import as_messages, chat_prompt, with_graph
from edgemm.bundle.components import OneCall
from edgemm.bundle.drawing import ImageTokensLoop
from edgemm.bundle.manifest import Manifest, TextLoop
from edgemm.bundle.picture import seeded_picture
from edgemm.errors import BundleError, CheckFailedError, EdgemmError
from edgemm.runtimes.backend.engine import plan_threads
from edgemm.runtimes.codes_loop import CodesRequest, image_prompt, open_codes, unconditional_prompt, write_codes
from edgemm.runtimes.engines import Choice, select
from edgemm.runtimes.image_call import DrawingClock, Picture
from edgemm.runtimes.model import Model
from edgemm.runtimes.sampling import Sampling
from edgemm.verify.parity import (
    CHOICE_FLOOR,
    ONE_CALL_TOLERANCE,
    CodesCase,
    Comparison,
    DrawCase,
    Recorded,
    TextCase,
    compare_choices,
    compare_pictures,
    compare_replies,
    read_recorded,
    require,
)
from edgemm.verify.reference_backend import REFERENCE

__all__ = ["check_bundle", "compare_loops", "precision_of"]


def precision_of(manifest: Manifest, target: str) -> str:
    """The coarsest precision among a target's components: it decides how close the whole can come."""
    found = {manifest.variant(component, target).precision for component in manifest.targets[target]}
    return max(found, key=list(CHOICE_FLOOR).index)


def compare_loops(model: Model, recorded: Recorded) -> Iterator[Comparison]:
    """Raises CheckFailedError when a loop breaks down, on NaN for example."""
    try:
        for case in recorded.texts:
            yield from _compare_text(model, case, recorded.precision)
        for drawn_codes in recorded.codes:
            yield from _compare_codes(model, drawn_codes, recorded.precision)
        for case, wanted in zip(recorded.draws, recorded.pixels):
            drawn = model.generate_image(
                case.prompt,
                num_inference_steps=case.steps,
                guidance_scale=case.guidance,
                seed=case.seed,
                image=_source(model, case),
                graph=case.graph,
                height=case.height,
                width=case.width,
            )
            yield compare_pictures(_name_drawing(case), recorded.precision, _whole(drawn.image), wanted)
        yield from _compare_one_call(model, recorded)
    except EdgemmError as error:
        if type(error) is EdgemmError:  # the runtime's own word for an answer that cannot be right
            raise CheckFailedError(str(error)) from error
        raise


def _compare_one_call(model: Model, recorded: Recorded) -> Iterator[Comparison]:
    """What one graph draws against what the loop draws here and now."""
    call = model.manifest.one_call.get("draw")
    if call is None or model.choice.target not in call.variants:
        return
    how = {"num_inference_steps": call.num_inference_steps, "guidance_scale": call.guidance_scale}
    for case in recorded.draws:
        if case.picture_seed is None and case.graph is None:
            height, width = (case.height, case.width) if _fits(model, call, case) else (None, None)
            asked = {**how, "seed": case.seed, "height": height, "width": width}
            drawn, looped = (model.generate_image(case.prompt, one_call=one, **asked) for one in (True, False))
            name = f"one call, {case.prompt!r}, {call.num_inference_steps} steps, guidance {call.guidance_scale:g}"
            yield compare_pictures(name, recorded.precision, drawn.pixels, looped.pixels, ONE_CALL_TOLERANCE)


def _fits(model: Model, call: OneCall, case: DrawCase) -> bool:
    """Whether the graph draws pictures of that size: some have one."""
    loop, noise = model.manifest.loops.denoise, call.variants[model.choice.target].inputs[-1]
    assert loop is not None
    wanted = (1, *loop.state_shape(case.height or loop.height, case.width or loop.width))
    return all(entry == size for entry, size in zip(noise.shape, wanted, strict=True) if isinstance(entry, int))


def _whole(drawn: Picture) -> np.ndarray:
    """Every frame of a clip below the one before, as torch draws it: (3, frames * H, W)."""
    return drawn.pixels if drawn.clip is None else np.concatenate(drawn.clip.pixels, axis=1)


def _name_drawing(case: DrawCase) -> str:
    source = "" if case.picture_seed is None else " from a picture"
    source += "" if case.graph is None else " from a graph"
    size = "" if case.height is None else f" {case.width} x {case.height}"
    return f"denoise loop, {case.prompt!r}{source}{size}, {case.steps} steps, guidance {case.guidance:g}"


def _source(model: Model, case: DrawCase) -> np.ndarray | None:
    """The picture that a drawing begins with."""
    if case.picture_seed is None:
        return None
    return seeded_picture(case.picture_seed, model._text.loop.image_size)


def _compare_text(model: Model, case: TextCase, precision: str) -> Iterator[Comparison]:
    loop = model.manifest.loops.text
    if loop is None:
        raise BundleError(f"{model.manifest.name} has recorded replies and no text loop")
    images = [] if case.picture_seed is None else [seeded_picture(case.picture_seed, loop.image_size)]
    name = f"{case.prompt!r}" + (" with a picture" if images else "" if case.graph is None else " of a graph")
    chosen = _choices(model, case, loop, images)
    yield compare_choices(f"next tokens, {name}", precision, chosen, case.tokens)
    reply = model.generate_text(case.prompt, images, max_new_tokens=len(case.tokens), graph=case.graph).token_ids
    yield compare_replies(f"text loop, {name}", precision, reply, _up_to_stop(case.tokens, loop))
    call = model.manifest.one_call.get("read")
    if call is not None and model.choice.target in call.variants and case.graph is None:
        found = _read_in_one_call(model, case, loop, images)
        yield compare_replies(f"one call, {name}", precision, _up_to_stop(found, loop), reply)


def _read_in_one_call(model: Model, case: TextCase, loop: TextLoop, images: list[np.ndarray]) -> tuple[int, ...]:
    """As many tokens as torch said, each chosen by the graph; the step's outputs are bound to its inputs."""
    read, step = (model._engines.whole(name) for name in ("read", "token"))
    prompt = chat_prompt(as_messages(case.prompt, images), loop, model.tokenizer)
    room = min(len(prompt) + len(case.tokens), model.manifest.limits.max_context)
    past: dict[str, np.ndarray] = {}
    for name, spec in step.inputs.items():
        if name.startswith("past_"):
            slots = spec.shape[2] if isinstance(spec.shape[2], int) else room
            past[name] = np.zeros((1, spec.fixed(1, "K/V heads"), slots, spec.fixed(3, "head width")), spec.dtype)
    present = {name.replace("past_", "present_", 1): buffer for name, buffer in past.items()}
    token, position = np.zeros((1, 1), dtype=np.int64), np.zeros(1, dtype=np.int64)
    chosen = {"next_id": token, "next_position": position}
    words = {name: getattr(prompt, name)[None] for name in ("input_ids", "image_index", "attention_limit")}
    if "pixels" in read.inputs:
        side = read.inputs["pixels"].fixed(2, "one size")
        seen = [model._text.reader.picture(image, loop) for image in images] or [np.zeros((3, side, side), np.float32)]
        words["pixels"] = np.ascontiguousarray(seen[0][None])
    read.bind({**words, **past}, {**chosen, **present}).run()
    found, again = (
        [int(token[0, 0])],
        step.bind({"token_id": token, "position": position, **past}, {**chosen, **present}),
    )
    for _ in case.tokens[1:]:
        again.run()
        found.append(int(token[0, 0]))
    return tuple(found)


def _choices(model: Model, case: TextCase, loop: TextLoop, images: list[np.ndarray]) -> list[int]:
    """The likeliest token after the prompt and after each of torch's tokens."""
    prompt = chat_prompt(with_graph(as_messages(case.prompt, images), case.graph, loop.graph), loop, model.tokenizer)
    seen = [model._text.reader.picture(image, loop) for image in images]
    prompt, image_tokens = model._text.reader.read(prompt, seen, loop)
    transformer = model._text.conversation()
    found = [int(transformer.prefill(prompt, image_tokens).argmax())]
    for token in case.tokens[:-1]:
        found.append(int(transformer.step(token).argmax()))
    return found


def _compare_codes(model: Model, case: CodesCase, precision: str) -> Iterator[Comparison]:
    loop = model.manifest.loops.image_tokens
    if loop is None:
        raise BundleError(f"{model.manifest.name} has recorded codes and no image_tokens loop")
    name = f"{case.prompt!r}, guidance {case.guidance:g}"
    chosen = _codes(model, case, loop, case.codes)
    yield compare_choices(f"next codes, {name}", precision, chosen, case.codes)
    yield compare_replies(f"image_tokens loop, {name}", precision, _codes(model, case, loop), case.codes)


def _codes(model: Model, case: CodesCase, loop: ImageTokensLoop, told: Sequence[int] = ()) -> list[int]:
    """The likeliest codes, one after the other, or each after those that the library chose before."""
    prompt = image_prompt(case.prompt, loop, model.tokenizer)
    blank = None if case.guidance == 1 else unconditional_prompt(prompt, None, loop, model.tokenizer)
    request = CodesRequest(prompt, blank, case.guidance, Sampling(), (0,), tuple(told))
    clock = DrawingClock()
    codes = write_codes(request, loop, open_codes(model._engines, loop, clock), lambda: False, clock)
    return [int(code[0]) for code in islice(codes, len(case.codes))]


def _up_to_stop(tokens: tuple[int, ...], loop: TextLoop) -> tuple[int, ...]:
    stops = [place for place, token in enumerate(tokens) if token in loop.stop_token_ids]
    return tokens[: stops[0]] if stops else tokens


def check_bundle(bundle: Bundle) -> list[str]:
    """One line a comparison. Raises CheckFailedError when this machine's answers differ from the recorded ones."""
    from edgemm.runtimes.engines import Engines
    from edgemm.runtimes.model import Model

    recorded = read_recorded(bundle)
    choice = _choose(bundle)
    recorded = dataclasses.replace(recorded, precision=precision_of(bundle.manifest, choice.target))
    with Model(Engines(bundle, choice, plan_threads())) as model:
        comparisons = list(compare_loops(model, recorded))
    require(comparisons, f"{bundle.path}: not what was recorded at export")
    return [comparison.line() for comparison in comparisons]


def _choose(bundle: Bundle) -> Choice:
    """What runs the bundle here; else ONNX Runtime's CPU, which reads every dialect, for one of its targets."""
    try:
        return select("auto", bundle.manifest.targets)
    except BundleError:
        target = next(iter(bundle.manifest.targets))
        return Choice("cpu", REFERENCE, target, "CPUExecutionProvider", "no target of the bundle runs here")
