"""manifest.json as frozen dataclasses, checked at birth: what docs/bundle.md says, and nothing else.

Its loops are numbers and strings that make one runtime serve every family (those that draw are in drawing.py);
runtimes/text_loop.py, codes_loop.py and denoise_loop.py run them.  It knows fields and what they may hold, never the
disk: see bundle.py for reading and writer.py for writing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgemm.bundle.components import (
    COMPONENTS,
    ONE_CALL,
    Component,
    OneCall,
    Variant,
    check_bundle_path,
    check_component,
    check_same_layers,
    check_same_types,
    handed_over,
    layers_of,
)
from edgemm.bundle.drawing import DenoiseLoop, ImageTokensLoop
from edgemm.bundle.files import check_one_of, check_range, decode, encode, parse
from edgemm.errors import BundleError

__all__ = [
    "ADAPTER_SCALES",
    "FileRecord",
    "GraphRows",
    "Licence",
    "Limits",
    "Loops",
    "Manifest",
    "MotionRows",
    "MovedFrame",
    "SCHEMA_VERSION",
    "Source",
    "TextLoop",
    "TextTemplate",
    "UNCONDITIONAL",
]

SCHEMA_VERSION = 1
UNCONDITIONAL = "prefix/unconditional.safetensors"
ADAPTER_SCALES = "adapters/scales.safetensors"  # where smoothing changed what adapters meet


@dataclass(frozen=True)
class Source:
    """Where the weights come from."""

    checkpoint: str
    sha256: str


@dataclass(frozen=True)
class Licence:
    what: str
    licence: str
    source: str


@dataclass(frozen=True)
class FileRecord:
    sha256: str  # 64 hexadecimal digits
    size_bytes: int

    def __post_init__(self) -> None:
        if len(self.sha256) != 64 or not set(self.sha256) <= set("0123456789abcdef"):
            raise BundleError(f"sha256 is {self.sha256!r}, expected 64 hexadecimal digits")
        check_range("size_bytes", self.size_bytes, 0, 2**50)


# The loops


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
class GraphRows:
    """How graph_encoder reads a graph: a row a node and a row an edge, in one block; without it a graph is text."""

    kinds: tuple[str, ...]  # types of edges: kind 1, 2, ...; 0 is a node's own row
    max_nodes: int
    named: bool = False  # a node's row is added to its words and its picture, too

    def __post_init__(self) -> None:
        check_range("max_nodes", self.max_nodes, 1, 65_536)
        if not self.kinds:
            raise BundleError("kinds is empty, expected some types of edges")


@dataclass(frozen=True)
class MotionRows:
    """How motion_encoder reads a clip's frames between keyframes; without it they are read as pictures."""

    token_count: int  # rows that it gives for one frame
    every: int  # frames from one keyframe, which image_encoder reads, to the next

    def __post_init__(self) -> None:
        check_range("token_count", self.token_count, 1, 65_536)
        check_range("every", self.every, 1, 65_536)


@dataclass(frozen=True, eq=False)
class MovedFrame:
    """A clip's frame that is read by what moved since the one before."""

    frame: Any
    previous: Any


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
    rope_theta: float | None = (
        None  # keys in the cache are turned by their slot, whole heads, the first half against the
    )
    # second, at this base: so slots can be moved.  None: nothing is said of it

    graph: GraphRows | None = None  # not joined; of the drawing prompt, too
    motion: MotionRows | None = None  # not joined

    def __post_init__(self) -> None:
        if self.graph and (self.joined or self.block):
            raise BundleError("graph is given beside joined or block, expected one of them")
        if self.motion and (self.joined or self.block or self.image_lead):
            raise BundleError("motion is given beside joined, block or image_lead, expected one of them")
        if self.block and self.joined:
            raise BundleError("block and joined are both true, expected one of them")
        if self.image_lead and (self.joined or self.block):
            raise BundleError("image_lead is given beside joined or block, expected one of them")
        check_range("image_lead", self.image_lead, 0, self.image_token_count)
        if self.rope_theta is not None:
            check_range("rope_theta", self.rope_theta, 1, 1e12)
        check_one_of("image_fit", self.image_fit, "pad", "pad_cut", "pad_first", "crop", "stretch")
        check_one_of("image_resample", self.image_resample, "nearest", "bilinear", "bicubic", "lanczos")
        for name in ("image_size", "image_token_count", "image_least"):
            check_range(name, getattr(self, name), 1, 65_536)
        for channel in self.background:
            check_range("background", channel, 0, 255)
        for token in self.stop_token_ids:
            check_range("stop_token_ids", token, 0, 2**31)

    def clip(self, frames: Sequence[Any]) -> tuple[Any, ...]:
        """Frames in their order as what is read: pictures, and between keyframes what moved."""
        every = self.motion.every if self.motion else 1
        return tuple(
            MovedFrame(frame, frames[place - 1]) if place % every else frame for place, frame in enumerate(frames)
        )

    def rows_of(self, picture: Any) -> int:
        """Rows that the encoder of a picture gives, or of what moved."""
        return self.motion.token_count if self.motion and isinstance(picture, MovedFrame) else self.image_token_count

    @property
    def around(self) -> tuple[str, str]:
        """What belongs to a picture's block."""
        return (self.image_open, self.image_end) if self.block or self.image_lead else ("", "")


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


@dataclass(frozen=True)
class Manifest:
    """The whole of manifest.json."""

    name: str
    family: str
    edgemm_version: str
    source: Source
    components: dict[str, Component]
    targets: dict[str, dict[str, str]]  # target -> component -> variant
    loops: Loops
    limits: Limits
    tokenizer: str  # path of tokenizer.json
    quantization: Any  # None, or how each component was quantized
    licences: tuple[Licence, ...]
    files: dict[str, FileRecord]  # path -> what it must be; BundleWriter fills it
    one_call: dict[str, OneCall] = field(default_factory=dict)  # a key of ONE_CALL -> that loop as one graph
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.loops == Loops():
            raise BundleError("loops is empty, expected text, denoise, image_tokens or several of them")
        if not self.targets:
            raise BundleError("targets is empty, expected at least one")
        check_bundle_path(self.tokenizer, "tokenizer")
        for path in self.files:
            check_bundle_path(path, "files")
        for name, component in self.components.items():
            if name not in COMPONENTS:
                raise BundleError(f"components.{name} is unknown, this edgemm runs: {', '.join(COMPONENTS)}")
            for variant_name, variant in component.variants.items():
                self._check_variant(name, variant, f"components.{name}.variants.{variant_name}")
        for target, chosen in self.targets.items():
            self._check_target(target, chosen)
        for name, call in self.one_call.items():
            self._check_one_call(name, call)

    @property
    def needed(self) -> tuple[str, ...]:
        """The components that the loops cannot run without."""
        needed = ["transformer"]
        if self.loops.denoise:
            needed += ["conditioner", "denoiser", "image_decoder"]
        if self.loops.text and self.loops.text.graph:
            needed.append("graph_encoder")
        if self.loops.text and self.loops.text.motion:
            needed += ["image_encoder", "motion_encoder"]
        if self.loops.image_tokens:
            own_head = self.loops.image_tokens.code_ids is None
            needed += ["vq_decoder", *(("image_head", "image_embedder") if own_head else ())]
        return tuple(needed)

    def variant(self, component: str, target: str) -> Variant:
        return self.components[component].variants[self.targets[target][component]]

    def graphs_for(self, target: str) -> dict[str, Variant]:
        """Everything that a target runs: its components, and loops that are one graph as one_call.NAME."""
        calls = {f"one_call.{name}": call.variants for name, call in self.one_call.items()}
        whole = {name: variants[target] for name, variants in calls.items() if target in variants}
        return {name: self.variant(name, target) for name in self.targets[target]} | whole

    def check_files(self) -> None:
        """Every file that a field names has to stand in `files`, so that it was hashed."""
        for path, where in self._named_files():
            if path not in self.files:
                raise BundleError(f"{where}: {path!r} is not listed in files")

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "manifest.json") -> Manifest:
        document = parse(text, where)
        version = document.get("schema_version")
        if version != SCHEMA_VERSION or isinstance(version, bool):
            raise BundleError(
                f"{where}: schema_version is {json.dumps(version)}, this edgemm reads {SCHEMA_VERSION}; "
                "export the bundle again, or use the edgemm that wrote it"
            )
        manifest = decode(cls, document, where)
        try:
            manifest.check_files()
        except BundleError as error:
            raise BundleError(f"{where}: {error}") from error
        return manifest

    def to_json(self) -> str:
        fields = encode(self)
        if not self.one_call:  # an edgemm that knows no such thing reads the others
            del fields["one_call"]
        if self.loops.text is not None and self.loops.text.graph is None:  # the same
            del fields["loops"]["text"]["graph"]
        return json.dumps({"schema_version": fields.pop("schema_version"), **fields}, indent=1, allow_nan=False) + "\n"

    def _check_variant(self, name: str, variant: Variant, where: str) -> None:
        try:
            check_component(name, variant.inputs, variant.outputs)
        except BundleError as error:
            raise BundleError(f"{where}.{error}") from error
        try:
            for stem, layers in self._expected_layers(name):
                check_same_layers(stem, layers, variant.inputs, variant.outputs)
        except BundleError as error:
            raise BundleError(f"{where}: {error}") from error

    def _expected_layers(self, name: str) -> list[tuple[str, tuple[int, ...]]]:
        if name == "transformer":
            specs = next(iter(self.components[name].variants.values())).inputs
            depth = tuple(range(len(layers_of("past_key", specs))))
            return [(stem, depth) for stem in ("past_key", "past_value", "present_key", "present_value")]
        if name in ("conditioner", "denoiser") and self.loops.denoise:
            layers, hidden = self.loops.denoise.prefix_layers, self.loops.denoise.hidden_layers
            place, drawn = self.loops.denoise.place_layer, tuple(range(len(layers)))
            read = tuple(sorted({*layers, *(() if place is None else (place,))}))
            expected = [("past_key", read), ("past_value", read), ("past_hidden", tuple(sorted(set(hidden))))]
            # what is made of hidden states is the graphs' own business
            return expected if hidden else [*expected, ("prefix_key", drawn), ("prefix_value", drawn)]
        return []

    def _check_target(self, target: str, chosen: dict[str, str]) -> None:
        for component, variant in chosen.items():
            if component not in self.components:
                raise BundleError(f"targets.{target}.{component}: no such component")
            if variant not in self.components[component].variants:
                known = ", ".join(self.components[component].variants)
                raise BundleError(f"targets.{target}.{component} is {variant!r}, expected one of: {known}")
        missing = [component for component in self.needed if component not in chosen]
        if missing:
            raise BundleError(f"targets.{target}: component {missing[0]!r} is missing, the loops need it")
        if self.loops.denoise and self.loops.denoise.edits and not (self.loops.text and "image_encoder" in chosen):
            raise BundleError(f"targets.{target}: pictures to edit need an image_encoder and the text loop's sizes")
        if self.loops.denoise and self.loops.denoise.picture_words is not None and "latent_encoder" not in chosen:
            raise BundleError(f"targets.{target}: pictures to edit are read as latents, and there is no latent_encoder")
        gives = {spec.name for spec in self.variant("transformer", target).outputs}
        if self.loops.text and "logits" not in gives and "text_head" not in chosen:
            raise BundleError(f"targets.{target}: the transformer gives no logits and there is no text_head")
        if self.loops.denoise:
            self._check_handing_on(target)

    def _check_one_call(self, name: str, call: OneCall) -> None:
        if name not in ONE_CALL:
            raise BundleError(f"one_call.{name} is unknown, this edgemm runs: {', '.join(ONE_CALL)}")
        if name == "draw" and self.loops.denoise is None:
            raise BundleError(f"one_call.{name}: there is no denoise loop")
        for target, variant in call.variants.items():
            if target not in self.targets:
                raise BundleError(f"one_call.{name}.variants.{target}: expected one of: {', '.join(self.targets)}")
            try:
                check_component(name, variant.inputs, variant.outputs)
            except BundleError as error:
                raise BundleError(f"one_call.{name}.variants.{target}.{error}") from error

    def _check_handing_on(self, target: str) -> None:
        """From transformer to conditioner to denoiser."""
        transformer, conditioner = self.variant("transformer", target), self.variant("conditioner", target)
        given, taken = conditioner.outputs, handed_over(self.variant("denoiser", target).inputs)
        lone = {spec.name for spec in given} ^ {spec.name for spec in taken}
        try:
            if lone:
                raise BundleError(f"{min(lone)!r} is not on both sides of conditioner and denoiser")
            check_same_types("conditioner", given, "denoiser", taken)
            check_same_types("transformer", transformer.inputs, "conditioner", conditioner.inputs)
        except BundleError as error:
            raise BundleError(f"targets.{target}: {error}") from error

    def _named_files(self) -> list[tuple[str, str]]:
        named = [(self.tokenizer, "tokenizer")]
        if self.loops.denoise and self.loops.denoise.unconditional == "file":
            named.append((UNCONDITIONAL, "loops.denoise"))
        if self.loops.image_tokens and self.loops.image_tokens.code_ids is not None:
            named.append((self.loops.image_tokens.code_ids, "loops.image_tokens.code_ids"))
        if self.loops.text and self.loops.text.silent_ids is not None:
            named.append((self.loops.text.silent_ids, "loops.text.silent_ids"))
        for where, variant in self.every_variant.items():
            named.append((variant.graph, f"{where}.graph"))
            named += [] if variant.data is None else [(variant.data, f"{where}.data")]
            named += [(path, f"{where}.shares") for path in variant.shares]
        return named

    @property
    def every_variant(self) -> dict[str, Variant]:
        """By the path of fields that leads there."""
        members = [(f"components.{name}", component.variants) for name, component in self.components.items()]
        members += [(f"one_call.{name}", call.variants) for name, call in self.one_call.items()]
        return {f"{where}.variants.{key}": variant for where, variants in members for key, variant in variants.items()}
