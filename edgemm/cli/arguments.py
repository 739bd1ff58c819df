"""The flags that every verb with a model shares, and the model that they open."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from edgemm.cli.display import Display
from edgemm.errors import UsageError

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model

__all__ = ["add_model_arguments", "open_model", "read_backend"]


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder that `edgemm export` wrote")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: one a core that may be used")
    parser.add_argument(
        "--backend",
        metavar="COMPONENT=BACKEND,...",
        help="other libraries on the CPU, for example denoiser=openvino-bf16; one name alone is for all components",
    )
    parser.add_argument("--memory-limit-mb", type=float, metavar="MB", help="weights and conversations together")
    parser.add_argument("--adapter", metavar="FOLDER", help="a LoRA adapter, for bundles exported with --adapters")
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
    pairs = [pair.partition("=") for pair in words.split(",")]
    return {component.strip(): backend.strip() for component, _, backend in pairs}
