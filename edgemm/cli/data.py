"""`edgemm data`: fetch, draw and split the image-text sets.

Only the standard library at import time; the builders come in when one is chosen.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgemm.cli.display import Display
from edgemm.data.sources import STYLES, default_cache
from edgemm.errors import EdgemmError, UsageError

__all__ = ["HELP", "add_arguments", "run"]

HELP = "build the image-text sets: emoji, scenes composed of emoji, procedural shapes, edits, your own pictures"
KINDS = {
    "emoji": "every emoji of the chosen styles, with labels and questions",
    "compose": "two to four emoji on a canvas, with exact captions: counts and relations",
    "shapes": "coloured shapes, with a checker that needs no model",
    "edits": "pairs of pictures and what turns one into the other: style, colour, one thing more",
    "pictures": "your own: a folder with metadata.jsonl, .tar shards, or a Hugging Face dataset on disk",
}
WITH_SOURCE = ("compose", "edits", "pictures")
SIZES = (64, 128)
DEFAULT_COUNT = 4000
SHAPE_TASKS = ("single-object", "two-objects", "counting", "colours", "position", "attribute-binding")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=tuple(KINDS), help="; ".join(f"{kind}: {what}" for kind, what in KINDS.items()))
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the dataset folder to make")
    parser.add_argument("--size", type=int, choices=SIZES, default=SIZES[0], help="pixels a side (default %(default)s)")
    parser.add_argument(
        "--styles", nargs="+", choices=STYLES, default=["fluent", "noto", "noto-v1"],
        help="icon sets to draw (default: %(default)s); twemoji is CC BY 4.0 and goes to the scorer split, "
        "openmoji is CC BY-SA 4.0",
    )  # fmt: skip
    parser.add_argument("--count", type=int, help="scenes to make (default 4000), of pictures at most (default: all)")
    parser.add_argument(
        "--tasks", nargs="+", choices=SHAPE_TASKS, default=SHAPE_TASKS, metavar="TASK",
        help="shapes: kinds of scenes (default: all; one and two objects: all but counting)",
    )  # fmt: skip
    parser.add_argument(
        "--fixed", action="store_true",
        help="shapes: one size, one place a scene and no shades, for models that learn in minutes",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="for questions and scenes (default %(default)s)")
    parser.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        help="compose, edits: an emoji dataset to take from (edits without: shapes); pictures: your folder",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where packages are kept (default ~/.cache/edgemm)")
    parser.add_argument("--offline", action="store_true", help="use only what the cache holds")
    parser.add_argument("--force", action="store_true", help="replace a folder that is not empty")


def run(args: argparse.Namespace) -> int:
    if args.count is not None and args.count < 1:
        raise UsageError(f"--count {args.count} makes nothing; give at least 1")
    scenes = args.count or DEFAULT_COUNT
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed} is negative; give 0 or more")
    if args.source and args.kind not in WITH_SOURCE:
        raise UsageError(f"--source is for {', '.join(WITH_SOURCE)} only, not for {args.kind}")
    if args.fixed and args.kind != "shapes":
        raise UsageError(f"--fixed is for shapes only, not for {args.kind}")
    if args.kind == "pictures" and not args.source:
        raise UsageError("--source is missing: the folder, or the .tar, that holds your pictures")
    from edgemm.data.writer import new_folder

    styles = list(dict.fromkeys(args.styles))
    cache = (args.cache or default_cache()).expanduser()
    with Display(), new_folder(args.output, force=args.force) as folder:
        if args.kind == "emoji":
            from edgemm.data.emoji import build_emoji

            count = build_emoji(folder, args.size, styles, args.seed, cache, offline=args.offline)
        elif args.kind == "compose":
            from edgemm.data.compose import build_compose

            count = build_compose(
                folder, args.size, styles, scenes, args.seed, cache, source=args.source, offline=args.offline
            )
        elif args.kind == "edits":
            from edgemm.data.edits import build_edits

            count = build_edits(folder, args.size, scenes, args.seed, args.source, styles)
        elif args.kind == "pictures":
            from edgemm.data.collect import build_pictures

            count = build_pictures(folder, args.size, args.source, args.count)
        else:
            from edgemm.data.shapes import build_shapes

            tasks = [task.replace("-", " ") for task in args.tasks]
            count = build_shapes(folder, args.size, scenes, args.seed, tasks, fixed=args.fixed)
    print(
        f"Wrote {count} pictures to {args.output}; look at {args.output / 'contact_sheet.png'}, "
        f"then train with: edgemm train --config RECIPE.toml --set data={args.output}"
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="edgemm data", description=HELP)
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except EdgemmError as error:
        print(f"edgemm data: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
