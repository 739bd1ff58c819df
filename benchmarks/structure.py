"""How large the house is, and through how many rooms one command walks.

    python benchmarks/structure.py                        # files, lines, medians, imports upward and in circles
    python benchmarks/structure.py draw x.bundle --prompt "a red circle" --output x.png
    python benchmarks/structure.py export checkpoints/micro-shapes --output x.bundle --precision int8

With a command it also runs `edgemm COMMAND` in this process, under a profiler that notes which files and functions of
the package are entered, in any thread.  What child processes enter is not counted.
"""

from __future__ import annotations

import ast
import inspect
import json
import statistics
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import edgemm

PACKAGE = Path(edgemm.__file__).resolve().parent


def sizes() -> dict[str, Any]:
    """Of files that are not empty."""
    sources = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path.stat().st_size}
    lines = [len(source.splitlines()) for source in sources.values()]
    functions = [
        node.end_lineno - node.lineno + 1
        for source in sources.values()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno
    ]
    return {
        "files": len(lines),
        "median_lines": statistics.median(lines),
        "lines": sum(lines),
        "functions": len(functions),
        "median_function_lines": statistics.median(functions),
    }


def walked(words: list[str]) -> dict[str, Any]:
    """The files and functions that one command enters; bodies of modules and classes run at import and do not count."""
    entered: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and code.co_filename.startswith(str(PACKAGE)):
            entered.add((code.co_filename, getattr(code, "co_qualname", f"{code.co_firstlineno}:{code.co_name}")))

    try:
        from edgemm.cli.main import main
    except ImportError:  # before there was a folder for it
        from edgemm.cli import main
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        code = main(words)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    files = sorted({str(Path(name).relative_to(PACKAGE)) for name, _ in entered})
    return {"command": words[0], "exit_code": code, "files": len(files), "functions": len(entered), "through": files}


def main() -> int:
    result: dict[str, Any] = {"sizes": sizes()}
    if sys.argv[1:]:
        result["walk"] = walked(sys.argv[1:])
    for part in result.values():
        for name, value in part.items():
            print(f"{name:<22} {value if not isinstance(value, list) else ' '.join(value)}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
