"""Janus-shaped drawing, a bundle in int4 beside `transformers` eager on the same folder, in one run.

    python benchmarks/janus_speed.py --work build/janus   # makes folder and bundle first: 6 GB of disk, 16 GB of memory
    python benchmarks/janus_speed.py --work build/janus --tiny     # whether it runs: a minute
    python benchmarks/janus_speed.py --work build/janus --contestants int4,float32    # not bfloat16: six times as slow
                                                                                      # where no unit multiplies it

The language model and the VQ tokenizer have Janus-Pro-1B's shape (24 layers of 2048, 24x24 codes of 16,384, 384 pixels,
guidance 5) with random weights, which cost what trained ones cost; each layer adds little, or 24 random layers would
round all of their answers away.  Not of that shape, because drawing does not touch them: the vision tower and the
vocabulary are small.  Each contestant is a fresh process, in turns, codes drawn by lot from the likeliest 50 in both;
medians over rounds.  Pictures are not compared: that is tests/families/test_janus.py.  Prints a table, then one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.contestants import Numbers, compete  # noqa: E402

PROMPT, GUIDANCE, WARM_UP_CODES = "a small boat on a lake", 5.0, 4
JANUS_PRO_1B = {
    "side": 384,
    "patch": 16,
    "codes": 16_384,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "by": 1.0,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 16_384,
    "vq": {
        "embed_dim": 8,
        "latent_channels": 256,
        "base_channels": 128,
        "channel_multiplier": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
    },
}
TINY = {"side": 24, "patch": 4, "codes": 64, "hidden_size": 64, "max_position_embeddings": 1024}
CONTESTANTS = {
    "int4": "edgemm int4",
    "float32": "transformers eager, float32",
    "bfloat16": "transformers eager, bfloat16",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/janus"), help="where folder and bundle are kept")
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand parameters")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--contestants", type=listed_contestants, default=list(CONTESTANTS), help=f"of {','.join(CONTESTANTS)}"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    home = args.work / ("tiny" if args.tiny else "janus-pro-1b")
    if args.contestant:
        draw = draw_with_edgemm if args.contestant == "int4" else draw_with_transformers
        print(json.dumps(draw(home, args.contestant, args.threads)))
        return 0
    make(home, TINY if args.tiny else JANUS_PRO_1B)
    words = ["--work", str(args.work), "--threads", str(args.threads), *(["--tiny"] if args.tiny else [])]
    rows, samples = compete(__file__, words, args.contestants, args.rounds)
    show(rows)
    from edgemm.bench.conditions import machine_card

    document = {"benchmark": "janus_speed", "card": machine_card(), "tiny": args.tiny, "threads": args.threads}
    print(json.dumps({**document, "guidance": GUIDANCE, "rounds": args.rounds, "medians": rows, "samples": samples}))
    return 0


def listed_contestants(text: str) -> list[str]:
    wanted = text.split(",")
    unknown = [name for name in wanted if name not in CONTESTANTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(CONTESTANTS)}")
    return list(dict.fromkeys(wanted))


def make(home: Path, shape: dict[str, Any]) -> None:
    """The folder, as people download them, and its bundle; what is there already is kept."""
    from tests.families.tiny.folders import write_folder

    home.mkdir(parents=True, exist_ok=True)
    folder, bundle = home / "checkpoint", home / "int4.bundle"
    if not (folder / "processor_config.json").exists():  # written last
        write_folder("janus", folder, **shape)
    if not bundle.exists():
        command = ["-m", "edgemm", "export", str(folder), "--output", str(bundle), "--precision", "int4"]
        subprocess.run([sys.executable, *command, "--max-context", "768"], check=True, stdout=sys.stderr)


def draw_with_edgemm(home: Path, contestant: str, threads: int) -> Numbers:
    import edgemm
    from edgemm.bench.memory import peak_memory_bytes

    with edgemm.load(home / "int4.bundle", device="cpu", threads=threads) as model:
        for _, _ in zip(range(WARM_UP_CODES), model.stream_image(PROMPT, guidance_scale=GUIDANCE, seed=0)):
            pass
        metrics = model.generate_image(PROMPT, guidance_scale=GUIDANCE, seed=1).metrics
    return {
        "picture_s": metrics.total_ms / 1e3,
        "code_ms": metrics.step_ms,
        "pixels_ms": metrics.decode_ms,
        "codes": metrics.steps,
        "peak_mb": peak_memory_bytes() / 1e6,
    }


def draw_with_transformers(home: Path, contestant: str, threads: int) -> Numbers:
    import torch
    from transformers import AutoProcessor, JanusForConditionalGeneration

    from edgemm.bench.memory import peak_memory_bytes

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    folder = home / "checkpoint"
    dtype = getattr(torch, contestant)
    model = JanusForConditionalGeneration.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    processor = AutoProcessor.from_pretrained(folder)
    says = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    text = processor.apply_chat_template(says, add_generation_prompt=True)
    inputs = processor(text=text, generation_mode="image", return_tensors="pt")
    options = {"generation_mode": "image", "do_sample": True, "guidance_scale": GUIDANCE}
    sizes = model.model.vision_model.config
    whole, sizes.num_image_tokens = sizes.num_image_tokens, WARM_UP_CODES  # what its loop counts to
    model.generate(**inputs, **options)
    sizes.num_image_tokens = whole
    with torch.no_grad():
        started = time.perf_counter()
        codes = model.generate(**inputs, **options)
        drawn = time.perf_counter()
        model.decode_image_tokens(codes)
        ended = time.perf_counter()
    return {
        "picture_s": ended - started,
        "code_ms": (drawn - started) * 1e3 / codes.shape[1],  # the prompt's share is in it
        "pixels_ms": (ended - drawn) * 1e3,
        "codes": codes.shape[1],
        "peak_mb": peak_memory_bytes() / 1e6,
    }


def show(rows: dict[str, Numbers]) -> None:
    base = rows.get("float32")
    print(f"{'':30} {'s a picture':>12} {'ms a code':>10} {'ms pixels':>10} {'codes':>6} {'peak MB':>8}   to float32")
    for name, row in rows.items():
        ratio = f"{base['picture_s'] / row['picture_s']:.2f}x" if base else "-"
        print(
            f"{CONTESTANTS[name]:30} {row['picture_s']:>12.2f} {row['code_ms']:>10.1f} {row['pixels_ms']:>10.0f} "
            f"{row['codes']:>6.0f} {row['peak_mb']:>8.0f}   {ratio}"
        )


if __name__ == "__main__":
    sys.exit(main())
