"""`edgemm inspect BUNDLE`: what is in a bundle, from its manifest alone; nothing is hashed or run.

With --estimate it takes the folder of a checkpoint, foreign or edgemm's own, and says from config.json alone how large
its bundle would be.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from edgemm.bundle.bundle import Bundle, open_bundle
from edgemm.bundle.onnx_file import ROUTED, read_outline
from edgemm.errors import InputError, MissingError, UsageError
from edgemm.report.page import text_table

__all__ = ["HELP", "add_arguments", "describe", "run"]

HELP = "what is in a bundle"
TELLING = ("config.json", "model_index.json")  # of a checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder that `edgemm export` wrote")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="BUNDLE is a checkpoint folder: parameters, bundle and cache sizes, from its config.json alone",
    )
    parser.add_argument(
        "--component",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="with --estimate: where a part lies that is published apart, as `edgemm export` has it",
    )
    parser.add_argument("--vae", metavar="FOLDER", help="the same as --component vae=FOLDER")


def run(args: argparse.Namespace) -> int:
    if args.estimate:
        named = [*args.component, *([] if args.vae is None else [f"vae={args.vae}"])]
        return _estimate(Path(args.bundle), named, args.json)
    if args.component or args.vae:
        raise UsageError("--component and --vae say where parts of a checkpoint lie: they are for --estimate")
    _refuse_checkpoint(Path(args.bundle))
    bundle = open_bundle(args.bundle, verify=False)
    lines = [] if args.json else [*describe(bundle), *_experts(bundle)]
    print(bundle.manifest.to_json() if args.json else "\n".join(lines), end="" if args.json else "\n")
    return 0


def _experts(bundle: Bundle) -> Iterable[str]:
    """Of transformers that choose among experts: what one token reads, of what there is."""
    manifest = bundle.manifest
    for name, variant in manifest.components["transformer"].variants.items():
        if any(node.op_type in ROUTED for node in read_outline(bundle.file(variant.graph)).nodes):
            from edgemm.estimate.graph_costs import read_graph_costs

            size = sum(manifest.files[path].size_bytes for path in (variant.graph, variant.data) if path)
            costs = read_graph_costs(bundle.file(variant.graph), size)
            active, all_of_it = (_megabytes(n) for n in (costs.read_bytes - costs.idle_bytes, costs.read_bytes))
            yield f"transformer {name}: a token reads {active} of {all_of_it}, the experts that it goes to"


def _refuse_checkpoint(folder: Path) -> None:
    """Of a foreign one that no family knows, says what is in the way; opening says what any other one would become."""
    if (folder / "manifest.json").exists() or not any((folder / name).is_file() for name in TELLING):
        return
    from edgemm.families.folder import find_foreign
    from edgemm.families.table import FAMILIES, load_family

    found = find_foreign(folder)
    if found and found.architecture not in FAMILIES:
        load_family(found)


def _estimate(folder: Path, named: list[str], as_json: bool) -> int:
    from edgemm.families.folder import find_foreign, other_folders

    found = find_foreign(folder)
    if found is None and not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json of a model; --estimate reads nothing else")
    try:
        from edgemm.families import paper
    except ImportError as error:
        raise MissingError(f"--estimate needs {error.name or error}: pip install 'edgemm[families,ort]'") from error
    from edgemm.estimate import boards

    if found:
        found = dataclasses.replace(found, others=other_folders(named))
    measured = paper.measure(found) if found else paper.measure_own(folder)
    if as_json:
        print(json.dumps(paper.as_json(measured) | {"boards": boards.as_json(measured)}))
    else:
        print("\n".join([*paper.describe(measured), *boards.describe(measured)]))
    return 0


def describe(bundle: Bundle) -> Iterable[str]:
    """The manifest as a page of text."""
    manifest = bundle.manifest
    total = sum(record.size_bytes for record in manifest.files.values())
    yield f"{manifest.name}: family {manifest.family}, {_megabytes(total)} in {len(manifest.files)} files"
    source = manifest.source
    yield f"from checkpoint {source.checkpoint} ({source.sha256[:16]}), exported by edgemm {manifest.edgemm_version}"
    yield ""
    rows = [("component", "variant", "dialect", "precision", "size")]
    for name, component in manifest.components.items():
        for variant_name, variant in component.variants.items():
            files = [path for path in (variant.graph, variant.data) if path]
            size = sum(manifest.files[path].size_bytes for path in files)
            rows.append((name, variant_name, variant.dialect, variant.precision, _megabytes(size)))
    yield from text_table(rows, left=range(4))
    yield ""
    for target, chosen in manifest.targets.items():
        yield f"target {target}: " + ", ".join(f"{component} {variant}" for component, variant in chosen.items())
    text, draws = manifest.loops.text, manifest.loops.denoise
    if text:
        encoders = {"image_encoder", "vq_encoder"} & manifest.components.keys()
        reads = f", reads pictures at {text.image_size} px" if encoders else ""
        yield f"talks{reads}; at most {manifest.limits.max_context} tokens"
    if draws:
        yield (
            f"draws {draws.width} x {draws.height} px in {draws.num_inference_steps} steps "
            f"(at most {manifest.limits.max_steps}), guidance {draws.guidance_scale:g}"
        )
    codes = manifest.loops.image_tokens
    if codes:
        yield (
            f"draws {codes.image_width} x {codes.image_height} px, {codes.rows} x {codes.columns} tokens one by one, "
            f"guidance {codes.guidance_scale:g}"
        )
    yield "licences: " + ("; ".join(f"{entry.what}: {entry.licence}" for entry in manifest.licences) or "none given")


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
