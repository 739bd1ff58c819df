"""What the survey's runs are judged by: questions and drawings of shapes, graphs, and clips that are drawn."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import clips
from designs import _flow_loss

from edgemm.data.format import read_dataset
from edgemm.evaluate.evaluation import Plan, evaluate, open_subject
from edgemm.evaluate.graph_suite import Graphs, ask_graphs, draw_graphs
from edgemm.evaluate.subject import DrawSettings, some

__all__ = ["SEEN", "WITHHELD", "clip_scores", "graph_scores", "shape_scores"]

SEEN, WITHHELD = "held-out-picture", "held-out-pair"


def shape_scores(task: str, model: Any, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    if task != "draw":
        held = json.loads((args.data / "dataset.json").read_text(encoding="utf-8"))["counts"]
        splits = tuple(split for split in (SEEN, WITHHELD) if split in held)
        found = evaluate(folder / "checkpoint", args.data, Plan(("read",), args.limit, splits=splits)).document["read"]
        for split, key in ((SEEN, "questions"), (WITHHELD, "questions_withheld")):
            part = found.get(split)
            scores[key] = part["balanced"]["accuracy"]["value"] if part else None
            scores[f"{key}_baseline"] = part["balanced"]["baseline"] if part else None
    if task != "read":
        found = evaluate(folder / "checkpoint", args.data, Plan(("draw",), args.limit)).document["draw"]["parts"]
        scores |= {"checker": found["train"]["mean_of_tasks"], "checker_withheld": found[WITHHELD]["mean_of_tasks"]}
        if model.config.objective == "flow":
            scores["flow_loss"] = _flow_loss(folder / "checkpoint", args.data)
    return scores


def graph_scores(task: str, model: Any, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    known = Graphs(args.runs / "graphs", (WITHHELD,), model.config.vision.image_size)
    told, shuffled = (ask_graphs(model, known, edges, args.limit) for edges in ("told", "shuffled"))
    drawn, other = (draw_graphs(model, known, args.limit, other) for other in (False, True))
    answered = statistics.mean(kind["accuracy"] for kind in told.values())
    found = {"answered": answered, "drawn": statistics.mean(drawn.values()), "by_things": drawn, "by_chance": other}
    return found | {"by_kind": {name: kind["accuracy"] for name, kind in told.items()}, "shuffled": shuffled}


def clip_scores(task: str, model: Any, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    dataset, subject = read_dataset(args.runs / "clips"), open_subject(folder / "checkpoint", DrawSettings(), threads=1)
    scores: dict[str, Any] = {}
    for split, key in (("train", "clips"), (WITHHELD, "clips_withheld")):
        samples = some(dataset.split(split), args.limit, "id")
        drawn = [subject.draw([sample.captions[0]], [seed])[0] for seed, sample in enumerate(samples)]
        found = clips._scores(dataset, samples, drawn)
        others = found["another clip's caption"] or [False]
        scores |= {key: statistics.mean(found["all tasks"]), f"{key}_by_chance": statistics.mean(others)}
    return scores
