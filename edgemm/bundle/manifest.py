"""manifest.json as frozen dataclasses, checked at birth: what docs/bundle.md says, and nothing else.

It knows fields and what they may hold, never the disk: see bundle.py for reading and writer.py for writing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from edgemm.bundle.components import COMPONENTS, ONE_CALL, TensorSpec, check_component, handed_over, layers_of
from edgemm.bundle.loops import Limits, Loops, check_range
from edgemm.bundle.strict_json import decode, encode, parse
from edgemm.errors import BundleError

__all__ = [
    "SCHEMA_VERSION",
    "ADAPTER_SCALES",
    "UNCONDITIONAL",
    "Component",
    "FileRecord",
    "Licence",
    "Manifest",
    "OneCall",
    "Source",
    "Variant",
    "check_bundle_path",
]

SCHEMA_VERSION = 1
UNCONDITIONAL = "prefix/unconditional.safetensors"
ADAPTER_SCALES = "adapters/scales.safetensors"  # where smoothing changed what adapters meet


def check_bundle_path(path: str, where: str) -> None:
    """A path inside a bundle is relative, with forward slashes, and never climbs out."""
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or "\0" in path or ":" in parts[0]:
        raise BundleError(f"{where} is {path!r}, expected a relative path with forward slashes")
    if any(part in ("", ".", "..") for part in parts):
        raise BundleError(f"{where} is {path!r}, expected a path that stays inside the bundle")


@dataclass(frozen=True)
class Source:
    """Where the weights come from."""

    checkpoint: str
    sha256: str


@dataclass(frozen=True)
class Variant:
    """One component lowered for one target."""

    graph: str  # path of the .onnx file inside the bundle
    data: str | None  # path of its weights; None when the graph has none outside itself
    dialect: str  # operators it may use, for example "opset24"
    precision: str  # for example "fp32", "int8"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    shares: tuple[str, ...] = ()  # files of other graphs' weights that it reads too, in folders below its own

    def __post_init__(self) -> None:
        check_bundle_path(self.graph, "graph")
        for path in self.shares:
            check_bundle_path(path, "shares")
            if not path.startswith(self._folder):
                raise BundleError(f"shares has {path!r}, expected a path below that of graph {self.graph!r}")
        if self.data is not None:
            check_bundle_path(self.data, "data")
            if self.data.rpartition("/")[0] != self.graph.rpartition("/")[0]:
                raise BundleError(f"data is {self.data!r}, expected it beside graph {self.graph!r}")

    @property
    def shared_locations(self) -> tuple[str, ...]:
        """As the graph names them."""
        return tuple(path.removeprefix(self._folder) for path in self.shares)

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of all that is read when it is opened."""
        return (self.graph, *(() if self.data is None else (self.data,)), *self.shares)

    @property
    def _folder(self) -> str:
        folder, slash, _ = self.graph.rpartition("/")
        return folder + slash


@dataclass(frozen=True)
class Component:
    variants: dict[str, Variant]

    def __post_init__(self) -> None:
        if not self.variants:
            raise BundleError("variants is empty, expected at least one")


@dataclass(frozen=True)
class OneCall:
    """A whole loop, or a part of it, as one graph: runtimes/one_call.py, and programs without edgemm."""

    variants: dict[str, Variant]  # target -> its graph
    num_inference_steps: int = 0  # of "draw"
    guidance_scale: float = 1.0  # the same; both are in the graph

    def __post_init__(self) -> None:
        check_range("num_inference_steps", self.num_inference_steps, 0, 2**24)
        check_range("guidance_scale", self.guidance_scale, 0, 1000)


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
        return json.dumps({"schema_version": fields.pop("schema_version"), **fields}, indent=1, allow_nan=False) + "\n"

    def _check_variant(self, name: str, variant: Variant, where: str) -> None:
        try:
            check_component(name, variant.inputs, variant.outputs)
        except BundleError as error:
            raise BundleError(f"{where}.{error}") from error
        for stem, layers in self._expected_layers(name):
            for side in (variant.inputs, variant.outputs):
                found = layers_of(stem, side)
                if found and found != layers:
                    raise BundleError(f"{where}: {stem} of layers {list(found)}, expected {list(layers)}")

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
            given = {spec.name: spec.dtype for spec in self.variant("conditioner", target).outputs}
            taken = {spec.name: spec.dtype for spec in handed_over(self.variant("denoiser", target).inputs)}
            if given.keys() != taken.keys():
                name = sorted(given.keys() ^ taken.keys())[0]
                raise BundleError(f"targets.{target}: {name!r} is not on both sides of conditioner and denoiser")
            self._check_types(target, given, taken, "conditioner", "denoiser")
            cached = {spec.name: spec.dtype for spec in self.variant("transformer", target).inputs}
            read = {spec.name: spec.dtype for spec in self.variant("conditioner", target).inputs}
            self._check_types(target, cached, read, "transformer", "conditioner")

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

    @staticmethod
    def _check_types(target: str, given: dict[str, str], taken: dict[str, str], giver: str, taker: str) -> None:
        """What one component hands another has one type on both sides."""
        for name in sorted(given.keys() & taken.keys()):
            if given[name] != taken[name]:
                raise BundleError(
                    f"targets.{target}: {name!r} is {given[name]} in {giver} and {taken[name]} in {taker}"
                )

    def _named_files(self) -> list[tuple[str, str]]:
        named = [(self.tokenizer, "tokenizer")]
        if self.loops.denoise and self.loops.denoise.unconditional == "file":
            named.append((UNCONDITIONAL, "loops.denoise"))
        if self.loops.image_tokens and self.loops.image_tokens.code_ids is not None:
            named.append((self.loops.image_tokens.code_ids, "loops.image_tokens.code_ids"))
        if self.loops.text and self.loops.text.silent_ids is not None:
            named.append((self.loops.text.silent_ids, "loops.text.silent_ids"))
        for where, variant in self.every_variant.items():
            named += [(path, where) for path in variant.files]
        return named

    @property
    def every_variant(self) -> dict[str, Variant]:
        """By the path of fields that leads there."""
        kinds = {"components": self.components, "one_call": self.one_call}
        return {
            f"{kind}.{name}.variants.{key}": variant
            for kind, members in kinds.items()
            for name, member in members.items()
            for key, variant in member.variants.items()
        }
