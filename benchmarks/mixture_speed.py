"""What a mixture of experts costs a token where memory, not work, is the limit: SmolLM2-135M's shape, random weights.

    python benchmarks/mixture_speed.py --work build/mixture --precision int4

Three transformers read the same prompt and go on from it, in turns: the dense one, eight experts of half its width of
which a token meets two (the same work), and a dense one as wide as all experts (the same weights).  The bars of the
design: a mixture's tokens come at 0.8 of the dense one's rate, and at 1.8 of that of the wide one.  Random weights say
nothing of quality; "MB a token" is what of the weights a token reads.  Every bundle passes the export's gate first.
Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from in_turns import measured, works

import edgemm
from edgemm.bench.conditions import commit, machine_card

SHAPE = {"width": 576, "depth": 30, "heads": 9, "kv_heads": 3, "head_width": 64, "ffn_width": 1536}  # SmolLM2-135M's
VOCABULARY = 49_152
EXPERTS, TOP = 8, 2
NAMES = ("dense", "mixture", "wide")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/mixture"), help="where bundles are made and kept")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    bundles = {name: args.work / f"{name}-{args.precision}.bundle" for name in NAMES}
    for name, bundle in bundles.items():
        if not bundle.is_dir():
            _make(name, bundle, args.precision)
    with contextlib.ExitStack() as stack:
        models = {
            name: stack.enter_context(edgemm.load(bundle, device="cpu", threads=args.threads))
            for name, bundle in bundles.items()
        }
        asked = {
            name: {work: call for work, call in works(model).items() if "picture" not in work}
            for name, model in models.items()
        }
        least = measured(asked, args.rounds)
    rows: dict[str, dict[str, Any]] = {
        name: {
            "MB": _megabytes(bundle),
            "MB a token": _read_by_a_token(name, bundle),
            "ms a token": least["a token"][name][0],
            "ms for 128 tokens": least["128 tokens read"][name][0],
        }
        for name, bundle in bundles.items()
    }
    print(f"{'':10}" + "".join(f"{key:>20}" for key in rows["dense"]))
    for name, row in rows.items():
        print(f"{name:10}" + "".join(f"{value:20.1f}" for value in row.values()))
    of_dense, of_wide = (rows[name]["ms a token"] / rows["mixture"]["ms a token"] for name in ("dense", "wide"))
    print(f"tokens a second of the mixture: {of_dense:.2f} of the dense one's, {of_wide:.2f} of the wide one's")
    document = {"benchmark": "mixture_speed", "machine": machine_card(), "commit": commit(Path(__file__).parent)}
    print(json.dumps(document | {"precision": args.precision, "threads": args.threads, "rows": rows, "least": least}))


def _make(name: str, bundle: Path, precision: str) -> None:
    """A checkpoint of random weights, and its bundle."""
    import torch

    from edgemm.model import checkpoint
    from edgemm.model.config import PRESETS, MixtureConfig

    micro = PRESETS["micro"]()
    source = dataclasses.replace(micro.transformer, vocab_size=VOCABULARY, **SHAPE)
    changes: dict[str, dict[str, Any]] = {
        "dense": {},
        "mixture": {"mixture": MixtureConfig(EXPERTS, TOP, source.ffn_width // TOP)},
        "wide": {"ffn_width": source.ffn_width * EXPERTS // TOP},
    }
    config = dataclasses.replace(micro, name=name, transformer=dataclasses.replace(source, **changes[name]))
    bundle.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        checkpoint.save(checkpoint.build(config, 0), Path(folder) / "made", torch.bfloat16)
        words = ["export", f"{folder}/made", "--output", str(bundle), "--precision", precision]
        subprocess.run([sys.executable, "-m", "edgemm", *words], check=True, stdout=sys.stderr)


def _megabytes(bundle: Path) -> float:
    """Of the transformer's files."""
    return sum(file.stat().st_size for file in (bundle / "components" / "transformer").iterdir()) / 1e6


def _read_by_a_token(name: str, bundle: Path) -> float:
    """All of it, but for experts that a token does not meet: six of eight of what the layers have."""
    whole = _megabytes(bundle)
    if name != "mixture":
        return whole
    width, depth = SHAPE["width"], SHAPE["depth"]
    experts = depth * EXPERTS * 3 * width * SHAPE["ffn_width"] // TOP
    per_weight = {"fp32": 4.0, "int8": 1.0, "int4": 0.5 + 2 / 32}[bundle.name.split("-")[1].split(".")[0]]
    return whole - experts * per_weight * (1 - TOP / EXPERTS) / 1e6


if __name__ == "__main__":
    main()
