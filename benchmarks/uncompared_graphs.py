"""The graphs that `edgemm export CHECKPOINT --target TARGET` writes, in several precisions, traced once and never run.

    python benchmarks/uncompared_graphs.py CHECKPOINT ... --target cuda --precision fp16,int8,int4 --output build/cuda

For what judges a graph by its nodes: NVIDIA's builder, ONNX Runtime's registry.  To say what its numbers are worth
takes ONNX Runtime's CPU longer, and is the export's own gate: these bundles are to be built from, and not for use.
Each bundle is held against its targets' graph rules; exit 7 when one breaks them.
A foreign family's folder of the name `checkpoint` takes its other parts (vae, llm) from the folders beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

__all__ = ["write_bundles", "write_foreign_bundles"]


def write_bundles(
    checkpoint: Path, precisions: Sequence[str], folder: Path, max_context: int | None = None, target: str = "rtx"
) -> Iterator[Path]:
    """One bundle after the other, below `folder`, as soon as each is whole; of export's own context, if not said."""
    import torch

    from edgemm.bundle.manifest import UNCONDITIONAL
    from edgemm.bundle.writer import BundleWriter
    from edgemm.export.component_graphs import component_graphs
    from edgemm.export.manifest import manifest_of, papers_of
    from edgemm.export.schemes import read_schemes
    from edgemm.export.specs import make_specs
    from edgemm.export.variants import Wanted, native_sizes, write_graphs
    from edgemm.model.checkpoint import load
    from edgemm.verify.components import example_inputs
    from edgemm.verify.export_native import MAX_CONTEXT, stored_prefix

    trace = traced_once()
    model = load(checkpoint)
    slots = max_context or min(MAX_CONTEXT, model.config.transformer.max_context)
    for precision in precisions:
        schemes = read_schemes(target, precision)
        with BundleWriter(folder / f"{precision}.bundle") as writer, torch.no_grad():
            wanted = Wanted(schemes, make_specs(model, schemes), native_sizes(model, slots))
            written = write_graphs(component_graphs(model), example_inputs(model), writer, wanted, trace)
            manifest = manifest_of(model, checkpoint, written.components, written.targets, slots)
            writer.add_bytes(manifest.tokenizer, model.tokenizer_json.encode())
            writer.add_bytes(UNCONDITIONAL, stored_prefix(model, ""))
            for name, content in papers_of(checkpoint, manifest).items():
                writer.add_bytes(name, content)
            writer.finish(manifest)
        yield writer.path


def write_foreign_bundles(
    checkpoint: Path, precisions: Sequence[str], folder: Path, max_context: int | None = None, target: str = "rtx"
) -> Iterator[Path]:
    """As above, by export itself with nothing to compare."""
    from edgemm.families.folder import find_foreign
    from edgemm.verify import export_foreign
    from edgemm.verify.parity import Recorded

    beside = {part.name: part for part in checkpoint.resolve().parent.iterdir() if part.is_dir()}
    beside = {name: part for name, part in beside.items() if name != "checkpoint" == checkpoint.name}
    found = find_foreign(checkpoint)
    assert found is not None, f"{checkpoint} is of no family"
    nothing = {
        "trace": traced_once(),
        "compare_component": None,
        "_recorded": lambda *asked: Recorded(asked[4], (), (), ()),
        "run_loops": lambda bundle, schemes, recorded: ([], recorded),
    }
    for precision in precisions:
        path = folder / f"{precision}.bundle"
        with patch.multiple(export_foreign, **nothing):
            export_foreign.export_foreign(
                dataclasses.replace(found, others=beside),
                path,
                target=target,
                precision=precision,
                max_context=max_context,
            )
        yield path


def traced_once() -> Callable[[Any], Any]:
    """Whatever the precision: by the component's name, so for one checkpoint."""
    from edgemm.export.trace import trace

    traced: dict[str, Any] = {}

    def trace_once(graph: Any) -> Any:
        if graph.name not in traced:
            traced[graph.name] = trace(graph)
        return traced[graph.name]

    return trace_once


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--target", default="rtx")
    parser.add_argument("--precision", default="fp16,int8,int4")
    parser.add_argument("--max-context", type=int)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    from edgemm.bundle.bundle import open_bundle
    from edgemm.cli.verify import check_rules
    from edgemm.errors import CheckFailedError

    refused = False
    for checkpoint in args.checkpoints:
        name = checkpoint.parent.name if checkpoint.name == "checkpoint" else checkpoint.name
        write = write_bundles if _is_own(checkpoint) else write_foreign_bundles
        for path in write(checkpoint, args.precision.split(","), args.output / name, args.max_context, args.target):
            print(path, flush=True)
            try:
                check_rules(open_bundle(path, verify=False))
            except CheckFailedError as error:
                refused = True
                print(error, flush=True)
    return 7 if refused else 0


def _is_own(checkpoint: Path) -> bool:
    from edgemm.families.folder import find_foreign

    return find_foreign(checkpoint) is None


if __name__ == "__main__":
    sys.exit(main())
