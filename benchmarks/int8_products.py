"""Forms of an 8-bit product in turns: microseconds of processor time, one thread, and ratios to blocks of 32.

    python benchmarks/int8_products.py [--rows 1 4 16 128 512] [--shapes 576x960 576x576 576x3072 1536x576]

Shapes are k x n of SmolLM2-135M's products, queries, keys and values and gate and up as one.  Each form has LAYERS sets
of weights, run one after the other, as a model has them.  Every form has a turn in each round, and the least time of
all rounds counts, so other work on the machine does little.  The graphs are those of the export's own lowering.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import numpy as np
import onnxruntime

from edgemm.bench.conditions import machine_card
from edgemm.quantize.spec import Layer
from edgemm.search.measured import _product

FORMS = {
    "blocks of 32": Layer(8, 32, activations="block"),
    "a scale a token": Layer(8, activations="token"),
    "two terms": Layer(8, activations="token16"),
    "one scale": Layer(8, activations="tensor"),
}
LAYERS, LEAST_ROUNDS, ROUNDS = 8, 5, 60


def sessions(k: int, n: int, layer: Layer) -> list[onnxruntime.InferenceSession]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    model = _product(n, k, layer).SerializeToString()
    return [onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]) for _ in range(LAYERS)]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 128, 512])
    parser.add_argument("--shapes", nargs="+", default=["576x960", "576x576", "576x3072", "1536x576"])
    args = parser.parse_args(words)
    found: dict[str, dict[str, float]] = {}
    print(f"{'k x n':>10} {'rows':>5}" + "".join(f"{form:>24}" for form in FORMS))
    for shape in args.shapes:
        k, n = map(int, shape.split("x"))
        made = {form: sessions(k, n, layer) for form, layer in FORMS.items()}
        for rows in args.rows:
            x = np.random.default_rng(0).standard_normal((rows, k)).astype(np.float32)
            least = dict.fromkeys(FORMS, float("inf"))
            for _ in range(max(LEAST_ROUNDS, ROUNDS // max(1, rows // 8))):
                for form, opened in made.items():
                    began = time.thread_time()
                    for session in opened:
                        session.run(None, {"x": x})
                    least[form] = min(least[form], (time.thread_time() - began) / LAYERS * 1e6)
            first = next(iter(least.values()))
            cells = [f"{took:.0f} us {took / first:5.2f}" for took in least.values()]
            print(f"{shape:>10} {rows:>5}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
            found[f"{shape}, {rows} rows"] = least
    print(json.dumps({"benchmark": "int8_products", "card": machine_card(), "us": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
