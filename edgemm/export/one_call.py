"""Loops as graphs of their own, in a bundle: which, of which targets, written behind the components' graphs.

What they hold is in drawing_graph.py and reading_graph.py.  They lie above the folders whose weights they read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from edgemm import progress
from edgemm.bundle.bundle import read_tensors
from edgemm.bundle.components import OneCall, Variant
from edgemm.bundle.manifest import UNCONDITIONAL, Manifest
from edgemm.bundle.onnx_file import external_locations
from edgemm.bundle.prompt import Tokenizer, negative_drawing_prompt
from edgemm.bundle.writer import BundleWriter
from edgemm.errors import UsageError
from edgemm.export.drawing_graph import compose_drawing, read_at_once
from edgemm.export.graph_file import tidy
from edgemm.export.lower_cuda import graph_specs
from edgemm.export.options import ExportOptions
from edgemm.export.passes.rewriting import drop_unread
from edgemm.export.reading_graph import compose_prompt, compose_step
from edgemm.export.tokenizer_graph import tokenizer_graphs

__all__ = ["write_one_call"]

MOST_STEPS = 64  # of a drawing: the graph holds the denoiser's nodes once a step
PARTS = ("transformer", "conditioner", "denoiser", "image_decoder")
READERS = ("image_encoder", "vq_encoder", "transformer", "text_head")


def write_one_call(writer: BundleWriter, manifest: Manifest, options: ExportOptions, tokenizer: Tokenizer) -> Manifest:
    """The graphs that `options` ask for, written behind those of the components; the manifest that names them, too."""
    made: dict[str, OneCall] = {}
    if "draw" in options.one_call:
        made["draw"] = _write_drawing(writer, manifest, options, tokenizer)
    if "read" in options.one_call:
        made |= _write_reading(writer, manifest)
    if "tokenize" in options.one_call:
        told = writer.file(manifest.tokenizer).read_bytes()
        for path, graph in tokenizer_graphs(manifest, told, tokenizer).items():
            writer.add_bytes(path, graph)
    return dataclasses.replace(manifest, one_call=made)


def _write_drawing(writer: BundleWriter, manifest: Manifest, options: ExportOptions, tokenizer: Tokenizer) -> OneCall:
    loop = manifest.loops.denoise
    if loop is None:
        raise UsageError(
            f"--one-call draw: {manifest.name}, family {manifest.family}, does not draw by denoising: only a loop of a "
            "fixed number of steps can be one graph"
        )
    if loop.frames > 1:
        raise UsageError(f"--one-call draw: {manifest.name} draws clips of {loop.frames} frames; leave draw out")
    steps, points = options.steps or loop.num_inference_steps, int(loop.counts == "points")
    if not points < steps <= MOST_STEPS + points:
        raise UsageError(
            f"--steps is {steps}, expected {1 + points} to {MOST_STEPS + points}: each is a denoiser of its own"
        )
    template = loop.template
    own = tuple(len(tokenizer.encode(piece, special=True)) for piece in (template.open, template.close))
    unconditional = read_tensors(writer.folder / UNCONDITIONAL) if loop.unconditional == "file" else {}
    negative: Sequence[int] = ()
    if loop.unconditional == "prompt":
        around = loop.negative_template or template
        negative = negative_drawing_prompt(
            loop.negative_prompt, around, tokenizer, size=(loop.height, loop.width)
        ).input_ids.tolist()
    variants: dict[str, Variant] = {}
    for target in manifest.targets:
        chosen = {name: manifest.variant(name, target) for name in PARTS}
        if template.joined and any(spec.name == "prompt_mask" for spec in chosen["conditioner"].inputs):
            raise UsageError(f"--one-call draw: {manifest.name} reads which words are the user's, of a joined prompt")
        progress.status(f"one call, draw: composing for {target}")
        model = compose_drawing(writer.folder, chosen, loop, steps - points, (own[0], own[1]), unconditional, negative)
        read_at_once(model)
        variants[target] = _written(writer, "draw", model, chosen, target)
    return OneCall(variants, steps, loop.guidance_scale)


def _write_reading(writer: BundleWriter, manifest: Manifest) -> dict[str, OneCall]:
    loop = manifest.loops.text
    if loop is None:
        raise UsageError(f"--one-call read: {manifest.name}, family {manifest.family}, does not talk; leave read out")
    silent = None if loop.silent_ids is None else read_tensors(writer.file(loop.silent_ids))["ids"]
    prompts: dict[str, Variant] = {}
    steps: dict[str, Variant] = {}
    for target, names in manifest.targets.items():
        chosen = {name: manifest.variant(name, target) for name in READERS if name in names}
        progress.status(f"one call, read: composing for {target}")
        prompt, step = compose_prompt(writer.folder, chosen, silent), compose_step(writer.folder, chosen, silent)
        prompts[target] = _written(writer, "read", prompt, chosen, target)
        steps[target] = _written(writer, "token", step, chosen, target)
    return {"read": OneCall(prompts), "token": OneCall(steps)}


def _written(writer: BundleWriter, name: str, model: ir.Model, chosen: Mapping[str, Variant], target: str) -> Variant:
    """Composed graphs lie above the folders whose weights they read."""
    path = f"components/{name}-{target}.onnx"
    drop_unread(model)
    proto = ir.to_proto(model)
    tidy(proto)
    onnx.save_model(proto, str(writer.file(path)))
    return Variant(
        graph=path,
        data=None,
        dialect=max((variant.dialect for variant in chosen.values()), key=len),  # the one with operators of its own
        precision=chosen["denoiser" if "denoiser" in chosen else "transformer"].precision,
        inputs=graph_specs(model.graph.inputs),
        outputs=graph_specs(model.graph.outputs),
        shares=tuple(sorted(f"components/{location}" for location in external_locations(writer.file(path)))),
    )
