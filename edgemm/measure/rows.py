"""The figures a benchmark reports: their names, units, and what exactly the clock saw.

A name ends in its unit, so that a number cannot be read without it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ROWS", "Row"]


@dataclass(frozen=True)
class Row:
    timed: str
    more_is_better: bool = False
    judged: bool = True  # whether a spread or drift of its samples is worth a warning


ROWS = {
    "load_cold_ms": Row(
        "edgemm.load with every engine, hashes checked; fresh process, files not in memory", judged=False
    ),
    "load_warm_ms": Row("the same again in that process: libraries and files are in memory", judged=False),
    "peak_memory_bytes": Row(
        "resident, of a fresh process that loads, reads a picture, replies and draws", judged=False
    ),
    "time_to_first_token_ms": Row("from the call to the first token: tokenizing, prefill, sampling"),
    "prefill_tokens_per_s": Row("prompt tokens over the transformer's prefill alone", more_is_better=True),
    "decode_tokens_per_s": Row("tokens after the first, sampling included", more_is_better=True, judged=False),
    "time_per_output_token_ms": Row("(end to end - time to first token) / (tokens - 1)"),
    "inter_token_ms": Row(
        "from one token to the next as the stream hands them out; every gap is a sample", judged=False
    ),
    "image_encode_ms": Row("one picture through the image encoder, already decoded and resized"),
    "time_to_first_token_with_image_ms": Row("as above, with one picture and a short question"),
    "draw_prefill_ms": Row("the drawing prompt through the transformer, once a picture"),
    "conditioner_ms": Row("once a picture"),
    "denoise_step_ms": Row("one step, guidance included; mean over the steps of a picture"),
    "image_token_ms": Row("one token of a picture, guidance included; mean over the tokens of a picture"),
    "inter_step_ms": Row("from the end of one step to that of the next; every gap is a sample", judged=False),
    "image_decode_ms": Row("tokens to pixels"),
    "image_s": Row("one picture, from the call to pixels"),
}
