"""`edgemm bench BUNDLE`: how fast and how large; a table, then one JSON line."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the cores this process may use)")
    parser.add_argument("-p", "--prompt-tokens", type=int, default=128, help="tokens to read (default: 128)")
    parser.add_argument("-n", "--new-tokens", type=int, default=64, help="tokens to write (default: 64)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the bundle's own)")
    parser.add_argument("-r", "--repetitions", type=int, default=5, help="runs that count (default: 5)")
    parser.add_argument("--warmup", type=int, default=1, help="runs before, thrown away (default: 1)")
    parser.add_argument("-o", "--output-format", choices=("md", "json"), default="md", help="default: md, then json")
    parser.add_argument("--json", dest="output_format", action="store_const", const="json", help="same as -o json")


def run(args: argparse.Namespace) -> int:
    from edgemm.measure.bench import Plan, run_bench
    from edgemm.measure.bench_page import render_page

    plan = Plan(
        prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens,
        steps=args.steps,
        repetitions=args.repetitions,
        warmup=args.warmup,
        device=args.device,
        threads=args.threads,
    )
    result = run_bench(args.bundle, plan, _show if sys.stderr.isatty() else lambda done, of, what: None)
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    if args.output_format == "md":
        print(render_page(result), end="\n\n")
    print(json.dumps(result, separators=(",", ":")))
    return 0


def _show(done: int, of: int, what: str) -> None:
    sys.stderr.write(f"\r\033[K[{'#' * done}{'.' * (of - done)}] {done}/{of} {what}")
    sys.stderr.flush()
