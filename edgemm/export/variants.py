"""Every variant of every component that a bundle's plans ask for: traced once, lowered, written, run and compared.

What a plan is stands in targets.py, what a lowering does in lower_*.py.  Targets that take the same graph share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from onnx import ModelProto
from torch import Tensor

from edgemm.bundle.bundle import BundleWriter, Component, Variant
from edgemm.errors import UsageError
from edgemm.export.adapter_points import adapter_inputs, adapter_points
from edgemm.export.component_graphs import ComponentGraph, component_graphs
from edgemm.export.dialects import in_dialect
from edgemm.export.example_inputs import example_inputs
from edgemm.export.lower_cpu import CONTRIB, lower_ort_cpu
from edgemm.export.lower_cuda import ADAPTER_RANK, fixed_sizes, graph_specs, lower_float, lower_ort_cuda
from edgemm.export.lower_tensorrt import check_target, lower_tensorrt
from edgemm.export.ort_cpu_graph import for_ort_cpu
from edgemm.export.passes.delta_to_residual import delta_to_residual
from edgemm.export.products import copy_to_rewrite
from edgemm.export.specs import lower as lower_cpu
from edgemm.export.stored_weights import StoredWeights
from edgemm.export.targets import Plan
from edgemm.export.trace import OPSET
from edgemm.model.unified import Unified
from edgemm.quantize.spec import Spec

__all__ = ["Components", "write_components", "write_graphs"]

Say = Callable[[str], None]
Trace = Callable[[ComponentGraph], ModelProto]
NO_SPECS: Mapping[str, Spec] = MappingProxyType({})
NO_SHARES: Mapping[str, str] = MappingProxyType({})


class Compared(Protocol):
    """One comparison: verify/parity.py's Comparison is one."""

    def line(self) -> str: ...


Compare = Callable[..., Compared]  # verify/components.py's compare_component: export does not judge itself


@dataclass(frozen=True)
class Components:
    """What was written, and how close it came to torch."""

    components: dict[str, Component]
    targets: dict[str, dict[str, str]]  # target -> component -> variant
    comparisons: list[Any]


def write_components(
    model: Unified,
    writer: BundleWriter,
    plans: Sequence[Plan],
    slots: int,
    trace: Trace,
    report: Say,
    status: Say,
    adapters: tuple[str, ...] | None = None,
    specs: Mapping[str, Spec] = NO_SPECS,
    rank: int = ADAPTER_RANK,
    drafts: bool = False,
    compare: Compare | None = None,
) -> Components:
    """`slots` is the longest context, in tokens; `adapters` names linear layers that take one, () all usual ones, of
    `rank` at most where sizes are fixed; with `drafts` the transformer gives logits of several positions."""
    draws_codes = model.config.objective == "ar"
    sizes = (
        {"transformer": {"T": slots, "r": rank}} if draws_codes else fixed_sizes(slots, model.conditioner.skip, rank)
    )
    drawing_depth = max(model.config.denoiser.prefix_layers, default=-1) + 1
    graphs, inputs = component_graphs(model, drafts), example_inputs(model, drafts)
    words = (drawing_depth, adapters, specs, compare)
    return write_graphs(graphs, inputs, writer, plans, sizes, trace, report, status, *words)


def write_graphs(
    graphs: dict[str, ComponentGraph],
    inputs: dict[str, dict[str, Tensor]],  # component -> what its graph is compared on
    writer: BundleWriter,
    plans: Sequence[Plan],
    sizes: dict[str, dict[str, int]],  # of axes, for dialects that fix them: see lower_cuda.py
    trace: Trace,
    report: Say,
    status: Say,
    drawing_depth: int = 0,
    adapters: tuple[str, ...] | None = None,
    specs: Mapping[str, Spec] = NO_SPECS,
    compare: Compare | None = None,
    shared: Mapping[str, str] = NO_SHARES,
) -> Components:
    """Any family's graphs; `specs` says how targets are quantized, those that specs.py tells, `shared` which component
    uses weights of another, whose folder and file of weights it then has, too.  Without `compare` no graph is run,
    which no bundle that anybody is to use may do without."""
    for target, spec in specs.items():
        check_target(spec, target)
    every_stored: dict[str, StoredWeights] = {}
    written = Components({}, {plan.target: {} for plan in plans}, [])
    for number, (name, graph) in enumerate(graphs.items(), start=1):
        here = f"{name}, {number} of {len(graphs)}"
        status(f"{here}: tracing")
        reference = trace(graph)
        adaptable = _adaptable(name, reference, adapters)
        variants: dict[str, Variant] = {}
        beside = shared.get(name, name)
        stored = every_stored.setdefault(beside, StoredWeights())
        done: dict[tuple[str, str], str] = {}  # lowering and precision -> variant
        for plan in plans:
            lowering = "cuda" if plan.target == "cuda" and plan.target in specs else plan.dialect
            kind = (lowering, plan.precision)
            if kind not in done:
                status(f"{here}: lowering and writing for {plan.target}")
                on_cpu = plan.dialect == "cpu"
                if plan.target in specs:
                    whole = reference if on_cpu else adaptable
                    lowered, real = _lower_spec(name, whole, plan, specs[plan.target], sizes)
                elif on_cpu:
                    lowered, real = lower_cpu(name, reference, plan.precision, drawing_depth)
                else:
                    lowered, real = _lower_float(name, adaptable, plan, sizes)
                if on_cpu:
                    if adapters is not None:
                        adapter_inputs(lowered, adapter_points(name, reference, adapters))
                    for_ort_cpu(lowered, reference, _longest(sizes, inputs[name]))
                done[kind] = f"{lowering if _has_contrib(lowered) else plan.dialect}-{real}"
                if done[kind] not in variants:
                    own = "" if beside == name else f"{name}-"
                    path = f"components/{beside}/{own}{done[kind]}.onnx"
                    variant = variants[done[kind]] = _write_graph(
                        path, lowered, real, plan, writer, stored, beside != name
                    )
                    if compare is not None:
                        status(f"{here}: comparing")
                        steps = _steps(plan, specs)
                        comparison = compare(writer.folder, graph, variant, inputs[name], *steps)
                        written.comparisons.append(comparison)
                        report(comparison.line())
            written.targets[plan.target][name] = done[kind]
        written.components[name] = Component(variants)
    return written


def _steps(plan: Plan, specs: Mapping[str, Spec]) -> tuple[Mapping[str, np.ndarray], ...]:
    """Of an int8 cache, where the plan has one."""
    return (specs[plan.target].cache_steps(),) if plan.target in specs else ()


def _adaptable(name: str, reference: ModelProto, adapters: tuple[str, ...] | None) -> ModelProto:
    """With inputs for low-rank adapters; they take part in the lowering, so a float16 graph casts them itself.  A CPU's
    own lowering would round such products too, so it gets the inputs after it."""
    points = [] if adapters is None else adapter_points(name, reference, adapters)
    if not points:
        return reference
    copy = _copied(reference)
    adapter_inputs(copy, points)
    delta_to_residual(copy)
    return copy


def _copied(reference: ModelProto) -> ModelProto:
    """What is saved gives its weights away, and the next plan wants them too."""
    copy = ModelProto()
    copy.CopyFrom(reference)
    return copy


def _lower_spec(
    name: str, reference: ModelProto, plan: Plan, spec: Spec, sizes: dict[str, dict[str, int]]
) -> tuple[ModelProto, str]:
    if plan.dialect == "cpu":
        return lower_ort_cpu(name, copy_to_rewrite(reference, lambda p: bool(spec.layer(p.layer).bits), name), spec)
    if spec.document.cache != "float":
        raise UsageError(f"the spec has an {spec.document.cache} K/V cache, which target {plan.target} does not take")
    try:
        if plan.target == "cuda":
            return lower_ort_cuda(name, in_dialect(reference, plan.dialect), spec, plan.real, sizes)
        return lower_tensorrt(name, reference, spec, plan.real, plan.dialect, sizes)
    except ValueError as error:
        raise UsageError(f"{name} cannot be quantized for {plan.target}: {error}") from error


def _lower_float(
    name: str, reference: ModelProto, plan: Plan, sizes: dict[str, dict[str, int]]
) -> tuple[ModelProto, str]:
    try:
        return lower_float(name, reference, plan.precision, plan.dialect, sizes)
    except ValueError as error:
        raise UsageError(f"{name} cannot be written for {plan.target} in {plan.precision}: {error}") from error


def _longest(sizes: dict[str, dict[str, int]], example: dict[str, Tensor]) -> int:
    """Tokens of a context, and what it is compared on may be longer than what is promised."""
    return max([sizes.get("transformer", {}).get("T", 0), *(t.shape[2] for t in example.values() if t.ndim == 4)])


def _has_contrib(lowered: ModelProto) -> bool:
    """Operators of ONNX Runtime's own."""
    return any(opset.domain == CONTRIB for opset in lowered.opset_import)


def _write_graph(
    path: str,
    lowered: ModelProto,
    precision: str,
    plan: Plan,
    writer: BundleWriter,
    stored: StoredWeights,
    behind: bool,
) -> Variant:
    inputs, outputs = graph_specs(lowered.graph.input), graph_specs(lowered.graph.output)
    dialect = f"opset{OPSET}" if plan.dialect == "cpu" else plan.dialect
    dialect += "".join(f"+{opset.domain}" for opset in lowered.opset_import if opset.domain)
    data = stored.save(lowered, writer.file(path), behind)
    return Variant(
        graph=path,
        data=str(PurePosixPath(path).with_name(data.name)) if data else None,
        dialect=dialect,
        precision=precision,
        inputs=inputs,
        outputs=outputs,
    )
