"""What an image tokenizer keeps of pictures: no drawing of its tokens can be better than pictures through it and back.

    edgemm data shapes --output data/shapes-few --count 6000 --tasks single-object colours
    python benchmarks/tokenizer_bound.py runs/micro-vq/codes/checkpoint --data data/shapes-few [--limit 300]

By decibels, by an eye that was trained on photographs (train/tasks/tokenizer.py) and, of shapes, by the exact checker.
Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROW = "{checkpoint:<32} {psnr_db:>8} {unlike:>10} {passed:>10} {real:>10}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--split", default="held-out-pair")
    parser.add_argument("--limit", type=int, default=300, help="pictures (300)")
    args = parser.parse_args()
    from edgemm.bench.conditions import machine_card
    from edgemm.data.format import read_dataset
    from edgemm.evaluate.subject import some

    dataset = read_dataset(args.data)
    samples = some(dataset.split(args.split), args.limit, "id")
    names = {"checkpoint": "checkpoint", "psnr_db": "dB", "unlike": "unlike", "passed": "passed", "real": "real ones"}
    print(ROW.format(**names))
    rows = [measure(checkpoint, dataset, samples) for checkpoint in args.checkpoints]
    document = {"benchmark": "tokenizer-bound", "card": machine_card(), "pictures": len(samples), "split": args.split}
    print(json.dumps({**document, "results": rows}))
    return 0


def measure(checkpoint: Path, dataset, samples) -> dict:
    import torch

    from edgemm.evaluate.metrics import psnr_db, share
    from edgemm.evaluate.shapes_checker import check_scene
    from edgemm.evaluate.subject import real_pictures
    from edgemm.model.checkpoint import load
    from edgemm.train.tasks.tokenizer import PerceptualDistance

    model = load(checkpoint)
    real = real_pictures(dataset, samples, model.config.image_tokens.image_size)
    pixels = torch.from_numpy(real).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        kept = torch.cat([through(model, chunk) for chunk in pixels.split(64)]).clamp(0, 1)
        unlike = PerceptualDistance()(kept, pixels).item()
    pictures = (kept * 255).round().byte().permute(0, 2, 3, 1).numpy()
    row: dict = {"checkpoint": str(checkpoint), "psnr_db": psnr_db(kept.numpy(), pixels.numpy()), "unlike": unlike}
    if dataset.kind == "shapes":
        for name, found in (("passed", pictures), ("real", real)):
            verdicts = [check_scene(picture, sample.scene).passed for picture, sample in zip(found, samples)]
            row[name] = vars(share(np.array(verdicts)))
    told = {name: f"{row[name]['value']:.2f}" if name in row else "-" for name in ("passed", "real")}
    told |= {"psnr_db": f"{row['psnr_db']:.1f}", "unlike": f"{unlike:.4f}", "checkpoint": str(checkpoint)[-32:]}
    print(ROW.format(**told), flush=True)
    return row


def through(model, pixels):
    """(b, 3, H, W) in [0, 1] twice."""
    return model.vq.decode(model.vq.encode(pixels)) if model.vq else model.to_pixels(model.to_tokens(pixels))


if __name__ == "__main__":
    sys.exit(main())
