"""A Hugging Face folder, opened by the library that wrote it: the weights to export, and the oracle to compare with.

Nothing is fetched, no code of the folder is run (trust_remote_code is never given), and only safetensors are read:
a pickle may hold a program.  Weights that bitsandbytes packed are loaded as float.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from edgemm.bundle.files import check_is_file, read_text, reading
from edgemm.bundle.forked import forked, sendable
from edgemm.bundle.tokenizer_rules import check_text
from edgemm.errors import CheckpointError, InputError, MissingError
from edgemm.export.trace import without_warnings
from edgemm.families.folder import Found
from edgemm.families.gguf_rotary import scale_rotary
from edgemm.families.unpickle import how, pickles_in
from edgemm.model.kept_weights import mapped_tensors
from edgemm.model.pretrained import POINTER, check_tensors, is_packed, read_tensors, weights_in

__all__ = [
    "Checkpoint",
    "by_index",
    "greedy",
    "is_of_no_layer",
    "no_weights",
    "open_checkpoint",
    "refuse_pointers",
    "rendered",
    "rendered_each",
    "skeleton",
]

GENERATION = "generation_config.json"
INDEX = "model.safetensors.index.json"
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "tekken.json", "*.tiktoken")  # else a library makes it empty
OFFLINE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model, float32, and the tokenizer and processor beside it."""

    folder: Path
    architecture: str
    model: Any
    words: Path | None = None  # where the tokenizer is published apart
    licence: str = ""  # that the weights' own file states

    @property
    def config(self) -> Any:
        return self.model.config

    @cached_property
    def processor(self) -> Any:
        """Tokenizer and picture rules together; for models that read pictures."""
        from transformers import AutoProcessor

        with reading(self.folder, "its processor cannot be read", CheckpointError), without_warnings():
            return AutoProcessor.from_pretrained(self.folder, **OFFLINE)

    @cached_property
    def image_processor(self) -> Any:
        """The picture rules alone: a processor that also takes video cannot be read where torchvision is missing."""
        from transformers import AutoImageProcessor

        with reading(self.folder, "its image processor cannot be read", CheckpointError), without_warnings():
            return AutoImageProcessor.from_pretrained(self.folder, **OFFLINE)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        folder = self.words or self.folder
        if folder.is_dir() and not any(path for name in VOCABULARIES for path in folder.glob(name)):
            raise CheckpointError(f"{folder}: no tokenizer; expected tokenizer.json, or what it is made of")
        with reading(folder, "its tokenizer cannot be read", CheckpointError), without_warnings():
            if (file := folder / "tokenizer.json").is_file():
                check_text(read_text(file))
            found = AutoTokenizer.from_pretrained(**_named(folder), **OFFLINE)
        if not hasattr(found, "backend_tokenizer"):
            raise CheckpointError(f"{folder}: a tokenizer without a tokenizer.json; the runtime reads no other")
        return found

    def token_ids(self, *words: str) -> list[int]:
        """Of words that are one token each; CheckpointError names the one that the tokenizer or the embedding lacks."""
        rows, found = self.config.get_text_config().vocab_size, []
        for word in words:
            token = self.tokenizer.backend_tokenizer.token_to_id(word)
            if token is None or token >= rows:
                where = (
                    "its tokenizer has no"
                    if token is None
                    else f"the model has {rows} tokens and none for number {token},"
                )
                raise CheckpointError(f"{self.words or self.folder}: {where} {word!r}, which its prompts are made with")
            found.append(token)
        return found

    @property
    def tokenizer_json(self) -> bytes:
        return self.tokenizer.backend_tokenizer.to_str().encode()

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """What ends a reply: generation_config.json's word, else the text model's."""
        text = self.config.get_text_config()
        for found in (
            getattr(getattr(self.model, "generation_config", None), "eos_token_id", None),
            getattr(text, "eos_token_id", None),
            self.tokenizer.eos_token_id,
        ):
            if found is not None:
                return tuple(found) if isinstance(found, (list, tuple)) else (int(found),)
        return ()


def open_checkpoint(found: Found, family: ModuleType | None = None) -> Checkpoint:
    """By the library, or by the family's own modules where it has such."""
    opened = getattr(family, "open_model", None)
    if opened is not None:
        with reading(found.folder, "cannot be loaded", CheckpointError), without_warnings():
            words = found.others.get(getattr(family, "TOKENIZER", ""))
            model = opened(found).eval()
            if hasattr(model, "generation_config"):
                _read_generation(model, found.folder)
            return Checkpoint(found.folder, found.architecture, model, words)
    if found.folder.is_dir():
        _check_files(found.folder)
        if not (by_index(found.folder) or list(found.folder.glob("*.safetensors"))):
            raise no_weights(found.folder)
        _check_count(found)
    with (
        reading(found.folder, "the library cannot load it", CheckpointError),
        without_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
    ):  # bars
        weights = _weights(found)
        model, loading = _class_of(found).from_pretrained(
            **weights,
            **OFFLINE,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, by name
        )
        if "state_dict" in weights:  # the library read no folder
            _read_generation(model, found.folder)
        if "gguf_file" in weights:
            scale_rotary(model, found.folder)
    if missing := sorted(loading["missing_keys"]):
        raise CheckpointError(f"{found.folder}: {len(missing)} tensors are missing, for example {missing[0]}")
    unexpected = sorted(loading["unexpected_keys"])
    if more := [name for name in unexpected if is_of_no_layer(model, name)]:
        raise CheckpointError(f"{found.folder}: {more[0]} is of a layer that its config does not count")
    if more := [name for name in unexpected if is_left_out(model, name)]:
        raise CheckpointError(
            f"{found.folder}: {more[0]} is in no place that its config knows, and would be left out of its layer; is "
            f"{found.architecture} what it is, and are its weights packed by something?"
        )
    if wrong := sorted(loading["mismatched_keys"]):
        name, stored, said = wrong[0]
        raise CheckpointError(f"{found.folder}: {name} is {tuple(stored)}, config.json says {tuple(said)}")
    licence = found.config.get("license") or ""
    return Checkpoint(found.folder, found.architecture, model.eval().requires_grad_(False), licence=licence)


def is_of_no_layer(model: nn.Module, name: str) -> bool:
    """Whether a tensor's name counts on where a list of the model's has ended."""
    module = model
    for part in name.split("."):
        if part.isdigit() and isinstance(module, nn.ModuleList):
            if int(part) >= len(module):
                return True
        elif part not in module._modules:
            return False
        module = module._modules[part]  # type: ignore[assignment]
        if module is None:
            return False
    return False


def is_left_out(model: nn.Module, name: str) -> bool:
    """Whether a tensor's name leads into a module that computes with its own, or into one of a list, and no further."""
    module, inside = model, False
    for part in name.split("."):
        child = module._modules.get(part)
        if child is None:
            break
        inside = inside or isinstance(module, nn.ModuleList)
        module = child
    return inside or any(parameter is not None for parameter in module._parameters.values())


def _read_generation(model: Any, folder: Path) -> None:
    if (folder / GENERATION).is_file():
        model.generation_config = type(model.generation_config).from_pretrained(folder)


def refuse_pointers(found: Found) -> None:
    """Of Git-LFS, in the place of small files too: a parser of JSON would say less."""
    folders = (found.folder, *found.others.values())
    with reading(found.folder, kind=CheckpointError):
        for path in sorted(path for folder in folders for pattern in ("*", "*/*") for path in folder.glob(pattern)):
            if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(POINTER):
                raise CheckpointError(f"{path}: a Git-LFS pointer and no file of a model; fetch them: git lfs pull")


def by_index(folder: Path, name: str = INDEX) -> dict[str, str]:
    """Tensor -> file, as an index says, which may lie in folders below; CheckpointError where a file is missing or
    elsewhere.  Nothing where there is no index."""
    index = folder / name
    if not index.is_file():
        return {}
    with reading(index, "no index of weights", CheckpointError):
        listed = dict(json.loads(read_text(index))["weight_map"])
        named = set(listed.values())
        for name in named:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise CheckpointError(f"{index}: weight_map names {name!r}, which is no file of this folder")
        missing = sorted(name for name in named if not (folder / name).is_file())
    if missing:
        raise CheckpointError(f"{folder}: {len(missing)} of {len(named)} files are missing, for example {missing[0]}")
    return listed


def no_weights(folder: Path) -> CheckpointError:
    """Of a folder without *.safetensors."""
    pickles = pickles_in(folder)
    if not pickles:
        below = sorted(path.relative_to(folder) for path in folder.glob("*/*.safetensors"))
        index = f", or {INDEX} that names those in folders below, such as {below[0]}" if below else ""
        return CheckpointError(f"{folder}: no weights; expected *.safetensors{index}")
    return CheckpointError(
        f"{folder}: only {pickles[0].name}, a pickle, which may hold a program; expected *.safetensors, which this "
        f"makes of its tensors, and of nothing else: {how(folder)}"
    )


def _check_files(folder: Path) -> None:
    """Nothing that its library would wait for, and nothing cut."""
    with reading(folder, kind=CheckpointError):
        for path in sorted(folder.iterdir()):
            if not path.is_dir():
                check_is_file(path, "a file of a model", CheckpointError)
            if path.suffix == ".safetensors":
                check_tensors(path)


def _weights(found: Found) -> dict[str, Any]:
    """What the library loads: tensors that stay in their files, the floats that bitsandbytes packed, or a GGUF file.

    Layers of bitsandbytes cannot be traced, and on some CPUs they lose their weights at the first forward.
    """
    if not found.folder.is_dir():
        return _named(found.folder)
    config, files = _config(found), _files(found.folder)
    given = {"pretrained_model_name_or_path": None, "config": config}
    if is_packed(found.config):
        del config.quantization_config
        return given | {"state_dict": read_tensors(files)}
    return given | {"state_dict": mapped_tensors(files)}


def _files(folder: Path) -> list[Path]:
    """Of weights: those that an index names, or `weights_in` it."""
    named, found = sorted({folder / name for name in by_index(folder).values()}), weights_in(folder)
    if named and found == [folder / "model.safetensors"] and found[0] not in named:
        raise CheckpointError(f"{folder}: holds {found[0].name}, and {INDEX} names other files; keep one of the two")
    return named or found


def _check_count(found: Found) -> None:
    """A library makes numbers of its own for whatever is not there, gigabytes of them, before it tells of that."""
    if is_packed(found.config):
        return
    stored = sum(math.prod(shape) for file in _files(found.folder) for shape in check_tensors(file).values())
    wanted = sum(parameter.numel() for parameter in skeleton(found).parameters())
    if wanted > 2 * stored:
        raise CheckpointError(
            f"{found.folder}: a model of {wanted:,} numbers by its config.json, and its weights hold {stored:,}"
        )


def _named(path: Path) -> dict[str, Any]:
    """How the library is told of a folder, or of a GGUF file."""
    if path.is_dir():
        return {"pretrained_model_name_or_path": path}
    return {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}


def rendered(library: Any, messages: list[dict[str, Any]], folder: Path) -> str:
    """The folder's chat template: a program of a stranger's, so a copy of this process runs it, which may take seconds
    and some memory and no more."""

    return forked(lambda: _said(library, messages), _template_of(folder))


def rendered_each(library: Any, talks: Sequence[list[dict[str, Any]]], folder: Path) -> list[str | Exception]:
    """`rendered` of every one, or the error that it ends with, all by one copy of this process: it takes longer to be
    made than the rendering."""

    def render(talk: list[dict[str, Any]]) -> str | Exception:
        try:
            return _said(library, talk)
        except MemoryError:
            raise
        except Exception as error:
            return sendable(error, _template_of(folder))

    def alone(talk: list[dict[str, Any]]) -> str | Exception:
        try:
            return rendered(library, talk, folder)
        except Exception as error:
            return error

    try:
        return forked(lambda: [render(talk) for talk in talks], _template_of(folder))
    except InputError:  # one of them takes too much
        return [alone(talk) for talk in talks]


def _said(library: Any, messages: list[dict[str, Any]]) -> str:
    return library.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _template_of(folder: Path) -> str:
    return f"{folder}: its chat template"


def literal(text: str) -> str:
    """A template that says this and nothing else."""
    escaped = text.encode("unicode_escape", "surrogatepass").decode("ascii").replace('"', "\\x22")
    return '{{ "' + escaped + '" }}'


def skeleton(found: Found, family: ModuleType | None = None) -> Any:
    """The model without its weights (meta device): every shape, no memory."""
    own = getattr(family, "skeleton", None)
    with reading(found.folder, "config.json cannot be read", CheckpointError), without_warnings():
        if own is not None:
            return own(found)
        config = _config(found)
        with torch.device("meta"):
            return _class_of(found)(config)


def _config(found: Found) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(**_named(found.folder), **OFFLINE)


def _class_of(found: Found) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingError(f"{found.architecture} needs transformers: pip install 'edgemm[families,ort]'") from error
    if not hasattr(transformers, found.architecture):
        raise MissingError(f"transformers {transformers.__version__} has no {found.architecture}: install a newer one")
    return getattr(transformers, found.architecture)


@torch.no_grad()
def greedy(model: Any, inputs: dict[str, Tensor], count: int) -> list[int]:
    """The library's likeliest tokens, nothing stopping it, whatever its generation_config would rather do."""
    answer = model(**inputs, use_cache=True)
    tokens: list[int] = []
    while True:
        tokens.append(int(answer.logits[0, -1].argmax()))
        if len(tokens) == count:
            return tokens
        step = torch.tensor([tokens[-1:]])
        answer = model(input_ids=step, past_key_values=answer.past_key_values, use_cache=True)
