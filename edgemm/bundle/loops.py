"""The loops a bundle asks for: numbers and strings that make one runtime serve every family.

They are fields of manifest.json (docs/bundle.md), never code; runtimes/text_loop.py, runtimes/codes_loop.py and
runtimes/denoise_loop.py run them.  The denoise loop's own are in denoise.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgemm.bundle.denoise import DenoiseLoop, DenoiseTemplate, EditGuidance, LatentGrid
from edgemm.bundle.strict_json import check_one_of, check_range
from edgemm.errors import BundleError

__all__ = [
    "DenoiseLoop",
    "DenoiseTemplate",
    "EditGuidance",
    "ImageTokensLoop",
    "LatentGrid",
    "Limits",
    "Loops",
    "TextLoop",
    "SIDE_BY_SIDE",
    "TextTemplate",
    "check_one_of",
    "check_range",
]

SIDE_BY_SIDE = 4  # pictures of codes that are drawn in one batch: each weight is read once for all of them


@dataclass(frozen=True)
class TextTemplate:
    """Strings around each message."""

    user_open: str
    user_close: str
    assistant_open: str
    assistant_close: str
    system_open: str
    system_close: str
    system_default: str  # the system message when none is given; "" leaves it out
    opening: str = ""  # starts a conversation that has no system message
    reply_open: str | None = None  # starts the reply that is asked for; None: the same as assistant_open
    takes_system: bool = True  # False: a system message is refused


@dataclass(frozen=True)
class TextLoop:
    """Prefill, decode, sample, stop."""

    template: TextTemplate
    image_close: str  # after a picture's tokens
    image_size: int  # side of the square that image_encoder reads, in pixels
    image_token_count: int  # rows that image_encoder gives for one picture
    background: tuple[int, int, int]  # RGB that transparent pictures are laid on
    stop_token_ids: tuple[int, ...]
    joined: bool = False  # True: the whole conversation is tokenized as one string, False: each piece alone
    image_token: str = ""  # joined: the token that stands, image_token_count times, for a picture
    image_open: str = ""  # joined: before each picture's tokens
    open_is_first: bool = False  # joined: image_open is one token, the first of the image_token_count
    image_end: str = ""  # joined: after each picture's tokens
    image_between: str = ""  # joined: between two pictures; image_close comes after the last
    image_fit: str = "pad"  # all of it on the background; "pad_cut": the same, the shorter side cut to whole pixels and
    # not rounded; "pad_first": made a square and resized then; "crop": the middle square; "stretch": squeezed
    image_least: int = 1  # pixels that the shorter side has at least, when it is padded
    image_resample: str = "bicubic"  # Pillow's name of the filter
    strip: bool = False  # messages lose the blanks around them
    apart: bool = False  # joined: no token stands for a picture; the strings before and after it are tokenized apart
    adds_special: bool = False  # joined: the tokenizer itself puts its special tokens around the whole string
    thoughts_end: str = ""  # joined: of an earlier reply what stands behind the last of these is read, "" all of it
    thoughts_blank: str = ""  # joined: letters that are taken away there, too
    silent_ids: str | None = None  # file whose tensor `ids` names tokens that a reply never has
    block: bool = False  # not joined: pictures stand before what opens their message, and all of image_open, a
    # picture's tokens and image_end see one another
    image_lead: int = 0  # not joined: the first rows of a picture, which see only those before them, as image_open
    # does before them; the others and image_end see one another

    def __post_init__(self) -> None:
        if self.block and self.joined:
            raise BundleError("block and joined are both true, expected one of them")
        if self.image_lead and (self.joined or self.block):
            raise BundleError("image_lead is given beside joined or block, expected one of them")
        check_range("image_lead", self.image_lead, 0, self.image_token_count)
        check_one_of("image_fit", self.image_fit, "pad", "pad_cut", "pad_first", "crop", "stretch")
        check_one_of("image_resample", self.image_resample, "nearest", "bilinear", "bicubic", "lanczos")
        for name in ("image_size", "image_token_count", "image_least"):
            check_range(name, getattr(self, name), 1, 65_536)
        for channel in self.background:
            check_range("background", channel, 0, 255)
        for token in self.stop_token_ids:
            check_range("stop_token_ids", token, 0, 2**31)

    @property
    def around(self) -> tuple[str, str]:
        """What belongs to a picture's block."""
        return (self.image_open, self.image_end) if self.block or self.image_lead else ("", "")


@dataclass(frozen=True)
class ImageTokensLoop:
    """Token after token of a picture, row by row, with guidance; then vq_decoder makes pixels of their codes."""

    open: str  # the prompt stands between the two, tokenized as one string
    close: str
    rows: int  # of codes
    columns: int
    image_height: int  # pixels
    image_width: int
    code_ids: str | None  # file whose tensor `ids` gives the token id of each code; None: image_head knows only codes
    row_end: int | None  # token id that the model reads after each row but the last
    unconditional: str  # "pad": the prompt with pad_id in place of all but kept_ids; "prompt": another prompt
    pad_id: int
    kept_ids: tuple[int, ...]
    negative_prompt: str  # of "prompt", when the caller names none
    guidance: str  # of "logits" or of "log_probabilities"
    guidance_scale: float
    temperature: float
    top_k: int | None
    top_p: float | None
    strip: bool = False

    def __post_init__(self) -> None:
        check_one_of("unconditional", self.unconditional, "pad", "prompt")
        check_one_of("guidance", self.guidance, "logits", "log_probabilities")
        for name in ("rows", "columns", "image_height", "image_width"):
            check_range(name, getattr(self, name), 1, 65_536)
        for token in (self.pad_id, *self.kept_ids, *(() if self.row_end is None else (self.row_end,))):
            check_range("pad_id, kept_ids, row_end", token, 0, 2**31)
        check_range("guidance_scale", self.guidance_scale, 0, 1000)
        check_range("temperature", self.temperature, 0, 100)

    @property
    def length(self) -> int:
        """Tokens the model reads and writes for one picture."""
        return self.rows * self.columns + (0 if self.row_end is None else self.rows - 1)


@dataclass(frozen=True)
class Loops:
    """What the bundle can do; None where it cannot."""

    text: TextLoop | None = None
    denoise: DenoiseLoop | None = None
    image_tokens: ImageTokensLoop | None = None


@dataclass(frozen=True)
class Limits:
    max_context: int  # cache slots
    max_image_pixels: int  # width x height of a picture that may be decoded
    max_steps: int

    def __post_init__(self) -> None:
        for name in ("max_context", "max_image_pixels", "max_steps"):
            check_range(name, getattr(self, name), 1, 2**31)
