"""The components a bundle may have: what goes into each graph and what comes out, as docs/bundle.md says.

It knows names, types and ranks of tensors and what graphs are called, never the disk or weights.
Axes: b batch, s new tokens, k candidates, T cache slots, t prefix slots, m/n image tokens read/drawn, g/h heads, d head
width; of latents c channels, h rows, w columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgemm.bundle.files import check_range
from edgemm.errors import BundleError, UsageError

__all__ = [
    "ADAPTER_PREFIX",
    "COMPONENTS",
    "Component",
    "DTYPES",
    "OPTIONAL",
    "KEYS_AND_VALUES",
    "ONE_CALL",
    "OneCall",
    "TensorSpec",
    "Variant",
    "check_bundle_path",
    "check_component",
    "check_same_layers",
    "check_same_types",
    "check_strength",
    "handed_over",
    "layers_of",
    "pattern",
]

DTYPES = ("float32", "float16", "int64", "int8", "bool")

OPTIONAL = {  # component -> what its graph may do without
    "transformer": ("logits", "hidden", "draft_index", "draft_logits", "past_hidden.*", "present_hidden.*"),
    "conditioner": ("past_key.*", "past_value.*", "past_hidden.*", "prompt_mask", "prompt_vector", "layout"),
    "denoiser": ("noisy_tokens", "latents", "step_size", "prompt_vector", "layout", "block_key.*", "block_value.*"),
    "image_decoder": ("tokens", "latents"),
    "read": ("pixels", "past_hidden.*", "present_hidden.*"),
    "token": ("past_hidden.*", "present_hidden.*"),
}
EITHER = (
    ("logits", "hidden"),
    ("noisy_tokens", "latents"),
    ("tokens", "latents"),
)  # one of the two, where both are known
ADAPTER_PREFIX = "adapter."  # inputs of a transformer or a denoiser: low-rank factors (i, r) and (r, o) of a module
CACHES = tuple(f"{stem}_{part}.*" for stem in ("past", "present") for part in ("key", "value"))  # int8 in a variant
KEYS_AND_VALUES = (
    *(f"{stem}_{part}.*" for stem in ("past", "present", "prefix", "block") for part in ("key", "value")),
    "past_hidden.*",  # hidden states, kept as keys are
    "present_hidden.*",
)

Signature = dict[str, tuple[str, int]]  # name -> (dtype, rank); "past_key.*" stands for one tensor a layer
SAME_RANK = 0  # the rank of what is denoised

COMPONENTS: dict[str, tuple[Signature, Signature]] = {  # component -> (inputs, outputs)
    "image_encoder": (
        {"pixels": ("float32", 4)},
        {"image_tokens": ("float32", 3)},
    ),
    "transformer": (
        {
            "input_ids": ("int64", 2),
            "image_tokens": ("float32", 3),
            "image_index": ("int64", 2),
            "write_index": ("int64", 1),
            "attention_limit": ("int64", 2),
            "logits_index": ("int64", 1),
            "draft_index": ("int64", 2),
            "past_key.*": ("float32", 4),
            "past_value.*": ("float32", 4),
            "past_hidden.*": ("float32", 4),
        },
        {
            "logits": ("float32", 2),
            "hidden": ("float32", 2),
            "draft_logits": ("float32", 3),
            "present_key.*": ("float32", 4),
            "present_value.*": ("float32", 4),
            "present_hidden.*": ("float32", 4),
        },
    ),
    "motion_encoder": (
        {"pixels": ("float32", 4), "previous": ("float32", 4)},
        {"image_tokens": ("float32", 3)},
    ),
    "graph_encoder": (
        {"kind": ("int64", 2), "head": ("int64", 2), "tail": ("int64", 2)},
        {"rows": ("float32", 3)},
    ),
    # A transformer whose text and picture tokens have heads of their own gives `hidden`, and these two read it.
    "text_head": ({"hidden": ("float32", 2)}, {"logits": ("float32", 2)}),
    "image_head": ({"hidden": ("float32", 2)}, {"logits": ("float32", 2)}),
    "image_embedder": ({"codes": ("int64", 2)}, {"image_tokens": ("float32", 3)}),
    "vq_encoder": ({"pixels": ("float32", 4)}, {"token_ids": ("int64", 2)}),
    "vq_decoder": ({"codes": ("int64", 2)}, {"pixels": ("float32", 4)}),
    "conditioner": (
        {
            "past_key.*": ("float32", 4),
            "past_value.*": ("float32", 4),
            "past_hidden.*": ("float32", 4),
            "prompt_mask": ("float32", 2),
            "prefix_length": ("int64", 1),
        },
        {
            "prefix_key.*": ("float32", 4),
            "prefix_value.*": ("float32", 4),
            "prefix_mask": ("bool", 2),
            "prompt_vector": ("float32", 2),
            "layout": ("float32", 3),
        },
    ),
    "denoiser": (
        {
            "noisy_tokens": ("float32", 3),
            "latents": ("float32", 4),
            "time": ("float32", 1),
            "step_size": ("float32", 1),
            "prompt_vector": ("float32", 2),
            "layout": ("float32", 3),
            "prefix_mask": ("bool", 2),
            "prefix_key.*": ("float32", 4),
            "prefix_value.*": ("float32", 4),
        },
        {
            "prediction": ("float32", SAME_RANK),
            "block_key.*": ("float32", 4),  # what a picture that is read as latents leaves in the transformer's cache
            "block_value.*": ("float32", 4),
        },
    ),
    "latent_encoder": (
        {"pixels": ("float32", 4)},
        {"mean": ("float32", 4), "deviation": ("float32", 4)},
    ),
    "image_decoder": (
        {"tokens": ("float32", 3), "latents": ("float32", 4)},
        {"pixels": ("float32", 4)},
    ),
}


CACHED = ("key.*", "value.*", "hidden.*")
CHOSEN: Signature = {"next_id": ("int64", 2), "next_position": ("int64", 1)}
ONE_CALL: dict[str, tuple[Signature, Signature]] = {  # whole loops, composed of the components: export/one_call.py
    "draw": (
        {"input_ids": ("int64", 2), "prompt_length": ("int64", 1), "noise": ("float32", SAME_RANK)},
        {"pixels": ("float32", 4)},
    ),
    "read": (
        {
            "pixels": ("float32", 4),
            "input_ids": ("int64", 2),
            "image_index": ("int64", 2),
            "attention_limit": ("int64", 2),
            **{f"past_{part}": ("float32", 4) for part in CACHED},
        },
        {**CHOSEN, **{f"present_{part}": ("float32", 4) for part in CACHED}},
    ),
    "token": (
        {
            "token_id": ("int64", 2),
            "position": ("int64", 1),
            **{f"past_{part}": ("float32", 4) for part in CACHED},
        },
        {**CHOSEN, **{f"present_{part}": ("float32", 4) for part in CACHED}},
    ),
}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; an entry of the shape is a number or the name of an axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise BundleError(f"dtype of {self.name!r} is {self.dtype!r}, expected one of: {', '.join(DTYPES)}")
        for entry in self.shape:
            if isinstance(entry, int) and entry < 1:
                raise BundleError(f"shape of {self.name!r} has {entry}, expected a positive number or an axis name")

    def fixed(self, axis: int, what: str) -> int:
        """The size of an axis that has to be a number in this graph."""
        entry = self.shape[axis]
        if not isinstance(entry, int):
            raise BundleError(f"axis {axis} of {self.name!r} is {entry!r}, expected a number ({what})")
        return entry


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
    def weights(self) -> dict[str, str]:
        """Every file of weights, as the graph names it -> its path in the bundle."""
        own = {} if self.data is None else {self.data.rpartition("/")[2]: self.data}
        return own | dict(zip(self.shared_locations, self.shares, strict=True))

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


def check_bundle_path(path: str, where: str) -> None:
    """A path inside a bundle is relative, with forward slashes, and never climbs out."""
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or "\0" in path or ":" in parts[0]:
        raise BundleError(f"{where} is {path!r}, expected a relative path with forward slashes")
    if any(part in ("", ".", "..") for part in parts):
        raise BundleError(f"{where} is {path!r}, expected a path that stays inside the bundle")


def check_component(component: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Refuses tensors that the contract does not know, lacks, or knows with another type or rank."""
    expected_inputs, expected_outputs = (COMPONENTS | ONE_CALL)[component]
    optional = OPTIONAL.get(component, ())
    if component in ("transformer", "denoiser"):
        inputs = tuple(spec for spec in inputs if not _is_factor(spec))
    rank = next((len(spec.shape) for spec in inputs if spec.name in ("noisy_tokens", "latents", "noise")), 0)
    _check_side("inputs", expected_inputs, inputs, optional, rank)
    _check_side("outputs", expected_outputs, outputs, optional, rank)


def _is_factor(spec: TensorSpec) -> bool:
    return spec.name.startswith(ADAPTER_PREFIX) and (spec.dtype, len(spec.shape)) == ("float32", 2)


def _check_side(
    side: str, expected: Signature, specs: tuple[TensorSpec, ...], optional: tuple[str, ...], same_rank: int
) -> None:
    found = [spec.name for spec in specs]
    doubles = {name for name in found if found.count(name) > 1}
    if doubles:
        raise BundleError(f"{side}: {sorted(doubles)[0]!r} stands twice")
    for spec in specs:
        if pattern(spec.name) not in expected:
            raise BundleError(f"{side}: unknown tensor {spec.name!r}, expected: {', '.join(expected)}")
        dtype, rank = expected[pattern(spec.name)]
        rank = same_rank if rank == SAME_RANK else rank
        smaller = {"float16": KEYS_AND_VALUES, "int8": CACHES}.get(spec.dtype, ())
        if (spec.dtype != dtype and pattern(spec.name) not in smaller) or len(spec.shape) != rank:
            raise BundleError(
                f"{side}: {spec.name!r} is {spec.dtype} of rank {len(spec.shape)}, expected {dtype} of rank {rank}"
            )
    for one, other in EITHER:
        if {one, other} <= expected.keys() and not {one, other} & set(found):
            raise BundleError(f"{side}: neither {one!r} nor {other!r} is there")
    for name in expected:
        if name not in optional and name not in {pattern(item) for item in found}:
            raise BundleError(f"{side}: {name!r} is missing")


def check_strength(strength: float) -> None:
    """How much of an adapter is added: any number that is one; a negative one leads away from it."""
    if not math.isfinite(strength):
        raise UsageError(f"adapter strength is {strength}, expected a finite number")


def pattern(name: str) -> str:
    """The name with its layer's number taken away: past_key.3 -> past_key.*"""
    stem, dot, number = name.rpartition(".")
    return f"{stem}.*" if dot and number.isascii() and number.isdigit() else name


def layers_of(stem: str, specs: tuple[TensorSpec, ...]) -> tuple[int, ...]:
    """The layers that have a tensor `stem.LAYER`, in order."""
    return tuple(sorted(int(spec.name.rpartition(".")[2]) for spec in specs if pattern(spec.name) == f"{stem}.*"))


def handed_over(denoiser_inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """What the conditioner gives the denoiser: everything but the picture in the making, its time and its step."""
    own = ("noisy_tokens", "latents", "time", "step_size")
    return tuple(spec for spec in denoiser_inputs if spec.name not in own and not _is_factor(spec))


def check_same_layers(stem: str, expected: tuple[int, ...], *sides: tuple[TensorSpec, ...]) -> None:
    """Tensors `stem.LAYER` stand on a side for all of these layers, or for none."""
    for specs in sides:
        found = layers_of(stem, specs)
        if found and found != expected:
            raise BundleError(f"{stem} of layers {list(found)}, expected {list(expected)}")


def check_same_types(giver: str, given: tuple[TensorSpec, ...], taker: str, taken: tuple[TensorSpec, ...]) -> None:
    """What one component hands another has one type on both sides."""
    types = {spec.name: spec.dtype for spec in given}
    for spec in sorted(taken, key=lambda spec: spec.name):
        if types.get(spec.name, spec.dtype) != spec.dtype:
            raise BundleError(f"{spec.name!r} is {types[spec.name]} in {giver} and {spec.dtype} in {taker}")
