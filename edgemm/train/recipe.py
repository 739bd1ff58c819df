"""A training recipe: a TOML file whose every line can be overridden with `--set key=value`.

No torch here: `edgemm train --help` and a mistyped key must answer at once.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgemm.bundle.reading import read_text, reading
from edgemm.errors import InputError, UsageError

__all__ = ["CAPTION", "DESIGNS", "PARTS", "Recipe", "read_recipe", "read_stages"]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PARTS = ("conditioner", "denoiser", "projection", "queries", "transformer")
DESIGNS = {
    "experts": ("mot", "dense", "connector"),
    "vision": ("single", "dual"),
    "image_tokens": ("patch", "ae", "vq"),
    "objective": ("flow", "ar"),
}
CHOICES = {
    **DESIGNS,
    "task": ("draw", "read", "edit", "joint", "autoencode"),
    "optimizer": ("adamw", "muon"),
    "precision": ("auto", "bf16", "fp32"),
}
CAPTION = "{caption}"  # where a picture's own caption goes in a recipe's
LARGEST = sys.float_info.max  # infinity is out of range too
RANGES: tuple[tuple[tuple[str, ...], float, float], ...] = (
    (("steps", "batch", "log_every", "save_every", "sample_every"), 1, LARGEST),
    (("noises", "views", "reply_tokens", "lora_rank", "lora_alpha"), 1, LARGEST),
    (("perceptual_weight", "adversarial_weight", "adversarial_start"), 0, LARGEST),
    (("seed", "threads", "warmup", "align_steps", "word_steps", "replies", "lora_first_layer", "pictures"), 0, LARGEST),
    (
        ("learning_rate", "matrix_learning_rate", "weight_decay", "time_spread", "reply_weight", "flow_weight"),
        0,
        LARGEST,
    ),
    (("reply_share", "blend"), 0, 0.9),
    (("clip", "loss_floor"), 1e-6, LARGEST),
    (("drop_prompt", "decay", "ema"), 0, 1),
)


@dataclass(frozen=True)
class Recipe:
    """One stage of training. Paths are relative to where the command runs."""

    # "draw": the image expert over a frozen transformer; "read": projection and LoRA; "edit": drawing from a picture in
    # the prefix; "joint": both losses on the same pictures, cross-entropy + flow_weight * flow; "autoencode": the
    # latents that image_tokens = "ae" draws, or the codes of "vq"
    task: str
    data: str  # dataset folder as `edgemm data` writes it
    output: str  # run folder: state, log, samples; output/checkpoint is the result
    start: str = "small"  # preset, or checkpoint folder to go on from
    experts: str = "mot"  # designs of a new model (model/designs.py): "dense" has one set of weights for both;
    # "connector" draws what a frozen transformer makes of learned queries
    vision: str = "single"  # "dual": pixels beside EfficientNet-Lite0's features
    image_tokens: str = "patch"  # "ae": latents of an autoencoder; "vq": entries of a codebook
    objective: str = "flow"  # "ar": the transformer says a picture's codes, of image_tokens "vq", one after the other
    steps: int = 1000
    batch: int = 64
    seed: int = 0
    optimizer: str = "adamw"  # "adamw" (arXiv:1711.05101); "muon": on matrices, AdamW on the rest (arXiv:2502.16982)
    learning_rate: float = 1e-3
    matrix_learning_rate: float = 0.01  # muon's
    weight_decay: float = 0.01
    warmup: int = 100  # steps of linear warm-up
    decay: float = 0.3  # last share of the steps, in which the rate falls to a hundredth (cosine)
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.999  # decay of the averaged weights; 0 leaves them out
    precision: str = "auto"  # autocast to "bf16", "fp32" without; auto is bf16 where this CPU multiplies it faster
    compile: bool = False  # torch.compile the denoiser: worth a minute of start-up on long runs, needs a C++ compiler
    threads: int = 0  # torch threads; 0 leaves them alone
    log_every: int = 20
    save_every: int = 200
    sample_every: int = 1000
    groups: tuple[str, ...] = ()  # emoji groups to train on; none means all
    splits: tuple[str, ...] = ("train",)
    pictures: int = 0  # train on so many of them, spread evenly; 0 means all
    train: tuple[
        str, ...
    ] = ()  # parts that learn, of PARTS; none means the task's own; "transformer" is all its weights
    flow_weight: float = 1.0  # of drawing's loss beside that of the answers, in joint training
    # an image tokenizer ("autoencode"); both terms of VQGAN (arXiv:2012.09841), which weighs them 1 and 0.8
    perceptual_weight: float = 0.0  # of the distance that EfficientNet-Lite0 sees; 0 leaves it out
    adversarial_weight: float = 0.0  # of a judge that learns to tell the tokenizer's pictures; 0 leaves it out
    adversarial_start: int = 0  # step from which it is heard; it learns before: one that knows nothing pulls anywhere
    # drawing
    caption: str = ""  # what pictures are said to be, such as "{caption}, noto style"; "" means their own captions
    noises: int = 1  # times that a batch shows each of its pictures, with other noise; its prompt is read once
    drop_prompt: float = 0.1  # share of samples that see the unconditional prompt (arXiv:2207.12598)
    time_mean: float = -0.8  # of the logit-normal time; lower trains more on noisy pictures
    time_spread: float = 1.0
    loss_floor: float = 0.1  # smallest 1 - t in the velocity loss
    # reading
    views: int = 4  # changed views of each picture, computed once
    blend: float = 0.0  # largest share of another picture in what the eye saw: unseen pictures look like several words
    align_steps: int = 0  # steps of pulling image tokens to their labels' embeddings, before the first step (align.py)
    word_steps: int = 0  # steps of teaching visual words their labels, before the first step; needs vision words
    train_projection: bool = True  # false keeps the aligned projection and trains the adapter alone
    replies: int = 0  # own earlier replies to text that are kept up, so that the model goes on talking (samples.py)
    reply_tokens: int = 32  # longest of them
    reply_share: float = 0.125  # of a batch
    reply_weight: float = 0.5  # of their loss beside that of the answers
    lora_rank: int = 32
    lora_alpha: int = 64
    lora_first_layer: int = 15  # layers below stay as they are: the denoiser reads them
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "down_proj")

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"recipe: {name} is {getattr(self, name)!r}, expected one of: {', '.join(allowed)}")
        for names, low, high in RANGES:
            for name in names:
                if not low <= getattr(self, name) <= high:
                    expected = f"{low} or more" if high == LARGEST else f"{low} to {high}"
                    raise UsageError(f"recipe: {name} is {getattr(self, name)}, expected {expected}")
        if self.batch % self.noises:
            raise UsageError(f"recipe: batch is {self.batch}, expected a multiple of noises, {self.noises}")
        if self.caption and CAPTION not in self.caption:
            raise UsageError(f"recipe: caption is {self.caption!r}, expected {CAPTION} somewhere in it")
        if not set(self.train) <= set(PARTS):
            raise UsageError(f"recipe: train is {', '.join(self.train)}, expected some of: {', '.join(PARTS)}")
        if not self.lora_targets or not set(self.lora_targets) <= set(PROJECTIONS):
            found = ", ".join(self.lora_targets) or "empty"
            raise UsageError(f"recipe: lora_targets is {found}, expected some of: {', '.join(PROJECTIONS)}")


R = TypeVar("R", bound=Recipe)


def read_recipe(path: str | Path | None, overrides: Sequence[str] = (), kind: type[R] = Recipe) -> R:
    """The recipe of a kind at `path` (None: its defaults) with `key=value` overrides on top.

    Raises InputError or UsageError naming the key.
    """
    values = _document(path)
    return _recipe(path, values, overrides, kind)


def read_stages(path: str | Path, overrides: Sequence[str] = ()) -> list[Recipe]:
    """The recipe's `[[stages]]` in order, each with its own lines over the file's; one recipe where it has none.

    A stage needs a name, writes to output/NAME and starts from the checkpoint of the stage before, if it does not say
    otherwise.  An override goes to every stage, or to one of them as `name.key=value`.
    """
    values = _document(path)
    if "stages" not in values:
        return [_recipe(path, values, overrides, Recipe)]
    stages = values.pop("stages")
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise InputError(f"{path}: stages is {stages!r}, expected tables: [[stages]]")
    names = [stage.pop("name", None) for stage in stages]
    if not all(isinstance(name, str) and name.isidentifier() for name in names) or len(set(names)) < len(names):
        raise InputError(f"{path}: names of stages are {names}, expected a different plain word for each")
    if written := [name for name, stage in zip(names, stages, strict=True) if "output" in stage]:
        raise InputError(
            f"{path}: {written[0]}.output: a stage writes below the recipe's output, to a folder of its own name"
        )
    recipes: list[Recipe] = []
    for name, stage in zip(names, stages, strict=True):
        common = [word for word in overrides if word.partition("=")[0].partition(".")[0] not in names]
        own = [word.removeprefix(f"{name}.") for word in overrides if word.startswith(f"{name}.")]
        recipe = _recipe(path, {**values, **stage}, [*common, *own], Recipe)
        changes = {"output": str(Path(recipe.output) / name)}
        if recipes and "start" not in stage and not any(word.startswith("start=") for word in own):
            changes["start"] = str(Path(recipes[-1].output) / "checkpoint")
        recipes.append(dataclasses.replace(recipe, **changes))
    return recipes


def _recipe(path: str | Path | None, values: dict[str, Any], overrides: Sequence[str], kind: type[R]) -> R:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = dict(values)
    for key, value in values.items():
        if key not in fields:
            raise InputError(f"{path}: unknown key {key!r}; known: {', '.join(fields)}")
        values[key] = _checked(path or "recipe", key, value, str(fields[key].type))
    for override in overrides:
        key, separator, raw = override.partition("=")
        if not separator or key not in fields:
            raise UsageError(f"--set {override}: expected key=value with a key of: {', '.join(fields)}")
        values[key] = _parse(key, raw, str(fields[key].type))
    missing = [name for name in ("task", "data", "output") if name not in values]
    if missing:
        raise InputError(f"{path}: {missing[0]} is missing")
    return kind(**values)


def _document(path: str | Path | None) -> dict[str, Any]:
    """The TOML file's own lines, unchecked."""
    if path is None:
        return {}
    text = read_text(path, "a recipe")
    with reading(path, "not TOML"):
        return _toml(text)


def _toml(text: str) -> dict[str, Any]:
    """Raises ValueError where the text is not TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _checked(path: str | Path, key: str, value: Any, kind: str) -> Any:
    """A value of the TOML file as the field's type."""
    strings = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind.startswith("tuple") and strings:
        return tuple(value)
    if kind == "float" and type(value) is int:
        return float(value)
    if type(value).__name__ != kind:
        raise InputError(f"{path}: {key} is {value!r}, expected {'a list of strings' if 'tuple' in kind else kind}")
    return value


def _parse(key: str, raw: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return {"true": True, "false": False}[raw.lower()]
        if kind.startswith("tuple"):
            if raw.startswith("["):  # as in the file
                return tuple(str(item) for item in _toml(f"{key} = {raw}")[key])
            return tuple(item for item in raw.split(",") if item)
        return {"int": int, "float": float}.get(kind, str)(raw)
    except (KeyError, ValueError) as error:
        raise UsageError(f"--set {key}={raw}: expected {kind}") from error
