"""Prompt lookup beside none: tokens a second of whole replies, in turns, and whether every reply is the same.

    edgemm export checkpoints/sticker-small --output int8.bundle --precision int8 --prompt-lookup
    python benchmarks/prompt_lookup.py int8.bundle [more.bundle ...] --rounds 4 [--threads 1]

Replies that repeat their prompt, that have to be JSON of a schema, and that repeat nothing on purpose.  "by default"
checks as many candidates as pay.  The least time of all rounds counts.  Prints a table, then one JSON line; exits with
1 where a reply is another than without.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import edgemm
from edgemm.bench.conditions import machine_card

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "colour": {"enum": ["red", "green", "blue"]},
        "things": {
            "type": "array",
            "minItems": 4,
            "maxItems": 4,
            "items": {
                "type": "object",
                "properties": {
                    "thing": {"type": "string", "maxLength": 12},
                    "colour": {"enum": ["red", "green", "blue"]},
                },
                "required": ["thing", "colour"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["name", "colour", "things"],
    "additionalProperties": False,
}
SAID = "The small boat left the harbor at noon, passed the old lighthouse, and came home before the rain."
REPLIES: dict[str, tuple[str, dict[str, Any]]] = {
    "a sentence said again": (
        f'Repeat word for word, twice: "{SAID}"',
        {"grammar": f'start: "{SAID} {SAID}"', "max_new_tokens": 96},
    ),
    "JSON of a schema": ("Describe a toy box as JSON.", {"json_schema": SCHEMA, "max_new_tokens": 120}),
    "a story": (
        "Write a short story about a small robot that learns to paint.",
        {"max_new_tokens": 120, "ignore_eos": True},
    ),
    "a list of facts": ("Tell me some facts about the moon.", {"max_new_tokens": 120, "ignore_eos": True}),
}
SETTINGS = {"off": 0, "by default": None, "3": 3, "6": 6}


def measured(path: Path, rounds: int, threads: int | None) -> dict[str, Any]:
    """Reply -> setting -> tokens a second; raises SystemExit where two settings say two things."""
    found: dict[str, Any] = {}
    with edgemm.load(path, device="cpu", threads=threads) as model:
        for name, (prompt, options) in REPLIES.items():
            best: dict[str, float] = {}
            said = {}
            for _ in range(rounds):
                for setting, most in SETTINGS.items():
                    began = time.perf_counter()
                    reply = model.generate_text(prompt, prompt_lookup_num_tokens=most, **options)
                    took = time.perf_counter() - began
                    best[setting] = min(best.get(setting, took), took)
                    said[setting] = reply.token_ids
            if len(set(said.values())) > 1:
                sys.exit(f"{path}, {name}: replies differ")
            tokens = len(said["off"])
            found[name] = {"tokens": tokens} | {setting: tokens / took for setting, took in best.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    rows = {}
    for path in args.bundle:
        rows[str(path)] = measured(path, args.rounds, args.threads)
        print(f"{path}: tokens a second, ratio to off")
        for name, row in rows[str(path)].items():
            cells = "  ".join(f"{setting} {row[setting]:6.1f} {row[setting] / row['off']:5.2f}" for setting in SETTINGS)
            print(f"  {name:24}{row['tokens']:5} tokens  {cells}")
    document = {"benchmark": "prompt_lookup", "card": machine_card(), "threads": args.threads, "tokens_a_second": rows}
    print(json.dumps(document))


if __name__ == "__main__":
    main()
