"""JanusFlow's published shape drawn by a bundle, beside its published loop in eager torch, float32, in one run.

    python benchmarks/real_shapes.py janusflow --keep          # makes folder and bundle: 6 GB of disk
    python benchmarks/janusflow_speed.py --work build/real-shapes/janusflow-1-int4              # 30 steps, two rounds
    python benchmarks/janusflow_speed.py --work build/real-shapes/janusflow-1-int4 --steps 2    # a few, and scaled

384 pixels, guidance 2, weights by chance, which cost what trained ones cost.  The published loop reads the prompt again
at every step, for both rows; the bundle reads it once.  Weights lie in memory as float32 there, as they do for whoever
loads them; the bundle's components take turns in `--limit` times its size.  Each contestant is a fresh process, in
turns; pictures are not compared: that is the export's parity.json.  With fewer than 30 steps a picture is what is done
once plus 30 times a step.  Seconds of the processor are told beside those of the clock: on a machine that does other
work they are the ones to compare.  Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.contestants import Numbers, compete  # noqa: E402

PROMPT, GUIDANCE, STEPS = "a small boat on a lake, in the evening, painted with broad strokes", 2.0, 30
CONTESTANTS = ("bundle", "published")
SMALL_MB = 500  # bundle of a shape that is tried alone: what Python takes is more than what a limit would leave
BARS = {"seconds": 2.5, "memory": 0.4}  # at least so much less time, at most so much of the memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="what real_shapes.py --keep left: folder and bundle")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--limit", type=float, default=1.25, help="times the bundle: what it is told to stay below")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps < 2:
        parser.error("--steps: a step is what lies between two")
    if args.contestant:
        if args.contestant == "bundle":
            print(json.dumps(draw_bundle(args.work, args.steps, args.threads, args.limit)))
        else:
            print(json.dumps(draw_published(args.work, args.steps, args.threads)))
        return 0
    words = ["--work", str(args.work), "--steps", str(args.steps), "--threads", str(args.threads)]
    words += ["--limit", str(args.limit)]
    rows, samples = compete(__file__, words, CONTESTANTS, args.rounds)
    ratios = show(rows)
    from edgemm.bench.conditions import machine_card

    document = {"benchmark": "janusflow_speed", "card": machine_card(), "threads": args.threads, "steps": args.steps}
    print(json.dumps({**document, "guidance": GUIDANCE, "medians": rows, "ratios": ratios, "samples": samples}))
    return 0


def draw_bundle(work: Path, steps: int, threads: int, limit: float) -> Numbers:
    import edgemm
    from edgemm.bench.memory import peak_memory_bytes
    from edgemm.runtimes.image_call import DenoiseProgress

    bundle = work / "made.bundle"
    size_mb = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) / 1e6
    limit_mb = limit * size_mb if size_mb > SMALL_MB else None
    with edgemm.load(bundle, device="cpu", threads=threads, memory_limit_mb=limit_mb) as model:
        model.generate_image("a heart", num_inference_steps=1, guidance_scale=GUIDANCE, seed=0)  # loads all of it
        begun, seen = clocks(), []
        for event in model.stream_image(PROMPT, num_inference_steps=steps, guidance_scale=GUIDANCE, seed=1):
            if isinstance(event, DenoiseProgress):
                seen.append(clocks())
        whole = less(clocks(), begun)
    between = less(seen[-1], seen[0])  # the first step ends with the prompt read, too
    drawn = (between[0] * steps / (steps - 1), between[1] * steps / (steps - 1))
    return told(whole, drawn, steps, peak_memory_bytes())


def draw_published(work: Path, steps: int, threads: int) -> Numbers:
    import torch

    from edgemm.bench.memory import peak_memory_bytes
    from edgemm.families import janusflow
    from edgemm.families.hf_checkpoint import open_checkpoint
    from edgemm.model.kept_weights import KeptTensor, widened
    from edgemm.runtimes import schedule
    from tests.families.golden import found_at

    torch.set_num_threads(threads)
    checkpoint = open_checkpoint(found_at(work / "checkpoint", vae=work / "vae"), janusflow)
    model = checkpoint.model
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, KeptTensor):
                module._parameters[name] = torch.nn.Parameter(widened(parameter.data), requires_grad=False)
    ids = torch.tensor(checkpoint.tokenizer(f"User: {PROMPT}\n\nAssistant:<begin_of_image>")["input_ids"])[:-1]
    side = model.image_size // model.vae.cell
    noise = torch.from_numpy(schedule.initial_noise(1, model.vae.channels, side, side))
    with torch.no_grad():
        spent = clocks()
        latents = model.draw(ids, noise, steps, GUIDANCE)
        drawn = less(clocks(), spent)
        model.vae(latents[None])
        whole = less(clocks(), spent)
    return told(whole, drawn, steps, peak_memory_bytes())


Clocks = tuple[float, float]


def clocks() -> Clocks:
    """Seconds of the clock, and of the processor in all threads."""
    return time.perf_counter(), time.process_time()


def less(one: Clocks, other: Clocks) -> Clocks:
    return one[0] - other[0], one[1] - other[1]


def told(whole: Clocks, drawn: Clocks, steps: int, peak_bytes: int) -> Numbers:
    once = less(whole, drawn)
    return {
        "picture_s": once[0] + STEPS * drawn[0] / steps,
        "picture_cpu_s": once[1] + STEPS * drawn[1] / steps,
        "step_s": drawn[0] / steps,
        "step_cpu_s": drawn[1] / steps,
        "once_cpu_s": once[1],
        "peak_gb": peak_bytes / 1e9,
    }


def show(rows: dict[str, Numbers]) -> Numbers:
    for name, row in rows.items():
        print(f"{name:10} " + "  ".join(f"{key} {value:.2f}" for key, value in row.items()))
    ours, theirs = (rows[name] for name in CONTESTANTS)
    ratios = {
        "seconds": theirs["picture_s"] / ours["picture_s"],
        "cpu_seconds": theirs["picture_cpu_s"] / ours["picture_cpu_s"],
        "memory": ours["peak_gb"] / theirs["peak_gb"],
    }
    print(
        f"{ratios['seconds']:.2f} x less time ({ratios['cpu_seconds']:.2f} of the processor's; bar {BARS['seconds']}), "
        f"{ratios['memory']:.2f} of the memory (bar {BARS['memory']})"
    )
    return ratios


if __name__ == "__main__":
    sys.exit(main())
