"""A bundle with one graph pass more, so that the pass can be measured against the bundle without it.

    python benchmarks/with_pass.py attention_fused sticker.bundle fused.bundle
    python benchmarks/runtime_speed.py sticker.bundle fused.bundle

Every cpu graph goes through the pass; everything else is copied.  Passes that want more than the graph (shapes, which
a bundle's does not tell) are part of every export, see edgemm/export/ort_cpu_graph.py: their "before" is an older
bundle.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import onnx_ir as ir

from edgemm.bundle.bundle import open_bundle
from edgemm.bundle.writer import BundleWriter
from edgemm.export.graph_file import save_graph


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", help="of a module of edgemm/export/passes with a function of that name")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args(words)
    rewrite = getattr(importlib.import_module(f"edgemm.export.passes.{args.name}"), args.name)
    bundle = open_bundle(args.bundle)
    manifest, changed = bundle.manifest, []
    chosen = manifest.targets["cpu"]
    done = set()
    with BundleWriter(args.output) as writer:
        for component in chosen:
            variant = manifest.variant(component, "cpu")
            model = ir.load(bundle.file(variant.graph))
            if rewrite(model):
                changed.append(component)
                done |= {variant.graph, variant.data}
                save_graph(model, writer.file(variant.graph))
        for name in manifest.files:
            if name not in done:
                writer.add_bytes(name, bundle.file(name).read_bytes())
        writer.finish(manifest)
    print(f"Wrote {args.output}; changed: {', '.join(changed) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
