"""The commit on a card is that of the checkout."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from edgemm.bench.conditions import commit


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_told_and_changes_are_marked(tmp_path):
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        ran = subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return ran.stdout.strip()

    assert commit(tmp_path) is None
    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "-m", "first")
    git("tag", "-a", "v1", "-m", "a tag does not take the hash's place")
    head = git("rev-parse", "HEAD")
    clean = commit(tmp_path)
    assert clean and head.startswith(clean)
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path) == clean + "+"
