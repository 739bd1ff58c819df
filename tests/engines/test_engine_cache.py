"""What a key holds, and which engines stay when there is no room: facts that need no builder."""

from __future__ import annotations

import dataclasses
import os

import pytest

from edgemm.engines import builder
from edgemm.engines.cache import EngineCache, default_folder
from edgemm.engines.engine_spec import EngineSpec, Place, Profile

PLACE = Place("8.7", "Orin", 8 << 30, "12.6", "MAXN_SUPER")
SPEC = EngineSpec("denoiser", "a", "b", "tensorrt", "10.3.0", PLACE, (Profile("run", {"x": ((1,),) * 3}),), 3, 1 << 28)
OTHERS = {
    "component": "transformer",
    "graph_sha256": "c",
    "data_sha256": "c",
    "tensorrt": "tensorrt_rtx",
    "version": "10.3.1",
    "profiles": (Profile("run", {"x": ((1,), (1,), (2,))}),),
    "tf32": True,
}
EFFORTS = {"opt_level": 2, "workspace_bytes": 1 << 27}
OTHER_PLACES = {
    "compute_capability": "8.6",
    "gpu": "Orin NX",
    "gpu_memory_bytes": 16 << 30,
    "cuda_driver": "13.2",
    "power_mode": "15W",
    "here": False,
}


def put(cache, spec, content=b"engine", used_s=None, rung="as asked"):
    with cache.lock(spec):
        workshop = cache.workshop(spec)
        (workshop / "engine").write_bytes(content)
        entry = cache.store(spec, workshop, {"effort": spec.effort, "rung": rung})
    if used_s is not None:
        os.utime(entry.path.parent / "engine.json", (used_s, used_s))
    return entry


def test_every_field_is_tried():
    assert OTHERS.keys() | EFFORTS.keys() | {"place"} == {field.name for field in dataclasses.fields(EngineSpec)}
    assert OTHER_PLACES.keys() | {"number"} == {field.name for field in dataclasses.fields(Place)}


def test_two_gpus_alike_share_their_engines():
    second = dataclasses.replace(SPEC, place=dataclasses.replace(PLACE, number=1))
    assert second.key == SPEC.key


@pytest.mark.parametrize("field", OTHERS)
def test_another_wish_is_another_engine(field):
    assert dataclasses.replace(SPEC, **{field: OTHERS[field]}).key != SPEC.key


@pytest.mark.parametrize("field", EFFORTS)
def test_how_hard_it_was_looked_for_is_no_other_engine(field):
    """A load on 8 GB has other memory free than `edgemm build --max-memory 3GiB` had, and takes what that built."""
    assert dataclasses.replace(SPEC, **{field: EFFORTS[field]}).key == SPEC.key


@pytest.mark.parametrize(
    ("change", "rung", "again"),
    [
        ({}, "as asked", False),
        ({"opt_level": 5}, "as asked", True),
        ({"workspace_bytes": 1 << 29}, "as asked", False),
        ({"workspace_bytes": 1 << 29}, "smaller shapes", True),
        ({"workspace_bytes": 1 << 20}, "smaller shapes", False),
    ],
)
def test_a_load_takes_what_stands_and_a_build_what_was_asked(tmp_path, monkeypatch, change, rung, again):
    cache, wanted = EngineCache(tmp_path), dataclasses.replace(SPEC, **change)
    entry = put(cache, SPEC, rung=rung)
    monkeypatch.setattr(builder, "_build", lambda *_: entry)
    limits = builder.Limits(1 << 30, 1.0)
    assert not builder.build_engine(wanted, tmp_path / "g.onnx", cache, limits).fresh
    assert builder.build_engine(wanted, tmp_path / "g.onnx", cache, limits, as_asked=True).fresh == again


@pytest.mark.parametrize("field", OTHER_PLACES)
def test_another_device_is_another_engine(field):
    place = dataclasses.replace(PLACE, **{field: OTHER_PLACES[field]})
    assert dataclasses.replace(SPEC, place=place).key != SPEC.key


def test_the_same_wish_is_the_same_engine():
    assert dataclasses.replace(SPEC).key == SPEC.key


def test_what_was_longest_of_no_use_goes_when_there_is_no_room(tmp_path):
    cache = EngineCache(tmp_path, limit_bytes=250)
    specs = [dataclasses.replace(SPEC, graph_sha256=name) for name in "012"]
    put(cache, specs[0], bytes(100), used_s=100)
    put(cache, specs[1], bytes(100), used_s=50)
    put(cache, specs[2], bytes(100))
    assert [cache.find(spec)[0] is not None for spec in specs] == [True, False, True]


def test_a_use_counts(tmp_path):
    cache = EngineCache(tmp_path, limit_bytes=250)
    specs = [dataclasses.replace(SPEC, graph_sha256=name) for name in "012"]
    for spec in specs[:2]:
        put(cache, spec, bytes(100), used_s=50 + int(spec.graph_sha256))
    cache.find(specs[0])
    put(cache, specs[2], bytes(100))
    assert [cache.find(spec)[0] is not None for spec in specs] == [True, False, True]


def test_the_newest_engine_stays_however_large(tmp_path):
    cache = EngineCache(tmp_path, limit_bytes=10)
    put(cache, SPEC, bytes(100))
    assert cache.find(SPEC)[0]


@pytest.mark.parametrize("damage", ["engine", "engine.json"])
def test_half_an_entry_is_none(tmp_path, damage):
    cache = EngineCache(tmp_path)
    entry = put(cache, SPEC)
    (entry.path.parent / damage).unlink()
    assert cache.find(SPEC) == (None, "it is damaged (FileNotFoundError)")


def test_a_record_that_is_no_record_is_damage(tmp_path):
    cache = EngineCache(tmp_path)
    (put(cache, SPEC).path.parent / "engine.json").write_text("[1]")
    assert cache.find(SPEC) == (None, "it is damaged (TypeError)")


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "engines"
    monkeypatch.delenv("EDGEMM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_folder() == tmp_path / "x" / "edgemm" / "engines"
