"""`edgemm doctor [BUNDLE]`: what this machine can run, and what to install."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from edgemm.errors import MissingError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?", help="say what this bundle would do here")
    parser.add_argument(
        "--root", metavar="FOLDER", type=Path, default=Path("/"), help="of a recorded machine: proc, sys, etc"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the page")


def run(args: argparse.Namespace) -> int:
    """0 when a bundle can run here, 4 when something is missing for that."""
    from edgemm.device.doctor import examine, report_json, report_text

    report = examine(args.bundle, args.root)
    print(json.dumps(report_json(report)) if args.json else report_text(report))
    return 0 if report.healthy else MissingError.exit_code
