"""Every variant of every component that a bundle's plans ask for: traced once, lowered, written, run and compared.

What a plan is stands in targets.py, what a lowering does in lower_*.py.  Targets that take the same graph share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnx import ModelProto
from torch import Tensor

from edgemm.bundle import BundleWriter, Component, Variant
from edgemm.errors import UsageError
from edgemm.export.component_graphs import ComponentGraph, component_graphs
from edgemm.export.component_parity import compare_component
from edgemm.export.example_inputs import example_inputs
from edgemm.export.lower_cpu import lower as lower_cpu
from edgemm.export.lower_float import fixed_sizes, graph_specs, lower_float
from edgemm.export.lower_ort_cpu import lower_ort_cpu
from edgemm.export.lower_tensorrt import lower_tensorrt
from edgemm.export.parity import Comparison
from edgemm.export.passes.adapter_inputs import adapter_inputs, adapter_points
from edgemm.export.reference import OPSET
from edgemm.export.stored_weights import StoredWeights
from edgemm.export.targets import Plan
from edgemm.model.unified import Unified
from edgemm.quantize.spec import Spec

__all__ = ["Components", "write_components", "write_graphs"]

Say = Callable[[str], None]
Trace = Callable[[ComponentGraph], ModelProto]


@dataclass(frozen=True)
class Components:
    """What was written, and how close it came to torch."""

    components: dict[str, Component]
    targets: dict[str, dict[str, str]]  # target -> component -> variant
    comparisons: list[Comparison]


def write_components(
    model: Unified,
    writer: BundleWriter,
    plans: Sequence[Plan],
    slots: int,
    trace: Trace,
    report: Say,
    status: Say,
    adapters: tuple[str, ...] | None = None,
    spec: Spec | None = None,
) -> Components:
    """`slots` is the longest context, in tokens; `adapters` names linear layers that take one, () all usual ones."""
    sizes = fixed_sizes(slots, model.conditioner.skip)
    drawing_depth = max(model.config.denoiser.prefix_layers) + 1
    graphs, inputs = component_graphs(model), example_inputs(model)
    return write_graphs(graphs, inputs, writer, plans, sizes, trace, report, status, drawing_depth, adapters, spec)


def write_graphs(
    graphs: dict[str, ComponentGraph],
    inputs: dict[str, dict[str, Tensor]],  # component -> what its graph is compared on
    writer: BundleWriter,
    plans: Sequence[Plan],
    sizes: dict[str, dict[str, int]],  # of axes, for dialects that fix them: see lower_float.py
    trace: Trace,
    report: Say,
    status: Say,
    drawing_depth: int = 0,
    adapters: tuple[str, ...] | None = None,
    spec: Spec | None = None,
) -> Components:
    """Any family's graphs; a spec says how all targets are quantized."""
    written = Components({}, {plan.target: {} for plan in plans}, [])
    for number, (name, graph) in enumerate(graphs.items(), start=1):
        here = f"{name}, {number} of {len(graphs)}"
        status(f"{here}: tracing")
        reference = trace(graph)
        variants: dict[str, Variant] = {}
        stored = StoredWeights()
        done: dict[tuple[str, str], str] = {}  # dialect and precision -> variant
        for plan in plans:
            kind = (plan.dialect, plan.precision)
            if kind not in done:
                status(f"{here}: lowering and writing for {plan.target}")
                if spec is not None:
                    lowered, real = _lower_spec(name, reference, plan, spec, sizes)
                elif plan.dialect == "cpu":
                    lowered, real = lower_cpu(name, _copied(reference), plan.precision, drawing_depth)
                    if adapters is not None:
                        lowered = _copied(lowered)
                        adapter_inputs(lowered, adapter_points(name, reference, adapters))
                else:
                    lowered, real = _lower_float(name, reference, plan, sizes)
                done[kind] = f"{plan.dialect}-{real}"
                if done[kind] not in variants:
                    variants[done[kind]] = _write_graph(name, lowered, real, plan, writer, stored)
                    status(f"{here}: comparing")
                    variant = variants[done[kind]]
                    comparison = compare_component(writer.folder, graph, variant, inputs[name])
                    written.comparisons.append(comparison)
                    report(comparison.line())
            written.targets[plan.target][name] = done[kind]
        written.components[name] = Component(variants)
    return written


def _copied(reference: ModelProto) -> ModelProto:
    """What is saved gives its weights away, and the next plan wants them too."""
    copy = ModelProto()
    copy.CopyFrom(reference)
    return copy


def _lower_spec(
    name: str, reference: ModelProto, plan: Plan, spec: Spec, sizes: dict[str, dict[str, int]]
) -> tuple[ModelProto, str]:
    if plan.dialect == "cpu":
        return lower_ort_cpu(name, _copied(reference), spec)
    if plan.target == "cuda":
        raise UsageError("--quant has no target cuda yet: its lowering is built and no GPU has run it; take rtx or cpu")
    try:
        return lower_tensorrt(name, reference, spec, plan.precision, plan.dialect, sizes)
    except ValueError as error:
        raise UsageError(f"{name} cannot be quantized for {plan.target}: {error}") from error


def _lower_float(
    name: str, reference: ModelProto, plan: Plan, sizes: dict[str, dict[str, int]]
) -> tuple[ModelProto, str]:
    try:
        return lower_float(name, reference, plan.precision, plan.dialect, sizes)
    except ValueError as error:
        raise UsageError(f"{name} cannot be written for {plan.target} in {plan.precision}: {error}") from error


def _write_graph(
    component: str, lowered: ModelProto, precision: str, plan: Plan, writer: BundleWriter, stored: StoredWeights
) -> Variant:
    path = f"components/{component}/{plan.dialect}-{precision}.onnx"
    inputs, outputs = graph_specs(lowered.graph.input), graph_specs(lowered.graph.output)
    contrib = any(opset.domain == "com.microsoft" for opset in lowered.opset_import)
    dialect = f"opset{OPSET}" + ("+com.microsoft" if contrib else "") if plan.dialect == "cpu" else plan.dialect
    data = stored.save(lowered, writer.file(path))
    return Variant(
        graph=path,
        data=f"components/{component}/{data.name}" if data else None,
        dialect=dialect,
        precision=precision,
        inputs=inputs,
        outputs=outputs,
    )
