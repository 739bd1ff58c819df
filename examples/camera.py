"""A camera loop in constant memory: every frame is read, the last ones are remembered, what is new is said.

python examples/camera.py sticker.bundle --frames 'frames/*.png'        (a folder in place of a camera)
python examples/camera.py sticker.bundle --camera film.mp4              (needs: pip install 'edgemm[video]')
python examples/camera.py sticker.bundle --camera /dev/video0           (the same, of a camera on Linux)
"""

from __future__ import annotations

import argparse
import glob
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import edgemm

DIGITS = re.compile(r"(\d+)")
Frame = Any  # a file's name or an array (H, W, 3) uint8: whatever generate_text takes as a picture
Timed = Iterable[tuple[float, Frame]]  # seconds, picture


def from_files(pattern: str) -> Iterator[tuple[float, Frame]]:
    """In the order of the numbers in their names, padded with zeros or not: 2.png comes before 10.png."""
    paths = sorted(glob.glob(pattern), key=lambda path: [int(n) if n.isdecimal() else n for n in DIGITS.split(path)])
    for number, path in enumerate(paths):
        yield float(number), path


def from_camera(source: str, fps: float) -> Iterator[tuple[float, Frame]]:
    """A film, or a camera of Video4Linux; so many of its frames a second, the others are dropped."""
    import av  # only here

    kind = "v4l2" if source.startswith("/dev/") else None
    with av.open(source, format=kind) as container:
        began, next_s = time.monotonic(), 0.0
        for frame in container.decode(container.streams.video[0]):
            now = time.monotonic() - began if kind else float(frame.time or 0)
            if now >= next_s:
                yield now, frame.to_ndarray(format="rgb24")
                next_s = now + 1 / fps


def watch(model: Any, frames: Timed, question: str, every: int = 1, window: int = 8) -> Iterator[str]:
    """A line for every event: a reply to the question that is not what was said before."""
    with model.watch(question, window=window, every=every, max_new_tokens=12) as stream:
        for t, frame in frames:
            start = time.perf_counter()
            event = stream.push(frame, t)
            if event is not None:
                yield f"{event.t:8.1f} s  {event.text}  ({1e3 * (time.perf_counter() - start):.0f} ms)"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--frames", default="", help="pictures in place of a camera, as a pattern")
    parser.add_argument("--camera", default="/dev/video0", help="a camera's device, or a film")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second that are read of it")
    parser.add_argument("--question", default="What is this?")
    args = parser.parse_args(words)
    if not args.frames and not Path(args.camera).exists():
        parser.error(f"there is no {args.camera}; give --camera FILE or --frames PATTERN")
    if args.frames and not glob.glob(args.frames):
        parser.error(f"there is no picture {args.frames}")
    frames = from_files(args.frames) if args.frames else from_camera(args.camera, args.fps)
    with edgemm.load(args.bundle) as model:
        model.prepare()
        for line in watch(model, frames, args.question):
            print(line, flush=True)


if __name__ == "__main__":
    main()
