"""Every test that is written is run by `make test` or `make test-slow`: what pytest collects against what lies here."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.collected import Collected, is_whole

ROOT = Path(__file__).resolve().parent.parent
SLOW = "pytest.mark.slow"

# Where a run was asked for some files or tests alone.
COLLECT = """
import json, sys, pytest
from tests.collected import Collected

here = Collected()
code = pytest.main([*sys.argv[2:], "--collect-only"], plugins=[here])
open(sys.argv[1], "w").write(json.dumps(here.told()))
sys.exit(code)
"""


def command_of(target: str) -> str:
    """The line of the Makefile that starts pytest."""
    variables = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    told = subprocess.run(["make", "-n", target], cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    (line,) = (line for line in told.stdout.splitlines() if " -m pytest " in line)
    return line


@pytest.fixture(scope="module")
def collected(request, tmp_path_factory):
    """What `make test-slow` sees: [file, function, whether it is run], and the files that cannot run here.

    A run of `make test` or `make test-slow` has just seen the same, and its own collection is asked: they differ in
    what is deselected, and in nothing else (below).
    """
    if not shutil.which("make"):
        pytest.skip("needs make")
    if is_whole(request.config):
        here = request.config.pluginmanager.get_plugin(Collected.NAME)
        return here.told(others=request.config.option.markexpr == "not slow")
    words = command_of("test-slow").partition(" -m pytest ")[2]
    answer = tmp_path_factory.mktemp("collected") / "answer.json"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" "$2" {words}', sys.executable, COLLECT, str(answer)],
        cwd=ROOT, env=variables, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    return json.loads(answer.read_text())


@cache
def files() -> dict[str, ast.Module]:
    """Read when a test first asks: every process of a run imports this file, and one runs it."""
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted(ROOT.glob("tests/**/*.py"))}


def functions_of(tree: ast.Module) -> list[ast.FunctionDef]:
    classes = (part.body for part in tree.body if isinstance(part, ast.ClassDef))
    return [part for body in (tree.body, *classes) for part in body if isinstance(part, ast.FunctionDef)]


def test_both_commands_differ_only_in_slow_or_not_slow():
    if not shutil.which("make"):
        pytest.skip("needs make")
    assert command_of("test").replace('-m "not slow"', "-m slow") == command_of("test-slow")


def test_every_file_of_tests_is_collected_and_holds_some(collected):
    with_tests = {file for file, _, _ in collected["rows"]} | set(collected["skipped"])
    never = {file for file in files() if Path(file).name.startswith("test_")} - with_tests
    assert not never, "pytest sees no test in these"


def test_every_function_that_is_named_like_a_test_is_collected(collected):
    """Also where it lies in a file that is not named like one."""
    seen = {(file, name) for file, name, _ in collected["rows"]}
    never = {
        (file, function.name)
        for file, tree in files().items()
        if file not in collected["skipped"]
        for function in functions_of(tree)
        if function.name.startswith("test_") and (file, function.name) not in seen
    }
    assert not never


def test_what_is_marked_slow_is_run_by_make_test_slow_and_nothing_else_is(collected):
    """All of a function or a file that is marked, and something of a file where parameters are."""
    run = Counter((file, name) for file, name, is_run in collected["rows"] if is_run)
    left = Counter((file, name) for file, name, is_run in collected["rows"] if not is_run)
    assert run and left
    speak = {file for file, tree in files().items() if SLOW in attributes_of(tree)} - set(collected["skipped"])
    assert speak == {file for file, _ in run}
    for file in speak:
        whole = any(SLOW in attributes_of(part) for part in files()[file].body if is_pytestmark(part))
        for function in functions_of(files()[file]):
            if function.name.startswith("test_") and (whole or SLOW in map(ast.unparse, function.decorator_list)):
                assert run[file, function.name] and not left[file, function.name], f"{file}: {function.name}"


def attributes_of(tree: ast.AST) -> set[str]:
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def is_pytestmark(part: ast.stmt) -> bool:
    return isinstance(part, ast.Assign) and any(ast.unparse(target) == "pytestmark" for target in part.targets)
