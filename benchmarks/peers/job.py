"""What every contestant does, in whatever environment it lives: the same tokens, the same clock, the same arithmetic.

Knows numpy and the standard library alone.  A contestant is a script that calls `main(text=, picture=, drawing=)` with
what loads a model for each job it takes; `load(folder, threads)` gives a Writer, a Reader or a Drawer.  The last line
it prints is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

__all__ = ["Drawer", "Reader", "Writer", "clock", "main", "negative_log_likelihood", "seeded_picture"]

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}  # of all threads together, waiting left out
DECODES_AFTER = "128"  # the prompt whose further tokens are timed, too


class Writer(Protocol):
    def reply(self, ids: list[int], new_tokens: int) -> tuple[float, float, list[int]]:
        """Greedy, never ended by a stop token: (seconds to the first token, seconds of the others, the tokens)."""
        ...

    def logits(self, ids: list[int]) -> np.ndarray:
        """(tokens, vocabulary): what follows after each of the ids."""
        ...


class Reader(Protocol):
    def first_token(self, picture: np.ndarray, words: str) -> tuple[float, int | None]:
        """uint8 (side, side, 3) and a question: (seconds to the first token, tokens of the prompt with the picture)."""
        ...


class Drawer(Protocol):
    def draw(self, words: str, steps: int, seed: int) -> np.ndarray:
        """(side, side, 3), without guidance."""
        ...


def clock() -> float:
    """Seconds, by the clock that was asked for."""
    return CLOCKS[_asked["clock"]]()


_asked = {"clock": "wall"}


def main(**loads: Callable[[Path, int], Any]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=loads)
    parser.add_argument("folder", type=Path)
    parser.add_argument("request", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repetitions", type=int, required=True)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--quality", action="store_true")
    args = parser.parse_args()
    _asked["clock"] = args.clock
    request = json.loads(args.request.read_text())[args.job]
    began = clock()
    contestant = loads[args.job](args.folder, args.threads)
    load_s = clock() - began
    answer = DONE[args.job](contestant, request, args.repetitions)
    answer |= {"load_s": load_s, "peak_bytes": _peak_bytes()}
    if args.quality and "text_ids" in request:
        ids = request["text_ids"]
        answer["perplexity"] = float(np.exp(negative_log_likelihood(contestant.logits(ids), ids)))
    print(json.dumps(answer))


def _write(writer: Writer, request: dict[str, Any], repetitions: int) -> dict[str, Any]:
    ids, new_tokens = request["ids"], request["new_tokens"]
    answer: dict[str, Any] = {"first_token_ms": {}}
    for length in request["prompts"]:
        warm, *prompts = _prompts(ids, length, 1 + repetitions)
        count = new_tokens if str(length) == DECODES_AFTER else 1
        writer.reply(warm, min(count, 4))  # what is done once is done now
        runs = [writer.reply(prompt, count) for prompt in prompts]
        for _, _, tokens in runs:
            if len(tokens) != count:
                raise SystemExit(f"wrote {len(tokens)} tokens, expected {count}")
        answer["first_token_ms"][str(length)] = [first * 1e3 for first, _, _ in runs]
        if count > 1:
            answer["token_ms"] = [rest * 1e3 / (count - 1) for _, rest, _ in runs]
            answer["tokens"] = runs[0][2]
    return answer


def _prompts(ids: list[int], length: int, count: int) -> list[list[int]]:
    """As long as one another and all begun otherwise: who keeps what it has read before would not read again."""
    around = ids * math.ceil((length + count) / len(ids))
    return [around[turn : turn + length] for turn in range(count)]


def _read(reader: Reader, request: dict[str, Any], repetitions: int) -> dict[str, Any]:
    side, words = request["side"], request["words"]
    reader.first_token(seeded_picture(side, 0), words)
    runs = [reader.first_token(seeded_picture(side, 1 + turn), words) for turn in range(repetitions)]
    return {"first_token_ms": [seconds * 1e3 for seconds, _ in runs], "prompt_tokens": runs[0][1]}


def _draw(drawer: Drawer, request: dict[str, Any], repetitions: int) -> dict[str, Any]:
    took = []
    for turn in range(1 + repetitions):
        began = clock()
        drawn = drawer.draw(request["words"], request["steps"], turn)
        took.append((clock() - began) * 1e3)
        if drawn.shape != (request["side"], request["side"], 3):
            raise SystemExit(f"drew {drawn.shape}, expected a square of {request['side']}")
    return {"picture_ms": took[1:]}


DONE: dict[str, Callable[[Any, dict[str, Any], int], dict[str, Any]]] = {
    "text": _write,
    "picture": _read,
    "drawing": _draw,
}


def seeded_picture(side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


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
