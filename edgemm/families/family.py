"""What a family says about a model of its architecture, and what every family may use to say it.

A family's module has
    CANNOT                        what this export leaves out, for the user to read before it starts
    pieces(model)                 component -> modules and parameters in it: sizes, also on paper (meta device)
    parts(checkpoint)             the graphs, their example inputs and the loops
and, where it draws,
    draw_codes(checkpoint, prompt, guidance, count)     the library's own likeliest codes, for comparison
and, where the library wants more than its image processor gives,
    library_inputs(checkpoint, ids, images)             what its model is called with for the runtime's token ids
A model that no library knows is made of modules of our own (own_modules.py):
    NEEDS                         what is published apart: name -> what it is, for the refusal where it is missing
    LICENCES                      of weights that people have, where an export has to name them
    skeleton(found)               the model without weights, on the meta device; `config` is its text model's
    open_model(found)             the same with weights, float32
    reply(checkpoint, ids, images, count)               its likeliest tokens after the runtime's token ids
    draw(checkpoint, drawn)                             a whole picture (3, H, W) of a Drawn, by the published loop
Everything a runtime has to know goes into loops and tables: it never learns a family's name for more than a label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from edgemm.bundle.components import COMPONENTS, TensorSpec, pattern
from edgemm.bundle.drawing import DenoiseLoop, ImageTokensLoop
from edgemm.bundle.manifest import TextLoop
from edgemm.export.component_graphs import ComponentGraph
from edgemm.export.manifest import CODE_IDS, id_table

__all__ = ["CODE_IDS", "Drawn", "Named", "Parts", "Pieces", "Shape", "component", "id_table", "without_copies"]

Named = dict[str, Tensor]
Pieces = Mapping[str, Sequence[nn.Module | nn.Parameter]]
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Parts:
    """A model, cut up for a bundle."""

    graphs: dict[str, ComponentGraph]
    inputs: dict[str, Named]  # component -> what its graph is compared on
    text: TextLoop | None
    image_tokens: ImageTokensLoop | None = None
    denoise: DenoiseLoop | None = None
    most_context: int = 2048  # positions the model was trained for
    tables: dict[str, bytes] = field(default_factory=dict)  # path in the bundle -> content
    tokenizer_json: bytes | None = None  # where the runtime needs another than the folder's
    shared: dict[str, str] = field(default_factory=dict)  # component -> the one before it whose weights it uses, too


@dataclass(frozen=True, eq=False)
class Drawn:
    """A drawing that is compared: what the runtime is asked for, and the noise it begins with."""

    prompt: str
    noise: Tensor  # shaped as what is denoised
    steps: int  # as a caller counts them
    guidance: float
    height: int  # pixels
    width: int
    image: Any = None  # uint8 (H, W, 3): a picture that is edited
    picture_noise: Any = None  # shaped as noise: of latents that such a picture is read as


def component(
    name: str,
    module: nn.Module,
    inputs: dict[str, Shape],
    outputs: dict[str, Shape],
    multiples: Mapping[str, int] = MappingProxyType({}),
) -> ComponentGraph:
    """A component's graph; types of its tensors are the contract's, `multiples` those of axes of pixels."""
    types = {stem: dtype for side in COMPONENTS[name] for stem, (dtype, _) in side.items()}
    sides = (
        tuple(TensorSpec(key, types[pattern(key)], shape) for key, shape in side.items()) for side in (inputs, outputs)
    )
    return ComponentGraph(name, module.eval(), *sides, multiples=multiples)


def without_copies(pieces: Sequence[Any]) -> int:
    """Numbers in modules and parameters, each counted once however often it is used."""
    found: dict[int, torch.Tensor] = {}
    for piece in pieces:
        for tensor in [piece] if isinstance(piece, torch.Tensor) else piece.parameters():
            found[id(tensor)] = tensor
    return sum(tensor.numel() for tensor in found.values())
