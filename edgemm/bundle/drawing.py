"""How a bundle draws, told by numbers and strings: the fields of the denoise loop, and of the loop of image tokens.

A model that edgemm trains needs only the fields without a default; the others tell the loop of models that others
published (docs/bundle.md, loops.denoise).  runtimes/schedule.py has the mathematics, runtimes/denoise_loop.py the loop.
Axes: n image tokens of all frames, p numbers in one; or c channels, h rows, w columns of a grid of latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from edgemm.bundle.files import check_one_of, check_range
from edgemm.errors import BundleError

__all__ = ["SIDE_BY_SIDE", "DenoiseLoop", "DenoiseTemplate", "EditGuidance", "ImageTokensLoop", "LatentGrid"]

SIDE_BY_SIDE = 4  # pictures of codes that are drawn in one batch: each weight is read once for all of them
LARGEST_SIDE = 16_384  # of a picture, in pixels
MOST_FRAMES = 1024  # of a clip
LARGEST_SIGMA = 1e6


@dataclass(frozen=True)
class DenoiseTemplate:
    """The prompt stands between open and close."""

    open: str
    close: str
    joined: bool = False  # True: all of it is tokenized as one string; False: each piece alone, the prompt with a blank
    strip: bool = False  # the prompt loses the blanks around it
    image_close: str = ""  # after the tokens of a picture to edit, which stand after `open`
    size_sentence: str = ""  # ends the prompt and names {width} and {height}, in pixels

    def __post_init__(self) -> None:
        try:
            self.size_sentence.format(width=1, height=1)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise BundleError(
                f"size_sentence is {self.size_sentence!r}, expected no other fields than {{width}}, {{height}}"
            ) from error


@dataclass(frozen=True)
class LatentGrid:
    """Latents (c, h, w) in the place of tokens (n, p), and how large the pictures are that they make.

    Without `largest` there is one size; with it a caller may ask for others, each side a multiple of `multiple` from
    `smallest` to `largest`, and no more than `most_pixels` in all.
    """

    channels: int  # c
    cell: int  # pixels of a picture's side for one place of the grid: h = height / cell
    height: int  # of a picture when nobody says otherwise, in pixels
    width: int
    smallest: int = 0
    largest: int = 0  # 0: of the one size only
    multiple: int = 0  # 0: of `cell`
    most_pixels: int = 0  # 0: whatever the sides allow

    def __post_init__(self) -> None:
        check_range("channels", self.channels, 1, 65_536)
        check_range("cell", self.cell, 1, LARGEST_SIDE)
        for name in ("height", "width"):
            check_range(name, getattr(self, name), 1, LARGEST_SIDE)
        for name in ("smallest", "largest", "multiple"):
            check_range(name, getattr(self, name), 0, LARGEST_SIDE)
        check_range("most_pixels", self.most_pixels, 0, LARGEST_SIDE**2)
        if self.multiple % self.cell:
            raise BundleError(f"multiple is {self.multiple}, expected a multiple of cell {self.cell}")
        if self.largest and not self.smallest <= self.largest:
            raise BundleError(f"smallest is {self.smallest}, more than largest {self.largest}")
        if problem := self.problem(self.height, self.width):
            raise BundleError(f"height, width: {problem}")

    @property
    def free(self) -> bool:
        """Whether a caller may ask for other sizes."""
        return self.largest > 0

    def nearest(self, height: int, width: int) -> tuple[int, int]:
        """The size that can be drawn and is most like a picture's; larger only where that is less than `smallest`."""
        if not self.free:
            return self.height, self.width
        step = self.multiple or self.cell
        least, most = -(-max(self.smallest, 1) // step) * step, self.largest // step * step
        scale = min(1.0, most / max(height, width))
        if self.most_pixels:
            scale = min(scale, math.sqrt(self.most_pixels / (height * width)))
        scale = max(scale, least / min(height, width))
        found = [min(max(round(side * scale / step) * step, least), most) for side in (height, width)]
        while self.most_pixels and math.prod(found) > self.most_pixels and max(found) > least:
            found[found.index(max(found))] -= step
        return found[0], found[1]

    def beside(self, side: int, own: int, other: int) -> int:
        """The other side of a picture of which one is to have `side` pixels, and that has `own` and `other` now."""
        step = self.multiple or self.cell
        least, most = -(-max(self.smallest, 1) // step) * step, self.largest // step * step
        return min(max(round(side * other / own / step) * step, least), most)

    def problem(self, height: int, width: int) -> str | None:
        """Why this bundle cannot draw a picture of so many pixels; None where it can."""
        step = self.multiple or self.cell
        for name, side, own in (("height", height, self.height), ("width", width, self.width)):
            if not self.free and side != own:
                return f"{name} is {side}, this bundle draws pictures of {self.width} x {self.height} only"
            if side % step:
                return f"{name} is {side}, expected a multiple of {step}"
            if self.free and not self.smallest <= side <= self.largest:
                return f"{name} is {side}, expected {self.smallest} to {self.largest}"
        if self.most_pixels and height * width > self.most_pixels:
            return f"{width} x {height} is {width * height} pixels, expected at most {self.most_pixels}"
        return None


@dataclass(frozen=True)
class EditGuidance:
    """How a drawing that begins with a picture is guided, where that differs."""

    guidance_scale: float
    guidance_interval: tuple[float, float]
    renorm: str
    renorm_min: float


@dataclass(frozen=True)
class DenoiseLoop:
    """Schedule, guidance and steps over a constant prefix, then decode.

    sigma is the share of noise, 1 to 0; what the model calls time is sigma itself or 1 - sigma (`time_zero`).
    """

    template: DenoiseTemplate
    prefix_layers: tuple[int, ...]  # transformer layers whose keys and values the conditioner reads, one an own layer
    skip: int  # tokens of template.open: the same for every prompt, dropped by the conditioner
    prediction: str  # "x": the clean picture; "velocity": how the picture changes with the model's time
    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]  # guidance applies where low <= the model's time <= high
    shift: float  # s' = shift s / (1 + (shift - 1) s) of every sigma
    # What is denoised: tokens of a square, or latents
    token_count: int = 0  # n
    token_width: int = 0  # p
    image_size: int = 0  # H = W
    frames: int = 1  # of a clip, whose tokens come frame after frame; image_decoder makes pixels of one at a time
    frame_ms: int = 100  # how long each of several is shown
    latents: LatentGrid | None = None
    # What the conditioner reads, beside keys and values
    hidden_layers: tuple[int, ...] = ()  # transformer layers whose hidden states are kept for it
    place_layer: int | None = None  # "layer" of the cache that says where a slot's token stands; read beside the others
    # Time
    time_zero: str = "noise"  # what the model's time 0 is: "noise" (and 1 the picture) or "picture"
    time_scale: float = 1.0  # the model is told time_scale * time
    time_whole: bool = False  # cut to a whole number
    counts: str = "steps"  # what num_inference_steps counts: "steps", or "points" of time, one more
    spacing: str = "linear"  # of sigmas before the shift: "linear", "linear_to_last", "karras"
    sigma_first: float = 1.0
    sigma_last: float = 0.0
    solver: str = "euler"  # or "dpmsolver++_2m", "unipc_2"
    # Guidance
    renorm: str = "none"  # what keeps the guided prediction's norm: "global", "token", "text_token" or nothing
    renorm_min: float = 0.0  # the least factor of it
    unconditional: str = "file"  # where its row comes from: "file", "mask", "zeros", "empty", "prompt"
    seen_slots: int = 0  # of "mask": how many of the prompt's first slots the unconditional row sees
    negative_prompt: str = ""  # of "prompt", when the caller names none
    negative_template: DenoiseTemplate | None = None  # where another one stands around it
    # Editing
    edits: bool = False  # the model was taught to draw from a picture that stands before the prompt
    edit_template: DenoiseTemplate | None = None  # where another one stands around such a prompt
    image_guidance_scale: float | None = None  # of a third row, the prompt without the picture; None: there is none
    edit_guidance: EditGuidance | None = None
    picture_words: int | None = None  # slots beside one a place of the grid that a picture takes which is read as clean
    # latents too, by the denoiser, before its tokens; None: it is read as tokens alone

    def __post_init__(self) -> None:
        check_one_of("prediction", self.prediction, "x", "velocity")
        check_one_of("time_zero", self.time_zero, "noise", "picture")
        check_one_of("counts", self.counts, "steps", "points")
        check_one_of("spacing", self.spacing, "linear", "linear_to_last", "karras")
        check_one_of("solver", self.solver, "euler", "dpmsolver++_2m", "unipc_2")
        check_one_of("renorm", self.renorm, "none", "global", "token", "text_token")
        check_one_of("unconditional", self.unconditional, "file", "mask", "zeros", "empty", "prompt")
        self._check_sizes()
        check_range("num_inference_steps", self.num_inference_steps, 2 if self.counts == "points" else 1, 2**24)
        for layer in (*self.prefix_layers, *self.hidden_layers):
            check_range("prefix_layers, hidden_layers", layer, 0, 65_536)
        if not self.prefix_layers and not self.hidden_layers:
            raise BundleError("prefix_layers and hidden_layers are empty, expected some layer to read the prompt from")
        low, high = self.guidance_interval
        if not 0.0 <= low <= high <= 1.0:
            raise BundleError(f"guidance_interval is {low:g} to {high:g}, expected 0 <= low <= high <= 1")
        check_range("guidance_scale", self.guidance_scale, 0, 1000)
        if self.image_guidance_scale is not None:
            check_range("image_guidance_scale", self.image_guidance_scale, 0, 1000)
        check_range("renorm_min", self.renorm_min, 0, 1)
        check_range("skip", self.skip, 0, 65_536)
        check_range("seen_slots", self.seen_slots, 0, 65_536)
        check_range("shift", self.shift, 1e-3, 1e3)
        check_range("time_scale", self.time_scale, 1e-3, 1e6)
        self._check_sigmas()
        if self.picture_words is not None:
            check_range("picture_words", self.picture_words, 0, 65_536)
            if self.latents is None:
                raise BundleError("picture_words is given without latents: there are none to read a picture as")
        if self.edit_guidance is not None:
            _ = self.editing  # checked at birth, as this one

    def _check_sizes(self) -> None:
        tokens = ("token_count", "token_width", "image_size")
        check_range("frames", self.frames, 1, MOST_FRAMES)
        check_range("frame_ms", self.frame_ms, 1, 60_000)
        if self.latents is None:
            for name in tokens:
                check_range(name, getattr(self, name), 1, 2**24)
            if self.token_count % self.frames:
                raise BundleError(f"token_count is {self.token_count}, no multiple of frames {self.frames}")
        elif self.frames > 1:
            raise BundleError(f"frames is {self.frames} beside latents, whose clips this edgemm does not draw")
        elif given := [name for name in tokens if getattr(self, name)]:
            raise BundleError(f"{given[0]} is given beside latents, expected one of them")
        if self.renorm in ("token", "text_token") and self.latents is None and self.token_width < 2:
            raise BundleError(f"renorm is {self.renorm!r}, and a token holds one number")

    def _check_sigmas(self) -> None:
        karras = self.spacing == "karras"
        check_range("sigma_first", self.sigma_first, 0, LARGEST_SIGMA if karras else 1)
        if not 0 <= self.sigma_last < self.sigma_first or (self.spacing != "linear" and not self.sigma_last):
            least = "0 <=" if self.spacing == "linear" else "0 <"
            raise BundleError(f"sigma_last is {self.sigma_last:g}, expected {least} sigma_last < sigma_first")

    @property
    def editing(self) -> DenoiseLoop:
        """The loop of a drawing that begins with a picture."""
        if self.edit_guidance is None:
            return self
        return replace(self, **vars(self.edit_guidance), edit_guidance=None)

    @property
    def height(self) -> int:
        """Of a picture when nobody says otherwise, in pixels."""
        return self.latents.height if self.latents else self.image_size

    @property
    def width(self) -> int:
        return self.latents.width if self.latents else self.image_size

    @property
    def places(self) -> int:
        """Tokens, or places of the grid, of a picture of that size."""
        return self.token_count or math.prod(self.state_shape(self.height, self.width)[1:])

    def problem(self, height: int, width: int) -> str | None:
        """Why this bundle cannot draw a picture of so many pixels; None where it can."""
        if self.latents is not None:
            return self.latents.problem(height, width)
        if (height, width) != (self.image_size, self.image_size):
            return f"size is {width} x {height}, this bundle draws pictures of {self.width} x {self.height} only"
        return None

    def state_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Of what is denoised for a picture of so many pixels: (n, p) or (c, h, w)."""
        if self.latents is None:
            return (self.token_count, self.token_width)
        return (self.latents.channels, height // self.latents.cell, width // self.latents.cell)


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
