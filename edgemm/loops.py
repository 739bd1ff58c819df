"""The loops a bundle asks for: numbers and strings that make one runtime serve every family.

They are fields of manifest.json (docs/bundle.md), never code; runtimes/text_loop.py and runtimes/denoise_loop.py run
them.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgemm.errors import BundleError

__all__ = ["DenoiseLoop", "DenoiseTemplate", "Limits", "Loops", "TextLoop", "TextTemplate", "check_range"]


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Both bounds are allowed; the message names the field."""
    if not low <= value <= high:
        raise BundleError(f"{name} is {value:g}, expected {low:g} to {high:g}")


@dataclass(frozen=True)
class TextTemplate:
    """Strings around each message; each piece is tokenized alone."""

    user_open: str
    user_close: str
    assistant_open: str
    assistant_close: str
    system_open: str
    system_close: str
    system_default: str  # the system message when none is given; "" leaves it out


@dataclass(frozen=True)
class TextLoop:
    """Prefill, decode, sample, stop."""

    template: TextTemplate
    image_close: str  # after a picture's tokens
    image_size: int  # side of the square that image_encoder reads, in pixels
    image_token_count: int  # rows that image_encoder gives for one picture
    background: tuple[int, int, int]  # RGB that transparent pictures are laid on
    stop_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("image_size", "image_token_count"):
            check_range(name, getattr(self, name), 1, 65_536)
        for channel in self.background:
            check_range("background", channel, 0, 255)
        for token in self.stop_token_ids:
            check_range("stop_token_ids", token, 0, 2**31)


@dataclass(frozen=True)
class DenoiseTemplate:
    """The prompt stands between the two as " " + prompt."""

    open: str
    close: str


@dataclass(frozen=True)
class DenoiseLoop:
    """Schedule, guidance and steps over a constant prefix, then decode."""

    template: DenoiseTemplate
    prefix_layers: tuple[int, ...]  # transformer layer that denoiser layer i reads
    skip: int  # tokens of template.open: the same for every prompt, dropped by the conditioner
    prediction: str
    token_count: int  # n
    token_width: int  # p
    image_size: int  # H = W
    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]  # guidance applies where low <= t <= high
    shift: float

    def __post_init__(self) -> None:
        if self.prediction != "x":
            raise BundleError(f"prediction is {self.prediction!r}, this edgemm runs 'x'")
        for name in ("token_count", "token_width", "image_size", "num_inference_steps"):
            check_range(name, getattr(self, name), 1, 2**24)
        for layer in self.prefix_layers:
            check_range("prefix_layers", layer, 0, 65_536)
        low, high = self.guidance_interval
        if not 0.0 <= low <= high <= 1.0:
            raise BundleError(f"guidance_interval is {low:g} to {high:g}, expected 0 <= low <= high <= 1")
        check_range("guidance_scale", self.guidance_scale, 0, 1000)
        check_range("skip", self.skip, 0, 65_536)
        check_range("shift", self.shift, 1e-3, 1e3)


@dataclass(frozen=True)
class Loops:
    """What the bundle can do; None where it cannot."""

    text: TextLoop | None = None
    denoise: DenoiseLoop | None = None


@dataclass(frozen=True)
class Limits:
    max_context: int  # cache slots
    max_image_pixels: int  # width x height of a picture that may be decoded
    max_steps: int

    def __post_init__(self) -> None:
        for name in ("max_context", "max_image_pixels", "max_steps"):
            check_range(name, getattr(self, name), 1, 2**31)
