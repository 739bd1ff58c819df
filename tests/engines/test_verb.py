"""`edgemm build`: words, sizes, NVIDIA's own commands, and shapes that come from the manifest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgemm.bundle.bundle import open_bundle
from edgemm.cli.main import main
from edgemm.engines.builder import Outcome, Rung, climb
from edgemm.engines.engine_spec import EngineSpec, Place, Profile, merged, profiles_of, smaller, trtexec_command
from edgemm.errors import BundleError, ResourceError, UsageError
from edgemm.options import parse_bytes
from tests.runtimes.tiny_bundle import build

PROFILES = (
    Profile("prefill", {"ids": ((1, 1), (1, 128), (1, 2048))}),
    Profile("decode", {"ids": ((1, 1), (1, 1), (1, 1))}),
)
SPEC = EngineSpec("transformer", "a", "b", "tensorrt", "10.3.0", Place("8.7", "Orin"), PROFILES, 3, 1 << 30)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(build(tmp_path_factory.mktemp("verb") / "tiny.bundle"), verify=False)


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2 << 30), ("512MB", 512 << 20), ("1.5g", 3 << 29), ("100", 100), ("7k", 7 << 10)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "2TiB", "0", "1e9"])
def test_sizes_that_are_none(text):
    with pytest.raises(UsageError, match="expected for example 2GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--opt-level", "6"], 2, "opt-level is 6, expected 0 to 5"),
        (["--timeout", "0"], 2, "timeout is 0, expected more than 0 seconds"),
        (["--max-memory", "much"], 2, "size is 'much'"),
        (["--target", "rtx", "--sm", "86"], 3, "the bundle has no target 'rtx', only: cpu"),
    ],
)
def test_words_that_cannot_be(bundle, capsys, words, code, message):
    assert main(["build", str(bundle.path), *words]) == code
    assert message in capsys.readouterr().err


def test_a_phase_is_a_profile_with_shapes_of_the_manifest(bundle):
    prefill, decode = profiles_of(bundle.manifest, "transformer", "cpu")
    limits, loop = bundle.manifest.limits, bundle.manifest.loops.text
    assert (prefill.phase, decode.phase) == ("prefill", "decode")
    assert [shape[1] for shape in prefill.shapes["input_ids"]] == [1, 128, limits.max_context]
    assert prefill.shapes["image_tokens"][1][1] == loop.image_token_count
    assert set(decode.shapes["input_ids"]) == {(1, 1)}
    (denoise,) = profiles_of(bundle.manifest, "denoiser", "cpu")
    assert [shape[0] for shape in denoise.shapes["noisy_tokens"]] == [1, 2, 2], "one row, or two with guidance"
    for component in bundle.manifest.components:
        for profile in profiles_of(bundle.manifest, component, "cpu"):
            assert profile.shapes.keys() == {spec.name for spec in bundle.manifest.variant(component, "cpu").inputs}


def test_a_smaller_profile_keeps_the_least_and_takes_less():
    assert smaller(PROFILES[0]).shapes["ids"] == ((1, 1), (1, 128), (1, 512))
    assert smaller(PROFILES[1]) == PROFILES[1]


def test_one_profile_for_all_phases_takes_what_each_takes():
    (one,) = merged(PROFILES)
    assert one == Profile("prefill+decode", {"ids": ((1, 1), (1, 1), (1, 2048))})
    assert merged(PROFILES[:1]) == PROFILES[:1]


def test_the_ladder_goes_down_one_rung_at_a_time_and_ends():
    """Outcomes of a builder that always runs out of memory."""
    tried = []

    def fail(rung):
        tried.append(rung)
        return Outcome(None, "memory", "too large")

    with pytest.raises(ResourceError, match="no engine after 5 attempts: as asked: too large; "):
        climb(Rung(64 << 20, 3, PROFILES), fail, "transformer")
    assert [rung.what for rung in tried[1:]] == [
        "a workspace of 16 MiB", "one profile for all phases", "optimization level 1", "smaller shapes"
    ]  # fmt: skip
    assert tried[-1].profiles[0].shapes["ids"][2] == (1, 512) and tried[-1].opt_level == 1


def test_a_compiler_that_fails_within_itself_has_no_engine_for_this_bundle():
    """Exit 3: nothing of ours is wrong, and another graph may build."""
    failed = Outcome(None, "compiler", "Myelin: CHECK(is_const()) failed")
    with pytest.raises(BundleError, match="attempts: as asked: Myelin"):
        climb(Rung(16 << 20, 1, PROFILES[1:]), lambda rung: failed, "denoiser")


def test_trtexec_of_each_version_gets_the_flags_that_it_knows():
    ten = trtexec_command(SPEC, Path("g.onnx"), "g.engine", jetson=True).split()
    assert ten[:4] == [
        "/usr/src/tensorrt/bin/trtexec", "--onnx=g.onnx", "--saveEngine=g.engine", "--stronglyTyped"
    ]  # fmt: skip
    assert "--memPoolSize=workspace:1024M" in ten and "--builderOptimizationLevel=3" in ten
    second = ten[ten.index("--profile=1") :]
    assert "--maxShapes=ids:1x2048" in ten and second[1:] == [f"--{n}Shapes=ids:1x1" for n in ("min", "opt", "max")]
    eleven = trtexec_command(dataclasses.replace(SPEC, version="11.4.1"), Path("g.onnx"), "g.engine").split()
    assert eleven[0] == "trtexec" and "--stronglyTyped" not in eleven
    place = Place("8.6", here=False)
    rtx = dataclasses.replace(SPEC, tensorrt="tensorrt_rtx", version="1.7", place=place, profiles=PROFILES[1:])
    line = trtexec_command(rtx, Path("a graph.onnx"), "g.engine")
    assert line.startswith("tensorrt_rtx '--onnx=a graph.onnx'") and "--computeCapabilities=8.6" in line
    assert "--stronglyTyped" not in line and "--profile" not in line
    assert not any(flag in line + " ".join(ten + eleven) for flag in ("--fp16", "--int8", "--best"))
