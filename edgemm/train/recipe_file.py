"""Recipe files: TOML that says its kind inside (`kind = "draw"`); every line can be overridden with `--set key=value`.

What the keys of training mean is in recipe.py, those of `edgemm distill` and `edgemm finetune` here.  No torch: the
command line answers at once.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from edgemm.bundle.files import decode, read_text, reading
from edgemm.errors import BundleError, InputError, UsageError
from edgemm.train.recipe import (
    PROJECTIONS,
    Answering,
    AutoencodeRecipe,
    Drawing,
    DrawRecipe,
    EditRecipe,
    EyeRecipe,
    GraphRecipe,
    JointRecipe,
    Reading,
    ReadRecipe,
    Recipe,
    Stage,
    check_caption,
)

__all__ = [
    "DistillRecipe",
    "FewStepsRecipe",
    "FinetuneRecipe",
    "KINDS",
    "METHODS",
    "PARTS",
    "StudentRecipe",
    "read_recipe",
    "read_stages",
]


PARTS = ("transformer", "denoiser", "both")  # which half learns: the transformer reads, the denoiser draws


def refuse_other_half(recipe: Recipe, parts: str) -> None:
    """UsageError of lines that say what the half which does not learn is taught."""
    if parts == "transformer":
        recipe.refuse("only reading learns", "caption", "more", "more_captions")
    if parts == "denoiser":
        recipe.refuse("only drawing learns", "replies", "blend", "caption_share", "align_steps", "word_steps")


# What `edgemm distill` is told: who teaches, what the student is, and what it is asked to copy.


@dataclass(frozen=True, kw_only=True)
class DistillRecipe(Recipe):
    """What both kinds share; the second may start from the first's checkpoint."""

    verb: ClassVar[str] = "distill"

    teacher: str  # checkpoint folder
    name: str = ""  # of the result; "": the output folder's
    guidance: float = 0.0  # of the teacher's drawings, baked into the student (arXiv:2210.03142); 0: the teacher's own


@dataclass(frozen=True, kw_only=True)
class StudentRecipe(Drawing, Reading, DistillRecipe):
    """A smaller student, cut from its teacher."""

    kind: ClassVar[str] = "student"

    student: str  # "nano", a config.json of another depth, or a checkpoint folder to go on from
    parts: str = "both"  # which half learns: "denoiser" draws, "transformer" reads
    transformer_layers: int = 0  # 0: as many as the student asks for
    denoiser_layers: int = 0
    temperature: float = 2.0  # of the teacher's words (arXiv:1503.02531)
    top_words: int = 64  # of the teacher's distribution that are kept on disk; the rest is one word
    data_weight: float = 0.2  # of the losses against the data itself, beside those against the teacher
    feature_weight: float = 0.5  # of the last features' angle to the teacher's
    other_prompts: float = 0.0  # share of the drawing prompts that are another picture's: the teacher alone judges
    on_policy: float = 0.0  # share of the reading steps in which the student answers by itself (arXiv:2306.13649)
    lora_rank: int = 64  # of the adapter that heals the upper layers; the teacher's own is kept in it
    lora_alpha: int = 128
    lora_targets: tuple[str, ...] = PROJECTIONS

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("parts", PARTS)
        refuse_other_half(self, self.parts)


@dataclass(frozen=True, kw_only=True)
class FewStepsRecipe(DistillRecipe):
    """A student of its teacher's shape that draws in few steps, without guidance."""

    kind: ClassVar[str] = "few-steps"

    few: tuple[str, ...]  # numbers of steps that the student shall draw well in; each divides the largest
    student: str = ""  # checkpoint folder to go on from; "": the teacher itself
    teacher_steps: int = 48  # of the teacher's drawings; a multiple of the largest of `few`
    trajectories: int = 2048  # drawings of the teacher to learn from, made once
    caption: str = ""  # what pictures are said to be, as in drawing
    compile: bool = False  # torch.compile the denoiser

    def __post_init__(self) -> None:
        super().__post_init__()
        check_caption(self.caption)
        largest = max(self.step_counts, default=0)
        if not largest or any(count < 1 or largest % count for count in self.step_counts):
            raise UsageError(f"recipe: few is {', '.join(self.few) or 'empty'}: each must divide the largest")
        if self.teacher_steps < 1 or self.teacher_steps % largest:
            raise UsageError(
                f"recipe: few is {', '.join(self.few)} of a teacher's {self.teacher_steps} steps: the largest must "
                "divide the teacher's"
            )

    @property
    def step_counts(self) -> tuple[int, ...]:
        try:
            return tuple(int(count) for count in self.few)
        except ValueError as error:
            raise UsageError(f"recipe: few is {', '.join(self.few)}, expected whole numbers such as 4,2,1") from error


# What `edgemm finetune` is told: which adapter, on which part.

METHODS = ("lora", "rslora", "dora", "qlora")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(Drawing, Answering):
    """An adapter on a finished checkpoint, every weight of which stays as it is."""

    kind: ClassVar[str] = "finetune"
    verb: ClassVar[str] = "finetune"

    start: str  # checkpoint folder
    method: str = "lora"  # arXiv:2106.09685; "rslora" 2312.03732; "dora" 2402.09353; "qlora" 2305.14314
    parts: str = "denoiser"  # "denoiser": how it draws; "transformer": how it reads; "both"
    target_modules: tuple[str, ...] = ()  # linear layers by name; none: the usual ones of each part
    name: str = "adapter"  # the adapter's folder: output/adapters/NAME/{transformer,denoiser}
    steps: int = 300
    batch: int = 32
    warmup: int = 20
    ema: float = 0.98
    save_every: int = 50
    sample_every: int = 100
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_first_layer: int = 0  # of the transformer; 0: the first above those that the denoiser reads

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("method", METHODS), ("parts", PARTS), ("optimizer", ("adamw",))):
            self._one_of(name, allowed)
        refuse_other_half(self, self.parts)
        if self.method == "qlora" and self.parts == "denoiser":
            raise UsageError("recipe: qlora keeps the transformer in nf4; for the denoiser alone take method lora")
        if not self.name or self.name.startswith(".") or set(self.name) & set("/\\"):
            raise UsageError(f"recipe: name is {self.name!r}, expected a folder's name")

    @property
    def draws(self) -> bool:
        return self.parts in ("denoiser", "both")

    @property
    def reads(self) -> bool:
        return self.parts in ("transformer", "both")


KINDS: dict[str, type[Recipe]] = {
    kind.kind: kind
    for kind in (
        *(DrawRecipe, EditRecipe, ReadRecipe, JointRecipe, GraphRecipe, EyeRecipe, AutoencodeRecipe),
        *(StudentRecipe, FewStepsRecipe, FinetuneRecipe),
    )
}
R = TypeVar("R", bound=Recipe)
MOST_DOTS = 100  # of a line: the memory that a parser takes for a key grows with the square of its parts


def read_recipe(path: str | Path | None, overrides: Sequence[str], base: type[R], kind: str = "") -> R:
    """The recipe at `path` with `key=value` overrides on top, of a kind below `base`; without a file of kind `kind`.

    Raises InputError or UsageError naming the key, or the verb that takes such a recipe.
    """
    return _recipe(path, _document(path) if path else {"kind": kind}, overrides, base)


def read_stages(path: str | Path, overrides: Sequence[str] = ()) -> list[Stage]:
    """The recipe's `[[stages]]` in order, each with its own lines over the file's; one recipe where it has none.

    A stage needs a name, writes to output/NAME and starts from the checkpoint of the stage before, if it does not say
    otherwise.  A line of the file, and an override, goes to every stage whose kind has it; `name.key=value` to one.
    """
    values = _document(path)
    if "stages" not in values:
        return [_recipe(path, values, overrides, Stage)]
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
    common = [word for word in overrides if word.partition("=")[0].partition(".")[0] not in names]
    kinds = [_kind_of(path, {**values, **stage}, Stage) for stage in stages]
    known = {key for kind in kinds for key in _keys(kind)}
    recipes: list[Stage] = []
    for name, stage, kind in zip(names, stages, kinds, strict=True):
        others = known - {"kind", *_keys(kind)}  # lines of the file that are for other stages
        lines = {key: value for key, value in values.items() if key not in others}
        own = [word.removeprefix(f"{name}.") for word in overrides if word.startswith(f"{name}.")]
        reach = [word for word in common if word.partition("=")[0] not in others]
        recipe = _recipe(path, {**lines, **stage}, [*reach, *own], Stage)
        changes = {"output": str(Path(recipe.output) / name)}
        if recipes and "start" not in stage and not any(word.startswith("start=") for word in own):
            changes["start"] = str(Path(recipes[-1].output) / "checkpoint")
        recipes.append(dataclasses.replace(recipe, **changes))
    return recipes


def _recipe(path: str | Path | None, values: dict[str, Any], overrides: Sequence[str], base: type[R]) -> R:
    """`values` with the overrides on top, as the frozen dataclass of their kind."""
    changes = []
    for word in overrides:
        key, separator, raw = word.partition("=")
        if not separator:
            raise UsageError(f"--set {word}: expected KEY=VALUE")
        if key == "kind":
            values = {**values, "kind": raw}
        else:
            changes.append((word, key, raw))
    kind = _kind_of(path, values, base)
    values = {key: value for key, value in values.items() if key != "kind"}
    hints = typing.get_type_hints(kind)
    for word, key, raw in changes:
        if key not in _keys(kind):
            raise UsageError(f"{word}: kind {kind.kind} has no {key}, it has: {', '.join(_keys(kind))}")
        try:
            values[key] = decode(hints[key], _value(raw, hints[key]), key)
        except BundleError as error:
            raise UsageError(f"--set {word}: {error}") from error
    missing = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        if path is None:
            raise UsageError("; ".join(f"--{name} is needed" for name in missing))
        raise InputError(f"{path}: {missing[0]} is missing; add the line, or give --set {missing[0]}=...")
    try:
        return decode(kind, values, "")
    except BundleError as error:
        raise InputError(f"{path}, of kind {kind.kind}: {error}") from error


def _kind_of(path: str | Path | None, values: dict[str, Any], base: type[R]) -> type[R]:
    """What the lines say they are, or whose they could be."""
    name = values.get("kind")
    if name is None and "task" in values:
        raise InputError(f'{path}: task is called kind now: kind = "{values["task"]}"')
    if name is None:
        fitting = [f'kind = "{kind.kind}"' for kind in KINDS.values() if values.keys() <= set(_keys(kind))]
        raise InputError(f"{path}: kind is missing; its lines fit: {' or '.join(fitting or KINDS)}")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise InputError(f"{path}: kind is {name!r}, expected one of: {', '.join(KINDS)}")
    if not issubclass(kind, base):
        raise InputError(f"{path} is for `edgemm {kind.verb}`: its kind is {name}")
    return kind


def _keys(kind: type[Recipe]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _document(path: str | Path) -> dict[str, Any]:
    """The TOML file's own lines, unchecked."""
    text = read_text(path, "a recipe")
    if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
        raise InputError(f"{path}: a line with more than {MOST_DOTS} dots, which no recipe has")
    with reading(path, "not TOML"):
        return _toml(text)


def _toml(text: str) -> dict[str, Any]:
    """Raises ValueError where the text is not TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _value(raw: str, hint: Any) -> Any:
    """An override as TOML would say it, or as it is, for `decode` to refuse."""
    with suppress(ValueError, KeyError):
        if hint is bool:
            return {"true": True, "false": False}[raw.lower()]
        if hint in (int, float):
            return hint(raw)
        if hint is not str:  # a tuple of strings
            return _toml(f"x = {raw}")["x"] if raw.startswith("[") else [item for item in raw.split(",") if item]
    return raw
