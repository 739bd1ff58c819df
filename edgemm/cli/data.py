"""`edgemm data`: fetch, draw and split the image-text sets.

Only the standard library at import time; the builders come in when one is chosen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edgemm.data.sources import STYLES, default_cache
from edgemm.errors import UsageError
from edgemm.progress import Display

__all__ = ["HELP", "add_arguments", "run"]

HELP = (
    "build the image-text sets: emoji, open icons, composed scenes, procedural shapes and clips, edits, your own "
    "pictures"
)
KINDS = {
    "emoji": "every emoji of the chosen styles, with labels and questions",
    "icons": "40,000 icons of open sets, each in a colour and on a ground that its captions tell",
    "compose": "two to four emoji, or icons, on a canvas, with exact captions: counts and relations",
    "shapes": "coloured shapes, with a checker that needs no model",
    "graphs": "graphs of coloured shapes to ask about and to draw, with exact answers and a checker",
    "clips": "coloured shapes that move and change, with a checker that needs no model",
    "edits": "pairs of pictures and what turns one into the other: style, colour, one thing more",
    "pictures": "your own: a folder with metadata.jsonl, .tar shards, or a Hugging Face dataset on disk",
}
SIZES = (64, 128)
USUAL = ("fluent", "noto", "noto-v1")  # styles
SHAPE_TASKS = ("single-object", "two-objects", "counting", "colours", "position", "attribute-binding")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(
        dest="kind", required=True, metavar="KIND", title="kinds, each with its own --help", parser_class=type(parser)
    )
    for kind, what in KINDS.items():
        one = kinds.add_parser(kind, help=what, description=what, allow_abbrev=False)
        one.add_argument("--output", type=Path, required=True, metavar="DIR", help="the dataset folder to make")
        one.add_argument(
            "--size", type=int, choices=SIZES, default=SIZES[0], help="pixels a side (default %(default)s)"
        )
        _add_own(one, kind)
        one.add_argument("--force", action="store_true", help="replace a dataset that stands there")
        one.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _add_own(parser: argparse.ArgumentParser, kind: str) -> None:
    """The options of one kind."""
    if kind == "pictures":
        _add_pictures(parser)
        return
    _add_packages(parser, kind)
    _add_making(parser, kind)
    if kind == "clips":
        parser.add_argument(
            "--fixed",
            action="store_true",
            help="to be drawn: one shape, every pixel as the caption says (else: to be read)",
        )
    if kind == "graphs":
        parser.add_argument(
            "--fixed", action="store_true", help="every second is drawn, and its edges leave one picture"
        )
    if kind == "shapes":
        parser.add_argument(
            "--tasks", nargs="+", choices=SHAPE_TASKS, default=SHAPE_TASKS, metavar="TASK",
            help="kinds of scenes (default: all; one and two objects: all but counting)",
        )  # fmt: skip
        parser.add_argument(
            "--fixed", action="store_true", help="one size, one place a scene and no shades, to be learned in minutes"
        )


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    """Of a folder of one's own."""
    parser.add_argument(
        "--source", type=Path, required=True, metavar="DIR",
        help="your folder: with metadata.jsonl or .csv, a .txt beside each picture, folders named like their "
        "labels, .tar shards, or a `datasets` folder",
    )  # fmt: skip
    parser.add_argument("--count", type=int, help="pictures at most, by lot (default: all); of shards the first")
    parser.add_argument("--skip-broken", action="store_true", help="leave out pictures that cannot be read")


def _add_packages(parser: argparse.ArgumentParser, kind: str) -> None:
    """Which drawings are taken from which packages."""
    if kind in ("emoji", "compose", "edits"):
        parser.add_argument(
            "--styles", nargs="+", choices=STYLES,
            help=f"icon sets to draw (default: {' '.join(USUAL)}); twemoji is CC BY 4.0 and goes to the scorer split, "
            "openmoji is CC BY-SA 4.0",
        )  # fmt: skip
    if kind == "icons":
        parser.add_argument(
            "--sets", nargs="+", metavar="SET", help="icon sets to draw (default: all; a name that is none lists them)"
        )
    if kind == "emoji":
        parser.add_argument(
            "--hues", type=int, default=0, metavar="N",
            help="also N copies in other colours of each training drawing of a thing that comes in any",
        )  # fmt: skip
        parser.add_argument(
            "--plain-words", action="store_true", help='also captions as people ask: "a picture of a car"'
        )
    if kind in ("emoji", "icons", "compose"):
        parser.add_argument(
            "--cache", type=Path, metavar="DIR", help="where packages are kept (default ~/.cache/edgemm)"
        )
        parser.add_argument("--offline", action="store_true", help="use only what the cache holds")


def _add_making(parser: argparse.ArgumentParser, kind: str) -> None:
    """What scenes are made of, and how many."""
    parser.add_argument("--seed", type=int, default=0, help="for questions and scenes (default %(default)s)")
    if kind in ("compose", "edits"):
        otherwise = ": shapes" if kind == "edits" else " of --styles is made"
        parser.add_argument(
            "--source", type=Path, metavar="DIR", help=f"a set of emoji or of icons to take from (without{otherwise})"
        )
    if kind == "icons":
        parser.add_argument("--count", type=int, help="icons at most, chosen by lot (default: all)")
    elif kind != "emoji":
        parser.add_argument("--count", type=int, default=4000, help="scenes to make (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    if getattr(args, "count", None) is not None and args.count < 1:
        raise UsageError(f"--count {args.count} makes nothing; give at least 1")
    if args.kind == "clips" and not args.fixed and args.count % 2:
        raise UsageError(f"--count {args.count} is odd: clips to be read come two and two, each with its twin")
    if not 0 <= getattr(args, "hues", 0) <= 7:
        raise UsageError(f"--hues {args.hues}, expected 0 to 7")
    if getattr(args, "seed", 0) < 0:
        raise UsageError(f"--seed {args.seed} is negative; give 0 or more")
    if args.kind == "edits" and args.styles and not args.source:
        raise UsageError("--styles are of emoji, and without --source shapes are edited: give one, or leave them out")
    if args.kind == "compose" and args.source and (args.cache or args.offline):
        raise UsageError(
            "--cache and --offline are of packages, and nothing is fetched beside --source: leave them out"
        )
    from edgemm.data.writer import new_folder

    with Display(), new_folder(args.output, force=args.force, source=getattr(args, "source", None)) as folder:
        count, broken = _build(folder, args)
    skipped = f" ({len(broken)} broken ones were left out, the first: {broken[0]})" if broken else ""
    print(
        f"Wrote {count} pictures to {args.output}{skipped}; look at {args.output / 'contact_sheet.png'}, "
        f"then train with: {_next(args)}"
    )
    return 0


def _build(folder: Path, args: argparse.Namespace) -> tuple[int, list[str]]:
    """How many pictures there are, and what is wrong with those that were left out."""
    if args.kind == "pictures":
        from edgemm.data.collect import build_pictures

        return build_pictures(folder, args.size, args.source, args.count, args.skip_broken)
    if args.kind == "shapes":
        from edgemm.data.shapes import build_shapes

        tasks = [task.replace("-", " ") for task in args.tasks]
        return build_shapes(folder, args.size, args.count, args.seed, tasks, fixed=args.fixed), []
    if args.kind == "graphs":
        from edgemm.data.graphs import build_graphs

        return build_graphs(folder, args.size, args.count, args.seed, fixed=args.fixed), []
    if args.kind == "clips":
        from edgemm.data.clips import build_clips

        return build_clips(folder, args.size, args.count, args.seed, fixed=args.fixed), []
    if args.kind == "icons":
        from edgemm.data.icon_pictures import build_icons

        cache, offline = (args.cache or default_cache()).expanduser(), args.offline
        return build_icons(folder, args.size, args.sets, args.seed, cache, count=args.count, offline=offline), []
    styles = list(dict.fromkeys(args.styles or USUAL))
    if args.kind == "edits":
        from edgemm.data.edits import build_edits

        return build_edits(folder, args.size, args.count, args.seed, args.source, styles), []
    cache = (args.cache or default_cache()).expanduser()
    if args.kind == "emoji":
        from edgemm.data.emoji import build_emoji

        wanted = {"hues": args.hues, "plain": args.plain_words, "offline": args.offline}
        return build_emoji(folder, args.size, styles, args.seed, cache, **wanted), []
    from edgemm.data.compose import build_compose

    source, offline = args.source, args.offline
    return build_compose(folder, args.size, styles, args.count, args.seed, cache, source=source, offline=offline), []


def _next(args: argparse.Namespace) -> str:
    """The command that trains on such a dataset."""
    if args.kind == "pictures":
        return f"edgemm finetune CHECKPOINT --data {args.output} --output runs/{args.output.name}"
    return f"edgemm train --config RECIPE.toml --data {args.output}"
