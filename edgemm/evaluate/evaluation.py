"""One evaluation from beginning to end: a model, a dataset, the suites, and everything that was found as one document.

    eval.json        the scores, what they were measured on and with
    reading.jsonl    one question a line, with the reply
    drawing.jsonl    one drawing a line, with the judge's verdict
    drawings.png     drawings beside the real pictures
    report.html      all of it on one page

Two runs of the same model and settings write the same scores, whichever runtime drew and read.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import edgemm
from edgemm import progress
from edgemm.bench.conditions import commit
from edgemm.bundle.files import write_whole
from edgemm.data.format import Dataset, lines_sha256, read_dataset
from edgemm.data.sources import default_cache
from edgemm.errors import InputError
from edgemm.evaluate.metrics import compare_records
from edgemm.evaluate.read_suite import ReadResult, default_split, run_read_suite
from edgemm.evaluate.report import Cell, Section, as_png, draw_sheet, render_page
from edgemm.evaluate.subject import DRAWN_SPLITS, BundleSubject, Drawings, DrawSettings, Subject

__all__ = ["SUITES", "Evaluation", "Plan", "check_subject", "compared", "evaluate", "evaluate_subject"]

SUITES = ("read", "draw")
JUDGED = ("emoji", "icons", "shapes", "compose", "graphs")  # kinds of datasets
JUDGED_ONCE = ("shapes", "compose", "graphs")  # their checkers count drawings
SHEET_CELLS = 24  # a section


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    suites: tuple[str, ...] = SUITES
    limit: int | None = None  # of questions a kind and of drawings a split; None: all
    splits: tuple[str, ...] = ()  # read; none: the strictest that the dataset holds
    groups: tuple[str, ...] = ()  # draw; none: all
    seeds: int = 1  # draw: drawings a prompt
    circular: bool = False  # read: ask choices again in every order of the options
    settings: DrawSettings = field(default_factory=DrawSettings)
    cache: Path | None = None  # where the judge is kept; None: the user's cache
    device: str = "auto"  # bundles only
    threads: int | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    document: dict[str, Any]  # plain values; null where there was nothing to count
    records: dict[str, list[dict[str, Any]]]  # "reading", "drawing"
    sheet: bytes | None  # a PNG

    def save(self, folder: Path) -> list[Path]:
        """Write the files into a folder, made if need be, each whole or not at all; returns them."""
        folder.mkdir(parents=True, exist_ok=True)
        files: dict[str, str | bytes] = {"eval.json": json.dumps(self.document, indent=2) + "\n"}
        for name, rows in self.records.items():
            files[f"{name}.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if self.sheet:
            files["drawings.png"] = self.sheet
        for name, content in files.items():
            write_whole(folder / name, content)
        write_whole(folder / "report.html", render_page(self.document, self.sheet))  # last: the numbers are there
        return [folder / name for name in (*files, "report.html")]


def evaluate(model: Path, data: Path, plan: Plan) -> Evaluation:
    plan = _possible(read_dataset(data), plan)  # refused before a model is loaded
    progress.status(f"loading {model.name}")
    subject = open_subject(model, plan.settings, plan.device, plan.threads)
    progress.status(f"{subject.name} does its tasks")
    return evaluate_subject(subject, data, plan)


def _possible(dataset: Dataset, plan: Plan) -> Plan:
    """The plan without groups that hold nothing, and without drawing where nobody can judge it; InputError where
    nothing else was asked for."""
    if plan.seeds > 1 and dataset.kind in JUDGED_ONCE:
        raise InputError(f"{dataset.path}: a {dataset.kind} dataset is drawn once a prompt; leave --seeds out")
    if plan.groups and dataset.kind in JUDGED_ONCE:
        raise InputError(f"{dataset.path}: a {dataset.kind} dataset is drawn whole; leave --groups out")
    known = {sample.group for sample in dataset.split(*DRAWN_SPLITS)}
    if strange := [group for group in plan.groups if group not in known]:
        empty = f"{dataset.path}: nothing to draw is in group {strange[0]!r}; groups: {', '.join(sorted(known))}"
        if len(strange) == len(plan.groups):
            raise InputError(empty)
        progress.line(empty)
        plan = dataclasses.replace(plan, groups=tuple(group for group in plan.groups if group in known))
    if "draw" not in plan.suites or dataset.kind in JUDGED:
        return plan
    unjudged = (
        f"{dataset.path}: no judge for drawings of a {dataset.kind} dataset, only of {', '.join(JUDGED)}; look at "
        "some yourself: edgemm draw"
    )
    if plan.suites == ("draw",):
        raise InputError(unjudged)
    progress.line(f"drawing is left out: {unjudged}")
    return dataclasses.replace(plan, suites=tuple(suite for suite in plan.suites if suite != "draw"))


def evaluate_subject(subject: Subject, data: Path, plan: Plan) -> Evaluation:
    """The same of whatever reads and draws."""
    dataset = read_dataset(data)
    plan = _possible(dataset, plan)
    document: dict[str, Any] = {
        "edgemm": edgemm.__version__,
        "commit": commit(Path(edgemm.__file__).parent),
        "model": {"name": subject.name, "kind": subject.kind, "sha256": subject.sha256},
        "data": {"kind": dataset.kind, "size": dataset.size, "sha256": lines_sha256(dataset.path)},
        "settings": {
            "limit": plan.limit,
            "groups": plan.groups,
            "seeds": plan.seeds,
            "circular": plan.circular,
            **dataclasses.asdict(plan.settings),
        },
    }
    records: dict[str, list[dict[str, Any]]] = {}
    sheet = None
    if "draw" in plan.suites:
        _check_drawing(subject, dataset)
    if "read" in plan.suites:
        read = _read(subject, dataset, plan)
        document["read"], records["reading"] = read.parts, read.records
    if "draw" in plan.suites:
        document["draw"], records["drawing"], drawings = _draw(subject, dataset, plan)
        sheet = as_png(draw_sheet(_sections(drawings)))
    return Evaluation(_plain(document), records, sheet)


def compared(first: Evaluation, second: Evaluation) -> Evaluation:
    """The first, with what the second does better and worse; both were asked the same."""
    differences = compare_records(first.records, second.records)
    compare = {"model": second.document["model"], "differences": differences}
    return dataclasses.replace(first, document={**first.document, "compare": _plain(compare)})


def _read(subject: Subject, dataset: Dataset, plan: Plan) -> ReadResult:
    if not plan.splits:
        chosen = default_split(dataset)
        kept = ", on which it may have been trained: nothing was kept back" if chosen == "train" else ""
        progress.line(f"reading is asked about split {chosen!r}{kept}; --splits chooses others")
        plan = dataclasses.replace(plan, splits=(chosen,))
    return run_read_suite(subject, dataset, plan.splits, plan.limit, plan.circular)


def _draw(subject: Subject, dataset: Dataset, plan: Plan) -> tuple[dict[str, Any], list[dict[str, Any]], dict]:
    """Scores, records and drawings, by the judge that fits the kind of dataset."""
    if dataset.kind in ("shapes", "graphs"):
        from edgemm.evaluate.shapes_suite import run_shapes_suite

        exact = run_shapes_suite(subject, dataset, plan.limit)
        return {"judge": f"{dataset.kind} checker", "parts": exact.parts}, exact.records, exact.drawings
    if dataset.kind == "compose":
        from edgemm.evaluate.scenes_suite import run_scenes_suite

        scenes = run_scenes_suite(subject, dataset, plan.limit)
        return {"judge": scenes.judge, "scenes": scenes.parts}, scenes.records, scenes.drawings
    from edgemm.evaluate.draw_suite import run_draw_suite

    cache = plan.cache or default_cache()
    cache.mkdir(parents=True, exist_ok=True)
    result = run_draw_suite(subject, dataset, plan.limit, cache, plan.groups, plan.seeds)
    scores = {"judge": result.judge, "parts": result.parts, **({"icons": result.icons} if result.icons else {})}
    return scores, result.records, result.drawings


def _check_drawing(subject: Subject, dataset: Dataset) -> None:
    """InputError of what draws nothing, or that nobody could judge: reading comes first and takes long."""
    _ = subject.drawing_size
    asked = [one for one in dataset.split(*DRAWN_SPLITS) if dataset.kind != "graphs" or one.group == "drawn"]
    if not asked:
        raise InputError(f"{dataset.path}: nothing to draw in {' or '.join(DRAWN_SPLITS)}; ask for --suite read")
    if dataset.kind == "compose":
        from edgemm.evaluate.scenes_suite import check_scorer

        check_scorer(dataset)
    elif dataset.kind not in JUDGED_ONCE:
        from edgemm.evaluate.judge import not_judged

        not_judged(dataset)


def _sections(drawings: dict[str, Drawings]) -> list[Section]:
    return [
        Section(DRAWN_SPLITS[split].capitalize(), "the real picture above, the drawing below", _cells(drawn))
        for split, drawn in drawings.items()
    ]


def _cells(drawings: Drawings) -> list[Cell]:
    """The first ones of each group in turn, so that every kind of thing is shown; nothing is picked for its looks."""
    by_group: defaultdict[str, list[int]] = defaultdict(list)
    for row, sample in enumerate(drawings.samples):
        by_group[sample.group].append(row)
    turns = sorted((place, group, row) for group, rows in by_group.items() for place, row in enumerate(rows))
    return [
        Cell(drawings.samples[row].label, drawings.real[row], drawings.drawn[row]) for _, _, row in turns[:SHEET_CELLS]
    ]


def _plain(value: Any) -> Any:
    """Dataclasses to dicts, tuples to lists, floats to six digits and nan to None: what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def open_subject(path: Path, settings: DrawSettings, device: str = "auto", threads: int | None = None) -> Subject:
    """The adapter that fits the folder. Raises InputError when it is neither a checkpoint nor a bundle."""
    if check_subject(path) == "bundle":
        return BundleSubject(path, settings, device, threads)
    from edgemm.evaluate.checkpoint_subject import CheckpointSubject

    return CheckpointSubject(path, settings, threads)


def check_subject(path: Path) -> str:
    """ "checkpoint" or "bundle", by the folder's files. Raises InputError when it is neither."""
    for name, kind in (("manifest.json", "bundle"), ("config.json", "checkpoint")):
        if (path / name).is_file():
            return kind
    what = "has neither config.json nor manifest.json" if path.is_dir() else "is not a folder"
    raise InputError(
        f"{path}: {what}; give a checkpoint that `edgemm train` wrote or a bundle that `edgemm export` wrote"
    )
