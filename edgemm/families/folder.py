"""What config.json says that a folder of the Hugging Face hub holds, or a GGUF file's own header that it holds.

No torch here, and no weight is read.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemm.bundle.files import check_is_file, check_sizes, read_text, reading
from edgemm.errors import CheckpointError, InputError, MissingError, UsageError
from edgemm.model.gguf_reader import gguf_reader

__all__ = ["PIPELINE", "Found", "check_counts", "find_foreign", "other_folders"]

PIPELINE = "model_index.json"  # of diffusers
OTHERS = {  # a file that tells what a folder without a config.json is -> in words, and what to do
    "manifest.json": "a bundle; it was exported already: edgemm inspect FOLDER",
    "quant.json": "what `edgemm quantize` wrote: it is given beside a checkpoint, as --quant FOLDER",
    "params.json": "a model in its maker's own layout; export the one in the layout of transformers",
    "*.onnx": "graphs that were exported already; edgemm exports the folder that they were made from",
}


GGUF = ".gguf"
IN_GGUF = {  # general.architecture -> class of the library; a Mistral calls itself llama there, and is as one
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@dataclass(frozen=True)
class Found:
    """What config.json says that a folder holds."""

    folder: Path  # or the GGUF file
    architecture: str
    config: dict[str, Any]
    others: Mapping[str, Path] = field(default_factory=dict)  # folders of what is published apart, by name

    @property
    def packed(self) -> str | None:
        """Who packed the weights, "gptq" or "awq" for example, as config.json says; None where they are plain."""
        told = self.config.get("quantization_config") or self.config.get("compression_config")
        return str(told.get("quant_method", "compressed-tensors")) if isinstance(told, dict) else None

    @property
    def names(self) -> tuple[str, ...]:
        """All that its configs call it."""
        told = (self.config.get("model_type"), self.config.get("_class_name"))
        return (self.architecture, *(str(name) for name in told if name))

    @property
    def pipeline(self) -> bool:
        """Whether diffusers' index is all that tells of it."""
        return (self.folder / PIPELINE).is_file() and not (self.folder / "config.json").is_file()

    def other(self, name: str, what: str) -> Path:
        """A folder that the caller has named; CheckpointError says `what` it is and how to name it."""
        if name not in self.others:
            option = "--vae FOLDER" if name == "vae" else f"--component {name}=FOLDER"
            raise CheckpointError(f"{self.folder}: holds no {name}, which is {what}; name its folder: {option}")
        return self.others[name]


def find_foreign(folder: Path) -> Found | None:
    """None where it is no Hugging Face model: then it may be a checkpoint of edgemm's own.

    CheckpointError where the folder has no config.json and is known to be something else.
    """
    if (inside := _gguf_in(folder)) is not None:
        return _find_gguf(inside)
    _refuse_adapter(folder)
    path = folder / "config.json"
    if folder.is_dir() and not path.is_file():
        path = _without_config(folder) or path
    try:
        with reading(path):
            config = json.loads(read_text(path))
    except InputError as error:
        _refuse_config(path, str(error))
        return None  # the native loader says what is wrong
    if not isinstance(config, dict):
        _refuse_config(path, f"{path}: not the JSON that was expected: an object")
    if not isinstance(config, dict) or not config.keys() & {"architectures", "model_type", "_class_name"}:
        return None
    class_name = config.get("_class_name")  # of what was saved through diffusers
    names = config.get("architectures") or [class_name or f"(none named, model_type {config.get('model_type')!r})"]
    check_counts(config, path)
    with reading(path, "architectures", CheckpointError):
        return Found(folder, str(names[0]), config)


LARGEST = {
    "depth": 1024,
    "layers": 1024,
    "middle": 1024,
    "heads": 4096,
    "width": 1_000_000,
}  # of what is counted; more is a damaged config
COUNTING = ("size", "dim", "channels")
LARGEST_NUMBER = 10_000_000  # any other size: a vocabulary is the largest there is


def check_counts(config: Mapping[str, Any], path: Path, least: float = -math.inf) -> None:
    """CheckpointError for a number of layers, heads or other things that no model has: a library would build them."""
    with reading(path, kind=CheckpointError):
        check_sizes(config, str(path), _largest, least)


def _largest(key: str) -> float:
    counts = key.startswith("num_") or key.endswith(COUNTING)
    return next((most for part, most in LARGEST.items() if part in key), LARGEST_NUMBER if counts else math.inf)


def _refuse_config(path: Path, why: str) -> None:
    """Where it is there and the folder can be none of edgemm's own: that loader would ask for files of its own."""
    if path.is_file() and not (path.parent / "model.safetensors").exists():
        raise CheckpointError(why)


def _refuse_adapter(folder: Path) -> None:
    """Of PEFT: alone it is no model, and beside full weights libraries disagree about which of the two is meant."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return
    if (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: a PEFT adapter lies beside full weights; merge it (PEFT's merge_and_unload, and save that), or "
            "move adapter_config.json away to export the weights without it"
        )
    with reading(path, kind=CheckpointError):
        base = json.loads(read_text(path)).get("base_model_name_or_path") or "a model that it does not name"
    raise CheckpointError(
        f"{folder}: a PEFT adapter and no model; its base is {base}: merge it into that (PEFT's merge_and_unload, or "
        "`edgemm merge` for edgemm's own checkpoints) and export the result"
    )


def _without_config(folder: Path) -> Path | None:
    """Diffusers' index, if it is there; CheckpointError says what else a folder is."""
    if (folder / PIPELINE).is_file():
        return folder / PIPELINE
    for pattern, what in OTHERS.items():
        if found := sorted(folder.glob(pattern)):
            what = what.replace("FOLDER", shlex.quote(str(folder)))
            raise CheckpointError(f"{folder}: no config.json, and {found[0].name} says it is {what}")
    if parts := sorted(path.parent.name for path in folder.glob("*/config.json")):
        have = "1 folder below has" if len(parts) == 1 else f"{len(parts)} folders below have"
        raise CheckpointError(
            f"{folder}: no config.json, but {have} one: {', '.join(parts)}; name the one that holds the model"
        )
    return None


def _gguf_in(path: Path) -> Path | None:
    """The file itself, or the only one of a folder that has no config.json."""
    with reading(path, kind=CheckpointError):
        if path.suffix.lower() == GGUF and not path.is_dir():
            return check_is_file(path, "a GGUF file", CheckpointError)
        if not path.is_dir() or (path / "config.json").exists():
            return None
        files = sorted(each for each in path.iterdir() if each.suffix.lower() == GGUF)
    if len(files) > 1:
        raise CheckpointError(f"{path}: {len(files)} GGUF files, give one of them: {files[0]}, for example")
    return files[0] if files else None


def _find_gguf(path: Path) -> Found:
    try:
        import gguf
    except ImportError as error:
        raise MissingError(
            f"{path}: reading GGUF needs the package gguf: pip install 'edgemm[families,ort]'"
        ) from error
    with reading(path, "not a GGUF file", CheckpointError):
        fields = gguf_reader(gguf)(str(path)).fields
        said = {
            key: str(fields[f"general.{key}"].contents()) if f"general.{key}" in fields else ""
            for key in ("architecture", "license")
        }
    architecture = IN_GGUF.get(said["architecture"])
    if architecture is None:
        raise CheckpointError(
            f"{path}: a GGUF of {said['architecture']!r}, which is not read; expected one of: {', '.join(IN_GGUF)}"
        )
    return Found(path, architecture, {"license": said["license"]})


def other_folders(named: Iterable[str]) -> dict[str, Path]:
    """Of words NAME=FOLDER; InputError where there is no such folder."""
    found: dict[str, Path] = {}
    for word in named:
        name, _, folder = word.partition("=")
        if not name or not folder:
            raise UsageError(f"--component is {word!r}, expected NAME=FOLDER")
        if name in found:
            raise UsageError(f"--component names {name} twice")
        found[name] = Path(folder)
        if not found[name].is_dir():
            raise InputError(f"{folder}: no folder, and {name} was to be read from it")
    return found
