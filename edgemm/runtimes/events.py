"""What a stream gives out while a model works: pieces of text, and progress of a picture.

The last event of a text stream carries the whole result; a stream of drawing ends with an ImageResult (results.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from edgemm.runtimes.results import FinishReason, Picture, TextResult, TokenLogprob

__all__ = ["DenoiseProgress", "TextChunk"]


@dataclass(frozen=True)
class TextChunk:
    """Some tokens and the text that they completed; joined, the texts are the whole reply."""

    token_ids: tuple[int, ...]
    text: str  # always whole characters; may be empty while one is still being spelled
    finished: bool = False
    finish_reason: FinishReason | None = None  # set on the last chunk
    result: TextResult | None = None  # set on the last chunk, unless the reason is "error"
    logprobs: tuple[TokenLogprob, ...] = ()  # of these tokens, when asked for


@dataclass(frozen=True)
class DenoiseProgress:
    """One denoising step is done."""

    step: int  # 1 to steps
    steps: int
    time: float  # t after the step: 1 is the finished picture
    index: int  # which picture of the prompt, from 0
    preview: Picture | None = None  # what the picture is expected to become, when asked for
