"""Run the whole loops of an opened bundle, here and now, and compare them with what torch said and drew at export.

Needs the thin runtime and no torch, whose answers are in the bundle: `edgemm export` calls it before a bundle gets its
name, `edgemm verify` on any machine, after hashes and graph rules (cli/verify.py), and a first load, in short, so that
a processor or library that computes something else is caught by itself.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from edgemm.bundle.bundle import Bundle
from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.bundle.components import OneCall
from edgemm.bundle.drawing import ImageTokensLoop
from edgemm.bundle.manifest import TextLoop
from edgemm.bundle.picture import seeded_picture
from edgemm.errors import BundleError, CheckFailedError, EdgemmError
from edgemm.runtimes.backend.engine import NotFiniteError, plan_threads
from edgemm.runtimes.codes_loop import CodesRequest, image_prompt, open_codes, unconditional_prompt, write_codes
from edgemm.runtimes.engines import Choice, select
from edgemm.runtimes.image_call import DrawingClock, DrawingKeywords, ImageResult, Picture
from edgemm.runtimes.model import Model
from edgemm.runtimes.sampling import Sampling
from edgemm.verify.logits import (
    FEWEST_TOKENS,
    LOST_DB,
    asked_first,
    compare_first,
    first_logits,
    logits_of,
    other_libraries,
    pictures_of,
    thinned,
)
from edgemm.verify.parity import (
    CHOICE_FLOOR,
    ONE_CALL_TOLERANCE,
    PARITY_FILE,
    CodesCase,
    Comparison,
    DrawCase,
    Recorded,
    TextCase,
    compare_choices,
    compare_pictures,
    compare_replies,
    measured,
    precision_of,
    read_recorded,
    require,
    tell_structure,
)
from edgemm.verify.reference_backend import REFERENCE

__all__ = ["check_bundle", "compare_loops", "first_answers", "unlike_recorded"]

MOST_S = 60.0  # of comparing at a first load; the step that is on its way is ended
GARBAGE = "int8"  # finer precisions are judged by its floors: a first load asks whether numbers mean anything
ENOUGH_DB, ENOUGH_FLOAT_DB = 40.0, 60.0  # a drawing in float16 is no closer than the first, in float32 by far


def compare_loops(model: Model, recorded: Recorded) -> Iterator[Comparison]:
    """Raises CheckFailedError when a loop breaks down, on NaN for example."""
    try:
        for case in recorded.texts:
            yield from _compare_text(model, case, recorded.precision)
        for drawn_codes in recorded.codes:
            yield from _compare_codes(model, drawn_codes, recorded.precision)
        for case, wanted in zip(recorded.draws, recorded.pixels):
            pixels = _whole(model.generate_image(case.prompt, **_drawing(model, case)).image)
            yield (compared := compare_pictures(_name_drawing(case), recorded.precision, pixels, wanted))
            if recorded.precision != "fp32" and compared.passed and min(pixels.shape[1:]) >= 11:
                yield tell_structure(compared.what, pixels, wanted)
        if recorded.logits and (logits := first_logits(model, recorded)) is not None:
            yield from compare_first(model, recorded, logits)
        yield from _compare_one_call(model, recorded)
    except EdgemmError as error:
        if _is_no_answer(error):
            raise CheckFailedError(str(error)) from error
        raise


def _is_no_answer(error: EdgemmError) -> bool:
    """The runtime's own word for an answer that cannot be right."""
    return type(error) is EdgemmError or isinstance(error, NotFiniteError)


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


def _drawing(model: Model, case: DrawCase) -> DrawingKeywords:
    """What is asked for; of models that edit, with the picture that the drawing begins with."""
    seed = case.picture_seed
    return {
        "num_inference_steps": case.steps,
        "guidance_scale": case.guidance,
        "seed": case.seed,
        "image": None if seed is None else seeded_picture(seed, model._text.loop.image_size),
        "graph": case.graph,
        "height": case.height,
        "width": case.width,
    }


def _compare_text(model: Model, case: TextCase, precision: str) -> Iterator[Comparison]:
    loop = model.manifest.loops.text
    if loop is None:
        raise BundleError(f"{model.manifest.name} has recorded replies and no text loop")
    images, name = pictures_of(case, loop), _name_text(case)
    chosen = [int(logits.argmax()) for logits in logits_of(model, case, loop, images)]
    yield compare_choices(f"next tokens, {name}", precision, chosen, case.tokens)
    reply = model.generate_text(case.prompt, images, max_new_tokens=len(case.tokens), graph=case.graph).token_ids
    yield compare_replies(f"text loop, {name}", precision, reply, _up_to_stop(case.tokens, loop))
    call = model.manifest.one_call.get("read")
    if call is not None and model.choice.target in call.variants and case.graph is None and case.frames == 1:
        found = _read_in_one_call(model, case, loop, images)
        yield compare_replies(f"one call, {name}", precision, _up_to_stop(found, loop), reply)


def _name_text(case: TextCase) -> str:
    said = " with a picture" if case.picture_seed is not None else "" if case.graph is None else " of a graph"
    said = " of a clip" if case.frames > 1 else said
    return f"{case.prompt!r}{said}"


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


def _compare_codes(model: Model, case: CodesCase, precision: str) -> Iterator[Comparison]:
    loop = model.manifest.loops.image_tokens
    if loop is None:
        raise BundleError(f"{model.manifest.name} has recorded codes and no image_tokens loop")
    name = f"{case.prompt!r}, guidance {case.guidance:g}"
    chosen = list(_codes(model, case, loop, case.codes))
    yield compare_choices(f"next codes, {name}", precision, chosen, case.codes)
    yield compare_replies(f"image_tokens loop, {name}", precision, list(_codes(model, case, loop)), case.codes)


def _codes(model: Model, case: CodesCase, loop: ImageTokensLoop, told: Sequence[int] = ()) -> Iterator[int]:
    """The likeliest codes, one after the other, or each after those that the library chose before."""
    prompt = image_prompt(case.prompt, loop, model.tokenizer)
    blank = None if case.guidance == 1 else unconditional_prompt(prompt, None, loop, model.tokenizer)
    request = CodesRequest(prompt, blank, case.guidance, Sampling(), (0,), tuple(told))
    clock = DrawingClock()
    codes = write_codes(request, loop, open_codes(model._engines, loop, clock), lambda: False, clock)
    return (int(code[0]) for code in islice(codes, len(case.codes)))


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
    if not comparisons:
        raise BundleError(f"{PARITY_FILE}: no case in it, so nothing of what the bundle computes was compared")
    require(comparisons, f"{bundle.path}: not what was recorded at export")
    return [comparison.line() for comparison in comparisons]


def _choose(bundle: Bundle) -> Choice:
    """What runs the bundle here; else ONNX Runtime's CPU, which reads every dialect, for one of its targets."""
    try:
        return select("auto", bundle.manifest.targets)
    except BundleError:
        target = next(iter(bundle.manifest.targets))
        return Choice("cpu", REFERENCE, target, "CPUExecutionProvider", "no target of the bundle runs here")


# A first load: one question and the shortest drawing.


def unlike_recorded(model: Model) -> str:
    """How this machine's answers differ from the recorded ones, in words; "" when they do not, or there are none."""
    try:
        failed = [found for found in first_answers(model, MOST_S) if not found.passed]
    except EdgemmError as error:  # else there is nothing to compare, or it is told when it is used
        return str(error) if _is_no_answer(error) else ""
    return str(failed[0]) if failed else ""


def first_answers(model: Model, most_s: float) -> Iterator[Comparison]:
    """One question, with a picture where there is one, passes as soon as enough of its first tokens are right; of the
    drawings the shortest is drawn.  What takes longer than `most_s` is left to `edgemm verify`."""
    end = time.monotonic() + most_s
    recorded, loops = read_recorded(model.bundle), model.manifest.loops
    precision = max(GARBAGE, precision_of(model.manifest, model.choice.target), key=list(CHOICE_FLOOR).index)
    if loops.text is not None and (text := asked_first(recorded)) is not None:
        seen: list[np.ndarray] = []
        chosen = _noted(logits_of(model, text, loops.text, pictures_of(text, loops.text)), seen)
        yield from _first_choices(f"next tokens, {_name_text(text)}", precision, chosen, text.tokens, end)
        yield from compare_first(model, recorded, np.stack(seen[:FEWEST_TOKENS]))
    if loops.image_tokens is not None and (drawn := [case for case in recorded.codes if case.codes]):
        codes = min(drawn, key=lambda case: case.guidance != 1)
        written = _codes(model, codes, loops.image_tokens, codes.codes)
        yield from _first_choices(f"next codes, {codes.prompt!r}", precision, written, codes.codes, end)
    if recorded.draws:
        case, wanted = min(zip(recorded.draws, recorded.pixels), key=lambda pair: _work(pair[0]))
        for event in model.stream_image(case.prompt, **_drawing(model, case)):
            if isinstance(event, ImageResult):
                found = compare_pictures(_name_drawing(case), precision, _whole(event.image), wanted)
                yield _as_at_export(found, model)
            elif time.monotonic() > end:
                return


def _noted(logits: Iterator[np.ndarray], seen: list[np.ndarray]) -> Iterator[int]:
    """The likeliest of each, and of each what an export keeps."""
    for row in logits:
        seen.append(thinned(row))
        yield int(row.argmax())


def _as_at_export(found: Comparison, model: Model) -> Comparison:
    """By what the export measured, too, where the same library ran on a processor: coarse floors hide wrong sums."""
    if other_libraries(model) or found.measure != "psnr_db" or found.limit is None:
        return found
    names = (found.what, f"{model.choice.target}: {found.what}")
    rows = [row for row in measured(model.bundle) if row.get("what") in names]
    limit = max([found.limit, *map(_enough_db, rows)])
    return dataclasses.replace(found, limit=limit, passed=found.value >= limit)


def _enough_db(row: dict[str, Any]) -> float:
    """Of a drawing, where the export measured `row`: its dB, or in float32 the largest difference."""
    value = float(row["value"])
    if row.get("measure") == "psnr_db":
        return min(value - LOST_DB, ENOUGH_DB)
    return min(-20 * float(np.log10(max(value, 1e-9))) - LOST_DB, ENOUGH_FLOAT_DB)


def _work(case: DrawCase) -> tuple[int, bool]:
    """Rows of all steps, and a picture to read."""
    return case.steps * (1 if case.guidance == 1 else 2), case.picture_seed is not None


def _first_choices(
    what: str, precision: str, found: Iterator[int], wanted: Sequence[int], end: float
) -> Iterator[Comparison]:
    """As soon as the share of right ones is enough; nothing when time ends before."""
    seen: list[int] = []
    for choice in found:
        seen.append(choice)
        compared = compare_choices(what, precision, seen, wanted[: len(seen)])
        if len(seen) == len(wanted) or (compared.passed and len(seen) >= FEWEST_TOKENS):
            yield compared
            return
        if time.monotonic() > end:
            return
