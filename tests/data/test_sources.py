"""What is fetched is what was pinned, or nothing is used."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

from edgemm.data import sources
from edgemm.data.sources import PACKAGES, Package, default_cache, fetch, read_json
from edgemm.errors import CheckFailedError, InputError, MissingError


def tarball_bytes(members: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return stream.getvalue()


CONTENT = tarball_bytes({"package/icons.json": json.dumps({"icons": {}}), "package/bad.json": "{"})
PACKAGE = Package(
    "@edgemm/test-icons",
    "1.2.3",
    base64.b64encode(hashlib.sha512(CONTENT).digest()).decode(),
    "MIT",
    "MIT-fluent-emoji.txt",
    "Nobody",
)


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """Put a script named npm first in PATH."""

    def put(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "npm").write_text("#!/bin/sh\n" + script)
        (folder / "npm").chmod(0o755 | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return put


def test_every_pin_is_a_sha512_and_its_licence_text_is_here():
    for package in PACKAGES.values():
        assert len(base64.b64decode(package.sha512)) == 64
        assert (Path(sources.__file__).parent / "licences" / package.licence_file).stat().st_size > 200


def test_tarball_is_named_as_npm_names_it():
    assert PACKAGE.file_name == "edgemm-test-icons-1.2.3.tgz"


def test_cached_tarball_needs_no_npm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (tmp_path / PACKAGE.file_name).write_bytes(CONTENT)
    assert read_json(fetch(PACKAGE, tmp_path), "icons.json") == {"icons": {}}


def test_fetched_tarball_lands_in_the_cache(tmp_path, fake_npm):
    (tmp_path / "whole.tgz").write_bytes(CONTENT)
    fake_npm(f'[ "$1 $2" = "pack @edgemm/test-icons@1.2.3" ] && cp {tmp_path}/whole.tgz "$4/{PACKAGE.file_name}"\n')
    tarball = fetch(PACKAGE, tmp_path / "cache")
    assert tarball.read_bytes() == CONTENT
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [PACKAGE.file_name]


def test_altered_tarball_fails_the_check(tmp_path):
    (tmp_path / PACKAGE.file_name).write_bytes(CONTENT + b"x")
    with pytest.raises(CheckFailedError, match="delete the file and run again") as caught:
        fetch(PACKAGE, tmp_path)
    assert caught.value.exit_code == 7


def test_offline_says_what_to_fetch(tmp_path):
    with pytest.raises(MissingError, match=r"npm pack @edgemm/test-icons@1\.2\.3 --pack-destination") as caught:
        fetch(PACKAGE, tmp_path, offline=True)
    assert caught.value.exit_code == 4


def test_missing_npm_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match=r"install Node\.js"):
        fetch(PACKAGE, tmp_path / "cache")


def test_failing_npm_is_quoted_and_leaves_nothing(tmp_path, fake_npm):
    fake_npm('echo half > "$4/half.tgz"; echo "npm error no such version" >&2; exit 1\n')
    with pytest.raises(MissingError, match="npm error no such version"):
        fetch(PACKAGE, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("member", ["nothing.json", "bad.json", "../../etc/passwd"])
def test_unreadable_member_is_named(tmp_path, member):
    (tmp_path / PACKAGE.file_name).write_bytes(CONTENT)
    with pytest.raises(InputError, match=member.replace(".", r"\.")):
        read_json(tmp_path / PACKAGE.file_name, member)


def test_cache_honours_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"
    monkeypatch.delenv("EDGEMM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "edgemm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "edgemm"
