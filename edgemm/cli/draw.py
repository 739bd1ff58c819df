"""`edgemm draw BUNDLE --prompt ... --output x.png`: a picture, or several, each file written whole or not at all."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgemm.cli.arguments import add_model_arguments, open_model
from edgemm.cli.progress_bar import ProgressBar
from edgemm.errors import EdgemmError, InputError, ResourceError

if TYPE_CHECKING:
    from edgemm.runtimes.results import DenoiseProgress, ImageResult

__all__ = ["HELP", "add_arguments", "run"]

HELP = "draw a picture with a bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--prompt", required=True, help="what to draw")
    parser.add_argument("--image", metavar="FILE", help="a picture to edit, for bundles whose model was taught to")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="for example heart.png")
    parser.add_argument("--num-inference-steps", type=int, metavar="N", help="default: the bundle's own")
    parser.add_argument(
        "--guidance-scale", type=float, metavar="W", help="default: the bundle's own; 1 switches it off"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same picture (default %(default)s)"
    )
    parser.add_argument("--num-images", type=int, default=1, metavar="N", help="files x-0.png, x-1.png, ...")
    parser.add_argument("--temperature", type=float, help="of models that draw token by token; 0 takes the likeliest")
    parser.add_argument("--top-k", type=int, metavar="K", help="keep the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="keep the likeliest tokens of this probability")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what to guide away from, where the model can")
    parser.add_argument("--width", type=int, metavar="PIXELS", help="of models that draw several sizes")
    parser.add_argument("--height", type=int, metavar="PIXELS", help="the same")
    parser.add_argument(
        "--image-guidance-scale", type=float, metavar="W", help="how closely the picture that is edited is kept"
    )
    parser.add_argument("--show-progress", action="store_true", help="a bar on stderr (always there on a terminal)")
    parser.add_argument("--timeout-s", type=float, metavar="S", help="give up after so many seconds")


def run(args: argparse.Namespace) -> int:
    from edgemm.runtimes.results import picture_format

    picture_format(args.output)  # before any work
    if not args.output.parent.is_dir():
        raise InputError(f"{args.output}: there is no folder {args.output.parent}")
    with open_model(args) as model:
        stream = model.stream_image(
            args.prompt,
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            seed=args.seed,
            num_images=args.num_images,
            timeout_s=args.timeout_s,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            negative_prompt=args.negative_prompt,
            image=args.image,
            width=args.width,
            height=args.height,
            image_guidance_scale=args.image_guidance_scale,
        )
        result = _follow(stream, args)
    if result.finish_reason != "stop":
        raise ResourceError(
            f"--timeout-s {args.timeout_s:g} ran out after {result.metrics.steps} steps; nothing was written"
        )
    _write(result, args)
    return 0


def _follow(stream: Iterator[DenoiseProgress | ImageResult], args: argparse.Namespace) -> ImageResult:
    from edgemm.runtimes.results import ImageResult

    with ProgressBar("drawing", " steps", forced=args.show_progress) as bar:
        for event in stream:
            if isinstance(event, ImageResult):
                return event
            bar.update(event.index * event.steps + event.step, args.num_images * event.steps)
    raise EdgemmError("drawing ended without a result")


def _write(result: ImageResult, args: argparse.Namespace) -> None:
    paths = [args.output]
    if len(result.images) > 1:
        paths = [args.output.with_stem(f"{args.output.stem}-{index}") for index in range(len(result.images))]
    for path, picture in zip(paths, result.images):
        picture.save(path)
    metrics = result.metrics
    if args.json:
        seeds = [picture.seed for picture in result.images]
        document = {"files": [str(path) for path in paths], "seeds": seeds, "metrics": dataclasses.asdict(metrics)}
        print(json.dumps(document))
        return
    height, width = result.image.pixels.shape[1:]
    names = ", ".join(str(path) for path in paths)
    print(
        f"Wrote {names} ({width} x {height}, {metrics.steps} steps in {metrics.total_ms / 1e3:.2f} s); "
        f"for another one: --seed {args.seed + len(paths)}"
    )
