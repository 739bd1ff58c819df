"""The order of the house: nobody imports upward, and nobody imports in a circle; lazy imports count.

Read from the syntax trees, so an import inside a function and one for the type checker alone are seen too.  Tables that
load a module by its name (cli/main.py's verbs, runtimes/engines.py, families/table.py) are read as imports.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = (  # from the ground
    ("progress",),
    ("errors",),
    ("options",),
    ("bundle",),
    ("device",),
    ("engines",),
    ("runtimes",),
    ("data",),
    ("model",),
    ("quantize",),
    ("export",),
    ("families",),
    ("report",),
    ("energy",),
    ("estimate",),
    ("bench",),
    ("evaluate",),
    ("verify",),
    ("search",),
    ("train",),
    ("serve",),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: floor for floor, names in enumerate(LAYERS) for name in names}
FACE = "edgemm"  # the public face hands names on; it belongs to no layer


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "edgemm").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def named(node: ast.AST) -> list[str]:
    """The modules of the package that a node of the syntax tree names."""
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        whole = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in MODULES else node.module for name in whole]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"edgemm(\.\w+)+", node.value):
        return [node.value]
    return []


def imports_of(module: str) -> set[str]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return {name for node in ast.walk(tree) for name in named(node) if name in MODULES} - {module, FACE}


@cache
def imports() -> dict[str, set[str]]:
    """Read when a test first asks: every process of a run imports this file, and one runs it."""
    return {module: imports_of(module) for module in MODULES if module != FACE}


def layer_of(module: str) -> str:
    return module.split(".")[1]


def test_every_file_stands_in_a_layer():
    assert {layer_of(module) for module in imports()} <= FLOOR.keys()


def test_nobody_imports_upward():
    upward = [
        f"{module} -> {name}"
        for module, names in imports().items()
        for name in names
        if FLOOR[layer_of(name)] > FLOOR[layer_of(module)]
    ]
    assert not upward


def test_nobody_imports_in_a_circle():
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_an_import_that_is_lazy_or_for_types_alone_is_seen():
    """That the reader reads: cli/main.py names its verbs in strings, load() imports inside of a function."""
    assert "edgemm.cli.draw" in imports()["edgemm.cli.main"]
    assert "edgemm.runtimes.engines" in imports_of(FACE)
