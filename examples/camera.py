"""A camera loop: look at every frame, say what is there, and never fall behind.

python examples/camera.py sticker.bundle --frames 'frames/*.png'        (a folder in place of a camera)
python examples/camera.py sticker.bundle --camera 0                     (needs: pip install opencv-python)
"""

from __future__ import annotations

import argparse
import glob
from collections.abc import Iterable, Iterator

import edgemm
from edgemm.bundle.picture import PictureSource


def from_camera(number: int) -> Iterator[PictureSource]:
    import cv2  # only here

    camera = cv2.VideoCapture(number)
    while (got := camera.read())[0]:
        yield got[1][..., ::-1].copy()  # BGR to RGB


def watch(model, frames: Iterable[PictureSource], question: str, timeout_s: float = 2.0) -> Iterator[str]:
    """One short answer a frame; a frame that takes too long keeps what was said of it."""
    for frame in frames:
        reply = model.generate_text(question, images=[frame], max_new_tokens=12, timeout_s=timeout_s)
        yield f"{reply.metrics.time_to_first_token_ms:5.0f} ms  {reply.text.strip()}"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--frames", default="", help="pictures in place of a camera, as a pattern")
    parser.add_argument("--camera", type=int, default=0)
    parser.add_argument("--question", default="What is this?")
    args = parser.parse_args(words)
    frames = sorted(glob.glob(args.frames)) if args.frames else from_camera(args.camera)
    with edgemm.load(args.bundle) as model:
        model.prepare()
        for line in watch(model, frames, args.question):
            print(line, flush=True)


if __name__ == "__main__":
    main()
