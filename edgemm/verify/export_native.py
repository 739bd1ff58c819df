"""From a checkpoint to a bundle: trace, lower, compare, write; all of it or nothing.

What a graph holds is in component_graphs.py, what a target wants in lower_*.py, what counts as equal in parity.py, what
the manifest says about the model in manifest.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from edgemm import progress
from edgemm.bundle.bundle import UNCONDITIONAL, Bundle, Manifest, open_bundle
from edgemm.bundle.manifest import ADAPTER_SCALES
from edgemm.bundle.node_link import read_graph
from edgemm.bundle.picture import load_picture, seeded_picture
from edgemm.bundle.prompt import Tokenizer
from edgemm.bundle.writer import BundleWriter, telling_name
from edgemm.errors import MissingError, UsageError
from edgemm.export.adapter_points import adapter_scales
from edgemm.export.component_graphs import component_graphs
from edgemm.export.manifest import CODE_IDS, id_table, manifest_of, papers_of, quick_to_open
from edgemm.export.one_call import write_one_call
from edgemm.export.options import ExportOptions
from edgemm.export.schemes import Scheme
from edgemm.export.specs import bytes_per_weight, make_specs
from edgemm.export.trace import OPSET, trace
from edgemm.export.variants import Wanted, native_sizes, write_graphs
from edgemm.model import checkpoint
from edgemm.model.checkpoint import weights_hash
from edgemm.model.codes import write_codes
from edgemm.model.config import GraphConfig, ModelConfig
from edgemm.model.prompts import codes_prompt, draw_prompt, read_prompt
from edgemm.model.unified import Unified
from edgemm.options import from_keywords
from edgemm.quantize.simulated import check_layers
from edgemm.quantize.smoothing import fold_all
from edgemm.quantize.spec import JSON_FILE, Spec, read_spec
from edgemm.runtimes import schedule
from edgemm.runtimes.backend.engine import plan_threads
from edgemm.runtimes.engines import Choice, Engines, select
from edgemm.runtimes.model import Model
from edgemm.runtimes.turns import Turns
from edgemm.verify.components import compare_component, example_inputs
from edgemm.verify.logits import first_logits
from edgemm.verify.loops import compare_loops
from edgemm.verify.parity import (
    PARITY_FILE,
    PIXELS_FILE,
    CodesCase,
    Comparison,
    DrawCase,
    Recorded,
    TextCase,
    parity_document,
    pixels_file,
    precision_of,
    require,
)
from edgemm.verify.reference_backend import REFERENCE

__all__ = [
    "MAX_CONTEXT",
    "check_runtime",
    "export_bundle",
    "keep_as_tried",
    "longest_prompt",
    "run_loops",
    "torch_answers",
    "write_recorded",
]

MAX_CONTEXT = 2048  # cache slots when nobody says otherwise, where the transformer was trained for as many
MAX_NEW_TOKENS = 32  # of a recorded reply


def export_bundle(source: Path, output: Path, options: ExportOptions | None = None, **given: Any) -> Manifest:
    """Write the bundle of the checkpoint folder `source`; keywords are options, too, over `options`.

    Tells every comparison on the progress channel.  Raises CheckFailedError, and leaves nothing, when a component or a
    loop differs from torch.
    """
    options = from_keywords(ExportOptions, "export_bundle()", (vars(options) if options else {}) | given)
    if options.component or options.vae:
        ModelConfig.read(source / "config.json")  # what is no checkpoint of edgemm's is told as that
        raise UsageError("--component and --vae are for models that others published; edgemm's own are whole")
    schemes = options.schemes
    check_runtime()
    source = source.resolve()
    name = telling_name(source)
    progress.status(f"loading {name}")
    model = checkpoint.load(source)
    known = (name, weights_hash(source))
    given_spec = _read_quant(options.quant, model, known) if options.quant else None
    slots, new_tokens = _check_context(model, options.max_context)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    progress.line(f"{name}: family {model.config.family}, {parameters / 1e6:.1f}M parameters; {_asked(options)}")
    least = sum({0.5 if given_spec else bytes_per_weight(scheme) for scheme in schemes}) * parameters
    with BundleWriter(output, options.overwrite, int(least)) as writer, torch.no_grad():
        if given_spec:
            specs = {scheme.target: given_spec for scheme in schemes}
        else:
            specs = make_specs(model, schemes, options.cache, known)
        sizes = native_sizes(model, slots, options.adapter_rank)
        adapters = None if options.adapters is None else tuple(options.adapters)
        lookup = options.looks_up(model.config.objective == "flow" and not model.config.transformer.mixture)
        graphs, inputs = component_graphs(model, lookup), example_inputs(model, lookup)
        wanted = Wanted(schemes, specs, sizes, adapters)
        written = write_graphs(graphs, inputs, writer, wanted, trace, compare_component)
        comparisons = written.comparisons
        require(comparisons, "the bundle differs from the model, and was not kept")
        manifest = manifest_of(model, source, written.components, written.targets, slots)
        writer.add_bytes(manifest.tokenizer, quick_to_open(model.tokenizer_json))
        for name, content in papers_of(source, manifest).items():
            writer.add_bytes(name, content)
        if given_spec:
            writer.add_bytes(JSON_FILE, given_spec.to_json().encode())
        if model.config.objective == "ar":
            writer.add_bytes(CODE_IDS, id_table(range(model.config.first_code, model.config.transformer.vocab_size)))
        else:
            writer.add_bytes(UNCONDITIONAL, stored_prefix(model, ""))
        manifest = write_one_call(writer, manifest, options, Tokenizer(writer.file(manifest.tokenizer)))
        scales = None if adapters is None else adapter_scales(model, specs.values())
        if scales:
            writer.add_bytes(ADAPTER_SCALES, scales)
        progress.status("loops: asking torch")
        recorded = torch_answers(model, precision_of(manifest, schemes[0].target), new_tokens)
        compared, recorded = run_loops(Bundle(writer.folder, manifest), schemes, recorded)
        comparisons += compared
        require(comparisons, "the bundle differs from the model, and was not kept")
        write_recorded(recorded, comparisons, writer)
        progress.status("hashing")
        whole = writer.finish(manifest)
    keep_as_tried(output)
    return whole


def _asked(options: ExportOptions) -> str:
    how = {scheme.target: "as the spec says" if options.quant else scheme.precision for scheme in options.schemes}
    return ", ".join(f"target {target}, {precision}" for target, precision in how.items())


def check_runtime() -> None:
    """Every graph is run before it is shipped, so the ONNX Runtime that is here has to read them."""
    import onnxruntime

    from edgemm.device.providers import one_node_model

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(one_node_model(OPSET), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base but Exception
        raise MissingError(
            f"bundles are written in ONNX opset {OPSET}, which ONNX Runtime {onnxruntime.__version__} does not read: "
            "pip install 'onnxruntime>=1.30' (Python 3.11 or newer)"
        ) from error


def _read_quant(quant: Path, model: Unified, known: tuple[str, str]) -> Spec:
    """What it smooths is folded into `model`, which computes the same as before."""
    spec, (name, sha256) = read_spec(quant), known
    spec.require_checkpoint(sha256, name)
    check_layers(model, spec)
    fold_all(model, spec)
    return spec


def _check_context(model: Unified, asked: int | None) -> tuple[int, int]:
    """Cache slots of the bundle, and how many tokens the recorded replies may then have."""
    most, prompts = model.config.transformer.max_context, longest_prompt(model)
    slots = min(MAX_CONTEXT, most) if asked is None else asked
    if not prompts < slots <= most:
        raise UsageError(
            f"max_context is {slots}, expected {prompts + 1} (the prompts that are compared) to {most} (the "
            "transformer's own limit)"
        )
    return slots, min(MAX_NEW_TOKENS, slots - prompts)


def keep_as_tried(path: Path) -> None:
    """What a CPU bundle does was seen here, so its first use need not be tried in a process of its own."""
    bundle = open_bundle(path, verify=False)
    if {"cpu", "web"} & bundle.manifest.targets.keys():
        engines = Engines(bundle, select("cpu", bundle.manifest.targets), plan_threads())
        engines.keep_as_tried()
        engines.close()


def run_loops(bundle: Bundle, schemes: Sequence[Scheme], recorded: Recorded) -> tuple[list[Comparison], Recorded]:
    """For one of the targets that share every graph; with the record goes what those graphs said.

    Whatever a target's own engine is, its graphs are ONNX, and ONNX Runtime's CPU says what they compute.
    """
    targets, room = bundle.manifest.targets, _room_of(bundle)
    different = {tuple(sorted(targets[scheme.target].items())): scheme.target for scheme in reversed(schemes)}
    comparisons, said = [], {}
    for target in list(different.values())[::-1]:
        progress.status(f"loops: comparing {target}")
        choice = Choice("cpu", REFERENCE, target, "CPUExecutionProvider", "compared before it is shipped")
        precise = dataclasses.replace(recorded, precision=precision_of(bundle.manifest, target))
        turns = None if room is None else Turns(lambda: room)
        with Model(Engines(bundle, choice, plan_threads(), turns=turns)) as runtime:
            for comparison in compare_loops(runtime, precise):
                what = f"{target}: {comparison.what}" if len(schemes) > 1 else comparison.what
                named = dataclasses.replace(comparison, what=what)
                progress.line(named.line())
                comparisons.append(named)
            logits = first_logits(runtime, recorded)
            if logits is not None:
                said |= {other: logits for other, graphs in targets.items() if graphs == targets[target]}
    return comparisons, dataclasses.replace(recorded, logits=said)


LARGE_BYTES = 1 << 30  # of weights: components take turns, for the model that they are compared with is here, too


def _room_of(bundle: Bundle) -> int | None:
    """Bytes for engines: the largest as kernels want it, which is up to half as much again; None where all may stay."""
    files = {name for variant in bundle.manifest.every_variant.values() for name in variant.weights.values()}
    sizes = [bundle.held(name).size_bytes for name in files]
    return None if sum(sizes) < LARGE_BYTES else max(sizes) * 3 // 2


def stored_prefix(model: Unified, prompt: str) -> bytes:
    """The conditioner's outputs for a prompt, by torch, as a safetensors file."""
    prefix = model.prefix([prompt])
    tensors = {"prompt_vector": prefix.prompt_vector, "prefix_mask": prefix.mask}
    if prefix.layout.shape[-1]:
        tensors["layout"] = prefix.layout
    for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        tensors |= {f"prefix_key.{layer}": keys, f"prefix_value.{layer}": values}
    return save({name: tensor.contiguous().numpy() for name, tensor in tensors.items()})


def write_recorded(recorded: Recorded, comparisons: list[Comparison], writer: BundleWriter) -> None:
    writer.add_bytes(PARITY_FILE, parity_document(recorded, comparisons).encode())
    writer.add_bytes(PIXELS_FILE, pixels_file(recorded))


TEXTS = (("What is the capital of France?", None), ("Count from one to ten.", None), ("What is this?", 1))
DRAWS = (("red heart", 1, 2.0), ("dog face, noto style", 2, 1.0))  # prompt, seed, guidance
EDIT = ("make it blue", 3, 2.0, 1)  # of models that edit; and the picture's seed
CLIP = ("Which way does it move?", 5, 3)  # of models that read motion: the first picture's seed, and frames
GRAPH = "Which one is left?"  # asked of a graph, by models that read such as rows; and drawn, with no word
MOST_STEPS = 8
MOST_CODES = 32  # of a picture that is compared code by code


def longest_prompt(model: Unified) -> int:
    """Cache slots that the longest recorded prompt takes."""
    asked = [read_prompt(model.config, model.tokenizer, text, int(seed is not None)) for text, seed in TEXTS]
    if model.config.objective == "ar":
        drawn = [codes_prompt(model.config, model.tokenizer, text) for text, _, _ in DRAWS]
        return max(*map(len, asked), max(map(len, drawn)) + model.config.image_tokens.token_count)
    drawn = [draw_prompt(model.config, model.tokenizer, text) for text, _, _ in DRAWS]
    drawn.append(draw_prompt(model.config, model.tokenizer, EDIT[0], model.config.edits))
    if model.config.motion is not None:
        asked.append(read_prompt(model.config, model.tokenizer, CLIP[0], CLIP[2], clip=True))
    if model.config.graph is not None:
        graph = read_graph(_graph(model.config.graph))
        asked.append(read_prompt(model.config, model.tokenizer, GRAPH, 0, graph))
        drawn.append(draw_prompt(model.config, model.tokenizer, "", graph=graph))
    return max(map(len, asked + drawn))


def torch_answers(model: Unified, precision: str, new_tokens: int) -> Recorded:
    """What torch says and draws for the recorded cases: the other side of loops.py."""
    texts = []
    for prompt, seed in TEXTS:
        pixels = None if seed is None else _picture(model, seed)
        tokens, _ = model.generate(prompt, pixels, new_tokens, stop=False)
        texts.append(TextCase(prompt, seed, tuple(tokens)))
    if model.config.motion is not None:
        prompt, seed, frames = CLIP
        pixels = torch.cat([_picture(model, seed + place) for place in range(frames)])
        tokens, _ = model.generate(prompt, pixels, new_tokens, stop=False, clip=True)
        texts.append(TextCase(prompt, seed, tuple(tokens), frames=frames))
    graph = None if model.config.graph is None else _graph(model.config.graph)
    if graph:
        tokens, _ = model.generate(GRAPH, None, new_tokens, stop=False, graph=read_graph(graph))
        texts.append(TextCase(GRAPH, None, tuple(tokens), graph))
    if model.config.objective == "ar":
        return Recorded(precision, tuple(texts), (), (), tuple(_codes(model, text, scale) for text, _, scale in DRAWS))
    steps = min(MOST_STEPS, model.config.sampler.num_inference_steps)
    draws = tuple(DrawCase(prompt, seed, steps, guidance) for prompt, seed, guidance in DRAWS)
    if model.config.edits:
        prompt, seed, guidance, picture_seed = EDIT
        draws += (DrawCase(prompt, seed, steps, guidance, picture_seed),)
    draws += (DrawCase("", 4, steps, 2.0, graph=graph),) if graph else ()
    return Recorded(precision, tuple(texts), draws, tuple(_drawing(model, case) for case in draws))


def _graph(config: GraphConfig) -> dict[str, Any]:
    """Node-link JSON of a ring whose edges have every type in turn."""
    nodes = [{"id": str(place), "text": f"thing {place}"} for place in range(min(3, config.nodes))]
    edges = [
        {"source": str(place % len(nodes)), "target": str((place + 1) % len(nodes)), "type": kind}
        for place, kind in enumerate(config.kinds)
    ]
    return {"directed": True, "multigraph": True, "nodes": nodes, "edges": edges}


def _picture(model: Unified, seed: int) -> Tensor:
    """(1, 3, S, S)"""
    picture, size = seeded_picture(seed, model.config.vision.image_size), model.config.vision.image_size
    return torch.from_numpy(load_picture(picture, size, model.config.background, picture.size))[None]


def _drawing(model: Unified, case: DrawCase) -> np.ndarray:
    tokens = model.config.image_tokens
    noise = schedule.initial_noise(case.seed, tokens.token_count, tokens.token_width)
    sampler = model.with_sampler(num_inference_steps=case.steps, guidance_scale=case.guidance)
    picture = None if case.picture_seed is None else _picture(model, case.picture_seed)[0]
    graph = None if case.graph is None else read_graph(case.graph)
    return model.draw([case.prompt], torch.from_numpy(noise)[None], sampler, [picture], [graph])[0].numpy()


def _codes(model: Unified, prompt: str, guidance: float) -> CodesCase:
    count = min(MOST_CODES, model.config.image_tokens.token_count)
    return CodesCase(prompt, guidance, tuple(write_codes(model, [prompt], guidance, count=count)[0].tolist()))
