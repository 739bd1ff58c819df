"""From a checkpoint to a bundle: trace, lower, compare, write; all of it or nothing.

What a graph holds is in component_graphs.py, what a target wants in lower_*.py, what counts as equal in parity.py, what
the manifest says about the model in manifest_of.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from onnx import ModelProto
from safetensors.numpy import save

from edgemm.bundle import UNCONDITIONAL, Bundle, BundleWriter, Component, Manifest, Variant
from edgemm.errors import MissingError, UsageError
from edgemm.export.component_graphs import ComponentGraph, component_graphs
from edgemm.export.component_parity import compare_component
from edgemm.export.example_inputs import example_inputs
from edgemm.export.graph_file import save_graph
from edgemm.export.loop_parity import compare_loops
from edgemm.export.lower_cpu import PRECISIONS, lower
from edgemm.export.manifest_of import manifest_of, papers_of
from edgemm.export.parity import Comparison, require
from edgemm.export.recorded import PARITY_FILE, PIXELS_FILE, Recorded, parity_document
from edgemm.export.reference import OPSET, trace
from edgemm.export.torch_answers import longest_prompt, torch_answers
from edgemm.model import checkpoint
from edgemm.model.unified import Unified
from edgemm.runtimes.backends import select
from edgemm.runtimes.model import Model
from edgemm.runtimes.threads import plan_threads

__all__ = ["MAX_CONTEXT", "TARGETS", "export_bundle"]

TARGETS = ("cpu",)
MAX_CONTEXT = 2048  # cache slots when nobody says otherwise, where the transformer was trained for as many
MAX_NEW_TOKENS = 32  # of a recorded reply
LEAST_BYTES = {"fp32": 4.0, "int8": 1.0, "int4": 0.5}  # a parameter

Say = Callable[[str], None]


def export_bundle(
    source: Path,
    output: Path,
    target: str = "cpu",
    precision: str = "fp32",
    overwrite: bool = False,
    max_context: int | None = None,
    report: Say = print,
    status: Say = lambda text: None,
) -> Manifest:
    """Write the bundle of the checkpoint folder `source`.

    `report` gets a line for each comparison, `status` what is being done in between.  Raises CheckFailedError, and
    leaves nothing, when a component or a loop differs from torch.
    """
    if target not in TARGETS:
        raise UsageError(f"target {target!r} is not built yet; built: {', '.join(TARGETS)}")
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is none of: {', '.join(PRECISIONS)}")
    _check_runtime()
    source = source.resolve()
    status(f"loading {source.name}")
    model = checkpoint.load(source)
    slots, new_tokens = _check_context(model, max_context)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    report(
        f"{source.name}: family {model.config.family}, {parameters / 1e6:.1f}M parameters; target {target}, {precision}"
    )
    with BundleWriter(output, overwrite, int(LEAST_BYTES[precision] * parameters)) as writer, torch.no_grad():
        components, comparisons = _write_components(model, writer, target, precision, report, status)
        require(comparisons, "the bundle differs from the model, and was not kept")
        manifest = manifest_of(model, source, components, target, precision, slots)
        writer.add_bytes(manifest.tokenizer, model.tokenizer_json.encode())
        for name, content in papers_of(source, manifest).items():
            writer.add_bytes(name, content)
        writer.add_bytes(UNCONDITIONAL, stored_prefix(model, ""))
        status("loops: asking torch")
        recorded = torch_answers(model, precision, new_tokens)
        status("loops: comparing")
        with Model(Bundle(writer.folder, manifest), select(target, (target,)), plan_threads()) as runtime:
            for comparison in compare_loops(runtime, recorded):
                comparisons.append(comparison)
                report(comparison.line())
        require(comparisons, "the bundle differs from the model, and was not kept")
        _write_recorded(recorded, comparisons, writer)
        status("hashing")
        return writer.finish(manifest)


def _check_runtime() -> None:
    """Every graph is run before it is shipped, so the ONNX Runtime that is here has to read them."""
    import onnxruntime

    from edgemm.measure.one_node_model import one_node_model

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(one_node_model(OPSET), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base but Exception
        raise MissingError(
            f"bundles are written in ONNX opset {OPSET}, which ONNX Runtime {onnxruntime.__version__} does not read: "
            "pip install 'onnxruntime>=1.24' (Python 3.11 or newer)"
        ) from error


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


def _write_components(
    model: Unified, writer: BundleWriter, target: str, precision: str, report: Say, status: Say
) -> tuple[dict[str, Component], list[Comparison]]:
    graphs, inputs = component_graphs(model), example_inputs(model)
    drawing_depth = max(model.config.denoiser.prefix_layers) + 1
    components, comparisons = {}, []
    for number, (name, graph) in enumerate(graphs.items(), start=1):
        here = f"{name}, {number} of {len(graphs)}"
        status(f"{here}: tracing")
        reference = trace(graph)
        status(f"{here}: lowering and writing")
        lowered, real = lower(name, reference, precision, drawing_depth)
        variant_name, variant = _write_graph(graph, lowered, real, writer, target)
        status(f"{here}: comparing")
        comparisons.append(compare_component(writer.folder, graph, variant, inputs[name]))
        components[name] = Component({variant_name: variant})
        report(comparisons[-1].line())
    return components, comparisons


def _write_graph(
    graph: ComponentGraph, lowered: ModelProto, precision: str, writer: BundleWriter, target: str
) -> tuple[str, Variant]:
    name = f"{target}-{precision}"
    path = f"components/{graph.name}/{name}.onnx"
    data = save_graph(lowered, writer.file(path))
    contrib = any(opset.domain == "com.microsoft" for opset in lowered.opset_import)
    return name, Variant(
        graph=path,
        data=f"components/{graph.name}/{data.name}" if data else None,
        dialect=f"opset{OPSET}" + ("+com.microsoft" if contrib else ""),
        precision=precision,
        inputs=graph.inputs,
        outputs=graph.outputs,
    )


def stored_prefix(model: Unified, prompt: str) -> bytes:
    """The conditioner's outputs for a prompt, by torch, as a safetensors file."""
    prefix = model.prefix([prompt])
    tensors = {"prompt_vector": prefix.prompt_vector, "prefix_mask": prefix.mask}
    if prefix.layout.shape[-1]:
        tensors["layout"] = prefix.layout
    for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        tensors |= {f"prefix_key.{layer}": keys, f"prefix_value.{layer}": values}
    return save({name: tensor.contiguous().numpy() for name, tensor in tensors.items()})


def _write_recorded(recorded: Recorded, comparisons: list[Comparison], writer: BundleWriter) -> None:
    writer.add_bytes(PARITY_FILE, parity_document(recorded, comparisons).encode())
    writer.add_bytes(PIXELS_FILE, save({f"draw.{row}": pixels for row, pixels in enumerate(recorded.pixels)}))
