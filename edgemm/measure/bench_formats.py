"""A benchmark's result for programs: one JSON line, a line a row, or a table of commas."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

__all__ = ["FORMATS", "as_csv", "as_json", "as_jsonl"]

FORMATS = ("md", "json", "jsonl", "csv")
OF_CARD = ("bundle", "bundle_sha256", "target", "device", "backend", "threads", "board", "power_mode", "cpu", "commit")
OF_PLAN = ("prompt_tokens", "new_tokens", "steps")
FIGURES = ("count", "mean", "sd", "coefficient_of_variance", "minimum", "p50", "p90", "p95", "p99", "maximum")


def as_json(result: dict[str, Any]) -> str:
    return json.dumps(result, separators=(",", ":"), allow_nan=False)


def as_jsonl(result: dict[str, Any]) -> str:
    """A line a row; each stands alone, samples included."""
    lines = [as_json({**line, "samples": result["rows"][line["row"]]["samples"]}) for line in _lines(result)]
    return "\n".join(lines)


def as_csv(result: dict[str, Any]) -> str:
    """What could not be measured is an empty cell."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["row", *FIGURES, "timed", *OF_CARD, *OF_PLAN], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_lines(result))
    return stream.getvalue().rstrip("\n")


def _lines(result: dict[str, Any]) -> list[dict[str, Any]]:
    card = {name: result["card"][name] for name in OF_CARD}
    work = {name: result["measured"].get(name) for name in OF_PLAN}
    return [
        {"row": name, **{figure: row[figure] for figure in FIGURES}, "timed": row["timed"], **card, **work}
        for name, row in result["rows"].items()
    ]
