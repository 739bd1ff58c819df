"""What the transformer says of each next token, kept at export and compared on another machine.

A machine that computes something else shows it here long before it chooses another token.  Nothing else is compared:
see loops.py.  Axes: n logits of the vocabulary, evenly taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from edgemm.bundle.chat import as_messages, chat_prompt, with_graph
from edgemm.bundle.manifest import TextLoop
from edgemm.bundle.picture import seeded_picture
from edgemm.runtimes.model import Model
from edgemm.verify.parity import (
    Comparison,
    Recorded,
    TextCase,
    compare_logits,
    measured,
    precision_of,
)
from edgemm.verify.reference_backend import REFERENCE

__all__ = [
    "FEWEST_TOKENS",
    "LOST_DB",
    "asked_first",
    "compare_first",
    "first_logits",
    "logits_of",
    "other_libraries",
    "pictures_of",
    "thinned",
]

FEWEST_TOKENS = 4  # that tell a sound machine
LOST_DB = 10.0  # against what was measured at export: of drawings, Arm's kernels lost 3, products that overflow 17
FLOOR_DB = {
    "fp32": 70.0,  # sums in another order leave 100 and more
    "fp16": 40.0,
    "int8": 20.0,  # inputs that are rounded to 8 bits are rounded by another rule on Arm
    "int4": 20.0,
}  # between two machines with one library; or, if that is less, LOST_DB below what the transformer's own rounding costs
MOST_LOGITS = 2048  # of one token that are kept


def pictures_of(case: TextCase, loop: TextLoop) -> list[np.ndarray]:
    if case.picture_seed is None:
        return []
    frames = [seeded_picture(case.picture_seed + place, loop.image_size) for place in range(case.frames)]
    return list(loop.clip(frames))


def logits_of(model: Model, case: TextCase, loop: TextLoop, images: list[np.ndarray]) -> Iterator[np.ndarray]:
    """(vocab,) after the prompt and after each of torch's tokens; to be read before the next."""
    prompt = chat_prompt(with_graph(as_messages(case.prompt, images), case.graph, loop.graph), loop, model.tokenizer)
    seen = [model._text.reader.picture(image, loop) for image in images]
    prompt, image_tokens = model._text.reader.read(prompt, seen, loop)
    transformer = model._text.conversation()
    yield transformer.prefill(prompt, image_tokens)
    for token in case.tokens[:-1]:
        yield transformer.step(token)


def first_logits(model: Model, recorded: Recorded) -> np.ndarray | None:
    """(tokens, n) float32: of the first tokens of the question that a first load asks; None where it asks none."""
    case, loop = asked_first(recorded), model.manifest.loops.text
    if case is None or loop is None:
        return None
    rows = islice(logits_of(model, case, loop, pictures_of(case, loop)), FEWEST_TOKENS)
    return np.stack([thinned(row) for row in rows])


def thinned(logits: np.ndarray) -> np.ndarray:
    return logits.reshape(-1)[:: -(-logits.size // MOST_LOGITS)].astype(np.float32)


def asked_first(recorded: Recorded) -> TextCase | None:
    texts = [case for case in recorded.texts if case.tokens]
    return max(texts, key=lambda case: case.picture_seed is not None, default=None)


def compare_first(model: Model, recorded: Recorded, found: np.ndarray) -> Iterator[Comparison]:
    """Nothing where the export told none, as of before, or another library computes: that rounds as it likes."""
    wanted, precision = recorded.logits.get(model.choice.target), precision_of(model.manifest, model.choice.target)
    if wanted is not None and precision in FLOOR_DB and not other_libraries(model):
        rows = [row for row in measured(model.bundle) if str(row.get("what")).startswith("transformer (")]
        lost = [row["value"] - LOST_DB for row in rows if row.get("measure") == "signal_db"]  # by rounding alone
        limit = min([FLOOR_DB[precision], *lost])
        yield compare_logits(f"logits of the first {len(found)} tokens", found, wanted[: len(found)], limit)


def other_libraries(model: Model) -> set[str]:
    """Than the one that ran the loops at export."""
    return {choice.backend for choice in model.choices.values()} - {"onnxruntime", REFERENCE}
