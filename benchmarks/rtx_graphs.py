"""The graphs that `edgemm export CHECKPOINT --target rtx` writes, in several precisions, traced once and never run.

For NVIDIA's builder, which judges a graph by its nodes.  To say what its numbers are worth takes ONNX Runtime's CPU
longer than building does, and is the export's own gate: these bundles are to be built from, and not for use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["write_bundles"]


def write_bundles(
    checkpoint: Path, precisions: Sequence[str], folder: Path, max_context: int | None = None
) -> Iterator[Path]:
    """One bundle after the other, below `folder`, as soon as each is whole; of export's own context, if not said."""
    import onnx_ir as ir
    import torch

    from edgemm.bundle.bundle import UNCONDITIONAL
    from edgemm.bundle.writer import BundleWriter
    from edgemm.export.component_graphs import ComponentGraph, component_graphs
    from edgemm.export.manifest import manifest_of, papers_of
    from edgemm.export.schemes import read_schemes
    from edgemm.export.specs import make_specs
    from edgemm.export.trace import trace
    from edgemm.export.variants import Wanted, native_sizes, write_graphs
    from edgemm.model.checkpoint import load
    from edgemm.verify.components import example_inputs
    from edgemm.verify.export_native import MAX_CONTEXT, stored_prefix

    traced: dict[str, ir.Model] = {}

    def trace_once(graph: ComponentGraph) -> ir.Model:
        if graph.name not in traced:
            traced[graph.name] = trace(graph)
        return traced[graph.name]

    model = load(checkpoint)
    slots = max_context or min(MAX_CONTEXT, model.config.transformer.max_context)
    for precision in precisions:
        schemes = read_schemes("rtx", precision)
        with BundleWriter(folder / f"{precision}.bundle") as writer, torch.no_grad():
            wanted = Wanted(schemes, make_specs(model, schemes), native_sizes(model, slots))
            written = write_graphs(component_graphs(model), example_inputs(model), writer, wanted, trace_once)
            manifest = manifest_of(model, checkpoint, written.components, written.targets, slots)
            writer.add_bytes(manifest.tokenizer, model.tokenizer_json.encode())
            writer.add_bytes(UNCONDITIONAL, stored_prefix(model, ""))
            for name, content in papers_of(checkpoint, manifest).items():
                writer.add_bytes(name, content)
            writer.finish(manifest)
        yield writer.path
