"""What the survey's runs are judged by: questions and drawings of shapes, graphs, clips drawn, and clips read."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clips
import numpy as np
from designs import _flow_loss

from edgemm.data.format import Dataset, Question, read_dataset
from edgemm.evaluate.evaluation import Plan, evaluate, open_subject
from edgemm.evaluate.graph_suite import Graphs, ask_graphs, draw_graphs
from edgemm.evaluate.read_suite import is_right
from edgemm.evaluate.subject import DrawSettings, Subject, shown, some

__all__ = ["SEEN", "WITHHELD", "clip_scores", "graph_scores", "shape_scores", "watch_scores"]

SEEN, WITHHELD = "held-out-picture", "held-out-pair"


def shape_scores(task: str, model: Any, folder: Path, data: Path, drawn: Path, limit: int) -> dict[str, Any]:
    """Of questions about `data`, and of drawings of what `drawn` shows."""
    scores: dict[str, Any] = {}
    if task != "draw":
        held = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["counts"]
        splits = tuple(split for split in (SEEN, WITHHELD) if split in held)
        found = evaluate(folder / "checkpoint", data, Plan(("read",), limit, splits=splits)).document["read"]
        for split, key in ((SEEN, "questions"), (WITHHELD, "questions_withheld")):
            part = found.get(split)
            scores[key] = part["balanced"]["accuracy"]["value"] if part else None
            scores[f"{key}_baseline"] = part["balanced"]["baseline"] if part else None
    if task != "read":
        found = evaluate(folder / "checkpoint", drawn, Plan(("draw",), limit)).document["draw"]["parts"]
        scores |= {"checker": found["train"]["mean_of_tasks"], "checker_withheld": found[WITHHELD]["mean_of_tasks"]}
        if model.config.objective == "flow":
            scores["flow_loss"] = _flow_loss(folder / "checkpoint", drawn)
    return scores


def graph_scores(task: str, model: Any, folder: Path, data: Path, limit: int) -> dict[str, Any]:
    known = Graphs(data, (WITHHELD,), model.config.vision.image_size)
    told, shuffled = (ask_graphs(model, known, edges, limit) for edges in ("told", "shuffled"))
    drawn, other = (draw_graphs(model, known, limit, other) for other in (False, True))
    in_words, in_pictures = (
        {name: kind["accuracy"] for name, kind in ask_graphs(model, known, "told", limit, nodes).items()}
        for nodes in ("words", "pictures")
    )
    answered = statistics.mean(kind["accuracy"] for kind in told.values())
    found = {"answered": answered, "drawn": statistics.mean(drawn.values()), "by_things": drawn, "by_chance": other}
    found |= {"by_kind": {name: kind["accuracy"] for name, kind in told.items()}, "shuffled": shuffled}
    return found | {"in_words": in_words, "in_pictures": in_pictures}


def clip_scores(task: str, model: Any, folder: Path, data: Path, limit: int) -> dict[str, Any]:
    dataset, subject = read_dataset(data), open_subject(folder / "checkpoint", DrawSettings(), threads=1)
    scores: dict[str, Any] = {}
    for split, key in (("train", "clips"), (WITHHELD, "clips_withheld")):
        samples = some(dataset.split(split), limit, "id")
        drawn = [subject.draw([sample.captions[0]], [seed])[0] for seed, sample in enumerate(samples)]
        found = clips._scores(dataset, samples, drawn)
        others = found["another clip's caption"] or [False]
        scores |= {key: statistics.mean(found["all tasks"]), f"{key}_by_chance": statistics.mean(others)}
    return scores


def watch_scores(task: str, model: Any, folder: Path, data: Path, limit: int) -> dict[str, Any]:
    """Questions about clips, by kind; and about the same clips with their frames in another order, all white, or one
    of them in the place of all.

    A twin is the same frames from the last to the first.  A pair is right where both answers are: what is blind to the
    order of frames gets none.
    """
    dataset, subject = read_dataset(data), open_subject(folder / "checkpoint", DrawSettings(), threads=1)
    scores: dict[str, Any] = {}
    for split, key in ((SEEN, "watched"), (WITHHELD, "watched_withheld")):
        found = {"as they are": _watched(dataset, subject, split, "as they are", limit)}
        found |= {how: _watched(dataset, subject, split, how, limit // 4) for how in SPOILT}
        own = found["as they are"]
        scores |= {key: statistics.mean(own[kind] for kind in KINDS), f"{key}_by_kind": found}
        scores[f"{key}_twins"] = own["twins"]
    return scores


KINDS = ("direction", "order", "speed")
SPOILT = {  # frames (f, S, S, 3) -> others, of which a clip that was read says less
    "shuffled": lambda frames, random: random.permutation(frames),
    "white": lambda frames, random: np.full_like(frames, 255),  # the question's words are left
    "first frame": lambda frames, random: np.repeat(frames[:1], len(frames), 0),
    "middle frame": lambda frames, random: np.repeat(frames[len(frames) // 2][None], len(frames), 0),
    "last frame": lambda frames, random: np.repeat(frames[-1:], len(frames), 0),
}


def _watched(dataset: Dataset, subject: Subject, split: str, how: str, limit: int) -> dict[str, float]:
    """kind -> share of right answers, and of clips of which the twin is asked the same and both are right."""
    samples = {sample.id: sample for sample in dataset.samples}
    random, right, twins = np.random.default_rng(0), defaultdict(list), []
    pairs = list(_pairs(dataset, split, limit))

    def frames_of(question: Question) -> np.ndarray:
        frames = shown(dataset, samples[question.sample])
        return SPOILT[how](frames, random) if how in SPOILT and (frames.ndim == 4 or how == "white") else frames

    replies = subject.read((frames_of(question), question.question) for pair in pairs for question in pair)
    for pair in pairs:
        verdicts = [is_right(question, next(replies)) for question in pair]
        right[pair[0].kind] += verdicts
        if pair[0].answer != pair[1].answer:
            twins.append(all(verdicts))
    return {kind: statistics.mean(found) for kind, found in sorted(right.items())} | {"twins": statistics.mean(twins)}


def _pairs(dataset: Dataset, split: str, limit: int) -> Iterator[tuple[Question, Question]]:
    """The same question about a clip and its twin, which is the next one; about `limit` questions a kind."""
    asked: defaultdict[tuple[str, int, str], list[Question]] = defaultdict(list)
    for question in dataset.questions:
        if question.split == split:
            asked[question.kind, int(question.sample.split("/")[1]) // 2, question.question].append(question)
    by_kind: defaultdict[str, list[list[Question]]] = defaultdict(list)
    for (kind, _, _), pair in sorted(asked.items()):
        if len(pair) == 2:
            by_kind[kind].append(pair)
    for pairs in by_kind.values():
        places = np.linspace(0, len(pairs) - 1, min(len(pairs), limit // 2)).astype(int)
        yield from ((pairs[place][0], pairs[place][1]) for place in places)
