r"""The survey's choices (arXiv:2409.14993) on the same data: joint or single, dense or mixture, one encoder or two.

    edgemm data shapes --output data/shapes-two --count 12000 \
        --tasks single-object colours two-objects position attribute-binding
    python benchmarks/designs.py data/shapes-two --runs runs/designs --seeds 0 1 2 --steps 240

Every model is a `micro` from nothing with its transformer learning; all see as many steps and pictures.  Drawing is
judged by the flow loss on held-out pairs, under noise that is the same for all (it tells models apart long before they
draw well), and by the exact checker.  The mixture's expert is as wide and deep as the transformer, so a picture token
costs as many multiplications as in the dense model.  A run that is there is not trained again.  Prints a table of mean
and spread over the seeds, then one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from edgemm.bench.conditions import commit, machine_card
from edgemm.evaluate.evaluation import Plan, evaluate
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS, ModelConfig
from edgemm.model.designs import variant
from edgemm.train.recipe import DrawRecipe, JointRecipe, Parts, ReadRecipe
from edgemm.train.run import train
from edgemm.train.tasks.draw import DrawTask

ALL = ("conditioner", "denoiser", "projection", "transformer")
RUNS = {  # name -> task, designs
    "drawing alone": ("draw", {}),
    "reading alone": ("read", {}),
    "joint": ("joint", {}),
    "joint, dense": ("joint", {"experts": "dense"}),
    "joint, dual encoder": ("joint", {"vision": "dual"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/designs"), help="folder of the run folders")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--noises", type=int, default=4, help="times that a picture is drawn in a batch")
    parser.add_argument("--limit", type=int, default=200, help="drawings, and questions a kind, that are judged")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = [_row(name, args) for name in args.only]
    print(f"{'':22} {'M weights':>9} {'MMAC a token':>12} {'flow loss':>15} {'checker':>15} {'questions':>15}")
    for row in rows:
        shown = [_shown(row["scores"], key) for key in ("flow_loss", "checker", "questions")]
        print(
            f"{row['name']:22} {row['weights_m']:9.2f} {row['draw_mmac']:12.2f} " + " ".join(f"{s:>15}" for s in shown)
        )
    blind = [row["questions_baseline"] for row in rows if row["questions_baseline"] is not None]
    print("questions: the commonest answer would get " + ", ".join(sorted({f"{value:.3f}" for value in blind})))
    document = {"benchmark": "designs", "machine": machine_card(), "commit": commit(Path(__file__).parent)}
    document |= {
        "steps": args.steps,
        "batch": args.batch,
        "noises": args.noises,
        "seeds": args.seeds,
        "limit": args.limit,
        "rows": rows,
    }
    text = json.dumps(document)
    print(text)
    if args.output:
        args.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _row(name: str, args: argparse.Namespace) -> dict[str, Any]:
    task, designs = RUNS[name]
    config = _config(designs)
    scores = [_scores(name, task, config, seed, args) for seed in args.seeds]
    model = checkpoint.build(config, 0)
    learned = [p for part in (model.transformer, model.denoiser, model.conditioner) for p in part.parameters()]
    return {
        "name": name,
        "task": task,
        "designs": designs,
        "weights_m": sum(parameter.numel() for parameter in learned) / 1e6,
        "draw_mmac": _draw_macs(model) / 1e6,
        "questions_baseline": scores[0]["questions_baseline"],
        "scores": scores,
    }


def _config(designs: dict[str, str]) -> ModelConfig:
    """`micro` with an expert of the transformer's own width and depth, then the designs asked for."""
    micro = PRESETS["micro"]()
    source = micro.transformer
    expert = dataclasses.replace(
        micro.denoiser, width=source.width, depth=source.depth, heads=source.heads, ffn_width=source.ffn_width,
        prefix_layers=tuple(range(source.depth)),
    )  # fmt: skip
    return variant(dataclasses.replace(micro, denoiser=expert), **designs)


def _scores(name: str, task: str, config: ModelConfig, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    folder = args.runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    kept = folder / "scores.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as start:
        checkpoint.save(checkpoint.build(config, seed), Path(start) / "start", torch.float32)
        kinds: dict[str, type[Parts]] = {"draw": DrawRecipe, "read": ReadRecipe, "joint": JointRecipe}
        own: dict[str, Any] = {"noises": args.noises} if task != "read" else {}
        own |= {"views": 1, "replies": 0} if task != "draw" else {}
        train(
            kinds[task](
                data=str(args.data),
                output=str(folder),
                start=str(Path(start) / "start"),
                train=ALL,
                steps=args.steps,
                batch=args.batch,
                seed=seed,
                learning_rate=2e-3,
                warmup=20,
                decay=0.5,
                ema=0.99,
                **own,
                log_every=100,
                save_every=10**9,
                sample_every=10**9,
            )
        )
    suites = {"draw": ("draw",), "read": ("read",), "joint": ("read", "draw")}[task]
    found = evaluate(folder / "checkpoint", args.data, Plan(suites, args.limit)).document
    empty = ("flow_loss", "checker", "checker_held_out", "questions")
    scores: dict[str, Any] = {"seed": seed, **dict.fromkeys(empty)}
    if "draw" in suites:
        parts = found["draw"]["parts"]
        scores |= {"checker": parts["train"]["mean_of_tasks"], "tasks": parts["train"]["tasks"]}
        scores["checker_held_out"] = parts["held-out-pair"]["mean_of_tasks"]
        scores["flow_loss"] = _flow_loss(folder / "checkpoint", args.data)
    part = next(iter(found["read"].values())) if "read" in suites else None
    scores["questions"] = part["balanced"]["accuracy"]["value"] if part else None
    scores["questions_baseline"] = part["balanced"]["baseline"] if part else None
    kept.write_text(json.dumps(scores), encoding="utf-8")
    return scores


def _flow_loss(folder: Path, data: Path) -> float:
    """Mean over 1,024 noisy pictures whose pairs of what they show were never trained."""
    recipe = DrawRecipe(data=str(data), output=str(folder), splits=("held-out-pair",), batch=64, drop_prompt=0)
    task = DrawTask(checkpoint.load(folder), recipe)
    with torch.no_grad():
        return statistics.mean(task.loss(step).item() for step in range(16))


def _draw_macs(model: Any) -> float:
    """Multiplications of one drawing step, a picture token, for a prompt of 16 tokens."""
    from torch.utils.flop_counter import FlopCounterMode

    tokens = model.config.image_tokens
    prefix = model.prefix(["a red circle left"])
    noise = torch.zeros(1, tokens.token_count, tokens.token_width)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.denoiser(noise, torch.zeros(1), prefix)
    return counter.get_total_flops() / 2 / tokens.token_count


def _shown(scores: list[dict[str, Any]], key: str) -> str:
    found = [score[key] for score in scores if score[key] is not None]
    if not found:
        return "-"
    return f"{statistics.mean(found):.3f} +- {statistics.stdev(found) if len(found) > 1 else 0:.3f}"


if __name__ == "__main__":
    main()
