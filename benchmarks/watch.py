"""A stream watched for long: memory, time a frame at the end against the start, replies against reading anew.

    python benchmarks/watch.py sticker.bundle --frames 1200 --window 16

Frames are seeded pictures, a new one every `--still` frames, as a camera sees a scene for a while. Every `--ask` frames
the question is answered twice: from the cache, and by reading the window anew (reread), which is the same as
generate_text on its frames.  Prints a table, then one JSON line.  Time it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import psutil

import edgemm
from edgemm.bench.conditions import commit, machine_card
from edgemm.bundle.picture import seeded_picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--frames", type=int, default=1200)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--still", type=int, default=8)
    parser.add_argument("--ask", type=int, default=20)
    parser.add_argument("--question", default="What is this?")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    push_ms: list[float] = []
    resident: list[int] = []
    same: list[bool] = []
    with edgemm.load(args.bundle, threads=args.threads) as model:
        size = model._text.loop.image_size
        streams = [model.watch(window=args.window, max_new_tokens=8, reread=reread) for reread in (False, True)]
        for number in range(args.frames):
            frame = seeded_picture(number // args.still, size)
            start = time.perf_counter()
            streams[0].push(frame)
            push_ms.append(1e3 * (time.perf_counter() - start))
            streams[1].push(frame)
            if number % args.ask == args.ask - 1:
                told, anew = (stream.ask(args.question).token_ids for stream in streams)
                same.append(told == anew)
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
    document = {"benchmark": "watch", "machine": machine_card(), "commit": commit(Path(__file__).parent)}
    document |= {"frames": args.frames, "window": args.window, "turns": turns, "first_ms": first, "last_ms": last}
    print(json.dumps(document | {"slope_bytes": slope, "same": sum(full), "asked": len(full)}))


if __name__ == "__main__":
    main()
