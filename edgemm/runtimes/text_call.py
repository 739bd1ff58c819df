"""How a reply is asked for, and what comes back: text, why it ended, and what it took.

Names, defaults and meaning of every option are said once, in TextOptions: Model's methods take them as keyword
arguments, `edgemm chat` as flags, docs/embedding.md has them as a table, and inside of the runtime they are passed
whole.  TextKeywords says the same to type checkers, which cannot read it off a dataclass; a test holds both to one
another (tests/runtimes/test_options.py).  Pictures are asked for in image_call.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from edgemm.bundle.files import read_text
from edgemm.options import option

if TYPE_CHECKING:
    from edgemm.bundle.node_link import GraphSource
    from edgemm.runtimes.video import VideoSource

__all__ = [
    "DRAW_MARKS",
    "FinishReason",
    "Prompted",
    "TextChunk",
    "TextKeywords",
    "TextMetrics",
    "TextOptions",
    "TextResult",
    "TokenLogprob",
    "clipped",
]

Prompted = str | Sequence[dict[str, Any]]  # a prompt, or a list of {"role", "content", "images"}
DRAW_MARKS = ("<draw>", "</draw>")  # around what a model writes to have it drawn
MOST_SHOWN = 60  # characters of a text in a repr
FinishReason = Literal["stop", "length", "cancelled", "error"]


def _file(path: str) -> str:
    """The text in a file, where a flag names one."""
    return read_text(path)


@dataclass(frozen=True)
class TextOptions:
    """The options of generate_text, stream_text and their relatives."""

    max_new_tokens: int = option(128, "most tokens of the reply", metavar="N")
    temperature: float | None = option(None, "0 takes the likeliest token (default: 0)", metavar="T")
    top_k: int | None = option(None, "keep the K likeliest tokens", metavar="K")
    top_p: float | None = option(None, "keep the likeliest tokens of this probability together", metavar="P")
    min_p: float | None = option(None, "drop tokens below this part of the likeliest one's probability", metavar="P")
    repetition_penalty: float = option(1.0, "above 1 repeats less (arXiv:1909.05858)", metavar="R")
    seed: int | None = option(None, "the same seed gives the same reply; None draws one, which the result tells")
    stop: Sequence[str] = option((), "strings that end the reply and are no part of it", metavar="TEXT")
    logprobs: int | None = option(
        None, "tell how likely each token was, and so many of the likeliest beside it", metavar="N"
    )
    json_schema: Mapping[str, Any] | str | None = option(
        None, "the reply is JSON of this schema; the flag takes a file of it", metavar="FILE", type=_file
    )
    grammar: str | None = option(
        None,
        "the reply is a word of this grammar, in Lark's notation; the flag takes a file",
        metavar="FILE",
        type=_file,
    )
    timeout_s: float | None = option(
        None, 'end the reply after so many seconds, as "cancelled"; it keeps what it has', metavar="S"
    )
    ignore_eos: bool = option(False, "the model's own stop tokens end nothing: for benchmarks", flag=False)
    prompt_lookup_num_tokens: int | None = option(
        None,
        "prompt-lookup decoding: most candidates that one run checks (default: as many as pay); in float32 it needs "
        "`edgemm export --prompt-lookup`",
        old=("guess_ahead",),
        metavar="N",
    )
    graph: GraphSource | None = option(
        None,
        "a graph that the conversation is about: node-link JSON as networkx writes it, a dict or a file, its nodes "
        "texts or pictures",
        metavar="FILE",
        type=str,
    )
    video: VideoSource | None = option(
        None,
        "a file, or frames one by one, whose pictures come after `images` in the last message",
        metavar="FILE",
        type=str,
    )
    fps: float | None = option(None, "of a video file: frames a second that are read (default: 2)", metavar="F")
    max_frames: int = option(16, "of a video: where fps gives more, so many, spread evenly", metavar="N")


class TextKeywords(TypedDict, total=False):
    """TextOptions for type checkers."""

    max_new_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    seed: int | None
    stop: Sequence[str]
    logprobs: int | None
    json_schema: Mapping[str, Any] | str | None
    grammar: str | None
    timeout_s: float | None
    ignore_eos: bool
    prompt_lookup_num_tokens: int | None
    graph: GraphSource | None
    video: VideoSource | None
    fps: float | None
    max_frames: int


@dataclass(frozen=True)
class TextMetrics:
    """What a reply took, by the wall clock."""

    prompt_tokens: int  # slots that the prompt took, pictures included
    new_tokens: int
    image_encode_ms: float
    prefill_ms: float
    time_to_first_token_ms: float  # from the call to the first token: pictures, tokenizing and prefill
    decode_tokens_per_s: float  # after the first token; 0 when there was no second
    load_ms: float  # engines that this call had to load first; no part of the other times
    total_ms: float


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was, before temperature and filters: the natural logarithm of its probability."""

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()  # (id, text, logprob) of the likeliest, best first, when asked for


@dataclass(frozen=True)
class TextResult:
    """One reply, whole or as far as it came, and what it took."""

    text: str
    token_ids: tuple[int, ...]  # without the stop token
    finish_reason: FinishReason
    seed: int | None  # what makes this reply come again; None when nothing was drawn at random
    metrics: TextMetrics
    logprobs: tuple[TokenLogprob, ...] | None = None  # one a token, when asked for

    def __repr__(self) -> str:
        return f"TextResult({clipped(self.text)}, {len(self.token_ids)} tokens, finish_reason={self.finish_reason!r})"


def clipped(text: str) -> str:
    """A text as an error or a repr shows it: its beginning, on one line."""
    return repr(text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}...")


@dataclass(frozen=True)
class TextChunk:
    """Some tokens and the text that they completed; joined, the texts are the whole reply."""

    token_ids: tuple[int, ...]
    text: str  # always whole characters; may be empty while one is still being spelled
    finished: bool = False
    finish_reason: FinishReason | None = None  # set on the last chunk
    result: TextResult | None = None  # set on the last chunk, unless the reason is "error"
    logprobs: tuple[TokenLogprob, ...] = ()  # of these tokens, when asked for
