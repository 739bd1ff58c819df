"""The names that clients ask for, and what answers to them: a bundle, a bundle with an adapter, or another name."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Union

import edgemm
from edgemm import Model
from edgemm.bundle.drawing import LatentGrid
from edgemm.errors import InputError, UsageError
from edgemm.runtimes.image_encoder import ENCODERS
from edgemm.serve.problems import Problem

__all__ = ["Named", "Registry", "Served"]

Served = Union[str, "os.PathLike[str]", Model]


@dataclass(frozen=True)
class Named:
    """What a client calls a model."""

    id: str
    model: Model
    adapter: str | None
    root: str  # the bundle's own name

    @property
    def draws(self) -> bool:
        loops = self.model.manifest.loops
        return loops.denoise is not None or loops.image_tokens is not None

    @property
    def sees(self) -> bool:
        return not set(ENCODERS).isdisjoint(self.model.manifest.components)

    @property
    def writes(self) -> bool:
        return self.model.manifest.loops.text is not None

    @cached_property
    def fingerprint(self) -> str:
        """Of what computes the answers: the same seed gives the same answer as long as it stays."""
        weights = "".join(sorted(record.sha256 for record in self.model.manifest.files.values()))
        words = f"{edgemm.__version__} {self.id} {self.model.choice} {weights}"
        return f"fp_{hashlib.sha256(words.encode()).hexdigest()[:12]}"

    @property
    def body(self) -> dict[str, Any]:
        loops, limits = self.model.manifest.loops, self.model.manifest.limits
        return {
            "id": self.id,
            "object": "model",
            "created": CREATED,
            "owned_by": "edgemm",
            "root": self.root,
            "parent": self.root if self.adapter else None,
            "max_model_len": limits.max_context,
            "input_modalities": ["text", *(["image"] if self.sees else [])],
            "output_modalities": [
                *(["text"] if self.writes else []),
                *(["image"] if self.draws else []),
            ],
            "edits": bool(loops.denoise and loops.denoise.edits),
            "drawing": self._drawing,
        }

    @property
    def _drawing(self) -> dict[str, Any] | None:
        """What is drawn where a request names nothing else; `previews` says that partial_images are honoured, `sizes`
        which others there are."""
        denoise, codes = self.model.manifest.loops.denoise, self.model.manifest.loops.image_tokens
        if denoise is not None:
            own = {"steps": denoise.num_inference_steps, "guidance": denoise.guidance_scale, "previews": True}
            return {"size": f"{denoise.width}x{denoise.height}", "sizes": _sizes(denoise.latents), **own}
        if codes is not None:
            own = {"steps": None, "guidance": codes.guidance_scale, "previews": False}
            return {"size": f"{codes.image_width}x{codes.image_height}", "sizes": None, **own}
        return None


CREATED = int(time.time())


def _sizes(latents: LatentGrid | None) -> dict[str, int | None] | None:
    """What each side may be, in pixels; None where there is one size."""
    if latents is None or not latents.free:
        return None
    sides = {"smallest": latents.smallest, "largest": latents.largest, "multiple": latents.multiple or latents.cell}
    return {**sides, "most_pixels": latents.most_pixels or None}


class Registry:
    """Every name; the first bundle answers who names none."""

    def __init__(self, models: Sequence[Model], alias: Sequence[str] = (), adapter: Sequence[str] = ()) -> None:
        self._named: dict[str, Named] = {}
        self.models = tuple(models)
        for model in models:
            self._add(Named(model.manifest.name, model, None, model.manifest.name))
        self._first = next(iter(self._named.values()))
        for words in adapter:
            self._add_adapter(words)
        for words in alias:
            name, _, of = words.partition("=")
            target = self._named.get(of) if of else self._first
            if target is None or not name:
                raise UsageError(f"--alias {words}: expected NAME or NAME=MODEL, models are {', '.join(self._named)}")
            self._add(Named(name, target.model, target.adapter, target.root))

    def _add(self, named: Named) -> None:
        if named.id in self._named:
            raise UsageError(f"two models are called {named.id!r}; serve one of them from another process")
        self._named[named.id] = named

    def _add_adapter(self, words: str) -> None:
        name, equals, folder = words.partition("=")
        of, colon, own = name.rpartition(":")
        base = self._named.get(of) if colon else self._first
        if not equals or not own or base is None:
            raise UsageError(f"--adapter {words}: expected NAME=FOLDER or MODEL:NAME=FOLDER")
        base.model.load_adapter(own, folder)
        self._add(Named(f"{base.id}:{own}", base.model, own, base.root))

    def __iter__(self) -> Any:
        return iter(self._named.values())

    def get(self, name: str | None) -> Named:
        if name is None:
            return self._first
        if name not in self._named:
            known = ", ".join(self._named)
            raise Problem(404, "model_not_found", f"no model is called {name[:100]!r}; there are: {known}", "model")
        return self._named[name]


def opened(bundles: Sequence[Served], **how: Any) -> tuple[list[Model], list[Model]]:
    """Every model, and those that were opened here."""
    models, own = [], []
    if not bundles:
        raise InputError("no bundle to serve")
    for bundle in bundles:
        if isinstance(bundle, Model):
            models.append(bundle)
        else:
            models.append(edgemm.load(bundle, **how))
            own.append(models[-1])
    return models, own
