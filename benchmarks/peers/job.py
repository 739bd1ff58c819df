"""What every contestant does, in whatever environment it lives: the same tokens, the same clock, the same arithmetic.

Knows numpy and the standard library alone.  A contestant is a script that calls `main(load)`; `load(folder, threads)`
gives a Contestant.  The last line it prints is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

__all__ = ["Contestant", "main", "negative_log_likelihood"]


class Contestant(Protocol):
    def reply(self, ids: list[int], new_tokens: int) -> tuple[float, float, list[int]]:
        """Greedy, never ended by a stop token: (seconds to the first token, seconds of the others, the tokens)."""
        ...

    def logits(self, ids: list[int]) -> np.ndarray:
        """(tokens, vocabulary): what follows after each of the ids."""
        ...


def main(load: Callable[[Path, int], Contestant]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("request", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repetitions", type=int, required=True)
    parser.add_argument("--quality", action="store_true")
    args = parser.parse_args()
    request = json.loads(args.request.read_text())
    began = time.perf_counter()
    contestant = load(args.folder, args.threads)
    load_s = time.perf_counter() - began
    warm, *prompts = _prompts(request["prompt_ids"], 1 + args.repetitions)
    contestant.reply(warm, 4)  # what is done once is done now
    runs = [contestant.reply(prompt, request["new_tokens"]) for prompt in prompts]
    for _, _, tokens in runs:
        if len(tokens) != request["new_tokens"]:
            raise SystemExit(f"wrote {len(tokens)} tokens, expected {request['new_tokens']}")
    answer = {
        "load_s": load_s,
        "first_token_ms": [first * 1e3 for first, _, _ in runs],
        "token_ms": [rest * 1e3 / (request["new_tokens"] - 1) for _, rest, _ in runs],
        "tokens": runs[0][2],
        "peak_bytes": _peak_bytes(),
        "perplexity": None,
    }
    if args.quality:
        ids = request["text_ids"]
        answer["perplexity"] = float(np.exp(negative_log_likelihood(contestant.logits(ids), ids)))
    print(json.dumps(answer))


def _prompts(ids: list[int], count: int) -> list[list[int]]:
    """As long as one another and all begun otherwise: who keeps what it has read before would not read again."""
    return [ids[turn:] + ids[:turn] for turn in range(count)]


def negative_log_likelihood(logits: np.ndarray, ids: list[int]) -> float:
    """Mean over ids 1 to the last, each after those before it, in nats."""
    scores = logits[: len(ids) - 1].astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    said = scores[np.arange(len(ids) - 1), ids[1:]]
    return float((np.log(np.exp(scores).sum(axis=1)) - said).mean())


def _peak_bytes() -> int | None:
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return None
