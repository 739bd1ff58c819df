"""The same measurement in several processes, one after the other, and of two bundles in turns.

Each child starts anew, so that what a start decides by chance (where memory lies, what the machine does just then) is
sampled too, and the interval of samples.py can see it.  Two bundles take turns, and who goes first alternates:
neighbours
in time make pairs, and a machine that slowly changes favours neither.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edgemm import errors, progress
from edgemm.bench.bench import measure_once
from edgemm.bench.options import Plan
from edgemm.bench.pooled import pool
from edgemm.bundle.bundle import open_bundle
from edgemm.device.child import ask

__all__ = ["run_in_turns", "run_processes"]

LOADING_S = 3600.0  # at most, with everything that is not measured
Seen = dict[str, Any]


def run_processes(path: Path, plan: Plan) -> dict[str, Any]:
    """The result of `plan.processes` children, in the form of run_bench."""
    open_bundle(path, verify=False)  # refused here, before anything starts
    seen = []
    for index in progress.track(range(plan.processes), plan.processes, "measuring", "processes"):
        growth = plan.growth and index == plan.processes - 1
        seen.append(_measure(path, replace(plan, growth=growth), index))
    return pool(seen, plan)


def run_in_turns(a: Path, b: Path, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both results; process i of the one ran beside process i of the other."""
    for path in (a, b):
        open_bundle(path, verify=False)
    seen: tuple[list[Seen], list[Seen]] = ([], [])
    for index in progress.track(range(plan.processes), plan.processes, "measuring", "pairs of processes"):
        for side in (0, 1) if index % 2 == 0 else (1, 0):
            seen[side].append(_measure((a, b)[side], plan, index))
    return pool(seen[0], plan), pool(seen[1], plan)


def _measure(path: Path, plan: Plan, index: int) -> Seen:
    request = json.dumps({"bundle": str(path.absolute()), "plan": asdict(plan)})
    answer = ask("edgemm.bench.processes", [request], LOADING_S + 10 * plan.duration_s)
    if answer.value is None:
        raise errors.EdgemmError(f"process {index + 1} of {plan.processes} {answer.problem}")
    if "refused" in answer.value:
        kind, message = answer.value["refused"]
        raise getattr(errors, kind)(message)
    return answer.value


def _answer(request: dict[str, Any]) -> Seen:
    try:
        return measure_once(Path(request["bundle"]), Plan(**request["plan"]))
    except errors.EdgemmError as error:
        return {"refused": [type(error).__name__, str(error)]}


if __name__ == "__main__":
    print(json.dumps(_answer(json.loads(sys.argv[1]))))
