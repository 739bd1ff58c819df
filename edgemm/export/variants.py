"""Every variant of every component that a bundle's schemes ask for: traced once, lowered, written, run and compared.

What a scheme is stands in schemes.py, what a lowering does in lower_*.py.  Targets that take the same graph share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import onnx_ir as ir
from torch import Tensor

from edgemm import progress
from edgemm.bundle.bundle import Component, Variant
from edgemm.bundle.writer import BundleWriter
from edgemm.device.machine import give_back_memory
from edgemm.errors import UsageError
from edgemm.export.adapter_points import adapter_inputs, adapter_points, delta_to_residual
from edgemm.export.component_graphs import ComponentGraph
from edgemm.export.dialects import in_dialect
from edgemm.export.graph_file import StoredWeights
from edgemm.export.lower_cpu import lower_ort_cpu
from edgemm.export.lower_cuda import fixed_sizes, graph_specs, lower_float, lower_ort_cuda
from edgemm.export.lower_tensorrt import check_target, lower_tensorrt
from edgemm.export.options import ADAPTER_RANK
from edgemm.export.ort_cpu_graph import for_ort_cpu
from edgemm.export.passes.experts_fused import experts_fused
from edgemm.export.passes.rewriting import CONTRIB
from edgemm.export.schemes import Scheme
from edgemm.export.trace import OPSET
from edgemm.model.unified import Unified
from edgemm.quantize.spec import Spec

__all__ = ["Components", "Wanted", "lower", "native_sizes", "write_graphs"]

Trace = Callable[[ComponentGraph], ir.Model]
Sizes = Mapping[str, Mapping[str, int]]  # component -> axis -> its size, for dialects that fix it


class Compared(Protocol):
    """One comparison: verify/parity.py's Comparison is one."""

    def line(self) -> str: ...


Compare = Callable[..., Compared]  # verify/components.py's compare_component: export does not judge itself


@dataclass(frozen=True)
class Wanted:
    """What a bundle's graphs are lowered to."""

    schemes: Sequence[Scheme]
    specs: Mapping[str, Spec]  # target -> how it is quantized, those that specs.py tells
    sizes: Sizes
    adapters: tuple[str, ...] | None = None  # linear layers that take low-rank adapters, () all usual ones
    shared: Mapping[str, str] = field(default_factory=dict)  # component -> the one whose weights it uses, too

    def __post_init__(self) -> None:
        for target, spec in self.specs.items():
            check_target(spec, target)


@dataclass(frozen=True)
class Components:
    """What was written, and how close it came to torch."""

    components: dict[str, Component]
    targets: dict[str, dict[str, str]]  # target -> component -> variant
    comparisons: list[Any]


def native_sizes(model: Unified, slots: int, rank: int = ADAPTER_RANK) -> Sizes:
    """`slots` is the longest context, in tokens; adapters have `rank` at most where sizes are fixed."""
    if model.config.objective == "ar":
        return {"transformer": {"T": slots, "r": rank}}
    return fixed_sizes(slots, model.conditioner.skip, rank)


def write_graphs(
    graphs: Mapping[str, ComponentGraph],
    inputs: Mapping[str, dict[str, Tensor]],  # component -> what its graph is compared on
    writer: BundleWriter,
    wanted: Wanted,
    trace: Trace,
    compare: Compare | None = None,
) -> Components:
    """Any family's graphs.  Without `compare` none is run, which no bundle that anybody is to use may do without."""
    written = Components({}, {scheme.target: {} for scheme in wanted.schemes}, [])
    every_stored: dict[str, StoredWeights] = {}
    floats: dict[str, list[str]] = {}  # target -> what stays in float there
    for number, (name, graph) in enumerate(graphs.items(), start=1):
        here = f"{name}, {number} of {len(graphs)}"
        progress.status(f"{here}: tracing")
        reference = trace(graph)
        adaptable = _adaptable(name, reference, wanted.adapters)
        variants: dict[str, Variant] = {}
        beside = wanted.shared.get(name, name)  # whose folder and file of weights it has
        stored = every_stored.setdefault(beside, StoredWeights())
        done: dict[tuple[str, str], str] = {}  # lowering and precision -> variant
        for scheme in wanted.schemes:
            spec = wanted.specs.get(scheme.target)
            lowering = "cuda" if scheme.lowering == "cuda" and spec else scheme.dialect
            kind = (lowering, scheme.precision)
            if kind not in done:
                progress.status(f"{here}: lowering and writing for {scheme.target}")
                lowered, real = lower(name, reference if scheme.on_cpu else adaptable, scheme, spec, wanted.sizes)
                if spec and spec.towers:
                    floats.setdefault(scheme.target, []).extend(_left_in_float(name, lowered))
                if scheme.on_cpu:
                    if wanted.adapters is not None:
                        adapter_inputs(lowered, adapter_points(name, reference, wanted.adapters))
                    for_ort_cpu(lowered, _longest(wanted.sizes, inputs[name]))
                done[kind] = f"{lowering if _has_contrib(lowered) else scheme.dialect}-{real}"
                if done[kind] not in variants:
                    path = f"components/{beside}/{'' if beside == name else f'{name}-'}{done[kind]}.onnx"
                    data = stored.save(lowered, writer.file(path), behind=beside != name)
                    give_back_memory()
                    variant = variants[done[kind]] = _described(path, data, lowered, real, scheme)
                    if compare is not None:
                        progress.status(f"{here}: comparing")
                        steps = spec.cache_steps() if spec else {}
                        comparison = compare(writer.folder, graph, variant, inputs[name], steps)
                        written.comparisons.append(comparison)
                        progress.line(comparison.line())
            written.targets[scheme.target][name] = done[kind]
        written.components[name] = Component(variants)
        give_back_memory()
    for scheme in wanted.schemes:
        if left := floats.get(scheme.target):
            progress.line(f"{scheme.target}, {scheme.precision}: in float stay {', '.join(left)}")
    return written


FLOATS = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}
WHY = {  # operator that reads a weight -> what the weight is, and so why it is not rounded
    "Conv": "filters of convolutions, for which there is no kernel on 8-bit weights",
    "ConvTranspose": "filters of convolutions, for which there is no kernel on 8-bit weights",
    "Gather": "tables that are looked up",
}
TOLD_BYTES = 1 << 20  # of one kind in a component: less is not worth a word


def _left_in_float(name: str, lowered: ir.Model) -> Iterator[str]:
    """What a quantized component's graph holds as it was: how much of it, and why."""
    sizes: dict[tuple[str, str], int] = {}
    for value in lowered.graph.initializers.values():
        tensor, uses = value.const_value, list(value.uses())
        if tensor is None or tensor.dtype not in FLOATS or len(tensor.shape) < 2 or not uses:
            continue
        if (value.name or "").endswith(".scales"):
            continue
        reader = uses[0].node
        while reader.op_type in ("Cast", "Reshape", "Transpose") and (after := list(reader.outputs[0].uses())):
            reader = after[0].node
        kind = (FLOATS[tensor.dtype], WHY.get(reader.op_type, "weights that stay as they are for its answers' sake"))
        sizes[kind] = sizes.get(kind, 0) + tensor.nbytes
    for (real, why), size in sizes.items():
        if size >= TOLD_BYTES:
            yield f"{name} {size / 1e6:.1f} MB ({why}; {real})"


def _adaptable(name: str, reference: ir.Model, adapters: tuple[str, ...] | None) -> ir.Model:
    """With inputs for low-rank adapters; they take part in the lowering, so a float16 graph casts them itself.  A CPU's
    own lowering would round such products too, so it gets the inputs after it."""
    points = [] if adapters is None else adapter_points(name, reference, adapters)
    if not points:
        return reference
    copy = reference.clone()
    adapter_inputs(copy, points)
    delta_to_residual(copy)
    return copy


def lower(name: str, reference: ir.Model, scheme: Scheme, spec: Spec | None, sizes: Sizes) -> tuple[ir.Model, str]:
    """The component's graph for the scheme's target, and the precision to call it by."""
    if scheme.on_cpu:
        if spec is None:
            copy = reference.clone()
            experts_fused(copy)
            return copy, scheme.real
        return lower_ort_cpu(name, reference.clone(), spec, blocks=scheme.target != "web")
    if spec and spec.document.cache != "float":
        raise UsageError(f"the spec has an {spec.document.cache} K/V cache, which target {scheme.target} does not take")
    try:
        if spec is None:
            return lower_float(name, reference, scheme.real, scheme.dialect, sizes)
        if scheme.lowering == "cuda":
            return lower_ort_cuda(name, in_dialect(reference, scheme.dialect), spec, scheme.real, sizes)
        return lower_tensorrt(name, reference, spec, scheme.real, scheme.dialect, sizes)
    except ValueError as error:
        how = "quantized" if spec else f"written in {scheme.precision}"
        raise UsageError(f"{name} cannot be {how} for {scheme.target}: {error}") from error


def _longest(sizes: Sizes, example: dict[str, Tensor]) -> int:
    """Tokens of a context, and what it is compared on may be longer than what is promised."""
    return max([sizes.get("transformer", {}).get("T", 0), *(t.shape[2] for t in example.values() if t.ndim == 4)])


def _has_contrib(lowered: ir.Model) -> bool:
    """Operators of ONNX Runtime's own."""
    return CONTRIB in lowered.opset_imports


def _described(path: str, data: Path | None, lowered: ir.Model, precision: str, scheme: Scheme) -> Variant:
    """A graph that was written, for the manifest."""
    dialect = f"opset{OPSET}" if scheme.on_cpu else scheme.dialect
    dialect += "".join(f"+{domain}" for domain in lowered.opset_imports if domain)
    return Variant(
        graph=path,
        data=str(PurePosixPath(path).with_name(data.name)) if data else None,
        dialect=dialect,
        precision=precision,
        inputs=graph_specs(lowered.graph.inputs),
        outputs=graph_specs(lowered.graph.outputs),
    )
