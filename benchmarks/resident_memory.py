"""What stays resident after a short prompt, a long one, release_memory() and close().

    python benchmarks/resident_memory.py BUNDLE [--tokens 1500]

Bytes do not depend on what else the machine does; the milliseconds do.
"""

from __future__ import annotations

import argparse
import json
import time

import edgemm
from edgemm.device.machine import resident_bytes

SENTENCE = "The quick brown fox jumps over the lazy dog. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--tokens", type=int, default=1500)
    args = parser.parse_args()
    found: dict[str, float] = {"imported": _megabytes()}
    model = edgemm.load(args.bundle, device="cpu")
    found["loaded"] = _megabytes()
    model.generate_text("Hi", max_new_tokens=4)
    found["short prompt"] = _megabytes()
    tokens = min(args.tokens, model.manifest.limits.max_context - 16)  # what is written has room, too
    one, two = (model.count_tokens(SENTENCE * times) for times in (1, 2))
    model.generate_text(SENTENCE * max(1, (tokens - one) // (two - one)), max_new_tokens=2)
    found["long prompt"] = _megabytes()
    started = time.perf_counter()
    model.release_memory()
    took_ms = (time.perf_counter() - started) * 1e3
    found["released"] = _megabytes()
    model.close()
    found["closed"] = _megabytes()
    for name, size in found.items():
        print(f"{name:<14} {size:6.0f} MB")
    print(json.dumps({**found, "release_ms": round(took_ms, 1)}))


def _megabytes() -> float:
    return round((resident_bytes() or 0) / 1e6, 1)


if __name__ == "__main__":
    main()
