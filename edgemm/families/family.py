"""What a family says about a model of its architecture, and what every family may use to say it.

A family's module has
    CANNOT                        what this export leaves out, for the user to read before it starts
    pieces(model)                 component -> modules and parameters that it uses, alone or not: sizes, also on paper
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
Of pictures the runtime resizes, crops or pads (bundle/picture.py) and gives numbers in [0, 1]; scaling by mean and
deviation is the first node of the graph.  A bundle reads pictures of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from edgemm.bundle.components import COMPONENTS, TensorSpec, pattern
from edgemm.bundle.drawing import DenoiseLoop, ImageTokensLoop
from edgemm.bundle.files import reading
from edgemm.bundle.manifest import TextLoop
from edgemm.bundle.picture import load_picture, seeded_picture
from edgemm.errors import CheckpointError
from edgemm.export.component_graphs import ComponentGraph
from edgemm.export.manifest import CODE_IDS, id_table

__all__ = [
    "example_ids",
    "CODE_IDS",
    "Drawn",
    "Eye",
    "Named",
    "Parts",
    "PictureRule",
    "Pieces",
    "Shape",
    "component",
    "example_pictures",
    "id_table",
    "picture_rule",
    "without_copies",
]

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


def example_ids(checkpoint: Any) -> list[int]:
    """A question, in the library's token ids: what a graph is traced and compared with."""
    return checkpoint.tokenizer("What do you see in this picture, and which colours does it have?")["input_ids"]


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


FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
WHITE = (255, 255, 255)
ALIKE = 0.02  # of white, on average: libraries resize otherwise by a level or two; other squares are 0.1 away


@dataclass(frozen=True)
class PictureRule:
    """How a picture becomes what an encoder reads: the image processor's rule, split between runtime and graph."""

    size: int  # side of the square
    fit: str
    resample: str
    background: tuple[int, int, int]
    scale: tuple[float, ...]  # a channel: number in the graph = scale * number in [0, 1] + shift
    shift: tuple[float, ...]
    least: int = 1  # pixels that the shorter side has at least, when it is padded


def picture_rule(processor: Any, folder: Any, pads: bool = False, size: int | None = None) -> PictureRule:
    """Of an image processor that makes squares; `pads` and `size` where its settings do not say so.

    CheckpointError where the processor itself makes something else of pictures; with `size`, of squares.
    """
    settings = processor.to_dict()
    mean, deviation = (settings.get(key) or [0.0] * 3 for key in ("image_mean", "image_std"))
    if not settings.get("do_normalize", True):
        mean, deviation = [0.0] * 3, [1.0] * 3
    factor = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255.0
    pads_first = bool(settings.get("do_pad")) and not pads
    background = tuple(int(value * 255) for value in mean) if pads or pads_first else WHITE
    fit, side = ("pad" if pads else "stretch"), settings["size"]
    if settings.get("do_center_crop") and "shortest_edge" in side:
        fit, found = "crop", settings["crop_size"]
        if side["shortest_edge"] != found["height"]:
            raise CheckpointError(f"{folder}: pictures are resized to {side} and cut to {found}; expected one size")
    else:
        found = {"height": size, "width": size} if size else side
    if not found.get("height") or found["height"] != found.get("width"):
        raise CheckpointError(f"{folder}: pictures become {found}; this export reads squares")
    if (resample := settings.get("resample", 3)) not in FILTERS:
        raise CheckpointError(f"{folder}: resample is {resample!r}, expected one of: {', '.join(map(str, FILTERS))}")
    rule = PictureRule(
        int(found["height"] or 0),
        "pad_first" if pads_first else fit,
        FILTERS[int(resample)],
        background,  # type: ignore[arg-type]
        tuple(factor / d for d in deviation),
        tuple(-m / d for m, d in zip(mean, deviation)),
        int(settings.get("min_size") or 1) if pads else 1,
    )
    _try_out(rule, processor, folder, squares=size is not None)
    return rule


def _try_out(rule: PictureRule, processor: Any, folder: Any, squares: bool) -> None:
    """What settings mean is not believed: pictures of many shapes, by the library and by the rule."""
    side, other = rule.size, max(2, rule.size // 3)
    shapes = [
        (side, side),
        *([] if squares else [(max(1, side * 2 // 3), side), (side, other), (max(1, side // 32), side)]),
    ]
    scale, shift = (np.array(each)[:, None, None] for each in (rule.scale, rule.shift))
    for height, width in shapes[: 1 if squares else None]:
        picture = np.ascontiguousarray(seeded_picture(2, max(height, width))[:height, :width])
        with reading(folder, f"its image processor cannot read {width} x {height} pixels", CheckpointError):
            made = np.asarray(processor(images=[Image.fromarray(picture)], return_tensors="pt")["pixel_values"])
        if squares and made.shape != (1, 3, side, side):  # cut into patches: only its transformer tells what they were
            continue
        wanted = load_picture(picture, side, rule.background, fit=rule.fit, resample=rule.resample, least=rule.least)
        if made.shape != (1, 3, side, side) or float(np.abs((made[0] - shift) / scale - wanted).mean()) > ALIKE:
            told = ", ".join(f"{key} {value}" for key, value in processor.to_dict().items() if key.startswith("do_"))
            raise CheckpointError(
                f"{folder}: of a picture of {width} x {height} pixels its image processor makes "
                f"{made.shape[1:]} numbers that are no picture resized to {side} x {side}, rescaled and normalized; "
                f"it says {told}"
            )


class Eye(nn.Module):
    """Numbers in [0, 1] in, whatever `see` makes of the scaled picture out; `modules` are those it uses."""

    def __init__(self, rule: PictureRule, see: Callable[[Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.see, self.used = see, nn.ModuleList(modules)
        self.scale = nn.Buffer(torch.tensor(rule.scale)[:, None, None], persistent=False)
        self.shift = nn.Buffer(torch.tensor(rule.shift)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.see(pixels * self.scale + self.shift)


def example_pictures(size: int) -> Tensor:
    """(2, 3, size, size) in [0, 1]."""
    pictures = np.stack([seeded_picture(seed, size) for seed in range(2)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
