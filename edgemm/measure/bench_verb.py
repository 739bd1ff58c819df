"""`edgemm bench BUNDLE`: how fast and how large; a table, then one JSON line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from edgemm.errors import EdgemmError, UsageError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the cores this process may use)")
    parser.add_argument("-p", "--prompt-tokens", type=int, default=128, help="tokens to read (default: 128)")
    parser.add_argument("-n", "--new-tokens", type=int, default=64, help="tokens to write (default: 64)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the bundle's own)")
    parser.add_argument("-r", "--repetitions", type=int, default=20, help="runs that count, at least (default: 20)")
    parser.add_argument("--warmup", type=int, default=3, help="runs before, thrown away (default: 3)")
    parser.add_argument("--duration", type=float, default=10.0, metavar="S", help="and at least so long (default: 10)")
    parser.add_argument("-o", "--output-format", choices=("md", "json", "jsonl", "csv"), default="md")
    parser.add_argument("--json", dest="output_format", action="store_const", const="json", help="same as -o json")
    parser.add_argument("--result", metavar="FILE", type=Path, help="keep the JSON document there")


def run(args: argparse.Namespace) -> int:
    from edgemm.measure.bench import run_bench

    if args.bundle is None:
        raise UsageError("give a BUNDLE to measure")
    result = run_bench(args.bundle, _plan(args), _show if sys.stderr.isatty() else lambda done, of, what: None)
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    problem = _keep(args, result)
    print(_rendered(result, args.output_format))  # even when no file could be kept: it took minutes
    if problem:
        raise problem
    return 0


def _plan(args: argparse.Namespace) -> Any:
    from edgemm.measure.bench import Plan

    return Plan(
        prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens,
        steps=args.steps,
        repetitions=args.repetitions,
        warmup=args.warmup,
        duration_s=args.duration,
        device=args.device,
        threads=args.threads,
    )


def _keep(args: argparse.Namespace, result: dict[str, Any]) -> EdgemmError | None:
    """Writes the files that were asked for; what goes wrong is told after the result."""
    from edgemm.measure.bench_formats import as_json
    from edgemm.measure.result_file import write_whole

    try:
        if args.result:
            write_whole(args.result, as_json(result) + "\n")
    except EdgemmError as error:
        return error
    return None


def _rendered(result: dict[str, Any], form: str) -> str:
    from edgemm.measure import bench_formats
    from edgemm.measure.bench_page import render_page

    if form == "jsonl":
        return bench_formats.as_jsonl(result)
    if form == "csv":
        return bench_formats.as_csv(result)
    page = render_page(result) + "\n\n" if form == "md" else ""
    return page + bench_formats.as_json(result)


def _show(done: int, of: int, what: str) -> None:
    sys.stderr.write(f"\r\033[K[{'#' * done}{'.' * (of - done)}] {done}/{of} {what}")
    sys.stderr.flush()
