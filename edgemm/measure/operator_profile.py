"""One component by operator: ONNX Runtime's own profile, added up.

A session with the profiler on runs the arrays that real work bound.  The raw events are in Chrome's trace format, which
Perfetto opens too; the table has the form that `trtexec --exportProfile` writes, so its readers read this.  A profiled
run is slower than a plain one: shares are to be trusted, totals are not.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm.errors import MissingError
from edgemm.measure.engine_clock import Bound

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model

__all__ = ["by_operator", "profile", "render_operators"]

PASS_OVER = 2  # runs before the ones that count
KERNEL = "_kernel_time"


def profile(model: Model, bound: Bound, runs: int) -> list[dict[str, Any]]:
    """ONNX Runtime's events of so many runs."""
    if model.choice.backend != "onnxruntime":
        raise MissingError(
            f"operators are told by ONNX Runtime, this model runs on {model.choice.backend}; use --device cpu"
        )
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = model.threads.count
    options.enable_profiling = True
    options.log_severity_level = 3
    graph = model.bundle.file(model.manifest.variant(bound.component, model.choice.target).graph)
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(graph), options, providers=[model.choice.provider])
        io = session.io_binding()
        for bind, arrays in ((io.bind_input, bound.inputs), (io.bind_output, bound.outputs)):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for _ in range(PASS_OVER + runs):
            session.run_with_iobinding(io)
        return json.loads(Path(session.end_profiling()).read_text())


def by_operator(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """First {"count": runs}, then one entry an operator, the longest first; times of one run."""
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")[PASS_OVER:]
    runs: list[dict[str, float]] = [{} for _ in starts]
    calls: dict[str, int] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(KERNEL):
            continue
        run = sum(start <= event["ts"] for start in starts) - 1
        if run >= 0:
            name = event["args"]["op_name"]
            runs[run][name] = runs[run].get(name, 0.0) + event["dur"] / 1e3
            calls[name] = calls.get(name, 0) + 1
    total = sum(sum(run.values()) for run in runs) or 1.0
    table = []
    for name in calls:
        times = [run.get(name, 0.0) for run in runs]
        table.append(
            {
                "name": name,
                "timeMs": round(sum(times), 4),
                "averageMs": round(sum(times) / len(runs), 5),
                "medianMs": round(statistics.median(times), 5),
                "percentage": round(100 * sum(times) / total, 2),
                "calls": calls[name] // len(runs),
            }
        )
    return [{"count": len(runs)}, *sorted(table, key=lambda row: -row["timeMs"])]


def render_operators(table: Sequence[dict[str, Any]], title: str) -> str:
    head, rows = table[0], table[1:]
    width = max([len(row["name"]) for row in rows] + [8])
    lines = [f"{title}: by operator, {head['count']} profiled runs (slower than plain ones)", ""]
    lines.append(f"{'operator':<{width}} {'calls':>6} {'ms a run':>9} {'share':>7}")
    for row in rows:
        lines.append(f"{row['name']:<{width}} {row['calls']:>6} {row['averageMs']:>9.3f} {row['percentage']:>6.1f}%")
    return "\n".join(lines)
