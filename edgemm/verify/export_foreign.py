"""From a Hugging Face folder to a bundle: told on paper first, then loaded, traced, compared with the library, written.

Which graphs and loops is the family's word (family.py); tracing, lowering and writing are those of the native export.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

import edgemm
from edgemm import progress
from edgemm.bundle.bundle import Bundle, DenoiseLoop, Licence, Limits, Loops, Manifest, Source
from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.bundle.files import OF_ANYBODY, OF_CODE, reading
from edgemm.bundle.picture import seeded_picture
from edgemm.bundle.prompt import Tokenizer
from edgemm.bundle.writer import BundleWriter
from edgemm.device.machine import give_back_memory, keep_no_large_blocks
from edgemm.errors import CheckpointError, UsageError
from edgemm.export.lower_cuda import DRAWING_SLOTS, fixed_sizes
from edgemm.export.manifest import (
    MAX_IMAGE_PIXELS,
    MAX_STEPS,
    hash_of,
    licence_in,
    papers_of,
    precisions_of,
    quick_to_open,
)
from edgemm.export.one_call import write_one_call
from edgemm.export.options import ExportOptions
from edgemm.export.specs import bytes_per_weight, make_specs_of_graphs
from edgemm.export.trace import trace
from edgemm.export.variants import Components, Wanted, write_graphs
from edgemm.families.family import Drawn, Parts
from edgemm.families.folder import GGUF, Found, other_folders
from edgemm.families.hf_checkpoint import Checkpoint, greedy, open_checkpoint, refuse_pointers
from edgemm.families.llama import takes_candidates, with_prompt_lookup
from edgemm.families.paper import describe, measure
from edgemm.families.table import load_family
from edgemm.families.text_smoothing import smooth_by_text
from edgemm.options import from_keywords
from edgemm.runtimes import schedule
from edgemm.verify.components import compare_component
from edgemm.verify.export_native import check_runtime, keep_as_tried, run_loops, write_recorded
from edgemm.verify.parity import (
    CodesCase,
    DrawCase,
    Recorded,
    TextCase,
    precision_of,
    require,
)

__all__ = ["export_foreign"]

MAX_CONTEXT = 2048  # cache slots when nobody says otherwise
MAX_CODES = 16  # of a picture that is compared code by code
TEXTS = (("What is the capital of France?", False), ("What is this?", True))
DRAWS = (("a red heart", 3.0), ("two small boats on a lake", 1.0))  # prompt, guidance
LARGE = 1_000_000_000  # numbers: above, a loop in float32 takes minutes, and shorter ones are compared
EDITED = 1  # seed of the picture that is edited
OWN_MODULES = "the family's own torch modules: no library that is installed knows this model"
OWN = {  # options for edgemm's own checkpoints -> what to do instead
    "quant": "; this one takes --precision int8 or int4",
    "adapters": "; merge the adapter before you export",
    "cache": "",
}


@dataclass(frozen=True)
class Asked:
    """How much of each loop is compared."""

    tokens: int = 16  # of a reply
    steps: int = 4  # of a picture


def export_foreign(found: Found, output: Path, options: ExportOptions | None = None, **given: Any) -> Manifest:
    """As export_bundle does for edgemm's own checkpoints: parity with the library, or nothing is left."""
    options = from_keywords(ExportOptions, "export_foreign()", (vars(options) if options else {}) | given)
    _check_options(options)
    schemes = options.schemes
    named = [*options.component, *([] if options.vae is None else [f"vae={options.vae}"])]
    found = dataclasses.replace(found, others={**found.others, **other_folders(named)})
    check_runtime()
    family = load_family(found)
    refuse_pointers(found)
    paper = measure(found)
    for line in describe(paper):
        progress.line(line)
    asked = Asked()
    if paper.parameters > LARGE:
        keep_no_large_blocks()
        asked = Asked(tokens=8, steps=2)
        progress.line(
            f"compared: every component whole, loops over {asked.tokens} tokens and {asked.steps} steps (it is large)"
        )
    for licence in getattr(family, "LICENCES", ()):
        progress.line(f"licence: {licence.what}: {licence.licence}, {licence.source}")
    progress.status(f"loading {paper.name}")
    checkpoint = open_checkpoint(found, family)
    least = max(map(bytes_per_weight, schemes)) * paper.parameters
    with BundleWriter(output, options.overwrite, int(least)) as writer, torch.no_grad():
        progress.status("taking it apart")
        documents = hasattr(family, "open_model")  # is all that such a family reads; others handle a library's objects
        with reading(checkpoint.folder, "cannot be taken apart", CheckpointError, OF_ANYBODY if documents else OF_CODE):
            parts = family.parts(checkpoint)
        if options.looks_up(takes_candidates(parts)):
            parts = with_prompt_lookup(parts)
        slots = _context(parts, options.max_context, checkpoint.folder)
        _check_prompts(parts, checkpoint, slots)
        loop = parts.denoise
        room = DRAWING_SLOTS + _template_slots(loop, checkpoint) + _edit_slots(parts)
        sizes = fixed_sizes(slots, loop.skip, drawing=room) if loop else {}
        sizes.setdefault("transformer", {"T": slots})
        depth = max(loop.prefix_layers, default=-1) + 1 if loop else 0
        written = _write_graphs(checkpoint, parts, writer, Wanted(schemes, {}, sizes, shared=parts.shared), depth)
        require(written.comparisons, "the bundle differs from the model, and was not kept")
        manifest = _manifest(checkpoint, family, parts, written, slots, found.others)
        writer.add_bytes(manifest.tokenizer, quick_to_open(parts.tokenizer_json or checkpoint.tokenizer_json))
        for name, content in {**parts.tables, **papers_of(checkpoint.folder, manifest)}.items():
            writer.add_bytes(name, content)
        manifest = write_one_call(writer, manifest, options, Tokenizer(writer.file(manifest.tokenizer)))
        give_back_memory()
        progress.status("loops: asking the library")
        bundle = Bundle(writer.folder, manifest)
        recorded = _recorded(checkpoint, family, parts, bundle, precision_of(manifest, schemes[0].target), asked)
        del checkpoint, parts  # engines need their memory
        give_back_memory()
        compared, recorded = run_loops(bundle, schemes, recorded)
        written.comparisons.extend(compared)
        require(written.comparisons, "the bundle differs from the library, and was not kept")
        write_recorded(recorded, written.comparisons, writer)
        progress.status("hashing")
        whole = writer.finish(manifest)
    keep_as_tried(output)
    return whole


def _write_graphs(checkpoint: Checkpoint, parts: Parts, writer: BundleWriter, wanted: Wanted, depth: int) -> Components:
    """Smoothed where that is known how; what does not pass so is written once more as it is without."""

    def write(one_term: frozenset[str]) -> Components:
        calibration = "the shipped text" if one_term else ""
        scratch = writer.path.parent
        specs = make_specs_of_graphs(
            parts.graphs, wanted.schemes, parts.shared, depth, scratch, one_term, calibration=calibration
        )  # they hold every weight
        asked = dataclasses.replace(wanted, specs=specs)
        return write_graphs(parts.graphs, parts.inputs, writer, asked, trace, compare_component)

    if not any(scheme.smooths_text for scheme in wanted.schemes):
        return write(frozenset())
    smoothed = smooth_by_text(parts, checkpoint.tokenizer)
    written = write(smoothed.one_term)
    if smoothed.one_term and not all(comparison.passed for comparison in written.comparisons):
        progress.line("smoothed, with one term of 8 bits: too far off; once more, in two terms")
        smoothed.undo()
        written = write(frozenset())
    return written


def _check_options(options: ExportOptions) -> None:
    for name, instead in OWN.items():
        if getattr(options, name) != getattr(ExportOptions, name):
            raise UsageError(f"--{name.replace('_', '-')} is for edgemm's own checkpoints{instead}")
    for scheme in options.schemes:
        if scheme.quantize and not scheme.on_cpu and scheme.quantize.text not in ("int8", "int4"):
            raise UsageError(
                f"{scheme.precision} for {scheme.target} wants ranges of inputs, which are seen of edgemm's own "
                "checkpoints alone; this one takes fp16, fp32, int8 or int4"
            )


def _context(parts: Parts, asked: int | None, folder: Path) -> int:
    least = 64
    if parts.text and parts.text.image_token:
        least += parts.text.image_token_count
    if parts.image_tokens:
        least = max(least, 64 + parts.image_tokens.length)
    if parts.denoise and parts.denoise.edits and parts.text:
        least = max(least, 64 + parts.text.image_token_count)
    if least - 64 >= parts.most_context:
        raise CheckpointError(
            f"{folder}: the model reads {parts.most_context} tokens at most, one picture has {least - 64}"
        )
    usual = max(MAX_CONTEXT, 64 + _edit_slots(parts))
    slots = min(max(usual, least), parts.most_context) if asked is None else asked
    if not min(least, parts.most_context) <= slots <= parts.most_context:
        raise UsageError(
            f"max_context is {slots}, expected {least} (one picture) to {parts.most_context} (the model's)"
        )
    return slots


def _check_prompts(parts: Parts, checkpoint: Checkpoint, slots: int) -> None:
    """UsageError for slots that a prompt which is compared does not fit in, with a token to say."""
    text = (parts.tokenizer_json or checkpoint.tokenizer_json).decode()
    tokenizer = Tokenizer(checkpoint.folder / "tokenizer.json", text)
    longest = max((len(ids) for *_, ids in _prompts(parts, tokenizer)), default=0)
    if longest >= parts.most_context:
        raise CheckpointError(
            f"{checkpoint.folder}: the model reads {parts.most_context} tokens at most, a question with the words that "
            f"its template puts around it has {longest}"
        )
    if longest >= slots:
        raise UsageError(
            f"max_context is {slots}, expected {longest + 1} (a question and what its template puts around it) to "
            f"{parts.most_context} (the model's)"
        )


def _prompts(parts: Parts, tokenizer: Tokenizer) -> Iterator[tuple[str, bool, list[np.ndarray], np.ndarray]]:
    """What the library is asked: the words, whether with a picture, those, and the ids that the runtime makes of it."""
    loop = parts.text
    for prompt, pictured in TEXTS if loop is not None else ():
        if pictured and not parts.graphs.keys() & {"image_encoder", "vq_encoder"}:
            continue
        assert loop is not None
        images = [seeded_picture(1, loop.image_size)] if pictured else []
        yield prompt, pictured, images, chat_prompt(as_messages(prompt, images), loop, tokenizer).input_ids


def _template_slots(loop: DenoiseLoop | None, checkpoint: Checkpoint) -> int:
    """Tokens of the strings that stand around every drawing prompt: the longest."""
    if loop is None or loop.skip:  # strings that are dropped take no room
        return 0
    templates = [loop.template, *(t for t in (loop.edit_template, loop.negative_template) if t)]
    said = {"height": loop.height, "width": loop.width}
    closed = [
        t.image_close * int(t is loop.edit_template) + t.size_sentence.format(**said) + t.close for t in templates
    ]
    strings = (template.open + rest for template, rest in zip(templates, closed, strict=True))
    return max(len(checkpoint.tokenizer(string)["input_ids"]) for string in strings)


def _edit_slots(parts: Parts) -> int:
    """Of a picture to edit, of the size that is drawn when nobody says otherwise."""
    loop = parts.denoise
    if loop is None or not loop.edits or parts.text is None:
        return 0
    words, around = loop.picture_words, 2 * int(parts.text.block)
    latents = 0 if words is None else math.prod(loop.state_shape(loop.height, loop.width)[1:]) + words
    return latents + parts.text.image_token_count + around


def _manifest(
    checkpoint: Checkpoint,
    family: ModuleType,
    parts: Parts,
    written: Components,
    slots: int,
    others: Mapping[str, Path],
) -> Manifest:
    name = checkpoint.folder.resolve().name.removesuffix(GGUF)
    own = checkpoint.licence or licence_in(checkpoint.folder / "README.md")
    licences = [Licence(f"weights of {name}", own, f"checkpoint {name}")]
    licences += getattr(family, "LICENCES", ())
    for what, folder in others.items():
        source = f"checkpoint {folder.resolve().name}"
        licences.append(Licence(f"weights of {what}", licence_in(folder / "README.md"), source))
    return Manifest(
        name=name,
        family=family.__name__.rpartition(".")[2],
        edgemm_version=edgemm.__version__,
        source=Source(name, hash_of(checkpoint.folder)),
        components=written.components,
        targets=written.targets,
        loops=Loops(text=parts.text, denoise=parts.denoise, image_tokens=parts.image_tokens),
        limits=Limits(slots, MAX_IMAGE_PIXELS, MAX_STEPS),
        tokenizer="tokenizer.json",
        quantization=precisions_of(written.components, written.targets),
        licences=tuple(licences),
        files={},
    )


def _recorded(
    checkpoint: Checkpoint, family: ModuleType, parts: Parts, bundle: Bundle, precision: str, asked: Asked
) -> Recorded:
    """Replies of the library, to prompts that the runtime's own code put together and the library's tokenized alike."""
    cases: list[TextCase] = []
    own, tokenizer = hasattr(family, "reply"), Tokenizer(bundle.file(bundle.manifest.tokenizer))
    for prompt, pictured, images, ids in _prompts(parts, tokenizer):
        count = min(asked.tokens, bundle.manifest.limits.max_context - len(ids))
        inputs = {"input_ids": torch.from_numpy(ids)[None]}
        if own:
            said = family.reply(checkpoint, inputs["input_ids"], images, count)
            cases.append(TextCase(prompt, 1 if pictured else None, tuple(said)))
            continue
        if hasattr(family, "library_inputs"):
            inputs = family.library_inputs(checkpoint, inputs["input_ids"], images)
        elif pictured:
            inputs |= _pixels(checkpoint, images)
        tokens = greedy(checkpoint.model, inputs, count)
        cases.append(TextCase(prompt, 1 if pictured else None, tuple(tokens)))
    drawn: list[CodesCase] = []
    if parts.image_tokens is not None:
        count = min(MAX_CODES, parts.image_tokens.rows * parts.image_tokens.columns)
        for prompt, guidance in DRAWS:
            drawn.append(CodesCase(prompt, guidance, tuple(family.draw_codes(checkpoint, prompt, guidance, count))))
    draws = _draw_cases(parts.denoise, asked.steps) if parts.denoise else []
    pixels = [_drawing(checkpoint, family, parts, case) for case in draws]
    who = OWN_MODULES if own else f"transformers {_version_of('transformers')}"
    return Recorded(precision, tuple(cases), tuple(draws), tuple(pixels), tuple(drawn), who)


def _draw_cases(loop: DenoiseLoop, most_steps: int) -> list[DrawCase]:
    """With guidance and without; of free sizes also one that is not square; of models that edit, an edit."""
    steps = min(most_steps, loop.num_inference_steps) + int(loop.counts == "points")
    grid = loop.latents
    cases = []
    for seed, (prompt, guidance) in enumerate(DRAWS):
        height = width = None
        if grid and grid.free:
            step = grid.multiple or grid.cell
            height = -(-max(grid.smallest, 2 * step) // step) * step
            width = min(height + (seed + 1) * step, grid.largest // step * step)
        cases.append(DrawCase(prompt, seed + 1, steps, guidance, height=height, width=width))
    if loop.edits:
        first = cases[0]
        cases.append(dataclasses.replace(first, picture_seed=EDITED))
    return cases


def _drawing(checkpoint: Checkpoint, family: ModuleType, parts: Parts, case: DrawCase) -> np.ndarray:
    """(3, H, W) in [0, 1], by the family's own writing of the published loop."""
    loop = parts.denoise
    assert loop is not None
    height, width = case.height or loop.height, case.width or loop.width
    noise = schedule.initial_noise(case.seed, *loop.state_shape(height, width))
    image = None
    if case.picture_seed is not None and parts.text is not None:
        image = seeded_picture(case.picture_seed, parts.text.image_size)
    own = schedule.picture_noise(*noise.shape)
    asked = Drawn(
        case.prompt, torch.from_numpy(noise), case.steps, case.guidance, height, width, image, torch.from_numpy(own)
    )
    return np.ascontiguousarray(family.draw(checkpoint, asked).clamp(0, 1).numpy(), dtype=np.float32)


def _version_of(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _pixels(checkpoint: Checkpoint, images: list) -> dict[str, torch.Tensor]:
    """What the library's image processor makes of the pictures."""
    made = checkpoint.processor.image_processor(images, return_tensors="pt")
    return {key: torch.as_tensor(value) for key, value in made.items() if key in ("pixel_values", "image_sizes")}
