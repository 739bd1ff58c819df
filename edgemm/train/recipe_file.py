"""Recipe files: TOML that says its kind inside (`kind = "draw"`); every line can be overridden with `--set key=value`.

What the keys of a kind mean is in recipe.py, distill_recipe.py and finetune_recipe.py.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from edgemm.bundle.files import decode, read_text, reading
from edgemm.errors import BundleError, InputError, UsageError
from edgemm.train.distill_recipe import FewStepsRecipe, StudentRecipe
from edgemm.train.finetune_recipe import FinetuneRecipe
from edgemm.train.recipe import AutoencodeRecipe, DrawRecipe, EditRecipe, JointRecipe, ReadRecipe, Recipe, Stage

__all__ = ["KINDS", "read_recipe", "read_stages"]

KINDS: dict[str, type[Recipe]] = {
    kind.kind: kind
    for kind in (
        *(DrawRecipe, EditRecipe, ReadRecipe, JointRecipe, AutoencodeRecipe),
        *(StudentRecipe, FewStepsRecipe, FinetuneRecipe),
    )
}
R = TypeVar("R", bound=Recipe)


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
