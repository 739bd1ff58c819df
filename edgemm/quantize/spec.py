"""The spec: how every weight of a checkpoint is quantized, as numbers, for any target to be lowered from.

    quant.json           what each layer is (Layer below), from which checkpoint, by which method; hash of the tensors
    quant.safetensors    NAME.codes (n, k) uint8, two a byte when they have 4 bits; NAME.scales, NAME.zeros (n, g), or
                         NAME.scales and NAME.whole (1) of the forms in number_formats.py;
                         NAME.low_rank_down (r, k), NAME.low_rank_up (n, r); NAME.range (steps,), the largest input at
                         each denoising step; SITE.smooth (k,), what smoothing.py divides a site's output by;
                         cache.key.LAYER, cache.value.LAYER (g, d), steps of a K/V cache in int8 (simulated.py)

Numbers are those of the smoothed weights.  A spec knows no graph and no operator: edgemm/export/lower_*.py do, and
refuse what their target cannot take.  `transformer.embed_tokens` is the embedding and the head, which share it; where
it covers the first rows only, those of frequent tokens, `transformer.embed_tokens.rest` has the others, and
`transformer.embed_tokens.places` (v,) int32, if it is there, says which row is which token's (calibration.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgemm.bundle.files import decode, encode, parse, reading
from edgemm.bundle.writer import whole_folder
from edgemm.errors import CheckFailedError, InputError
from edgemm.quantize.number_formats import FLOAT_FORMS, Floats, Integers, group_size

__all__ = [
    "ACTIVATIONS",
    "CACHE",
    "DRAWN",
    "FORMS",
    "HEAD",
    "JSON_FILE",
    "PLACES",
    "RANGED",
    "REST",
    "SCHEMA_VERSION",
    "TENSOR_FILE",
    "Document",
    "Layer",
    "Spec",
    "tensor_parts",
    "read_spec",
    "tensors_hash",
    "check_destination",
    "journal_of",
]

SCHEMA_VERSION = 1
HEAD = "transformer.embed_tokens"  # the embedding; as a product it is the head
REST, PLACES = ".rest", "places"
TENSOR_FILE = "quant.safetensors"

ACTIVATIONS = {  # what the inputs of a product are rounded to, and when
    "float": "not at all",
    "block": "int8, symmetric, each row's blocks of the weight's size while it runs",
    "token": "int8, symmetric, each row while it runs",
    "token16": "16 bits in two terms of int8, the second 254 times finer, each row while it runs",
    "tensor": "uint8, asymmetric, the whole tensor while it runs",
    "static": "int8, symmetric, by ranges seen in calibration",
    "fp8": "float8 E4M3, by ranges seen in calibration",
    "nvfp4": "float4 E2M1, each row's blocks of 16 channels while it runs, their scales by ranges seen in calibration",
}
RANGED = ("static", "fp8", "nvfp4")  # NAME.range has what was seen
FORMS = {  # of a weight's numbers -> bits and group that go with it; None: any
    "int": None,
    "fp8": (8, 0),
    "nvfp4": (4, 16),
}


@dataclass(frozen=True)
class Layer:
    """One linear layer."""

    bits: int | None  # of its weight: 4, 8, or None where it stays in float
    group: int = 0  # input channels that share a scale; 0: a scale an output channel
    symmetric: bool = True
    activations: str = "float"  # a row of ACTIVATIONS
    rank: int = 0  # of the branch in float beside it; 0: none
    rows: int = 0  # output channels that this is about, the first ones; NAME.rest is about the others; 0: all
    method: str = ""  # how the numbers were chosen
    reason: str = ""  # why it is finer than what was asked for
    form: str = "int"  # of its numbers: a row of FORMS

    def __post_init__(self) -> None:
        if self.bits not in (None, 4, 8):
            raise InputError(f"bits is {self.bits}, expected 4, 8 or null")
        if self.activations not in ACTIVATIONS:
            raise InputError(f"activations is {self.activations!r}, expected one of: {', '.join(ACTIVATIONS)}")
        if self.form not in FORMS:
            raise InputError(f"form is {self.form!r}, expected one of: {', '.join(FORMS)}")
        wanted = FORMS[self.form]
        if self.bits is not None and wanted and (self.bits, self.group) != wanted:
            raise InputError(f"{self.form} has bits, group {wanted}, not {(self.bits, self.group)}")
        for name in ("group", "rank", "rows"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}, it cannot be negative")


@dataclass(frozen=True)
class Document:
    """quant.json."""

    schema_version: int
    edgemm_version: str
    checkpoint: str
    checkpoint_sha256: str
    text: str  # what was asked for
    draw: str
    calibration: str  # what the numbers were chosen on; "" for none
    layers: dict[str, Layer]
    smoothed: tuple[str, ...]  # sites of smoothing.py
    tensors_sha256: str
    cache: str = "float"  # of keys and values: as the target computes, or "int8"

    def __post_init__(self) -> None:
        if self.cache not in ("float", "int8"):
            raise InputError(f"cache is {self.cache!r}, expected 'float' or 'int8'")
        if self.schema_version != SCHEMA_VERSION:
            raise InputError(f"schema_version is {self.schema_version}, this edgemm reads {SCHEMA_VERSION}")


@dataclass(frozen=True)
class Spec:
    document: Document
    tensors: Mapping[str, np.ndarray]  # by the names above, codes one a byte
    towers: bool = False  # what sees and paints is small, too: a CPU's bundle has its filters in float16

    def layer(self, name: str) -> Layer:
        """A layer that the spec says nothing of stays in float."""
        return self.document.layers.get(name, Layer(None))

    def integers(self, name: str) -> Integers:
        """InputError for a layer of another form, which most targets do not take."""
        layer = self.layer(name)
        assert layer.bits is not None, name
        if layer.form != "int":
            raise InputError(f"{name}: this target takes no {layer.form} weights, only whole numbers")
        codes, scales, zeros = (torch.from_numpy(self.tensors[f"{name}.{part}"]) for part in tensor_parts(layer))
        return Integers(codes, scales, zeros, layer.bits, layer.group)

    def floats(self, name: str) -> Floats:
        layer = self.layer(name)
        assert layer.form in FLOAT_FORMS, name
        codes, scales, whole = (torch.from_numpy(self.tensors[f"{name}.{part}"]) for part in tensor_parts(layer))
        return Floats(codes, scales, whole, layer.form)

    def numbers(self, name: str) -> Integers | Floats:
        return self.integers(name) if self.layer(name).form == "int" else self.floats(name)

    def dequantized(self, name: str) -> torch.Tensor:
        """(n, k) float32, all rows."""
        first = self.numbers(name).dequantized()
        if not self.layer(name).rows:
            return first
        whole, places = torch.cat([first, self.integers(name + REST).dequantized()]), self.places(name)
        return whole if places is None else whole[torch.from_numpy(places)]

    def places(self, name: str) -> np.ndarray | None:
        """Token -> its row (v) int32; None where rows lie in the vocabulary's own order."""
        return self.tensors.get(f"{name}.{PLACES}")

    def low_rank(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """down (r, k) and up (n, r)."""
        if not self.layer(name).rank:
            return None
        return self.tensors[f"{name}.low_rank_down"], self.tensors[f"{name}.low_rank_up"]

    def cache_steps(self) -> dict[str, np.ndarray]:
        """`key.LAYER` and `value.LAYER` -> steps (g, d) of an int8 cache; nothing of a float one."""
        if self.document.cache == "float":
            return {}
        return {name[len(CACHE) :]: array for name, array in self.tensors.items() if name.startswith(CACHE)}

    def coarsest(self, component: str) -> str:
        """The precision to call a component by: that of its coarsest layer.  Where 8 bits were asked for it is 8 bits,
        though what is seldom said, or bears it well, may have 4."""
        layers = self.document.layers.items()
        words = {_word(layer) for name, layer in layers if layer.bits and name.startswith(f"{component}.")}
        asked = self.document.draw if component in DRAWN else self.document.text
        if asked in ("int8", "w8a8") and "int4" in words:
            return "int8"
        return next((word for word in COARSEST_FIRST if word in words), "fp32")

    def require_checkpoint(self, sha256: str, name: str) -> None:
        if self.document.checkpoint_sha256 != sha256:
            raise InputError(
                f"the spec was made from checkpoint {self.document.checkpoint}, "
                f"{self.document.checkpoint_sha256[:12]}; {name} is {sha256[:12]}: quantize it anew"
            )

    def to_json(self) -> str:
        return json.dumps(encode(self.document), indent=1) + "\n"

    def save(self, path: Path, overwrite: bool = False) -> None:
        """Both files into the folder `path`, or nothing."""
        from safetensors.numpy import save_file

        with whole_folder(path, lambda there: check_destination(there, overwrite)) as folder:
            save_file({name: np.ascontiguousarray(t) for name, t in self._packed().items()}, folder / TENSOR_FILE)
            (folder / JSON_FILE).write_text(self.to_json(), encoding="utf-8")

    def _packed(self) -> dict[str, np.ndarray]:
        return {name: _pack(t) if self._is_packed(name) else t for name, t in self.tensors.items()}

    def _is_packed(self, tensor: str) -> bool:
        layer, _, part = tensor.rpartition(".")
        return part == "codes" and self.layer(layer).bits == 4


CACHE = "cache."
DRAWN = ("conditioner", "denoiser")  # what `draw` was asked of; `text` is about the others
COARSEST_FIRST = ("nvfp4", "nvfp4-weights", "int4", "fp8", "int8")


def _word(layer: Layer) -> str:
    if layer.form == "int":
        return f"int{layer.bits}"
    return f"{layer.form}-weights" if layer.form == "nvfp4" and layer.activations == "float" else layer.form


def tensor_parts(layer: Layer) -> tuple[str, str, str]:
    """The tensors that a layer's numbers are in."""
    return "codes", "scales", "zeros" if layer.form == "int" else "whole"


def tensors_hash(tensors: Mapping[str, np.ndarray]) -> str:
    """Of names, types, shapes and numbers: the same tensors in another file hash alike."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def read_spec(path: Path) -> Spec:
    """The spec in the folder `path`; every tensor is there, whole and of the shape that its layer has."""
    from safetensors.numpy import load_file

    for name in (JSON_FILE, TENSOR_FILE):
        if not (path / name).is_file():
            raise InputError(f"{path}: {name} is missing; a spec is a folder with {JSON_FILE} and {TENSOR_FILE}")
    where = str(path / JSON_FILE)
    document = decode(Document, parse((path / JSON_FILE).read_bytes(), where), where)
    with reading(path / TENSOR_FILE):
        tensors = load_file(path / TENSOR_FILE)
    spec = Spec(document, tensors)
    for name, layer in document.layers.items():
        if layer.bits is not None:
            _check_layer(name, layer, tensors)
            if layer.bits == 4:
                k = _inputs_of(layer, tensors[f"{name}.codes"])
                tensors[f"{name}.codes"] = _unpack(tensors[f"{name}.codes"], k)
    places, rest = spec.places(HEAD), spec.tensors.get(f"{HEAD}{REST}.codes")
    if places is not None and (rest is None or not _is_order(places, len(spec.tensors[f"{HEAD}.codes"]) + len(rest))):
        raise InputError(f"{TENSOR_FILE}: {HEAD}.{PLACES} does not name every row of the embedding once")
    for name, steps in spec.cache_steps().items():
        if steps.ndim != 2 or not (np.isfinite(steps).all() and (steps > 0).all()):
            raise InputError(f"{TENSOR_FILE}: {CACHE}{name} holds a step that is not a positive number")
    found = tensors_hash(tensors)
    if found != document.tensors_sha256:
        raise CheckFailedError(
            f"{path / TENSOR_FILE}: hash is {found[:12]}, {JSON_FILE} says {document.tensors_sha256[:12]}"
        )
    return spec


def _check_layer(name: str, layer: Layer, tensors: Mapping[str, np.ndarray]) -> None:
    wanted = [f"{name}.{part}" for part in tensor_parts(layer)]
    wanted += [f"{name}.low_rank_{side}" for side in ("down", "up") if layer.rank]
    wanted += [f"{name}.range"] if layer.activations in RANGED else []
    wanted += [f"{name}{REST}.codes"] if layer.rows else []
    for tensor in wanted:
        if tensor not in tensors:
            raise InputError(f"{TENSOR_FILE}: {tensor} is missing")
    codes, scales, third = (tensors[tensor] for tensor in wanted[:3])
    k = _inputs_of(layer, codes)
    shape = (codes.shape[0], -(-k // group_size(k, layer.group)))
    what, form = ("zeros", (shape, np.uint8)) if layer.form == "int" else ("whole", ((1,), np.float32))
    if scales.shape != shape or (third.shape, third.dtype) != form or codes.dtype != np.uint8:
        raise InputError(f"{name}: scales {scales.shape} and {what} {third.shape}, expected {shape} of uint8 codes")
    if not (np.isfinite(scales).all() and (scales > 0).all() and (what == "zeros" or 0 < third[0] < np.inf)):
        raise InputError(f"{name}: a scale is not a positive number")


def _is_order(places: np.ndarray, count: int) -> bool:
    return places.dtype == np.int32 and np.array_equal(np.sort(places), np.arange(count))


def _inputs_of(layer: Layer, codes: np.ndarray) -> int:
    return codes.shape[1] * (2 if layer.bits == 4 else 1)


def _pack(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte, the first in the low half."""
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def _unpack(packed: np.ndarray, k: int) -> np.ndarray:
    return np.stack((packed & 15, packed >> 4), axis=-1).reshape(len(packed), k)


# Where a spec may be written: asked before the work, so that no hour is lost to a folder in the way.

JSON_FILE = "quant.json"


def check_destination(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; choose another name or ask to overwrite it (--overwrite)")
    if path.exists() and not (path / JSON_FILE).is_file():
        raise InputError(f"{path}: exists and is no spec, so it will not be replaced")


def journal_of(path: Path) -> Path:
    """Where a search for the spec `path` writes down what it has measured."""
    return path.with_name(f"{path.name}.search.jsonl")
