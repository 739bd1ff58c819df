"""What examples/serve ships for several replicas, as nginx and systemd themselves read it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extras serve and dev")

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "examples/serve/edgemm@.service"


@pytest.mark.slow
def test_a_kill_breaks_off_only_its_own_replies_and_sigterm_none(bundle):
    words = [sys.executable, "benchmarks/serve_chaos.py", str(bundle), "--seconds", "3", "--tokens", "32"]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    if ran.returncode == 4:
        pytest.skip(ran.stderr.strip())
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["answered"] > 50 and found["passed_on_by_nginx"] > 0
    assert found["burst"]["refused"] > 0


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_systemd_takes_the_unit(tmp_path):
    """With a program that is there, for ours is not where it says."""
    unit = tmp_path / UNIT.name
    text = UNIT.read_text()
    assert "/opt/edgemm/bin/edgemm serve" in text
    unit.write_text(text.replace("/opt/edgemm/bin/edgemm", shutil.which("true") or "/bin/true"))
    ran = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")
