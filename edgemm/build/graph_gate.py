"""What a graph has to pass before NVIDIA's parser may see it, because that parser trusts its input.

It follows links out of a folder, waits for ever on a pipe, and crashes on a function that calls itself.  So the path is
walked without following links (edgemm.bundle), the graph may read one file, inside that file, and it may hold only what
its target takes (graph_rules.py).
"""

from __future__ import annotations

from pathlib import Path

from edgemm.build.kernels import missing_kernels
from edgemm.bundle import Bundle
from edgemm.errors import BundleError
from edgemm.runtimes.graph_rules import RULES, broken_rules
from edgemm.runtimes.onnx_external_data import check_external_data
from edgemm.runtimes.onnx_outline import Outline, read_outline

__all__ = ["checked_graph"]


def checked_graph(bundle: Bundle, component: str, target: str, compute_capability: str = "") -> Path:
    """The graph's path; BundleError says what is wrong with it, or that such a GPU cannot multiply its weights."""
    variant = bundle.manifest.variant(component, target)
    graph = bundle.file(variant.graph)
    data = bundle.file(variant.data) if variant.data else None
    check_external_data(graph, data)
    outline = read_outline(graph)
    _check_ranges(graph, data, outline)
    for problem in broken_rules(outline, RULES[target]):
        raise BundleError(f"{graph}: target {target} cannot take it: {problem}")
    missing = missing_kernels(outline, compute_capability) if compute_capability else None
    if missing:
        raise BundleError(f"{graph}: SM {compute_capability} has no kernels for it: {missing}")
    return graph


def _check_ranges(graph: Path, data: Path | None, outline: Outline) -> None:
    size = data.stat().st_size if data else 0
    for tensor in outline.stored:
        end = tensor.offset + (tensor.length or 0)
        if tensor.offset < 0 or end > size or (tensor.length or 0) < 0:
            raise BundleError(f"{graph}: {tensor.name!r} lies at bytes {tensor.offset} to {end} of a file of {size}")
