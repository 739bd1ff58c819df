"""The roofline of this machine (Williams, Waterman and Patterson 2009): measured ceilings, and a bundle under them.

Ceilings come from work that does nothing else, with the same threads: copying arrays, one large product in float32, one
in int8.  What a component computes and reads is counted in its graph (graph_costs.py); how long it took is the
benchmark's.  Only the CPU's ceilings are measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgemm.bundle.bundle import Bundle
from edgemm.errors import EdgemmError, MissingError
from edgemm.estimate.estimate import Workload, runs_of

__all__ = ["Ceilings", "measure_ceilings", "roofline"]

COPY_BYTES = 256 * 2**20  # more than any cache
SIDE = 1024  # of the products
RUNS = 5
PARTS = {  # of runs_of -> milliseconds, from the rows
    "prefill": lambda rows, work: work.prompt_tokens / rows["prefill_tokens_per_s"]["p50"] * 1e3,
    "token": lambda rows, work: rows["time_per_output_token_ms"]["p50"],
    "image_encode": lambda rows, work: rows["image_encode_ms"]["p50"],
    "conditioner": lambda rows, work: rows["conditioner_ms"]["p50"],
    "step": lambda rows, work: rows["denoise_step_ms"]["p50"],
    "image_decode": lambda rows, work: rows["image_decode_ms"]["p50"],
}


@dataclass(frozen=True)
class Ceilings:
    bytes_per_s: float  # read and written, copying 256 MB
    float32_per_s: float  # operations, a multiplication and an addition being two
    int8_per_s: float
    threads: int


def measure_ceilings(threads: int) -> Ceilings:
    """The best of five runs each: a ceiling is what the machine can, not what it mostly does."""
    try:
        import onnxruntime  # noqa: F401 - asked for before the copy takes its time
    except ImportError as error:
        raise MissingError("measuring ceilings needs ONNX Runtime: pip install 'edgemm[ort]'") from error
    operations = 2 * SIDE**3
    return Ceilings(
        bytes_per_s=2 * COPY_BYTES / _best_s(_copy(threads)),
        float32_per_s=operations / _best_s(_product(threads, integer=False)),
        int8_per_s=operations / _best_s(_product(threads, integer=True)),
        threads=threads,
    )


def roofline(bundle: Bundle, result: dict[str, Any]) -> dict[str, Any]:
    """Ceilings and a point for every part that the result has a time for; null with the reason where there is none."""
    card, measured, rows = result["card"], result["measured"], result["rows"]
    if card["device"] != "cpu":
        return {"ceilings": None, "points": [], "reason": f"ceilings of {card['device']} are not measured"}
    work = Workload(measured.get("prompt_tokens", 128), measured.get("new_tokens", 64), measured.get("steps"))
    try:
        runs = runs_of(bundle, card["target"], work)
        ceilings = measure_ceilings(card["threads"])
    except EdgemmError as error:
        return {"ceilings": None, "points": [], "reason": str(error)}
    points = []
    for name, run in runs.items():
        try:
            ms = PARTS[name](rows, work)
        except KeyError:
            continue
        points.append(
            {"part": name, "operations": run.operations, "bytes": run.read_bytes, "ms": ms, "int8": bool(run.int8)}
        )
    return {"ceilings": asdict(ceilings), "points": points, "reason": None}


def _best_s(work: Callable[[], None]) -> float:
    work()
    times = []
    for _ in range(RUNS):
        start_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - start_s)
    return min(times)


def _copy(threads: int) -> Callable[[], None]:
    source, target = np.ones(COPY_BYTES // 8), np.zeros(COPY_BYTES // 8)
    slices = [slice(i * source.size // threads, (i + 1) * source.size // threads) for i in range(threads)]
    pool = ThreadPoolExecutor(threads)  # numpy lets other threads run while it copies

    def run() -> None:
        list(pool.map(lambda part: np.copyto(target[part], source[part]), slices))

    return run


def _product(threads: int, integer: bool) -> Callable[[], None]:
    import onnxruntime as ort

    from edgemm.device.providers import one_integer_node_model, one_node_model

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    graph = one_integer_node_model(SIDE) if integer else one_node_model(side=SIDE)
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    inputs: dict[str, np.ndarray] = {"x": np.ones((SIDE, SIDE), np.uint8 if integer else np.float32)}
    if integer:
        inputs["w"] = np.ones((SIDE, SIDE), np.int8)

    def run() -> None:
        session.run(None, inputs)

    return run
