"""Commands in last lines are what a shell takes, whatever a folder is called."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from edgemm.bundle.bundle import open_bundle
from edgemm.cli.hints import command, to_export
from edgemm.errors import BundleError


@pytest.mark.parametrize("name", ["plain", "my ö runs", "it's", "a;b $HOME"])
def test_a_folders_name_comes_out_of_a_shell_as_it_went_in(tmp_path, name):
    folder = tmp_path / name / "draw" / "checkpoint"
    words = shlex.split(to_export(folder).partition(": ")[2])
    assert words == ["edgemm", "export", str(folder), "--output", f"{name}-draw.bundle"]
    assert shlex.split(command("build", Path(name))) == ["edgemm", "build", name]


def test_what_a_checkpoint_would_become_can_be_asked_as_it_is_told(tmp_path):
    folder = tmp_path / "my runs"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(BundleError) as told:
        open_bundle(folder)
    asked = str(told.value).partition("become: ")[2].partition(";")[0]
    assert shlex.split(asked) == ["edgemm", "inspect", str(folder), "--estimate"]
