r"""The survey's experiments, checks and open questions (arXiv:2409.14993) at micro scale, by one command that goes on.

    edgemm data shapes --output data/shapes-two --count 12000 \
        --tasks single-object colours two-objects position attribute-binding
    python benchmarks/survey.py data/shapes-two --runs runs/survey --seeds 0 1 2 --workers 2
    python benchmarks/survey.py data/shapes-two --runs runs/quick --quick

Parts: A designs (experiment 1: codes in one early-fused transformer; experiment 2: cross-entropy and flow in one dense
transformer, against the mixture, a connector and the two specialists), B mixtures of experts at equal active width,
C graphs as rows, as text, and as nodes alone, D clips that are drawn, and clips that are read by what moves in them,
beside the same as pictures one after the other and one of their frames.

The rules, written before the first run:
 1. Every model is a `micro` from nothing with all its parts learning; runs of a part see as many steps, batches and
    pictures, of the same data.  What is asked about stands anywhere, lest answers be known by heart; what is drawn
    stands where its caption says (`--fixed`): where it is left open the loss is mostly about places.  What reads shapes
    with an eye has it taught the captions' words first (train/tasks/eye.py), twice as many steps, and what reads motion
    those of clips, as many; their core-seconds count.  An eye is taught once where rows, seed and steps make it the
    same to the bit (reading alone, joint, clips as pictures, one frame), and its core-seconds count in each of them.
    What reads graphs has tokens learned from its data and batches of 96, most of whose graphs are told whole, and
    sees words alone for not quite half of its steps: with bytes, 32, one question each and pictures from the start no
    row found out whose an edge is, and there was nothing to compare.  A run is one seed of one row, in a process of
    its own with one thread.
 2. What is there is not run again: in the run folders, or in the document of `--output` where it was made with the same
    settings of the same data, so what one machine began another goes on with.  A run that is killed goes on from its
    last state, of which a stage has five; core-seconds up to that state count, steps that were lost do not, preparing
    again does.  A run that fails stays in the table as failed, with its error; it counts as no number, and its row says
    of how many seeds it speaks.  Nothing is left out because of how it came out.
 3. A row's figure is the mean over seeds and its 95 % interval by Student's t (at three seeds 2.48 deviations).
    Two rows are compared seed by seed: better or worse where the interval of the differences lies on one side of zero,
    else "not told apart".  One seed tells nothing apart.
 4. The gate: reading is compared only where the best reader of the part answers 0.70 of the questions on pairs it has
    seen, else every comparison of reading says "not told apart".  The bar itself is 0.80.
 5. Check 1: joint against each specialist at equal steps, and at equal core-seconds (the specialist trains longer).
    Check 2: the two specialists' costs summed, beside the joint model's.  Check 3: what is withheld over what was seen,
    unified beside specialist.
 6. Open question 2 (graphs): "yes at micro" only where rows beat text by 5 points with an interval above zero, in
    answers and in drawings.  Open question 3 (mixtures): the modality mixture stays the default unless a learned one
    draws better (flow loss 3 % lower, or 4 points of the checker, the interval on one side of zero) and reads no worse.
 7. Core-seconds are a process's own time; they are fair on a busy machine, wall clock is not, and is not told.

Prints tables, answers in sentences, then one JSON line; survey.html beside the runs has the plots.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from designs import ALL, _config, _draw_macs
from survey_scores import clip_scores, graph_scores, shape_scores, watch_scores

from edgemm.bench.conditions import commit, machine_card
from edgemm.data.format import lines_sha256
from edgemm.report import page
from edgemm.report.page import text_table
from edgemm.report.svg import Bar, bars

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
GATE, BAR = 0.70, 0.80
STATES = 5  # of a stage, so that a fifth of it is done again at most where it was killed
TRAINING = {
    "optimizer": "muon",
    "learning_rate": 1e-3,  # twice as much, and no reader finds out which color goes with which shape
    "matrix_learning_rate": 0.01,
    "warmup": 20,
    "decay": 0.5,
    "ema": 0.98,
}
SETTINGS = ("steps", "batch", "limit", "graphs")  # that runs have in common when they are compared
TASKS = ("single-object", "colours", "two-objects", "position", "attribute-binding")
DATA = {  # what else than the shapes that are asked about: task -> folder, for each of --graphs, words of `edgemm data`
    "draw": ("drawn", 1.5, "shapes", "--fixed", "--tasks", *TASKS),
    "joint": ("drawn", 1.5, "shapes", "--fixed", "--tasks", *TASKS),
    "graph": ("graphs", 2.0, "graphs", "--fixed"),
    "clips": ("clips", 0.5, "clips", "--fixed"),
    "watch": ("films", 0.5, "clips"),
    "frame": ("frames", 0.5, "clips"),
}
GRAPH = {"batch": 96, "tell_share": 0.6, "words_share": 0.45}
EYE = {"vision": "conv"}  # what reads is first taught the captions' words: without that none of it passes the gate


@dataclass(frozen=True)
class Row:
    part: str
    task: str  # "read", "draw", "joint", "graph", "clips" (drawn), "watch" (clips read) or "frame" (one of each)
    designs: dict[str, str] = field(default_factory=dict)
    lines: dict[str, Any] = field(default_factory=dict)  # of the recipe
    as_long_as: str = ""  # the row whose core-seconds it may use
    vocabulary: int = 0  # tokens learned from its data's texts; 0: bytes


def _mixed(mixture: str) -> Row:
    return Row("B", "joint", {"experts": "dense", "mixture": mixture, **EYE})


def _graph(design: str, **lines: Any) -> Row:
    return Row("C", "graph", {"graphs": design, **EYE}, GRAPH | lines, vocabulary=512)


ROWS = {
    "reading alone": Row("A", "read", EYE),
    "drawing alone": Row("A", "draw"),
    "joint": Row("A", "joint", EYE),
    "joint, dense": Row("A", "joint", {"experts": "dense", **EYE}),
    "joint, codes": Row("A", "joint", {"image_tokens": "vq", "objective": "ar"}),
    "drawing, connector": Row("A", "draw", {"experts": "connector"}),
    "reading alone, equal time": Row("A", "read", EYE, as_long_as="joint"),
    "drawing alone, equal time": Row("A", "draw", as_long_as="joint"),
    "2 experts, top 1": _mixed("2-top-1"),
    "4 experts, top 1": _mixed("4-top-1"),
    "4 experts, top 2": _mixed("4-top-2"),
    "8 experts, top 2": _mixed("8-top-2"),
    "8 experts, top 2, one shared": _mixed("8-top-2-shared"),
    "4 + 4 experts by modality, top 1": _mixed("8-top-1-by-modality"),
    "by modality, 8 choose in the denoiser": Row("B", "joint", {"mixture": "choice-8", **EYE}),
    "dense, as wide as 8 experts": _mixed("wide"),
    "graph as rows": _graph("rows"),
    "graph as text": _graph("text"),
    "nodes alone": _graph("rows", edges="none"),
    "clips drawn": Row("D", "clips", {}, {"frames": 8, "noises": 4}),
    "clips read": Row("D", "watch", {**EYE, "motion": "4"}),
    "clips read as pictures": Row("D", "watch", EYE),
    "one frame read": Row("D", "frame", EYE),
}
ALSO = {"B": ("joint", "joint, dense")}  # rows of another part that a part is compared with
PAIRS = {  # part -> (row, what it is compared with)
    "A": [("joint", "reading alone"), ("joint", "drawing alone"), ("joint", "reading alone, equal time")]
    + [("joint", "drawing alone, equal time"), ("joint", "joint, dense"), ("joint", "joint, codes")],
    "B": [(name, base) for name, row in ROWS.items() if row.part == "B" for base in ("joint", "joint, dense")],
    "C": [("graph as rows", "graph as text"), ("graph as text", "nodes alone")],
    "D": [("clips read", "clips read as pictures"), ("clips read", "one frame read")],
}
MEASURES = {  # name -> (key of the scores, whether less is better, whether it is about reading)
    "questions, seen": ("questions", False, True),
    "questions, withheld": ("questions_withheld", False, True),
    "flow loss": ("flow_loss", True, False),
    "checker, seen": ("checker", False, False),
    "checker, withheld": ("checker_withheld", False, False),
    "graphs answered": ("answered", False, True),
    "graphs drawn": ("drawn", False, False),
    "clips, seen": ("clips", False, False),
    "clips, withheld": ("clips_withheld", False, False),
    "clips answered, seen": ("watched", False, False),
    "clips answered, withheld": ("watched_withheld", False, False),
    "twins, seen": ("watched_twins", False, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help="of `edgemm data shapes`")
    parser.add_argument("--runs", type=Path, default=Path("runs/survey"), help="folder of the run folders")
    parser.add_argument("--part", nargs="+", choices=list("ABCD"), default=list("ABCD"))
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=[], metavar="ROW", help="some rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="runs beside one another, one thread each")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, default=400, help="drawings, and questions a kind, that are judged")
    parser.add_argument("--graphs", type=int, default=8000, help="that are asked about, and drawn; clips: half as many")
    parser.add_argument("--quick", action="store_true", help="20 minutes: one seed, 30 steps; tells nothing apart")
    parser.add_argument("--costs", action="store_true", help="also export the joint model as int8 and run its halves")
    parser.add_argument("--again", action="store_true", help="runs that failed are run again")
    parser.add_argument(
        "--output", type=Path, help="also write the document here; what it holds already is not run again"
    )
    parser.add_argument("--tell", action="store_true", help="run nothing: what is there so far")
    parser.add_argument("--job", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.steps, args.limit, args.graphs = args.seeds[:1], 30, 24, 400
    if args.job:
        _job(args.job[0], int(args.job[1]), args)
        return
    names = [name for name, row in ROWS.items() if row.part in args.part]
    names += [name for part in args.part for name in ALSO.get(part, ()) if name not in names]
    names = [name for name in names if not args.only or name in args.only]
    _take_from(args)
    if not args.tell:
        _run_all(names, args)
    scores = {name: [_kept(name, seed, args) for seed in args.seeds if _is_kept(name, seed, args)] for name in names}
    scores = {name: found for name, found in scores.items() if found}
    tables = _tables(scores)
    answers = _compared(scores, args.part) + _checks(scores) + (_costs(args) if args.costs else [])
    print("\n\n".join(["\n".join(text_table(table)) for table in tables] + ["\n".join(answers)]))
    document = {"benchmark": "survey", "machine": machine_card(), "commit": commit(Path(__file__).parent)}
    document |= {key: getattr(args, key) for key in ("seeds", "quick", *SETTINGS)}
    document |= {"scores": _everything(args), "answers": answers}
    (args.runs / "survey.html").write_text(_page(tables, answers, scores, document), encoding="utf-8")
    print(json.dumps(document))
    if args.output:
        args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


# Runs


def _run_all(names: list[str], args: argparse.Namespace) -> None:
    """Those that are as long as another come after it."""
    for task, (folder, share, *words) in DATA.items():
        if any(ROWS[name].task == task for name in names) and not (args.runs / folder / "dataset.json").is_file():
            part = args.runs / f"{folder}.part"  # a run that is killed begins it again
            told = ["--output", str(part), "--count", str(round(share * args.graphs)), "--force"]
            subprocess.run([sys.executable, "-m", "edgemm", "data", *words, *told], check=True, stdout=sys.stderr)
            if task == "frame":
                _middle_frames(part)
            part.rename(args.runs / folder)
    for later in (False, True):
        jobs = [(name, seed) for seed in args.seeds for name in names if bool(ROWS[name].as_long_as) == later]
        with ThreadPoolExecutor(args.workers) as pool:
            list(pool.map(lambda job: _run_one(job[0], job[1], args), jobs))


def _middle_frames(folder: Path) -> None:
    """Clips become still pictures: the frame in their middle, asked the same."""
    from PIL import Image

    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    for sample in samples:
        with Image.open(folder / sample["image"]) as clip:
            side, middle = clip.width, sample["scene"].pop("frames") // 2
            frame = clip.crop((0, middle * side, side, (middle + 1) * side))
        frame.save(folder / sample["image"])
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")


def _run_one(name: str, seed: int, args: argparse.Namespace) -> None:
    kept = _folder(name, seed, args) / "scores.json"
    if _is_kept(name, seed, args) and not (args.again and "error" in _kept(name, seed, args)):
        return
    if kept.is_file() and not _is_kept(name, seed, args):  # of data that was made otherwise since
        shutil.rmtree(kept.parent)
    told = [f"--{key}={getattr(args, key)}" for key in ("runs", *SETTINGS)]
    words = [sys.executable, __file__, str(args.data), *told, "--job", name, str(seed)]
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(words, env=os.environ | one_thread, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"seed": seed, "error": last[:300]}), encoding="utf-8")
    print(f"{name}, seed {seed}: {'failed' if done.returncode else 'done'}", file=sys.stderr, flush=True)


def _folder(name: str, seed: int, args: argparse.Namespace) -> Path:
    return args.runs / f"{name.replace(', ', '-').replace(' ', '-').replace('+', 'and')}-{seed}"


def _take_from(args: argparse.Namespace) -> None:
    """Scores of a document, as if they had been run here."""
    if not (args.output and args.output.is_file()):
        return
    document = json.loads(args.output.read_text(encoding="utf-8"))
    if all(document[key] == getattr(args, key) for key in SETTINGS):
        for name, some in document["scores"].items():
            for one in some:
                if name in ROWS and not _is_kept(name, one["seed"], args):
                    _folder(name, one["seed"], args).mkdir(parents=True, exist_ok=True)
                    (_folder(name, one["seed"], args) / "scores.json").write_text(json.dumps(one), encoding="utf-8")


def _everything(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """All rows and seeds that there are, whichever this call asked for."""
    numbers = {
        int(end) for one in args.runs.glob("*-*/scores.json") if (end := one.parent.name.rpartition("-")[2]).isdecimal()
    }
    seeds = {name: [seed for seed in sorted(numbers) if _is_kept(name, seed, args)] for name in ROWS}
    return {name: [_kept(name, seed, args) for seed in some] for name, some in seeds.items() if some}


def _is_kept(name: str, seed: int, args: argparse.Namespace) -> bool:
    """Whether there are scores, and of the data that there are."""
    if not (_folder(name, seed, args) / "scores.json").is_file():
        return False
    judged_on = _kept(name, seed, args).get("data_sha256")
    data = _data(ROWS[name], args) if judged_on else None
    return data is None or not (data / "samples.jsonl").is_file() or judged_on == lines_sha256(data)


def _kept(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    return json.loads((_folder(name, seed, args) / "scores.json").read_text(encoding="utf-8"))


def _job(name: str, seed: int, args: argparse.Namespace) -> None:
    """One run: train, judge, write the scores."""
    from edgemm.model import checkpoint

    row, folder = ROWS[name], _folder(name, seed, args)
    config, steps = _config(row.designs), args.steps
    if row.as_long_as:
        equal = _kept(name.removesuffix(", equal time"), seed, args)["core_s"]
        steps = round(steps * _kept(row.as_long_as, seed, args)["core_s"] / equal)
    taken = _train(row, config, folder, seed, steps, args)
    scores: dict[str, Any] = {"seed": seed, "steps": steps, "core_s": taken["core_s"]}
    scores["data_sha256"] = lines_sha256(_data(row, args))
    model = checkpoint.load(folder / "checkpoint")
    scores["weights_m"] = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    if config.objective == "flow":
        scores["draw_mmac"] = _draw_macs(model) / 1e6
    judges = {"graph": graph_scores, "clips": clip_scores, "watch": watch_scores, "frame": watch_scores}
    if row.task in judges:
        scores |= judges[row.task](row.task, model, folder, _data(row, args), args.limit)
    else:
        scores |= shape_scores(row.task, model, folder, args.data, _data(row, args), args.limit)
    last = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    routed = ("expert_load", "dead_experts", "modality_bits")
    scores |= {key: value for key, value in json.loads(last).items() if key in routed}
    scores["rss_mb"] = max(taken["rss_mb"], _rss_mb())
    (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")


def _data(row: Row, args: argparse.Namespace) -> Path:
    return args.runs / DATA[row.task][0] if row.task in DATA else args.data


def _rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _train(row: Row, config: Any, folder: Path, seed: int, steps: int, args: argparse.Namespace) -> dict[str, float]:
    """What all stages took, in this process or in earlier ones."""
    import torch

    from edgemm.data.format import read_dataset
    from edgemm.model import checkpoint
    from edgemm.model.prompts import learned_tokenizer_json
    from edgemm.train.recipe import AutoencodeRecipe, DrawRecipe, EyeRecipe, GraphRecipe, JointRecipe, ReadRecipe
    from edgemm.train.samples import texts_of

    kinds: dict[str, Any] = {
        "clips": DrawRecipe,
        "draw": DrawRecipe,
        "read": ReadRecipe,
        "joint": JointRecipe,
        "graph": GraphRecipe,
        "watch": ReadRecipe,
        "frame": ReadRecipe,
    }
    quiet = {"log_every": 50, "sample_every": 10**9}
    own = {"views": 1, "replies": 0, "caption_share": 0.25} if row.task in ("read", "joint", "watch", "frame") else {}
    own |= {"noises": 4} if row.task in ("draw", "joint", "graph") and config.objective == "flow" else {}
    own |= {"draw_data": str(_data(row, args))} if row.task == "joint" else {}
    own |= {"train": ALL} if row.task != "graph" and config.objective == "flow" else {}
    if config.experts == "connector":
        own |= {"train": ("conditioner", "denoiser", "queries", "transformer")}
    data = args.data if row.task == "joint" else _data(row, args)
    with tempfile.TemporaryDirectory() as temporary:
        began, start = time.process_time(), Path(temporary) / "start"
        words = (
            learned_tokenizer_json(texts_of(read_dataset(data), ("train",)), row.vocabulary) if row.vocabulary else ""
        )
        checkpoint.save(checkpoint.build(config, seed, words), start, torch.float32)
        taken = [{"core_s": time.process_time() - began, "rss_mb": _rss_mb()}]
        common = {"batch": args.batch, "seed": seed, "output": "run", **TRAINING, **quiet}

        def taught(recipe: Any, name: str, output: Path = folder) -> None:
            nonlocal start
            told = {"kind": recipe.kind, "config": dataclasses.asdict(config), "recipe": dataclasses.asdict(recipe)}
            told |= {"tokenizer": words} if words else {}  # whose tokens are others has an eye of its own
            text = json.dumps(told, sort_keys=True, default=str)
            if name == "eye":
                output = args.runs / f"eye-{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
            taken.append(_stage(dataclasses.replace(recipe, start=str(start), output=str(output)), text))
            start = output / "checkpoint"

        if config.objective == "ar":
            recipe = AutoencodeRecipe(data=str(data), steps=steps // 2, **common)
            taught(dataclasses.replace(recipe, optimizer="adamw"), "codes", folder / "codes")
        told = {"learning_rate": 4e-3, "decay": 1.0, "ema": 0.0, "optimizer": "adamw", "precision": "fp32"}
        eyes = [("eye", str(args.data), 64)] if config.vision.encoder == "conv" else []
        eyes += [("motion", str(data), 32)] if config.motion else []
        for name, shown, batch in eyes:
            lines = {"data": shown, "steps": 2 * steps, "batch": batch}
            taught(EyeRecipe(**common | told | lines), name, folder / name)
        taught(kinds[row.task](**{"data": str(data), "steps": steps} | common | own | row.lines), row.task)
    return {"core_s": sum(one["core_s"] for one in taken), "rss_mb": max(one["rss_mb"] for one in taken)}


def _stage(recipe: Any, told: str) -> dict[str, float]:
    """Train a stage to its end, or from where a killed process left it: core-seconds up to its last state count, what
    came after it is done again.  Rows whose models are the same share their eye: who comes second waits for it."""
    import torch

    from edgemm.train.run import train

    folder = Path(recipe.output)
    state, settings, kept = (folder / name for name in ("state.pt", "settings.json", "taken.json"))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (settings.is_file() and settings.read_text(encoding="utf-8") == told):  # what is there is another run's
            for path in (kept, state):
                path.unlink(missing_ok=True)
            settings.write_text(told, encoding="utf-8")
        if not kept.is_file():
            earlier = torch.load(state, weights_only=True)["core_s"] if state.is_file() else 0.0
            began = time.process_time()
            train(dataclasses.replace(recipe, save_every=max(1, recipe.steps // STATES)))
            taken = {"core_s": earlier + time.process_time() - began, "rss_mb": _rss_mb()}
            kept.write_text(json.dumps(taken), encoding="utf-8")
        return json.loads(kept.read_text(encoding="utf-8"))


# What it says


def _values(scores: list[dict[str, Any]], key: str) -> dict[int, float]:
    return {one["seed"]: one[key] for one in scores if one.get(key) is not None}


def _interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of the 95 % interval; infinite for one value."""
    if len(values) < 2:
        return values[0], float("inf")
    return statistics.mean(values), T95.get(len(values), 1.96) * statistics.stdev(values) / len(values) ** 0.5


def _shown(values: list[float]) -> str:
    if not values:
        return "-"
    mean, half = _interval(values)
    return f"{mean:.3f}" if half == float("inf") else f"{mean:.3f} +- {half:.3f}"


def _tables(scores: dict[str, list[dict[str, Any]]]) -> list[list[tuple[str, ...]]]:
    costs = {"M weights": "weights_m", "MMAC a token": "draw_mmac", "core-s": "core_s", "RSS MB": "rss_mb"}
    told = {"load": "expert_load", "dead": "dead_experts", "modality bits": "modality_bits"}
    made = []
    for part in sorted({ROWS[name].part for name in scores}):
        names = [name for name in scores if ROWS[name].part == part or name in ALSO.get(part, ())]
        columns = costs | {label: key for label, (key, _, _) in MEASURES.items()} | told
        some = {label: key for label, key in columns.items() if any(_values(scores[name], key) for name in names)}
        rows = [(f"part {part}", "seeds", *some)]
        for name in names:
            failed = [one["error"] for one in scores[name] if "error" in one]
            cells = [_shown(list(_values(scores[name], key).values())) for key in some.values()]
            rows.append((name, f"{len(scores[name]) - len(failed)} of {len(scores[name])}", *cells))
        made.append(rows)
    return made


def _compared(scores: dict[str, list[dict[str, Any]]], parts: list[str]) -> list[str]:
    lines = []
    for part in parts:
        readers = [v for name in scores if ROWS[name].part == part for v in _values(scores[name], "questions").values()]
        passed = bool(readers) and max(readers) >= GATE
        if readers:
            lines.append(f"Part {part}: the best reader answers {max(readers):.2f} on seen pairs; the bar is {BAR}.")
        for one, other in PAIRS[part]:
            if one in scores and other in scores and one != other:
                lines += _pair(scores, one, other, passed or part == "C")
    return lines


def _pair(scores: dict[str, list[dict[str, Any]]], one: str, other: str, may_read: bool) -> list[str]:
    lines = []
    for label, (key, less, reads) in MEASURES.items():
        mine, theirs = _values(scores[one], key), _values(scores[other], key)
        differences = [mine[seed] - theirs[seed] for seed in mine.keys() & theirs.keys()]
        if differences:
            mean, half = _interval(differences)
            told = abs(mean) > half and (may_read or not reads)
            verdict = ("better" if (mean < 0) == less else "worse") if told else "not told apart"
            spread = "one seed" if half == float("inf") else f"{mean - half:+.3f} to {mean + half:+.3f}"
            lines.append(f"{label}: {one} against {other}: {mean:+.3f} ({spread}): {verdict}.")
    return lines


def _checks(scores: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = []
    alone = ("reading alone", "drawing alone")
    if all(name in scores for name in (*alone, "joint")):
        for key, what in (("core_s", "core-seconds to train"), ("weights_m", "M weights"), ("rss_mb", "MB at most")):
            summed = sum(statistics.mean(_values(scores[name], key).values() or [0]) for name in alone)
            joint = statistics.mean(_values(scores["joint"], key).values() or [0])
            lines.append(f"Check 2: {what}: joint {joint:.1f}, the two specialists together {summed:.1f}.")
        for key, who in (("questions", alone[0]), ("checker", alone[1])):
            for name in (who, "joint"):
                seen, held = (_values(scores[name], k) for k in (key, f"{key}_withheld"))
                shares = [held[seed] / seen[seed] for seed in seen.keys() & held.keys() if seen[seed]]
                lines.append(f"Check 3: {key}, withheld over seen: {name} {_shown(shares)}.")
    return lines


# What it costs to run: the specialists are the joint model's halves, of the same shapes and graphs.

HALVES = {
    "read": ("image_encoder", "transformer"),
    "draw": ("transformer", "conditioner", "denoiser", "image_decoder"),
    "both": ("image_encoder", "transformer", "conditioner", "denoiser", "image_decoder"),
}
RUN_HALF = """
import json, resource, sys, time
import numpy as np
import edgemm
model, what = edgemm.load(sys.argv[1], device="cpu", threads=1), sys.argv[2]
picture = np.zeros((32, 32, 3), dtype=np.uint8)
def took(call, times=5):
    call()
    began = time.process_time()
    for _ in range(times):
        call()
    return 1e3 * (time.process_time() - began) / times
found = {}
if what != "draw":
    said = lambda: model.generate_text("What is this?", images=[picture], max_new_tokens=8, ignore_eos=True)
    found["core-ms an answer of 8 tokens"] = took(said)
if what != "read":
    found["core-ms a picture"] = took(lambda: model.generate_image("a red circle"))
found["MB resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(found))
"""


def _costs(args: argparse.Namespace) -> list[str]:
    """Check 2, to run: weights as int8, memory, and core-milliseconds of either half alone and of both together."""
    bundle = args.runs / "joint-int8.bundle"
    if not bundle.is_dir():
        words = ["export", str(_folder("joint", args.seeds[0], args) / "checkpoint"), "--output", str(bundle)]
        subprocess.run([sys.executable, "-m", "edgemm", *words, "--precision", "int8"], check=True, stdout=sys.stderr)
    found = {}
    for half, components in HALVES.items():
        words = [sys.executable, "-c", RUN_HALF, str(bundle), half]
        told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        size = sum(f.stat().st_size for name in components for f in (bundle / "components" / name).iterdir())
        found[half] = {"MB of int8 weights": size / 1e6, **json.loads(told)}
    lines = []
    for key, joint in found["both"].items():
        alone = [found[half][key] for half in ("read", "draw") if key in found[half]]
        lines.append(f"Check 2: {key}: joint {joint:.1f}, the two specialists together {sum(alone):.1f}.")
    return lines


def _page(tables: list[Any], answers: list[str], scores: dict[str, list[dict[str, Any]]], document: Any) -> str:
    blocks = [
        page.heading("The survey's questions at micro scale", 1),
        page.paragraph(f"Seeds {document['seeds']}.", "sub"),
    ]
    for rows in tables:
        blocks += [page.heading(rows[0][0]), page.table(rows[0], rows[1:])]
    for label, (key, less, _) in MEASURES.items():
        found = []
        for name, some in scores.items():
            values = list(_values(some, key).values())
            if values and not less:
                mean, half = _interval(values)
                half = 0.0 if half == float("inf") else half
                found.append(Bar(name, mean, max(0.0, mean - half), min(1.0, mean + half)))
        if found:
            blocks.append(page.figure(label, "Mean over seeds, and the 95 % interval.", bars(found, label), wide=True))
    blocks += [page.heading("Answers"), *map(page.paragraph, answers)]
    return page.page("survey", blocks, document)


if __name__ == "__main__":
    main()
