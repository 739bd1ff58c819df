"""The tables that a person reads, from the document that a program reads.

It knows plain values only, so an eval.json of last week prints the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["render"]

NAMES = {"train": "seen pairs", "held-out-pair": "held-out pairs"}


def render(document: dict[str, Any]) -> str:
    model = document["model"]
    lines = [f"{model['name']} ({model['kind']} {model['sha256'][:12]}), edgemm {document['edgemm']}"]
    for split, part in document.get("read", {}).items():
        lines += ["", f"Reading: {split}, {part['pictures']} pictures", *_reading(part)]
    draw = document.get("draw")
    if draw and isinstance(draw["judge"], str):
        lines += ["", "Drawing, judged exactly", *_shapes(draw["parts"])]
    elif draw:
        lines += ["", "Drawing, named by a judge beside the real pictures", *_drawing(draw["parts"]), *_judge(draw)]
    if "compare" in document:
        other = document["compare"]["model"]
        lines += [
            "",
            f"Against {other['name']} ({other['kind']} {other['sha256'][:12]})",
            *_compare(document["compare"]),
        ]
    return "\n".join(lines)


def _compare(compare: dict[str, Any]) -> Iterable[str]:
    rows: list[tuple[str, ...]] = [("", "this", "other", "difference", "95 %", "p", "changed")]
    for score, found in compare["differences"].items():
        values = (_number(found[part]) for part in ("first", "second", "value"))
        rows.append(
            (
                score,
                *values,
                f"{_number(found['low'])} to {_number(found['high'])}",
                _number(found["p_value"]),
                f"{found['changed']} of {found['count']}",
            )
        )
    yield from _table(rows)


def _reading(part: dict[str, Any]) -> Iterable[str]:
    rows: list[tuple[str, ...]] = [("", "accuracy", "95 %", "baseline", "questions")]
    for kind, score in part["kinds"].items():
        rows.append((kind, *_score(score)))
        if kind == "label" and part["any_tag"]:
            rows.append(("label or tag", *_share(part["any_tag"]), "", _count(part["any_tag"])))
    if part["balanced"]:
        rows.append(("all but label", *_score(part["balanced"])))
    for kind, found in (part.get("circular") or {}).items():
        rows.append((f"{kind}, every order", *_share(found), "", _count(found)))
    yield from _table(rows)
    if part.get("vqa"):
        yield f"VQAv2 accuracy over all: {_number(part['vqa']['value'])}"
    if part["yes_no"]:
        scores = part["yes_no"]
        yield (
            f"yes/no: F1 {_number(scores['f1'])}, precision {_number(scores['precision'])}, "
            f"recall {_number(scores['recall'])}, says yes {_number(scores['yes_ratio'])}, unclear {scores['unclear']}"
        )


def _drawing(parts: dict[str, Any]) -> Iterable[str]:
    rows: list[tuple[str, ...]] = [
        ("", "drawn top-1", "95 %", "real top-1", "95 %", "ratio", "95 %", "KID-Lite0", "pictures")
    ]
    for split, part in parts.items():
        ratio = part["top1_ratio"]
        rows.append(
            (
                NAMES.get(split, split),
                *_share(part["drawn_top1"]),
                *_share(part["real_top1"]),
                *_share(ratio),
                _number(part["kid_lite0"]),
                _count(part["drawn_top1"]),
            )
        )
    yield from _table(rows)


def _judge(draw: dict[str, Any]) -> Iterable[str]:
    judge, parts = draw["judge"], draw["parts"].values()
    yield (
        f"LabelScorer, trained on {judge['pictures']} pictures of {', '.join(judge['styles'])}; "
        f"{judge['candidates']} candidates, chance {judge['chance']:.4f}"
    )
    halves = ", ".join(_number(part["kid_lite0_real_halves"]) for part in parts)
    yield f"KID-Lite0 between two halves of the real pictures: {halves}"


def _shapes(parts: dict[str, Any]) -> Iterable[str]:
    rows: list[tuple[str, ...]] = [("", "passed", "95 %", "pictures")]
    for split, part in parts.items():
        name = NAMES.get(split, split)
        rows += [(f"{name}: {task}", *_share(found), _count(found)) for task, found in part["tasks"].items()]
        rows.append((f"{name}: mean of tasks", _number(part["mean_of_tasks"]), "", ""))
        rows.append((f"{name}: real pictures", *_share(part["real"]), _count(part["real"])))
        if "shuffled" in part:
            rows.append((f"{name}: others' captions", *_share(part["shuffled"]), _count(part["shuffled"])))
    yield from _table(rows)


def _score(score: dict[str, Any]) -> tuple[str, ...]:
    return (*_share(score["accuracy"]), _number(score["baseline"]), _count(score["accuracy"]))


def _share(share: dict[str, Any]) -> tuple[str, str]:
    return _number(share["value"]), f"{_number(share['low'])}-{_number(share['high'])}"


def _count(share: dict[str, Any]) -> str:
    return str(share["count"])


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _table(rows: list[tuple[str, ...]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        first, *others = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        yield "  ".join([first, *others]).rstrip()
