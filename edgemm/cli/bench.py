"""`edgemm bench BUNDLE`: how fast and how large; a table, then one JSON line unless a person looks on."""

from __future__ import annotations

import argparse
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from edgemm import progress
from edgemm.bench.options import Plan
from edgemm.cli.flags import add_options, read_options
from edgemm.errors import EdgemmError, UsageError
from edgemm.progress import Display

__all__ = ["add_arguments", "run"]

SCENARIOS = ("single-stream", "offline", "server")
PAIRS = 6  # processes a side, when two bundles take turns
ROWS = "rows: time_to_first_token_ms is TTFT, time_per_output_token_ms is TPOT, inter_token_ms is ITL"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = ROWS
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?")
    add_options(parser.add_argument_group("work"), Plan)
    kind = parser.add_argument_group("kind of measurement (default: one request after the other)")
    kind.add_argument("--scenario", choices=SCENARIOS, default="single-stream", help="offline: all requests at once")
    kind.add_argument(
        "--rate", type=float, metavar="N", help="server: requests a second (default: half of what it can)"
    )
    kind.add_argument("--component", metavar="NAME", help="one component alone, on arrays of real work")
    kind.add_argument("--profile", action="store_true", help="with --component: by operator, too")
    kind.add_argument("--loadgen", action="store_true", help="MLPerf's LoadGen asks: its harness, not a submission")
    kind.add_argument("--loadgen-logs", metavar="FOLDER", type=Path, help="keep LoadGen's own logs there")
    kind.add_argument("--against", metavar="B", type=Path, help="two bundles in turns, B over BUNDLE")
    kind.add_argument("--compare", nargs=2, metavar=("A.json", "B.json"), type=Path, help="two results, B over A")
    kind.add_argument(
        "--schema",
        nargs="?",
        const="bench",
        choices=("bench", "comparison"),
        help="print the JSON Schema of a result, and measure nothing",
    )
    parser.add_argument("-o", "--output-format", choices=("md", "json", "jsonl", "csv"), default="md")
    parser.add_argument("--json", dest="output_format", action="store_const", const="json", help="same as -o json")
    parser.add_argument("--result", metavar="FILE", type=Path, help="keep the JSON document there")
    parser.add_argument("--report", metavar="FILE.html", type=Path, help="keep a page with plots there; takes longer")
    parser.add_argument("--trace", metavar="FILE", type=Path, help="keep a timeline for Chrome or Perfetto there")


def run(args: argparse.Namespace) -> int:
    if args.schema:
        print((resources.files("edgemm.bench") / f"{args.schema}.schema.json").read_text(encoding="utf-8"), end="")
        return 0
    if args.compare:
        _check_compare(args)
        return _compare(args)
    _check(args)
    if args.against:
        return _against(args)
    with Display():
        result, files = _measure(args)
    problem = _keep(files)
    print(_rendered(result, args, problem is not None))  # even when a file could not be kept: it took minutes
    if problem:
        raise problem
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.bundle is None:
        raise UsageError("give a BUNDLE to measure, or --compare A.json B.json")
    if args.component and args.loadgen:
        raise UsageError("--component and --loadgen are two kinds of measurement: leave one out")
    if args.scenario != "single-stream" and (args.component or args.loadgen):
        raise UsageError(f"--scenario {args.scenario} is a kind of measurement of its own: leave the other out")
    if args.rate is not None and args.scenario != "server":
        raise UsageError("--rate says how fast requests come: give --scenario server, too")
    if args.loadgen_logs and not args.loadgen:
        raise UsageError("--loadgen-logs keeps LoadGen's own logs: give --loadgen, too")
    if args.profile and not args.component:
        raise UsageError("--profile needs --component: operators are told one component at a time")
    other_kind = args.loadgen or args.scenario != "single-stream"
    if (args.against or (args.processes or 1) > 1) and (other_kind or args.component or args.trace):
        raise UsageError("--processes and --against are for one request after the other, without --trace")
    if args.against and (args.report or args.output_format in ("jsonl", "csv")):
        raise UsageError("--against gives a comparison: -o md or -o json, and no --report")
    if args.trace and other_kind:
        raise UsageError("--trace is for one request after the other: leave --scenario and --loadgen out")
    if args.report and (args.component or other_kind):
        raise UsageError("--report is for one request after the other: leave the other kinds of measurement out")
    if args.trace and args.component and not args.profile:
        raise UsageError("--trace of a component needs --profile")
    _check_files(args.result, args.report, args.trace)


def _check_files(*files: Path | None) -> None:
    """One would be written over the other."""
    places = [file.absolute() for file in files if file]
    if twice := [place for place in places if places.count(place) > 1]:
        raise UsageError(f"{twice[0]} is named twice, and would hold one of the two")


def _check_compare(args: argparse.Namespace) -> None:
    """Nothing is measured: what asks for that would be left out without a word."""
    other_kind = args.component or args.loadgen or args.scenario != "single-stream"
    if args.bundle or args.against or other_kind:
        raise UsageError("--compare takes two results that are there, and measures nothing: leave the rest out")
    if args.report or args.trace or args.output_format in ("jsonl", "csv"):
        raise UsageError("--compare gives a comparison: -o md or -o json, and no --report or --trace")
    _check_files(args.result, *set(args.compare))


def _measure(args: argparse.Namespace) -> tuple[dict[str, Any], dict[Path, str]]:
    """The result, and the text of every file that was asked for."""
    from edgemm.bench.page import as_json

    trace: Any = None
    if args.component:
        from edgemm.bench.components import bench_component

        result, trace = bench_component(args.bundle, args.component, _plan(args), args.profile)
    elif args.loadgen:
        from edgemm.bench.loadgen import run_loadgen

        result = run_loadgen(args.bundle, _plan(args), args.loadgen_logs)
    elif args.scenario != "single-stream":
        from edgemm.bench.scenarios import run_scenario

        result = run_scenario(args.bundle, args.scenario, _plan(args), args.rate)
    elif args.processes and args.processes > 1:
        from edgemm.bench.bench import run_processes

        result = run_processes(args.bundle, _plan(args))
    else:
        from edgemm.bench.bench import run_bench
        from edgemm.bench.timeline import EngineClock, trace_document

        clock = EngineClock()
        result = run_bench(args.bundle, _plan(args), clock)
        trace = trace_document(clock.works, clock.runs)
    if args.report:
        result["roofline"] = _roofline(args.bundle, result)
    files = {args.result: as_json(result) + "\n"} if args.result else {}
    if args.report:
        from edgemm.bench.report import render_report

        files[args.report] = render_report(result)
    return result, files | ({args.trace: as_json(trace) + "\n"} if args.trace else {})


def _roofline(bundle: Path, result: dict[str, Any]) -> dict[str, Any]:
    from edgemm.bench.roofline import roofline
    from edgemm.bundle.bundle import open_bundle

    progress.status("measuring this machine's ceilings")
    return roofline(open_bundle(bundle, verify=False), result)


def _plan(args: argparse.Namespace) -> Plan:
    """One process measures long, and many measure briefly each."""
    processes = (PAIRS if args.against else 1) if args.processes is None else args.processes
    chosen: dict[str, Any] = {"processes": processes, "growth": bool(args.report)}
    if args.repetitions is None and processes != 1:
        chosen["repetitions"] = 5
    if args.duration_s is None and processes == 1:
        chosen["duration_s"] = 10.0
    return read_options(args, Plan, **chosen)


def _against(args: argparse.Namespace) -> int:
    from edgemm.bench.bench import run_in_turns
    from edgemm.bench.comparison import compare

    with Display():
        a, b = run_in_turns(args.bundle, args.against, _plan(args))
    found = {**compare(a, b, took_turns=True), "results": {"a": a, "b": b}}
    return _tell(found, str(args.bundle), str(args.against), args)


def _compare(args: argparse.Namespace) -> int:
    from edgemm.bench.comparison import compare
    from edgemm.bundle.files import read_result

    a, b = args.compare
    return _tell(compare(read_result(a), read_result(b)), str(a), str(b), args)


def _tell(found: dict[str, Any], a: str, b: str, args: argparse.Namespace) -> int:
    from edgemm.bench.comparison import render_comparison
    from edgemm.bench.page import as_json

    problem = _keep({args.result: as_json(found) + "\n"} if args.result else {})
    page = render_comparison(found, a, b) if args.output_format == "md" else ""
    print(_with_document(page, found, args, problem is not None))
    if problem:
        raise problem
    return 0


def _keep(files: dict[Path, str]) -> EdgemmError | None:
    """Writes the files that were asked for; what goes wrong is told after the result."""
    from edgemm.bundle.files import write_whole

    problem = None
    for path, text in files.items():
        try:
            write_whole(path, text)
        except EdgemmError as error:
            problem = error
    return problem


def _rendered(result: dict[str, Any], args: argparse.Namespace, lost: bool) -> str:
    from edgemm.bench import page as bench_formats

    if args.output_format == "jsonl":
        return bench_formats.as_jsonl(result)
    if args.output_format == "csv":
        return bench_formats.as_csv(result)
    page = bench_formats.render_page(result) if args.output_format == "md" else ""
    return _with_document(page, result, args, lost)


def _with_document(page: str, document: dict[str, Any], args: argparse.Namespace, lost: bool) -> str:
    """And its JSON line.  Who reads the page on a terminal is spared 18 kB of it, unless no file could keep it."""
    from edgemm.bench.page import as_json

    if page and sys.stdout.isatty() and not lost:
        return page if args.result else f"{page}\n\nThe JSON document: --result FILE keeps it, -o json prints it."
    return f"{page}\n\n{as_json(document)}" if page else as_json(document)
