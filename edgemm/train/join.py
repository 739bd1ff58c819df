"""Two trainings of one base, side by side, into one checkpoint: drawing from one folder, reading from the other.

Sound because the two touch nothing in common: drawing trains the conditioner and the denoiser over the transformer's
lower layers, reading trains the projection and an adapter on layers above those.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from edgemm.errors import CheckpointError
from edgemm.model import checkpoint

__all__ = ["join"]


def join(drawing: Path, reading: Path, output: Path, name: str = "") -> None:
    """Write `output`: conditioner and denoiser of `drawing`, everything else of `reading`.

    Raises CheckpointError when the two are not the same model or the reading one changed layers that drawing reads.
    """
    draws, reads = checkpoint.load(drawing), checkpoint.load(reading)
    if draws.config.objective == "ar":
        raise CheckpointError(f"{drawing}: one transformer reads and draws codes, there are no halves to join")
    of_reading = {"name": "", "sampler": draws.config.sampler, "vision": reads.config.vision, "edits": False}
    ours, theirs = (dataclasses.replace(m.config, **of_reading) for m in (draws, reads))
    if ours != theirs:
        raise CheckpointError(f"{reading}: config.json differs from that of {drawing}; only one model can be joined")
    if draws.tokenizer_json != reads.tokenizer_json:
        raise CheckpointError(f"{reading}: tokenizer.json differs from that of {drawing}; only one model can be joined")
    if not torch.equal(draws.transformer.embed_tokens.weight, reads.transformer.embed_tokens.weight):
        raise CheckpointError(f"{reading}: the transformer's embedding differs from {drawing}, and drawing reads it")
    deepest = max(draws.config.denoiser.prefix_layers)
    for index in range(deepest + 1):
        both = (m.transformer.layers[index].parameters() for m in (draws, reads))
        if not all(torch.equal(a, b) for a, b in zip(*both, strict=True)):
            raise CheckpointError(f"{reading}: transformer layer {index} differs from {drawing}, and drawing reads it")
    reads.conditioner.load_state_dict(draws.conditioner.state_dict())
    reads.denoiser.load_state_dict(draws.denoiser.state_dict())
    edits = draws.config.edits and _same(draws.image_encoder.state_dict(), reads.image_encoder.state_dict())
    reads.config = dataclasses.replace(draws.config, name=name or output.name, vision=reads.config.vision, edits=edits)
    checkpoint.save(reads, output, torch.bfloat16)


def _same(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Editing was taught with one projection of pictures, and is lost with another."""
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
