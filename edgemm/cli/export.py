"""`edgemm export CHECKPOINT --output BUNDLE`: checkpoint to bundle, or an exit code that says why not."""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from edgemm import progress
from edgemm.cli.flags import add_options, read_options
from edgemm.cli.guard import add_limits
from edgemm.cli.hints import command
from edgemm.errors import MissingError
from edgemm.export.options import ExportOptions
from edgemm.families.folder import find_foreign
from edgemm.progress import Display

__all__ = ["HELP", "add_arguments", "run"]

HELP = "turn a checkpoint into a bundle; fails, and leaves nothing, when the bundle differs from the model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", help="checkpoint folder, of edgemm or of a Hugging Face model that a family knows"
    )
    parser.add_argument("--output", required=True, metavar="BUNDLE", type=Path, help="folder to write")
    add_options(parser, ExportOptions)
    add_limits(parser)


def run(args: argparse.Namespace) -> int:
    options = read_options(args, ExportOptions)
    with Display(results=True), ended_like_ctrl_c():
        progress.status("loading torch")
        try:
            from edgemm.verify.export_foreign import export_foreign
            from edgemm.verify.export_native import export_bundle
        except ImportError as error:
            raise MissingError(f"export needs {error.name or error}: pip install 'edgemm[export,ort]'") from error
        foreign = find_foreign(Path(args.checkpoint))
        if foreign:
            manifest = export_foreign(foreign, args.output, options)
        else:
            manifest = export_bundle(Path(args.checkpoint), args.output, options)
    size = sum(record.size_bytes for record in manifest.files.values()) / 1e6
    targets = ", ".join(manifest.targets)
    here = {"cpu", "web"} & manifest.targets.keys()
    if here and (manifest.loops.denoise or manifest.loops.image_tokens):
        hint = f"try it: {command('draw', args.output, '--prompt', 'red heart', '--output', 'heart.png')}"
    elif here:
        sees = manifest.components.keys() & {"image_encoder", "vq_encoder"}
        asked = ("--image", "photo.png", "--prompt", "What is this?") if sees else ("--prompt", "Hello")
        hint = f"try it: {command('chat', args.output, *asked)}"
    else:
        hint = f"build its engines on the device: {command('build', args.output)}"
    print(f"Wrote {args.output} ({size:.0f} MB for {targets}, every comparison passed); {hint}")
    return 0


@contextlib.contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """A closed terminal, or a `timeout` that is over, takes the half-written bundle away too."""

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
