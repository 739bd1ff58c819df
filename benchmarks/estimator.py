"""How far off is `edgemm estimate`?  Each published model is predicted from the other models' rows alone.

    python benchmarks/estimator.py

Judges one thing: milliseconds a token at batch 1, against what NVIDIA published for TensorRT Edge-LLM 0.9.0 on Jetson
(edgemm/estimate/published_rows.py).  A model that is left out is left out on every device, with its Qwen3-VL twin,
which
has the same decoder.  A second judgement leaves out the device's own rows too, where others of its architecture have
some: what a board may expect that nobody published.  It does not judge drawing steps, pictures, prefill, memory, other
power modes or other runtimes.  Prints a table, then one JSON line; exits with 7 when a bar is missed.
"""

from __future__ import annotations

import json
import sys
from statistics import median

from edgemm.bench.conditions import machine_card
from edgemm.errors import CheckFailedError
from edgemm.estimate.calibration import leave_device_out, leave_one_out, published_observations
from edgemm.estimate.published_rows import ROWS, SOURCE

BARS = {"median": 0.10, "worst": 0.25}
FIRST_EIGHT = ("Qwen3-0.6B", "Qwen3-1.7B")


def main() -> int:
    judged = leave_one_out(published_observations())
    rows = [
        {
            "device": row.device,
            "model": row.model,
            "precision": row.precision,
            "context": row.context,
            "published_tokens_per_s": row.decode_tokens_per_s,
            "predicted_tokens_per_s": round(1 / predicted, 1),
            "error": predicted / observation.seconds - 1,
        }
        for row, (observation, predicted) in zip(ROWS, judged, strict=True)
    ]
    print(
        f"{'device':<15} {'model':<12} {'weights':<8} {'context':>7} {'published':>10} {'predicted':>10} {'error':>7}"
    )
    for row in rows:
        print(
            f"{row['device']:<15} {row['model']:<12} {row['precision']:<8} {row['context']:>7} "
            f"{row['published_tokens_per_s']:>10.1f} {row['predicted_tokens_per_s']:>10.1f} {row['error']:>+7.1%}"
        )
    eight = [r for r in rows if r["model"] in FIRST_EIGHT and r["context"] < 2048]
    sets = {"all rows": rows, "Qwen3-0.6B and 1.7B": eight}
    summary = {name: _summary([row["error"] for row in chosen]) for name, chosen in sets.items()}
    strangers = [(o.device, predicted / o.seconds - 1) for o, predicted in leave_device_out(published_observations())]
    of = {device: [error for name, error in strangers if name == device] for device, _ in strangers}
    without_device = {device: _summary(errors) for device, errors in of.items()}
    without_device["together"] = _summary([error for _, error in strangers])
    for name, found in summary.items():
        print(
            f"\n{name}, {found['rows']}: median error {found['median']:.1%} (bar {BARS['median']:.0%}), "
            f"worst {found['worst']:.1%} (bar {BARS['worst']:.0%})",
            end="",
        )
    for name, found in without_device.items():
        told = f"{found['rows']}: median error {found['median']:.1%}, worst {found['worst']:.1%}"
        print(f"\nthe device's own rows left out, too, {name}, {told}", end="")
    passed = all(found[bar] <= limit for found in summary.values() for bar, limit in BARS.items())
    print(
        "\nJudged: decode on Jetson with TensorRT Edge-LLM.  Not judged against any device: drawing, prefill, memory."
    )
    document = {"benchmark": "estimator", "source": SOURCE, "bars": BARS, "passed": passed, "summary": summary}
    document["device_left_out"] = without_device
    print(json.dumps({**document, "rows": rows, "card": machine_card()}))
    return 0 if passed else CheckFailedError.exit_code


def _summary(errors: list[float]) -> dict[str, float]:
    sizes = [abs(error) for error in errors]
    return {"rows": len(sizes), "median": median(sizes), "worst": max(sizes)}


if __name__ == "__main__":
    sys.exit(main())
