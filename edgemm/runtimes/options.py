"""How a reply or a picture is asked for: names, defaults and meaning of every option, said once.

Model's methods take them as keyword arguments, `edgemm chat` and `edgemm draw` as flags, docs/embedding.md has them as
tables, and inside of the runtime they are passed whole.  TextKeywords and DrawingKeywords say the same to type
checkers, which cannot read them off a dataclass; tests/runtimes/test_options.py holds both to one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypedDict

from edgemm.bundle.reading import read_text
from edgemm.errors import UsageError
from edgemm.options import option

if TYPE_CHECKING:
    import numpy as np

    from edgemm.bundle.picture import PictureSource

__all__ = ["MOST_PICTURES", "DrawingKeywords", "DrawingOptions", "TextKeywords", "TextOptions", "check_whole"]

MOST_PICTURES = 64  # of one prompt in one call


def _file(path: str) -> str:
    """The text in a file, where a flag names one."""
    return read_text(path)


@dataclass(frozen=True)
class TextOptions:
    """The options of generate_text, stream_text and their relatives."""

    max_new_tokens: int = option(128, "most tokens of the reply", metavar="N")
    temperature: float = option(0.0, "0 takes the likeliest token", metavar="T")
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
        "prompt-lookup decoding: most candidates that one run checks; needs `edgemm export --prompt-lookup`",
        old=("guess_ahead",),
        metavar="N",
    )


class TextKeywords(TypedDict, total=False):
    """TextOptions for type checkers."""

    max_new_tokens: int
    temperature: float
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


@dataclass(frozen=True, eq=False)
class DrawingOptions:
    """The options of generate_image and stream_image; what is None is the bundle's own default."""

    num_inference_steps: int | None = option(None, "denoising steps (default: the bundle's own)", metavar="N")
    guidance_scale: float | None = option(None, "1 switches guidance off (default: the bundle's own)", metavar="W")
    seed: int = option(0, "the same seed gives the same picture; the next pictures have the next seeds")
    num_images: int = option(1, "pictures of the prompt, from 1 to 64", metavar="N")
    noise: np.ndarray | None = option(
        None,
        "float32, shaped as what is denoised, (n, p) or (c, h, w), for several pictures with their number before it; "
        "in the place of the seeds' noise",
        flag=False,
    )
    preview: bool = option(False, "each step shows what it expects the picture to become", flag=False)
    timeout_s: float | None = option(None, "give up after so many seconds", metavar="S")
    temperature: float | None = option(
        None, "of models that draw token by token: 0 takes the likeliest (default: the bundle's own)", metavar="T"
    )
    top_k: int | None = option(None, "of the same: keep the K likeliest tokens", metavar="K")
    top_p: float | None = option(None, "of the same: keep the likeliest tokens of this probability", metavar="P")
    negative_prompt: str | None = option(
        None, "what guidance leads away from, in the place of the empty prompt", metavar="TEXT"
    )
    image: PictureSource | None = option(
        None, "a picture to edit, for bundles whose model was taught to", metavar="FILE", type=str
    )
    image_guidance_scale: float | None = option(
        None, "how closely the picture that is edited is kept, for models that know such a thing", metavar="W"
    )
    width: int | None = option(None, "of the picture, for models that draw several sizes", metavar="PIXELS")
    height: int | None = option(None, "the same", metavar="PIXELS")
    one_call: bool = option(False, "by the bundle's graph of the whole loop; needs `edgemm export --one-call draw`")

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, 2**64 - 1)
        check_whole("num_images", self.num_images, 1, MOST_PICTURES)

    @property
    def seeds(self) -> tuple[int, ...]:
        """One a picture."""
        return tuple(int(self.seed) + index for index in range(self.num_images))


class DrawingKeywords(TypedDict, total=False):
    """DrawingOptions for type checkers."""

    num_inference_steps: int | None
    guidance_scale: float | None
    seed: int
    num_images: int
    noise: np.ndarray | None
    preview: bool
    timeout_s: float | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    negative_prompt: str | None
    image: PictureSource | None
    image_guidance_scale: float | None
    width: int | None
    height: int | None
    one_call: bool


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise UsageError(f"{name} is {value!r}, expected a whole number from {low} to {high}")
