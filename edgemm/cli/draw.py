"""`edgemm draw BUNDLE --prompt ... --output x.png`: a picture, or several, each file written whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgemm import progress
from edgemm.cli.arguments import add_model_arguments, add_options, open_model, read_options
from edgemm.cli.display import Display
from edgemm.errors import EdgemmError, InputError, ResourceError
from edgemm.runtimes.options import DrawingOptions

if TYPE_CHECKING:
    from edgemm.runtimes.results import DenoiseProgress, ImageResult

__all__ = ["HELP", "add_arguments", "run"]

HELP = "draw a picture with a bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--prompt", required=True, help="what to draw")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="for example heart.png")
    add_options(parser, DrawingOptions)
    parser.add_argument("--show-progress", action="store_true", help="a bar on stderr (always there on a terminal)")


def run(args: argparse.Namespace) -> int:
    from edgemm.runtimes.results import picture_format

    picture_format(args.output)  # before any work
    if not args.output.parent.is_dir():
        raise InputError(f"{args.output}: there is no folder {args.output.parent}")
    options = read_options(args, DrawingOptions)
    with open_model(args) as model:
        stream = model.stream_image(args.prompt, **vars(options))
        result = _follow(stream, options.num_images, args.show_progress)
    if result.finish_reason != "stop":
        raise ResourceError(
            f"--timeout-s {options.timeout_s:g} ran out after {result.metrics.steps} steps; nothing was written"
        )
    _write(result, args)
    return 0


def _follow(stream: Iterator[DenoiseProgress | ImageResult], count: int, forced: bool) -> ImageResult:
    from edgemm.runtimes.results import ImageResult

    with Display(forced=forced), contextlib.ExitStack() as open_bar:
        bar = None
        for event in stream:
            if isinstance(event, ImageResult):
                return event
            bar = bar or open_bar.enter_context(progress.bar("drawing", count * event.steps, "steps"))
            bar.update(event.index * event.steps + event.step - bar.done)
    raise EdgemmError("drawing ended without a result")


def _write(result: ImageResult, args: argparse.Namespace) -> None:
    paths = [args.output]
    if len(result.images) > 1:
        paths = [args.output.with_stem(f"{args.output.stem}-{index}") for index in range(len(result.images))]
    for path, picture in zip(paths, result.images):
        picture.save(path)
    metrics, seeds = result.metrics, [picture.seed for picture in result.images]
    if args.json:
        document = {"files": [str(path) for path in paths], "seeds": seeds, "metrics": dataclasses.asdict(metrics)}
        print(json.dumps(document))
        return
    height, width = result.image.pixels.shape[1:]
    names = ", ".join(str(path) for path in paths)
    print(
        f"Wrote {names} ({width} x {height}, {metrics.steps} steps in {metrics.total_ms / 1e3:.2f} s); "
        f"for another one: --seed {max(seeds) + 1}"
    )
