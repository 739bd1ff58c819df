"""Clips read by what moves: rows of a prompt, a component, and the same replies as torch, watched or not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from edgemm.bundle.bundle import open_bundle
from edgemm.bundle.manifest import MotionRows
from edgemm.bundle.picture import load_picture, seeded_picture
from edgemm.errors import BundleError
from edgemm.export.component_graphs import component_graphs
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS, MotionConfig
from edgemm.model.designs import variant
from edgemm.model.prompts import read_prompt, text_loop
from edgemm.model.vision import moved
from edgemm.verify.export_native import export_bundle
from tests.engines.tiny_engines import build_for_rtx, needs_rtx
from tests.export.nano import nano, needs_opset_24, random_nano

pytestmark = needs_opset_24
EVERY, ASKED, REPLY = 3, "what moved?", 6
MOTION = MotionConfig("conv", 16, 8, 192, 64, every=EVERY)


@pytest.fixture(scope="module")
def model():
    return random_nano(nano(motion=MOTION))


def frames(*numbers: int) -> list[np.ndarray]:
    return [seeded_picture(number, 20) for number in numbers]


def torch_tokens(model, shown: list[np.ndarray]) -> list[int]:
    pixels = torch.from_numpy(np.stack([load_picture(one, 16) for one in shown]))
    return model.generate(ASKED, pixels, REPLY, stop=False, clip=True)[0]


def test_what_moved_is_gray_where_nothing_did():
    random = np.random.default_rng(0)
    now, before = (random.random((2, 3, 4, 4), dtype=np.float32) for _ in range(2))
    before[:, :, 0] = now[:, :, 0]
    found = moved(torch.from_numpy(now), torch.from_numpy(before)).numpy()
    np.testing.assert_allclose(found[:, 3:], now - before + 0.5, atol=1e-6)
    assert (found[:, :3] == now).all() and (found[:, 3:, 0] == 0.5).all()


def test_a_clip_is_a_keyframes_rows_and_then_few_a_frame_each_seeing_its_own_frame_and_those_before():
    config = variant(PRESETS["micro"](), vision="conv", motion="4")
    tokenizer = checkpoint.build(config).tokenizer
    plain, clip, one = (
        read_prompt(config, tokenizer, ASKED, 8),
        read_prompt(config, tokenizer, ASKED, 9, clip=True),
        read_prompt(variant(PRESETS["micro"](), vision="conv", motion="1"), tokenizer, ASKED, 8, clip=True),
    )
    counts = [int((prompt.image_index >= 0).sum()) for prompt in (plain, clip, one)]
    assert counts == [8 * 16, 16 + 7 * 4 + 16, 16 + 7]  # the ninth frame is a keyframe again
    rows = np.flatnonzero(clip.image_index >= 0)
    assert clip.image_index[rows].tolist() == list(range(len(rows)))
    ends = np.cumsum([16, *[4] * 7, 16]) - 1
    expected = np.repeat(rows[0] + ends, [16, *[4] * 7, 16])
    assert clip.attention_limit[rows].tolist() == expected.tolist()


def test_the_bundle_says_of_a_clip_what_torch_does(model, runtime):
    shown = frames(0, 1, 2, 3, 4)
    found = runtime.generate_text(ASKED, video=shown, max_new_tokens=REPLY, ignore_eos=True)
    assert list(found.token_ids) == torch_tokens(model, shown)
    assert found.metrics.image_encode_ms > 0
    as_pictures = runtime.generate_text(ASKED, images=shown, max_new_tokens=REPLY, ignore_eos=True)
    assert found.metrics.prompt_tokens == as_pictures.metrics.prompt_tokens
    assert found.token_ids != as_pictures.token_ids  # the third frame's rows are another encoder's
    swapped = runtime.generate_text(ASKED, video=[shown[0], shown[2], shown[1]], max_new_tokens=REPLY, ignore_eos=True)
    assert list(swapped.token_ids) == torch_tokens(model, [shown[0], shown[2], shown[1]])


def test_a_clip_is_verified_with_the_bundle(runtime):
    from edgemm.verify.loops import check_bundle

    lines = check_bundle(open_bundle(runtime.bundle.path))
    assert sum("of a clip" in line for line in lines) == 2
    assert runtime.manifest.loops.text.motion == MotionRows(4, EVERY)


@pytest.mark.parametrize(("window", "pushed", "left"), [(3, 3, 3), (3, 7, 1), (6, 6, 6), (2, 5, 1)])
def test_a_full_window_forgets_a_keyframe_and_all_that_follows_from_it(runtime, window, pushed, left):
    shown = frames(*range(pushed))
    stream = runtime.watch(window=window, max_new_tokens=REPLY, ignore_eos=True)
    for one in shown:
        stream.push(one)
    assert stream.turns and stream.frames == left
    wanted = runtime.generate_text(ASKED, video=shown[-left:], max_new_tokens=REPLY, ignore_eos=True)
    assert stream.ask(ASKED).token_ids == wanted.token_ids


@pytest.mark.parametrize(("pushed", "left"), [(4, 4), (7, 4), (9, 6), (10, 4)])
def test_reading_anew_begins_with_a_keyframe(runtime, pushed, left):
    shown = frames(*range(pushed))
    stream, cached = (
        runtime.watch(window=6, max_new_tokens=REPLY, ignore_eos=True, reread=reread) for reread in (True, False)
    )
    for one in shown:
        stream.push(one)
        cached.push(one)
    assert stream.frames == cached.frames == left
    wanted = runtime.generate_text(ASKED, video=shown[-left:], max_new_tokens=REPLY, ignore_eos=True)
    assert stream.ask(ASKED).token_ids == wanted.token_ids
    first = wanted.metrics.prompt_tokens - len(ASKED)  # bytes; the template's words aside, what stands in the cache
    keys, used = cached._conversation().cache.buffers["past_key.0"], cached._conversation().cache.used
    fresh = runtime.watch(window=6, max_new_tokens=REPLY)
    for one in shown[-left:]:
        fresh.push(one)
    again = fresh._conversation().cache
    assert used == again.used < first
    np.testing.assert_allclose(keys[:, :, :used], again.buffers["past_key.0"][:, :, :used], atol=1e-5)


def test_a_model_without_motion_reads_frames_as_pictures(model):
    loop = text_loop(nano(), model.tokenizer)
    assert loop.motion is None
    with pytest.raises(BundleError, match="motion is given beside joined, block or image_lead"):
        dataclasses.replace(loop, motion=MotionRows(4, 8), joined=True)


@pytest.mark.parametrize(
    ("motion", "message"),
    [
        (dataclasses.replace(MOTION, feature_width=64), "feature_width 64, vision 16 and 192"),
        (dataclasses.replace(MOTION, image_size=32), "motion has image_size 32"),
    ],
)
def test_what_does_not_fit_the_eye_is_refused(motion, message):
    with pytest.raises(ValueError, match=message):
        nano(motion=motion)


def test_a_motion_without_convolutions_is_refused():
    with pytest.raises(ValueError, match="motion encoder 'patch' with 0 words, expected conv"):
        MotionConfig("patch", 16, 8, 192, 64)


def test_the_encoder_is_a_component_like_others(model):
    graph = component_graphs(model)["motion_encoder"]
    assert [spec.name for spec in graph.inputs] == ["pixels", "previous"]
    assert graph.outputs[0].shape == ("b", 4, 64)


@pytest.mark.parametrize("target", ["cpu", pytest.param("jetson-orin-jp6", marks=pytest.mark.slow)])
def test_it_is_exported_in_whole_numbers_too(model, tmp_path, target):
    checkpoint.save(model, tmp_path / "made")
    export_bundle(tmp_path / "made", tmp_path / "made.bundle", target=target, precision="int8")
    assert "motion_encoder" in open_bundle(tmp_path / "made.bundle").manifest.components


@pytest.mark.slow
@needs_rtx
def test_the_encoder_builds_for_an_rtx_device_that_is_not_here(model, tmp_path):
    checkpoint.save(model, tmp_path / "made")
    export_bundle(tmp_path / "made", tmp_path / "made.bundle", target="rtx")
    assert "motion_encoder" in build_for_rtx(tmp_path / "made.bundle", tmp_path / "engines")
