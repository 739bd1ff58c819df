"""A model that draws clips: exported, compared, drawn frame for frame as torch does, and built for RTX."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io

import numpy as np
import pytest
import torch
from PIL import Image

from edgemm.cli.main import main
from edgemm.errors import BundleError, UsageError
from edgemm.model import checkpoint
from edgemm.runtimes.schedule import initial_noise
from edgemm.train.run import with_frames
from edgemm.verify.export_native import export_bundle
from tests.engines.tiny_engines import build_for_rtx, needs_rtx
from tests.export.nano import nano, needs_opset_24, random_nano
from tests.runtimes.tiny_bundle import denoise_loop

FRAMES = 3


@pytest.fixture(scope="module")
def model():
    return random_nano(nano(image_tokens=dataclasses.replace(nano().image_tokens, frames=FRAMES, frame_ms=70)))


@needs_opset_24
def test_a_bundle_draws_each_frame_as_torch_does(model, runtime, tmp_path):
    loop = runtime.manifest.loops.denoise
    assert (loop.frames, loop.frame_ms) == (FRAMES, 70)
    tokens = model.config.image_tokens
    noise = torch.from_numpy(initial_noise(5, tokens.token_count, tokens.token_width))[None]
    tall = model.draw(["a dog"], noise, model.with_sampler(num_inference_steps=4, guidance_scale=2.0))[0].numpy()
    drawn = runtime.generate_image("a dog", num_inference_steps=4, guidance_scale=2.0, seed=5, frames=FRAMES)
    assert drawn.image.clip is not None and len(drawn.frames) == FRAMES
    np.testing.assert_allclose(np.concatenate(drawn.image.clip.pixels, axis=1), tall, atol=1e-4)
    assert np.abs(np.diff(tall.reshape(3, FRAMES, -1), axis=1)).max() > 0.05  # frames differ
    drawn.save(tmp_path / "x.webp", size=64)
    with Image.open(io.BytesIO((tmp_path / "x.webp").read_bytes())) as opened:
        assert (opened.n_frames, opened.size) == (FRAMES, (64, 64))


@needs_opset_24
def test_a_clip_by_the_bundles_own_frames_is_any_moving_picture_and_no_other(runtime, tmp_path, monkeypatch, capsys):
    words = ["draw", str(runtime.bundle.path), "--prompt", "a dog", "--num-inference-steps", "1", "--threads", "1"]
    assert main([*words, "--output", str(tmp_path / "x.apng")]) == 0
    with Image.open(tmp_path / "x.apng") as opened:
        assert opened.n_frames == FRAMES
    monkeypatch.setattr("edgemm.runtimes.model.Model.stream_image", None)  # nothing is drawn
    assert main([*words, "--output", str(tmp_path / "x.jpg")]) == 2
    assert "no moving picture ends in '.jpg'" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*words, "--for", "whatsapp", "--output", str(tmp_path / "x.webp")]) == 0


@needs_opset_24
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_server_answers_with_the_whole_clip(runtime, kind):
    """And not with its first frame alone."""
    pytest.importorskip("starlette")
    import openai

    import edgemm.serve
    from tests.serve.conftest import client_of, running

    with running(edgemm.serve.app(runtime.bundle.path)) as url:
        ask = functools.partial(client_of(url).images.generate, model="nano", prompt="a dog")
        found = ask(output_format=kind, extra_body={"steps": 1, "seed": 5}).data[0].b64_json
        with pytest.raises(openai.BadRequestError, match="draws clips, which are png or webp"):
            ask(output_format="jpeg")
    drawn = runtime.generate_image("a dog", num_inference_steps=1, seed=5)
    with Image.open(io.BytesIO(base64.b64decode(found))) as opened:
        assert opened.n_frames == FRAMES and opened.format == kind.upper()
        for index, frame in enumerate(drawn.frames):
            opened.seek(index)
            opened.load()
            assert opened.info["duration"] == 70
            lost = np.abs(np.asarray(opened.convert("RGB")).astype(int) - np.asarray(frame))
            assert kind == "webp" or not lost.any()  # WebP loses what noise is made of


@needs_opset_24
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 8}, "frames is 8, bundle .* draws clips of 3 frames"),
        ({"motion": "spin"}, "motion is for still pictures, bundle .* draws clips of 3 frames"),
    ],
)
def test_other_frames_and_a_motion_are_refused(runtime, options, message):
    with pytest.raises(UsageError, match=message):
        runtime.generate_image("a dog", **options)


def test_a_model_of_still_pictures_begins_with_frames_that_are_told_apart():
    still = random_nano()
    clips = with_frames(still, FRAMES)
    tokens = clips.config.image_tokens
    noise = torch.randn(1, tokens.cell_count, tokens.token_width, generator=torch.Generator().manual_seed(0))
    prefix = clips.prefix(["a dog"])
    with torch.no_grad():
        predicted = clips.denoiser(noise.repeat(1, FRAMES, 1), torch.full((1,), 0.3), prefix)
    first, *others = predicted.chunk(FRAMES, dim=1)
    assert all((first - other).abs().max() > 1e-3 for other in others)


def test_pixels_of_a_clip_come_back_from_its_tokens(model):
    tokens = model.config.image_tokens
    tall = torch.rand(2, 3, FRAMES * tokens.image_size, tokens.image_size, generator=torch.Generator().manual_seed(0))
    cut = model.to_tokens(tall)
    assert cut.shape == (2, tokens.token_count, tokens.token_width)
    assert torch.allclose(model.to_pixels(cut), tall, atol=1e-6)
    second = model.to_tokens(tall[:, :, tokens.image_size : 2 * tokens.image_size])
    assert torch.equal(cut[:, tokens.cell_count : 2 * tokens.cell_count], second)  # frame after frame


@pytest.mark.parametrize("frames", [0, 5, 2000])
def test_a_loop_whose_tokens_are_no_whole_frames_is_refused(frames):
    with pytest.raises(BundleError, match="frames"):
        denoise_loop(frames=frames)


def test_clips_of_codes_and_of_dense_experts_are_refused():
    with pytest.raises(ValueError, match="clips are drawn as patches"):
        dataclasses.replace(nano().image_tokens, kind="ae", channels=4, hidden=8, frames=2)


@pytest.mark.slow
@needs_rtx
@needs_opset_24
def test_every_component_builds_for_an_rtx_device_that_is_not_here(model, tmp_path):
    checkpoint.save(model, tmp_path / "made")
    export_bundle(tmp_path / "made", tmp_path / "made.bundle", target="rtx")
    components = {"image_encoder", "transformer", "conditioner", "denoiser", "image_decoder"}
    assert build_for_rtx(tmp_path / "made.bundle", tmp_path / "engines") == components
