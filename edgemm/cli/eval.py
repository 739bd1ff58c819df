"""`edgemm eval MODEL [--compare OTHER] --data DIR`: scores as tables, or as one JSON line after them."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from edgemm.errors import EdgemmError, InputError, UsageError
from edgemm.progress import Display

__all__ = ["HELP", "add_arguments", "run"]

OPTIONS_OF = {  # suite -> its own options and their defaults
    "read": {"splits": (), "circular": False},
    "draw": {"groups": (), "seeds": 1, "num_inference_steps": None, "guidance_scale": None},
}
HELP = "how well a checkpoint or a bundle reads and draws"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="a checkpoint folder or a bundle")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="a dataset made by `edgemm data`")
    parser.add_argument("--suite", choices=("draw", "read", "all"), default="all", help="default: %(default)s")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N questions a kind, N drawings a split")
    parser.add_argument(
        "--splits", nargs="+", default=(), metavar="SPLIT", help="read: which splits (default: the strictest)"
    )
    parser.add_argument(
        "--groups", nargs="+", default=(), metavar="GROUP", help="draw: only these, as in the model's recipe"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="draw: every prompt so often, from other noise (%(default)s)"
    )
    parser.add_argument("--circular", action="store_true", help="read: choices in every order of the options too")
    parser.add_argument("--compare", type=Path, metavar="MODEL", help="another one, on the same questions and prompts")
    parser.add_argument("--num-inference-steps", type=int, metavar="N", help="default: the model's own")
    parser.add_argument("--guidance-scale", type=float, metavar="W", help="default: the model's own; 1 switches it off")
    parser.add_argument("--device", default="auto", help="of a bundle: auto, cpu, cuda, cuda:1, rtx, ... (%(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: one a core that may be used")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where the judge is kept (default: ~/.cache/edgemm)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write eval.json, every reply, a sheet and a page")
    parser.add_argument("--json", action="store_true", help="one JSON document as the last line")


def run(args: argparse.Namespace) -> int:
    from edgemm.evaluate.evaluation import SUITES, Plan, check_subject, compared, evaluate
    from edgemm.evaluate.report import render
    from edgemm.evaluate.subject import DrawSettings

    _check(args)
    kinds = [check_subject(model) for model in (args.model, args.compare) if model]  # before hours of work
    if args.device not in ("auto", "cpu") and "bundle" not in kinds:
        raise UsageError(f"--device {args.device} is for bundles; torch runs a checkpoint on the CPU")
    plan = Plan(
        suites=SUITES if args.suite == "all" else (args.suite,),
        limit=args.limit,
        splits=tuple(args.splits),
        groups=tuple(args.groups),
        seeds=args.seeds,
        circular=args.circular,
        settings=DrawSettings(args.num_inference_steps, args.guidance_scale),
        cache=args.cache,
        device=args.device,
        threads=args.threads,
    )
    problem: EdgemmError | None = None
    with Display():
        evaluation = evaluate(args.model, args.data, plan)
        if args.compare:
            try:
                evaluation = compared(evaluation, evaluate(args.compare, args.data, plan))
            except EdgemmError as error:  # the first one's hours are not lost with the other's
                problem = error
    print(render(evaluation.document), end="\n\n")
    if args.output:
        names = ", ".join(path.name for path in evaluation.save(args.output))
        print(f"Wrote {names} to {args.output}")
    else:
        print("Nothing was written; --output DIR keeps the scores, every reply and a sheet of the drawings")
    if args.json:
        print(json.dumps(evaluation.document, separators=(",", ":")))
    if problem:
        raise problem
    return 0


def _check(args: argparse.Namespace) -> None:
    """What makes no sense is told before a model is loaded."""
    for name in ("limit", "num_inference_steps", "seeds", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}, expected at least 1")
    scale = args.guidance_scale
    if scale is not None and not (math.isfinite(scale) and 0 <= scale <= 100):
        raise UsageError(f"--guidance-scale is {scale}, expected 0 to 100")
    for suite, own in OPTIONS_OF.items():
        given = [name for name, default in own.items() if getattr(args, name) != default]
        if given and args.suite not in (suite, "all"):
            raise UsageError(f"--{given[0].replace('_', '-')} says how to {suite}, --suite {args.suite} does not")
    if args.output and args.output.exists() and not args.output.is_dir():
        raise InputError(f"{args.output}: a file; --output is a folder")
