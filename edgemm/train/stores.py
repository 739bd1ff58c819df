"""Keys and values of every caption, computed once: the transformer is frozen while drawing is taught.

Only the slots after the template's opening are kept, in bfloat16.
Axes: c captions, g key/value heads, t slots kept, d head width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from edgemm.bundle.beside import written_beside
from edgemm.bundle.files import reading
from edgemm.errors import InputError
from edgemm.model.conditioner import pool_prompt
from edgemm.model.transformer import KeyValues
from edgemm.model.unified import Unified
from edgemm.train.ranks import refusing_full_disk

__all__ = ["PromptStore", "fits_in_memory", "QueryStore", "TeacherCache"]

CHUNK = 64
UNKNOWN = object()  # no line's value
STORED_BYTES = 8 << 30  # of prompts, in each process


def fits_in_memory(model: Unified, captions: Sequence[str]) -> bool:
    """Whether all prompts may be stored; more of them are read anew at every step."""
    source, layers = model.config.transformer, len(model.config.denoiser.prefix_layers)
    slots = max(len(model.encode(" " + caption, special=False)) for caption in captions)
    return 4 * layers * source.kv_heads * source.head_width * slots * len(captions) <= STORED_BYTES


class PromptStore:
    """The cache of a list of captions; row i belongs to caption i."""

    def __init__(self, model: Unified, captions: Sequence[str]) -> None:
        layers, skip = len(model.config.denoiser.prefix_layers), model.conditioner.skip
        longest = max(len(model.encode(" " + caption, special=False)) for caption in captions)
        slots = longest + len(model.encode(model.config.draw.close))
        g, d = model.config.transformer.kv_heads, model.config.transformer.head_width
        self.device = model.denoiser.position.device
        self.cached = torch.zeros(layers, 2, len(captions), g, slots, d, dtype=torch.bfloat16, device=self.device)
        self.mask = torch.zeros(len(captions), slots, device=self.device)
        self.length = torch.zeros(len(captions), dtype=torch.long, device=self.device)
        order = sorted(range(len(captions)), key=lambda row: len(captions[row]))  # alike in length: little padding
        for start in range(0, len(captions), CHUNK):
            chunk = order[start : start + CHUNK]
            cached, mask, length = model.prompt_cache([captions[row] for row in chunk])
            kept = mask.shape[1] - skip
            for layer, pair in enumerate(cached):
                for which, tensor in enumerate(pair):
                    self.cached[layer, which, chunk, :, :kept] = tensor[:, :, skip:].bfloat16()
            self.mask[chunk, :kept] = mask[:, skip:]
            self.length[chunk] = length - skip

    def pooled(self) -> Tensor:
        """(c, features) of all captions, for fitting the conditioner's whitening."""
        used = torch.arange(self.mask.shape[1], device=self.device) < self.length[:, None]
        return pool_prompt([self.cached[layer, 1] for layer in range(len(self.cached))], self.mask, used)

    def rows(self, rows: Tensor, cut: bool = True) -> tuple[KeyValues, Tensor, Tensor]:
        """Keys and values, prompt mask and length of some captions, cut to the longest among them (a compiled denoiser
        wants the same shape every time instead)."""
        rows = rows.to(self.device)
        slots = int(self.length[rows].max()) if cut else self.mask.shape[1]
        cached = self.cached[:, :, rows, :, :slots]
        return [(layer[0], layer[1]) for layer in cached], self.mask[rows, :slots], self.length[rows]


# A connector's prompts up to its queries, read once: the transformer is frozen, and only the queries learn.
#
# What a prompt's words left in the cache never changes, so a step reads the queries alone behind it.
# Axes: c captions, q queries, T slots of the longest prompt, g key/value heads, d head width.


class QueryStore:
    """Row i belongs to caption i."""

    def __init__(self, model: Unified, captions: Sequence[str]) -> None:
        self.model = model
        starts = range(0, len(captions), CHUNK)
        read = [model.prompt_cache(captions[start : start + CHUNK], every_layer=True) for start in starts]
        slots = max(mask.shape[1] for _, mask, _ in read)
        self.mask = torch.cat([pad(mask, (0, slots - mask.shape[1])) for _, mask, _ in read])
        self.length = torch.cat([length for *_, length in read])
        self.cached: KeyValues = []
        for layer in range(len(read[0][0])):
            pairs = [(cached[layer], (0, 0, 0, slots - mask.shape[1])) for cached, mask, _ in read]
            keys, values = (torch.cat([pad(pair[i], behind) for pair, behind in pairs]) for i in (0, 1))
            self.cached.append((keys, values))  # (c, g, T, d)

    @staticmethod
    def fits(model: Unified, captions: Sequence[str]) -> bool:
        """Whether all prompts may be kept, in float32 and every layer."""
        source = model.config.transformer
        around = len(model.encode(model.config.draw.open)) + len(model.encode(model.config.draw.close))
        slots = around + max(len(model.encode(" " + caption, special=False)) for caption in captions)
        return 8 * source.depth * source.kv_heads * source.head_width * slots * len(captions) <= STORED_BYTES

    def read(self, rows: Tensor) -> tuple[KeyValues, Tensor, Tensor]:
        """What Unified.prompt_cache gives of some captions, with a gradient to the queries."""
        transformer, layers = self.model.transformer, self.model.config.denoiser.prefix_layers
        assert transformer.queries is not None
        rows = rows.to(self.length.device)
        queries = transformer.queries.weight.expand(len(rows), -1, -1)  # (b, q, w)
        first = self.length[rows] - queries.shape[1]
        limit = first[:, None] + torch.arange(queries.shape[1], device=rows.device)
        past = [(keys[rows], values[rows]) for keys, values in self.cached]
        _, present = transformer(queries, limit, past, first, depth=len(past))
        return [present[layer] for layer in layers], self.mask[rows], self.length[rows]


# What a teacher said, on disk: computed once, and found again by a run that was stopped or by the next student.
#
#     FOLDER/teacher.json          whose answers these are, and to what
#     FOLDER/NAME.safetensors      one answer; written beside and renamed, so it is whole or not there
#
# It knows names and tensors, never models.


class TeacherCache:
    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        """Raises InputError when the folder holds the answers of another teacher, or to other questions.  A folder from
        before a line was part of the key is taken as it is."""
        self.folder = folder
        wanted = json.dumps(key, sort_keys=True, indent=2) + "\n"
        folder.mkdir(parents=True, exist_ok=True)
        described = folder / "teacher.json"
        known = _known(described) if described.exists() else {}
        if any(key.get(line, UNKNOWN) != value for line, value in known.items()):
            raise InputError(
                f"{folder}: holds answers of another teacher or recipe; delete it or choose another output"
            )
        _write(described, lambda path: path.write_text(wanted, encoding="utf-8"))

    def get(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The stored answer, or what `compute` gives, which is then stored."""
        from safetensors.torch import load_file, save_file

        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            answer = {key: tensor.contiguous() for key, tensor in compute().items()}
            with refusing_full_disk(path, None, sum(tensor.nbytes for tensor in answer.values())):
                _write(path, lambda temporary: save_file(answer, temporary))
        with reading(path, "delete it, it will be computed again"):
            return load_file(path)  # what was stored, so that a resumed run sees the same numbers


def _known(described: Path) -> dict[str, Any]:
    with reading(described, "delete the folder, it will be computed again"):
        document = json.loads(described.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError(f"holds a {type(document).__name__}, expected an object")
    return document


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    with written_beside(path) as temporary:
        write(temporary)
