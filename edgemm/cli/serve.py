"""`edgemm serve BUNDLE [BUNDLE...]`: answers over HTTP as OpenAI's interface does, until it is told to end.

SIGTERM and Ctrl-C let what was asked be answered (--drain-s), then it leaves with 0; a second one ends it at once.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from edgemm.cli.draw import read_backend
from edgemm.cli.flags import add_options, read_options
from edgemm.errors import UsageError
from edgemm.progress import Display
from edgemm.serve.options import ServeOptions

__all__ = ["HELP", "add_arguments", "run"]

HELP = "answer over HTTP, as OpenAI's interface does: text, and pictures among it"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundles", metavar="BUNDLE", nargs="+", help="folders that `edgemm export` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default %(default)s: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one (default %(default)s)")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, rtx or a Jetson's target (%(default)s)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: one a core that may be used")
    parser.add_argument("--backend", metavar="COMPONENT=BACKEND,...", help="other libraries on the CPU, as in `chat`")
    parser.add_argument("--memory-limit-mb", type=float, metavar="MB", help="weights and conversations together")
    parser.add_argument("--no-verify", action="store_true", help="trust the files: skip their hashes")
    parser.add_argument(
        "--drain-s", type=int, default=60, metavar="S", help="how long SIGTERM waits for replies (default %(default)s)"
    )
    add_options(parser, ServeOptions)


def run(args: argparse.Namespace) -> int:
    from edgemm.serve.application import Application
    from edgemm.serve.run import serve

    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port is {args.port}, expected 0 to 65535")
    _log_to_stderr()
    how: dict[str, Any] = {
        "device": args.device,
        "threads": args.threads,
        "verify": not args.no_verify,
        "memory_limit_mb": args.memory_limit_mb,
        "backend": read_backend(args.backend),
    }
    options = read_options(args, ServeOptions)
    with Display():
        application = Application(args.bundles, options, **how)
    if args.host not in LOOPBACK and not options.api_key_file:
        print(f"edgemm: anybody who reaches {args.host} may ask: there is no --api-key-file", file=sys.stderr)
    return serve(application, args.host, args.port, args.drain_s)


def _log_to_stderr() -> None:
    from edgemm.serve.gate import JsonLines

    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("edgemm.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "edgemm.serve" else logging.WARNING)
