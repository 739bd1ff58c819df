"""`edgemm verify BUNDLE`: is every file the one that was exported, and may every graph be opened?

Hashes, the paths that graphs read weights from, and what each target cannot take: all without torch.
What the graphs compute is compared by edgemm.export, where that is installed: the function that PARITY names takes the
Bundle, gives lines to print, and raises CheckFailedError.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable

from edgemm import progress
from edgemm.bundle.bundle import Bundle, altered_files, open_bundle
from edgemm.bundle.graph_rules import RULES, broken_rules
from edgemm.bundle.onnx_file import check_external_data, read_outline
from edgemm.cli.guard import add_limits
from edgemm.errors import CheckFailedError, MissingError, ran_out_of_memory
from edgemm.progress import Display
from edgemm.runtimes.first_load import check_first_load, check_limits

__all__ = ["HELP", "PARITY", "add_arguments", "check_graphs", "check_hashes", "check_rules", "run"]

HELP = "check a bundle: hashes, graphs, and what they compute"
PARITY = ("edgemm.verify.loops", "check_bundle")  # module and function


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder that `edgemm export` wrote")
    parser.add_argument(
        "--parity",
        action=argparse.BooleanOptionalAction,
        help="run the graphs against their recorded references (default: where edgemm[export] is installed)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_limits(parser)


def run(args: argparse.Namespace) -> int:
    bundle = open_bundle(args.bundle, verify=False)
    with Display():
        check_hashes(bundle)
        progress.status("reading the graphs")
        graphs = check_graphs(bundle)
        check_rules(bundle)
        lines = _compare(bundle, args.parity)
    if args.json:
        files = len(bundle.manifest.files)
        print(json.dumps({"bundle": str(bundle.path), "files": files, "graphs": graphs, "parity": lines}))
        return 0
    for line in lines or ():
        print(line)
    compared = "; what they compute was not compared" if lines is None else " and compute what was recorded"
    print(f"{bundle.path}: {len(bundle.manifest.files)} files and {graphs} graphs are as exported{compared}")
    return 0


def check_hashes(bundle: Bundle) -> None:
    """CheckFailedError that names every altered file."""
    problems = list(altered_files(bundle.path, bundle.manifest))
    if problems:
        files = len(bundle.manifest.files)
        raise CheckFailedError(f"{len(problems)} of {files} files are not as exported: {'; '.join(problems)}")


def check_graphs(bundle: Bundle) -> int:
    """How many graphs there are; BundleError at the first that reads what it should not."""
    variants = bundle.manifest.every_variant.values()
    for variant in variants:
        data = bundle.file(variant.data) if variant.data else None
        check_external_data(bundle.file(variant.graph), data, shared=variant.shared_locations)
    check_limits(bundle)
    return len(variants)


def check_rules(bundle: Bundle) -> None:
    """CheckFailedError that names the first node, of each graph, which its target cannot take."""
    problems = []
    for target in bundle.manifest.targets:
        for component, variant in bundle.manifest.graphs_for(target).items() if target in RULES else ():
            found = list(broken_rules(read_outline(bundle.file(variant.graph)), RULES[target]))
            if found:
                more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
                problems.append(f"target {target}, {component}: {found[0]}{more}")
    if problems:
        raise CheckFailedError("; ".join(problems))


def _compare(bundle: Bundle, wanted: bool | None) -> list[str] | None:
    """The lines of the parity check; None when it was not asked for or, unless asked for, is not installed."""
    if wanted is False:
        return None
    module, function = PARITY
    try:
        check: Callable[[Bundle], list[str]] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        if ran_out_of_memory(error):
            raise
        if wanted:
            raise MissingError(f"--parity needs {module}.{function} ({error}): pip install 'edgemm[export]'") from error
        return None
    check_first_load(bundle, "auto", None, "verify", ":".join(PARITY))
    progress.status("comparing what they compute")
    return check(bundle)
