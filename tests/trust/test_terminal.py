"""Strangers' names, paths and replies send a terminal no commands."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

from edgemm.cli.main import main
from edgemm.progress import shown

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = "a\x1b[2J\x1b]0;title\x07b\x9b1mc\rd"


def test_what_would_command_a_terminal_is_spelled_out():
    assert shown(COMMANDS) == r"a\x1b[2J\x1b]0;title\x07b\x9b1mc\x0dd"
    assert shown("naïve\tשלום\n日本") == "naïve\tשלום\n日本"


def test_a_manifests_name_is_spelled_out_where_a_terminal_shows_it(copy):
    document = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(document | {"name": COMMANDS}))
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "edgemm", "inspect", str(copy)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=writer, stdin=writer) as child:
        os.close(writer)
        seen = b""
        while chunk := _read(reader):
            seen += chunk
    assert child.returncode == 0 and rb"\x1b[2J" in seen and b"\x1b" not in seen


def _read(reader: int) -> bytes:
    try:
        return os.read(reader, 1 << 16)
    except OSError:  # Linux's word for the end of a terminal
        return b""


def test_a_path_in_an_error_is_spelled_out(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "x\x1b[31m")]) == 3
    said = capsys.readouterr().err
    assert r"x\x1b[31m" in said and "\x1b" not in said
