"""What lies in a cache is believed: so nobody else may have put it there, and no link leads out."""

from __future__ import annotations

import os

import pytest

from edgemm.device.cache_folder import check_private, locked, make_private, open_private
from edgemm.engines.cache import EngineCache
from edgemm.errors import InputError
from tests.engines.test_engine_cache import SPEC, put


def test_a_planted_link_empties_no_file_elsewhere(tmp_path):
    victim, cache = tmp_path / "victim", EngineCache(tmp_path / "cache")
    victim.write_text("precious")
    make_private(cache.folder)
    (cache.folder / f"{SPEC.key}.lock").symlink_to(victim)
    with pytest.raises(InputError, match="cannot be locked"), cache.lock(SPEC):
        raise AssertionError("not reached")
    assert victim.read_text() == "precious"


def test_a_lock_is_no_pipe_and_empties_nothing(tmp_path):
    make_private(tmp_path / "cache")
    (tmp_path / "cache" / "kept").write_text("kept")
    with locked(tmp_path / "cache" / "kept", lambda seconds: None):
        pass
    assert (tmp_path / "cache" / "kept").read_text() == "kept"
    os.mkfifo(tmp_path / "cache" / "pipe")
    with pytest.raises(InputError), locked(tmp_path / "cache" / "pipe", lambda seconds: None):
        raise AssertionError("not reached")


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777, 0o757])
def test_an_engine_of_a_folder_that_others_may_write_is_not_taken(tmp_path, mode):
    cache = EngineCache(tmp_path / "cache")
    put(cache, SPEC)
    assert cache.find(SPEC)[0] is not None
    for folder in (cache.folder, cache.folder / SPEC.key):
        folder.chmod(mode)
        entry, problem = cache.find(SPEC)
        assert entry is None and "others may write there" in problem
        folder.chmod(0o700)
    cache.folder.chmod(mode)
    with pytest.raises(InputError, match="others may write there"), cache.lock(SPEC):
        raise AssertionError("not reached")


def test_a_folder_that_stands_in_one_open_to_all_is_none_of_ones_own(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(InputError, match="anybody may replace it"):
        make_private(tmp_path / "open" / "cache")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_another_users_cache_is_not_believed(tmp_path):
    make_private(tmp_path / "cache")
    os.chown(tmp_path / "cache", 12345, 12345)
    with pytest.raises(InputError, match="owner 12345"):
        check_private(tmp_path / "cache")


@pytest.mark.parametrize("name", ["engine", "engine.json"])
@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_pipes_and_links_in_an_entry_are_damage_and_are_not_waited_for(tmp_path, name, plant):
    cache = EngineCache(tmp_path / "cache")
    put(cache, SPEC)
    (cache.folder / SPEC.key / name).unlink()
    plant(cache.folder / SPEC.key / name)
    entry, problem = cache.find(SPEC)
    assert entry is None and problem


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077, 0])
def test_a_cache_is_ones_own_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        cache = EngineCache(tmp_path / "cache")
        put(cache, SPEC)
        assert cache.find(SPEC)[0] is not None
        assert cache.folder.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_a_file_of_the_cache_is_opened_by_its_own_name(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert open_private(tmp_path / "file").read() == b"x"
    with pytest.raises(OSError):
        open_private(tmp_path / "link")
