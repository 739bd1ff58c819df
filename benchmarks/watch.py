"""A stream watched for long: memory, time a frame at the end against the start, replies against reading anew.

    python benchmarks/watch.py sticker.bundle --frames 1200 --window 16
    python benchmarks/watch.py clips.bundle --frames 1200 --window 8 --ask 2 --moving circle

Frames are seeded pictures, a new one every `--still` frames, as a camera sees a scene for a while. Every `--ask` frames
the question is answered twice: from the cache, and by reading the window anew (reread), which is the same as
generate_text on its frames.  `--moving` shows one shape that turns every 20 frames, ten a second, asks which way it
moves, and counts a reply that changes as an event: F1, where one within a second of the turn that names the new way is
right.  That wants a model that reads clips (survey.py's "clips read").  Prints a table, then one JSON line.  Time it on
a quiet machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

import edgemm
from edgemm.bench.conditions import commit, machine_card
from edgemm.bundle.picture import seeded_picture
from edgemm.data.clips import DIRECTIONS, FRAME_MS, SIDE, SPEEDS, draw_clip

TURN = 20  # frames between two turns


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--frames", type=int, default=1200)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--still", type=int, default=8)
    parser.add_argument("--ask", type=int, default=20)
    parser.add_argument("--question", default="What is this?")
    parser.add_argument("--moving", metavar="SHAPE", help="show a shape that turns; the question is which way it moves")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    push_ms: list[float] = []
    resident: list[int] = []
    same: list[bool] = []
    replies: list[tuple[int, tuple[str, str]]] = []  # frame, what either stream said
    ways = _ways(args.frames)
    question = f"Which way does the {args.moving} move?" if args.moving else args.question
    with edgemm.load(args.bundle, threads=args.threads) as model:
        size = model._text.loop.image_size
        streams = [model.watch(window=args.window, max_new_tokens=8, reread=reread) for reread in (False, True)]
        moving = _moving(args.moving, ways, size) if args.moving else iter(())
        for number in range(args.frames):
            frame = next(moving, None)
            frame = seeded_picture(number // args.still, size) if frame is None else frame
            start = time.perf_counter()
            streams[0].push(frame)
            push_ms.append(1e3 * (time.perf_counter() - start))
            streams[1].push(frame)
            if number % args.ask == args.ask - 1:
                told, anew = (stream.ask(question) for stream in streams)
                same.append(told.token_ids == anew.token_ids)
                replies.append((number, (told.text.strip(), anew.text.strip())))
                resident.append(psutil.Process().memory_info().rss)
        turns = streams[0].turns
    tenth = max(1, len(push_ms) // 10)
    first, last = statistics.median(push_ms[tenth : 2 * tenth]), statistics.median(push_ms[-tenth:])
    slope = np.polyfit(np.arange(len(resident)) * args.ask, resident, 1)[0] * args.frames if len(resident) > 1 else 0.0
    full = same[-(-args.window // args.ask) :]  # questions after the window was full
    print(f"frames in the cache: {turns}")
    print(f"ms a frame, second tenth and last: {first:.2f}, {last:.2f}: {last / first:.2f} times")
    print(f"resident memory over {args.frames} frames: {slope / 1e6:+.2f} MB")
    print(f"replies the same as reading anew: {sum(full)} of {len(full)}")
    found = {}
    if args.moving:
        turns_at = [(number, way) for number, way in enumerate(ways) if number and way != ways[number - 1]]
        for place, how in enumerate(("from the cache", "read anew")):
            said = [(number, reply[place]) for number, reply in replies]
            changes = [one for before, one in itertools.pairwise(said) if one[1] != before[1]]
            found[how] = f1(changes, turns_at, 1000 // FRAME_MS)
            print(f"events, {how}: F1 {found[how]:.2f} of {len(turns_at)} turns, {len(changes)} told")
    document = {"benchmark": "watch", "machine": machine_card(), "commit": commit(Path(__file__).parent)}
    document |= {"frames": args.frames, "window": args.window, "turns": turns, "first_ms": first, "last_ms": last}
    print(json.dumps(document | {"slope_bytes": slope, "same": sum(full), "asked": len(full), "f1": found}))


def _ways(frames: int) -> list[str]:
    """Which way it moves, frame by frame: another one every TURN frames."""
    rng, ways = random.Random(0), ["left"]
    while len(ways) < frames:
        ways.append(ways[-1] if len(ways) % TURN else rng.choice([way for way in DIRECTIONS if way != ways[-1]]))
    return ways


def _moving(shape: str, ways: Sequence[str], size: int) -> Iterator[np.ndarray]:
    """uint8 (S, S, 3): a blue shape that goes on from where it was, and comes in again where it left."""
    middle, step = np.array([size / 2, size / 2]), SPEEDS["quickly"] * size
    one = {"name": shape, "side": round(SIDE * size), "there": [0], "colours": ["blue"]}
    for way in ways:
        middle = (middle + step * np.array(DIRECTIONS[way])) % size
        one = {
            "name": shape,
            "side": round(SIDE * size),
            "middles": [middle.tolist()],
            "there": [0],
            "colours": ["blue"],
        }
        yield np.asarray(draw_clip({"size": size, "frames": 1, "objects": [one]}))


def f1(told: Sequence[tuple[int, str]], real: Sequence[tuple[int, str]], apart: int) -> float:
    """Of events (frame, name): each is right once, by one of its name at most `apart` frames away."""
    left, right = list(real), 0
    for frame, name in told:
        near = [one for one in left if one[1] == name and abs(one[0] - frame) <= apart]
        if near:
            left.remove(near[0])
            right += 1
    return 2 * right / (len(told) + len(real)) if told or real else 1.0


if __name__ == "__main__":
    main()
