"""The main job, as a user would type it: export the checkpoint, read a picture, draw three, print the profile.

    make demo        (or: python examples/demo.py [--precision fp32|int8|int4])

Every step is an `edgemm` command in a process of its own, so what talks and draws has no torch in it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "checkpoints" / "sticker-small"
PICTURE = (
    ROOT / "tests" / "fixtures" / "emoji64" / "images" / "noto-v1" / "2764.png"
)  # a red heart, by an artist never trained on
PROMPTS = ("red heart", "pizza, noto style", "rocket")


def edgemm(*words: str | Path) -> None:
    command = [sys.executable, "-m", "edgemm", *map(str, words)]
    print(f"\n$ edgemm {' '.join(_quoted(str(word)) for word in words)}", flush=True)
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def _quoted(word: str) -> str:
    word = word.removeprefix(f"{ROOT}/")
    return f"'{word}'" if " " in word else word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--precision", default="int8", help="fp32, int8 or int4 (default: int8)")
    args = parser.parse_args()
    output = ROOT / "demo"
    bundle = output / f"sticker-{args.precision}.bundle"
    output.mkdir(exist_ok=True)
    started = time.perf_counter()
    edgemm("export", CHECKPOINT, "--output", bundle, "--precision", args.precision, "--overwrite")
    edgemm("chat", bundle, "--image", PICTURE, "--prompt", "What is this?", "--max-new-tokens", "16")
    for number, prompt in enumerate(PROMPTS, start=1):
        edgemm("draw", bundle, "--prompt", prompt, "--output", output / f"{number}.png", "--seed", str(number))
    edgemm("bench", bundle, "-r", "3", "--warmup", "1", "--duration", "0")
    print(f"\nAll of it took {time.perf_counter() - started:.0f} s; the pictures are demo/1.png to {len(PROMPTS)}.png.")


if __name__ == "__main__":
    main()
