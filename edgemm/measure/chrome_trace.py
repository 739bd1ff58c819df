"""A measurement as a timeline that Chrome and Perfetto open: the Trace Event Format, complete events ("ph": "X").

Works of a benchmark stand in one lane, runs of engines in the next.  Times are microseconds since the first event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgemm.measure.engine_clock import EngineRun

__all__ = ["trace_document"]

LANES = {"work": 1, "engines": 2}


def trace_document(works: Sequence[EngineRun], engines: Sequence[EngineRun]) -> dict[str, Any]:
    begin_s = min((run.start_s for run in (*works, *engines)), default=0.0)
    names = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": lane, "args": {"name": name}}
        for name, lane in LANES.items()
    ]
    events = [
        {
            "name": run.component,
            "cat": lane,
            "ph": "X",
            "pid": 1,
            "tid": LANES[lane],
            "ts": round((run.start_s - begin_s) * 1e6, 1),
            "dur": round((run.end_s - run.start_s) * 1e6, 1),
            "args": {"shape": run.shape} if run.shape else {},
        }
        for lane, runs in (("work", works), ("engines", engines))
        for run in runs
    ]
    return {"traceEvents": [*names, *events], "displayTimeUnit": "ms"}
