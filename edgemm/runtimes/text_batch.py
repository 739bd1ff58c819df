"""Several prompts written side by side: one run of the transformer gives every row its next token.

Each prompt is read alone into its own row of one cache, with the shapes it would have alone; then all rows step
together until the last is done.  Rows never see one another, so each reply is the one that its prompt gets alone, up to
rounding in the last bit where a product of one row is computed by another kernel than a product of many.
Axes: b rows, T cache slots, v vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from edgemm.runtimes.kv_cache import CachedTransformer
from edgemm.runtimes.results import TextResult
from edgemm.runtimes.text_loop import Clock, Reply, TextRequest
from edgemm.tokenizer import Tokenizer

__all__ = ["write_replies"]


def write_replies(
    requests: Sequence[TextRequest],
    image_tokens: Sequence[np.ndarray | None],  # (1, m, width) a row
    transformer: CachedTransformer,  # with a row a request
    tokenizer: Tokenizer,
    cancelled: Callable[[], bool],
    clocks: Sequence[Clock],
) -> list[TextResult]:
    """A result a request, in their order."""
    replies = [Reply(request, tokenizer) for request in requests]
    longest = max(len(request.prompt) for request in requests)
    tokens = np.zeros(len(requests), dtype=np.int64)
    going = np.ones(len(requests), dtype=bool)
    for row, (request, pictures, clock) in enumerate(zip(requests, image_tokens, clocks)):
        if cancelled():
            break
        start = time.perf_counter()
        transformer.prefill(request.prompt, pictures, longest, row)
        clock.prefill_s = time.perf_counter() - start
    step = 0
    while True:
        end = cancelled()
        for row in np.flatnonzero(going).tolist():
            reply, logits = replies[row], transformer.logits[row]
            if not end:
                tokens[row] = reply.choose(logits)
                if step == 0:
                    clocks[row].first_token_s = clocks[row].since_began()
                reply.add(int(tokens[row]), logits)
            if reply.reason is None and end:
                reply.reason = "cancelled"
            elif reply.reason is None and not transformer.cache.has_room(int(transformer.lengths[row]) + 1):
                reply.reason = "length"
            going[row] = reply.reason is None
        if not going.any():
            break
        start = time.perf_counter()
        transformer.step_rows(tokens)
        transformer.lengths[~going] -= 1  # a row that has ended stays where it is; nobody looks at what it computes
        step += 1
        for row in np.flatnonzero(going).tolist():
            clocks[row].decode_s += time.perf_counter() - start
            clocks[row].decode_steps += 1
    results = [reply.end(clock).result for reply, clock in zip(replies, clocks)]
    return [result for result in results if result is not None]
