"""`edgemm draw BUNDLE --prompt ... --output x.png`: a picture, or several, each file written whole or not at all.

How a bundle is opened for `draw` and for `chat`, with the flags that both have, stands here too.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgemm import progress
from edgemm.cli.flags import add_options, read_options
from edgemm.errors import EdgemmError, InputError, ResourceError, UsageError
from edgemm.options import parse_pairs
from edgemm.progress import Display
from edgemm.runtimes.clip import Clip, SavingOptions, check_clip_path
from edgemm.runtimes.image_call import DrawingOptions, check_still_path

if TYPE_CHECKING:
    from edgemm.runtimes.image_call import DenoiseProgress, ImageResult, Picture
    from edgemm.runtimes.model import Model

__all__ = ["HELP", "add_arguments", "add_model_arguments", "open_model", "read_backend", "run"]

HELP = "draw a picture with a bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--prompt", default="", help="what to draw")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="heart.png, or heart.gif where it moves"
    )
    add_options(parser, DrawingOptions)
    add_options(parser, SavingOptions)
    parser.add_argument("--show-progress", action="store_true", help="a bar on stderr (always there on a terminal)")


def run(args: argparse.Namespace) -> int:
    if not args.prompt and args.graph is None:
        raise UsageError("--prompt is missing: say what to draw, or give a --graph to draw")
    options, saving = read_options(args, DrawingOptions), read_options(args, SavingOptions)
    moves = options.motion is not None or (options.frames or 1) > 1
    _check_path(args.output, saving, moves or None)  # before any work
    if not args.output.parent.is_dir():
        raise InputError(f"{args.output}: there is no folder {args.output.parent}")
    if folders := [path for path in _paths(args.output, options.num_images) if path.is_dir()]:
        raise InputError(f"{folders[0]}: is a folder, expected the name of a file")
    with open_model(args) as model:
        loop = model.manifest.loops.denoise
        _check_path(args.output, saving, moves or (loop is not None and loop.frames > 1))
        stream = model.stream_image(args.prompt, **vars(options))
        result = _follow(stream, options.num_images, args.show_progress)
    if result.finish_reason != "stop":
        raise ResourceError(
            f"--timeout-s {options.timeout_s:g} ran out after {result.metrics.steps} steps; nothing was written"
        )
    _write(result, args)
    return 0


def _check_path(path: Path, saving: SavingOptions, moves: bool | None) -> None:
    """UsageError of a file that the picture cannot become; None: the bundle will say whether it moves."""
    if moves is not False:
        try:
            check_clip_path(path, saving)
            return
        except UsageError:
            if moves:
                raise
    check_still_path(path, saving)


def _follow(stream: Iterator[DenoiseProgress | ImageResult], count: int, forced: bool) -> ImageResult:
    from edgemm.runtimes.image_call import ImageResult

    with Display(forced=forced), contextlib.ExitStack() as open_bar:
        bar = None
        for event in stream:
            if isinstance(event, ImageResult):
                return event
            bar = bar or open_bar.enter_context(progress.bar("drawing", count * event.steps, "steps"))
            bar.update(event.index * event.steps + event.step - bar.done)
    raise EdgemmError("drawing ended without a result")


def _paths(output: Path, count: int) -> list[Path]:
    """One a picture."""
    return [output] if count == 1 else [output.with_stem(f"{output.stem}-{index}") for index in range(count)]


def _write(result: ImageResult, args: argparse.Namespace) -> None:
    paths = _paths(args.output, len(result.images))
    for path, picture in zip(paths, result.images):
        picture.save(path, **vars(read_options(args, SavingOptions)))
    metrics, seeds = result.metrics, [picture.seed for picture in result.images]
    if args.json:
        document = {"files": [str(path) for path in paths], "seeds": seeds, "metrics": dataclasses.asdict(metrics)}
        print(json.dumps(document))
        return
    names, what = ", ".join(str(path) for path in paths), _said(result.image, args.size)
    print(
        f"Wrote {names} ({what}, {metrics.steps} steps in {metrics.total_ms / 1e3:.2f} s); "
        f"for another one: --seed {max(seeds) + 1}"
    )


def _said(picture: Picture, size: int | None) -> str:
    if picture.clip is None:
        width, height = Clip((picture.pixels,)).sides(size)
        return f"{width} x {height}"
    if picture.clip.stands_still:
        return f"{picture.clip.count} frames, all alike: nothing moves"
    return f"{picture.clip.count} frames, {picture.clip.count * picture.clip.frame_ms / 1e3:g} s"


# A verb with a model


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder that `edgemm export` wrote")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, rtx or a Jetson's target (%(default)s)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: one a core that may be used")
    parser.add_argument(
        "--backend",
        metavar="COMPONENT=BACKEND,...",
        help="other libraries on the CPU, for example denoiser=openvino-bf16; one name alone is for all components",
    )
    parser.add_argument("--memory-limit-mb", type=float, metavar="MB", help="weights and conversations together")
    parser.add_argument(
        "--adapter", type=Path, metavar="FOLDER", help="a LoRA adapter, for bundles exported with --adapters"
    )
    parser.add_argument(
        "--adapter-strength", type=float, metavar="S", help="how much of --adapter is added (default 1)"
    )
    parser.add_argument("--no-verify", action="store_true", help="trust the files: skip their hashes")
    parser.add_argument("--verbose", action="store_true", help="say what it runs on and how long it took, on stderr")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def open_model(args: argparse.Namespace) -> Model:
    import edgemm

    if args.adapter_strength is not None and not args.adapter:
        raise UsageError("--adapter-strength says how much of --adapter is added, and there is none")
    with Display():
        model = edgemm.load(
            args.bundle,
            device=args.device,
            threads=args.threads,
            verify=not args.no_verify,
            memory_limit_mb=args.memory_limit_mb,
            backend=read_backend(args.backend),
        )
    if args.adapter:
        model.load_adapter("adapter", args.adapter, 1.0 if args.adapter_strength is None else args.adapter_strength)
        model.set_adapter("adapter")
    if args.verbose:
        threads = model.threads
        spinning = "spinning" if threads.spinning else "not spinning"
        print(f"running on {model.choice}", file=sys.stderr)
        for component, choice in model.choices.items():
            if choice != model.choice:
                print(f"{component} on {choice}", file=sys.stderr)
        print(model.memory, file=sys.stderr)
        print(f"{threads.count} threads, {spinning}: {threads.why}", file=sys.stderr)
    return model


def read_backend(words: str | None) -> str | dict[str, str] | None:
    """`openvino` for all components, or `denoiser=openvino,image_decoder=openvino` for some."""
    if words is None or "=" not in words:
        return words
    return parse_pairs("--backend", words)
