"""Drawings set in motion, and the files that hold them; Pillow and PyAV read the files back."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from edgemm.errors import InputError, MissingError, UsageError
from edgemm.runtimes import clip as clips
from edgemm.runtimes.clip import MESSENGERS, Clip, SavingOptions
from edgemm.runtimes.image_call import Picture
from edgemm.runtimes.motion import MOTIONS, cut_out, pose_of


def disc(ground=(255, 255, 255), size=64) -> np.ndarray:
    """A red disc with a white eye in the middle: float32 (3, H, W)."""
    picture = Image.new("RGB", (size, size), ground)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((16, 20, 48, 52), fill=(200, 30, 30))
    draw.ellipse((28, 32, 36, 40), fill="white")
    return np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 255


def alpha(frame: Image.Image) -> np.ndarray:
    return np.asarray(frame)[..., 3] / 255


def times(data: bytes) -> list[float]:
    """Milliseconds a frame, as Pillow reads them."""
    with Image.open(io.BytesIO(data)) as opened:
        found = []
        for index in range(opened.n_frames):
            opened.seek(index)
            opened.load()
            found.append(opened.info["duration"])
        return found


def test_the_ground_is_cut_away_and_white_inside_of_the_drawing_stays():
    cut = cut_out(np.rint(disc() * 255).astype(np.uint8).transpose(1, 2, 0))
    assert cut is not None and cut.size == (33, 33)  # as large as the disc
    assert cut.getpixel((0, 0))[3] == 0 and cut.getpixel((16, 16)) == (255, 255, 255, 255)


def test_what_fills_its_picture_moves_whole_over_the_colour_of_its_edge():
    rgb = np.random.default_rng(0).random((3, 32, 32), dtype=np.float32)
    assert cut_out(np.rint(rgb * 255).astype(np.uint8).transpose(1, 2, 0)) is None
    assert {frame.mode for frame in Clip((rgb,), motion="bounce").frames()} == {"RGB"}


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_motion_closes_moves_and_leaves_nothing_outside(motion):
    assert pose_of(motion, 0) == pose_of(motion, 1)
    frames = Clip((disc(),), motion=motion).frames(96)
    assert len(frames) == 25 and {frame.size for frame in frames} == {(96, 96)}
    rims = [np.concatenate([a[0], a[-1], a[:, 0], a[:, -1]]).max() for a in map(alpha, frames)]
    assert max(rims) < 0.5  # of a pixel
    pairs = zip(frames, [*frames[1:], frames[0]], strict=True)
    changes = [np.abs(np.asarray(one).astype(int) - np.asarray(next)).mean() for one, next in pairs]
    assert 2 < max(changes) < 40  # also from the last frame to the first


def test_slide_takes_the_middle_where_its_pose_says():
    for index, frame in enumerate(Clip((disc(),), motion="slide").frames(100)):
        columns = np.arange(100) + 0.5
        middle = (alpha(frame).sum(axis=0) * columns).sum() / alpha(frame).sum()
        assert middle == pytest.approx(50 + 100 * pose_of("slide", index / 25).right, abs=0.3)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_a_file_lasts_as_long_as_the_clip_and_loops(ending, tmp_path):
    clip = Clip((disc(),), motion="pulse")
    clip.save(tmp_path / f"x.{ending}", SavingOptions(size=48))
    data = (tmp_path / f"x.{ending}").read_bytes()
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.size == (48, 48) and opened.info["loop"] == 0
        assert opened.convert("RGBA").getpixel((0, 0))[3] == 0
    assert sum(times(data)) == 1000


@pytest.mark.parametrize(("frame_ms", "total"), [(33, 330), (125, 1250), (7, 200)])
def test_a_gif_counts_hundredths_and_its_sum_is_right(frame_ms, total, tmp_path):
    """Frames that are equal are one, for as long as all of them; too short ones last as long as browsers show them."""
    stills = [np.full((3, 8, 8), level, dtype=np.float32) for level in (0, 0, 0.3, 0.3, 0.3, 1, 1, 0, 0.5, 0.5)]
    Clip(tuple(stills), frame_ms).save(tmp_path / "x.gif")
    found = times((tmp_path / "x.gif").read_bytes())
    assert sum(found) == total and len(found) == 5


def test_colours_of_a_gif_are_those_of_the_frames(tmp_path):
    stills = tuple(np.full((3, 8, 8), level, dtype=np.float32) for level in (0.0, 0.5, 1.0))
    Clip(stills, 100).save(tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as opened:
        for index, level in enumerate((0, 128, 255)):
            opened.seek(index)
            assert np.abs(np.asarray(opened.convert("RGB")).astype(int) - level).max() <= 4  # a palette's step


def test_whatsapp_takes_what_is_small_enough_in_its_size(tmp_path, monkeypatch):
    whatsapp = MESSENGERS["whatsapp"]
    monkeypatch.setitem(clips.MESSENGERS, "whatsapp", replace(whatsapp, side=64, most_bytes=16_000))
    Clip((disc(),), motion="spin").save(tmp_path / "x.webp", SavingOptions(messenger="whatsapp"))
    data = (tmp_path / "x.webp").read_bytes()
    assert len(data) <= 16_000 and sum(times(data)) == 1000
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.size == (64, 64)


def test_what_is_never_small_enough_is_refused_with_both_sizes(tmp_path, monkeypatch):
    monkeypatch.setitem(clips.MESSENGERS, "whatsapp", replace(MESSENGERS["whatsapp"], side=32, most_bytes=100))
    with pytest.raises(InputError, match=r"x\.webp: \d+ bytes in the lowest quality, WhatsApp takes 100;"):
        Clip((disc(),), motion="spin").save(tmp_path / "x.webp", SavingOptions(messenger="whatsapp"))
    assert not list(tmp_path.iterdir())


def test_a_clip_that_is_too_long_is_refused(tmp_path):
    clip = Clip((disc(),) * 60, 200)
    with pytest.raises(InputError, match="12 s long, WhatsApp takes 10 s at most"):
        clip.save(tmp_path / "x.webp", SavingOptions(messenger="whatsapp"))


@pytest.mark.parametrize("clip", [Clip((disc(),) * 4, 100), Clip((np.ones((3, 64, 64)),), motion="bounce")])
def test_what_does_not_move_says_so_and_is_no_sticker(clip, tmp_path):
    """Pillow writes a still picture of it."""
    clip.save(tmp_path / "x.webp")
    with Image.open(tmp_path / "x.webp") as opened:
        assert clip.stands_still and not opened.is_animated  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"all \d+ frames are alike, WhatsApp takes what moves"):
        clip.save(tmp_path / "y.webp", SavingOptions(messenger="whatsapp"))
    assert not Clip((disc(),), motion="bounce").stands_still


@pytest.mark.parametrize(
    ("messenger", "ending", "frame_ms", "said"),
    [("telegram", "webm", 33, "Telegram takes 30 at most"), ("whatsapp", "webp", 7, "WhatsApp takes 125 at most")],
)
def test_more_frames_a_second_than_a_messenger_takes_are_refused(messenger, ending, frame_ms, said, tmp_path):
    pytest.importorskip("av")
    with pytest.raises(InputError, match=rf"x\.{ending}: [\d.]+ frames a second, {said}"):
        Clip((disc(),) * 4, frame_ms).save(tmp_path / f"x.{ending}", SavingOptions(messenger=messenger))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x.jpg", {}, r"no moving picture ends in '\.jpg'; use \.gif, \.webp, \.png, \.apng, \.webm"),
        ("x.gif", {"messenger": "telegram"}, r"Telegram takes \.webm, name the file so"),
        ("x.webp", {"messenger": "whatsapp", "size": 100}, "size is 100, WhatsApp takes 512; leave it out"),
        ("x.gif", {"size": 0}, "size is 0, expected a whole number from 1 to 2048"),
        ("x.gif", {"messenger": "signal"}, "messenger is 'signal', expected 'telegram' or 'whatsapp' or None"),
    ],
)
def test_a_wrong_name_or_size_is_refused(name, options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        Picture(disc(), 0, Clip((disc(),), motion="bounce")).save(tmp_path / name, **options)


def test_a_still_picture_is_no_messengers_but_has_a_size(tmp_path):
    with pytest.raises(UsageError, match="telegram is for pictures that move"):
        Picture(disc(), 0).save(tmp_path / "x.webm", messenger="telegram")
    for size in (0, 5000):
        with pytest.raises(UsageError, match=f"size is {size}, expected a whole number from 1 to 2048"):
            Picture(disc(), 0).save(tmp_path / "x.png", size=size)
    Picture(disc(), 0).save(tmp_path / "x.png", size=np.int64(128))
    with Image.open(tmp_path / "x.png") as opened:
        assert opened.size == (128, 128)


def test_what_is_drawn_larger_is_saved_as_it_is(tmp_path):
    Picture(np.zeros((3, 8, 3000), dtype=np.float32), 0).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as opened:
        assert opened.size == (3000, 8)
    Picture(np.zeros((3, 8, 3000), dtype=np.float32), 0).save(tmp_path / "x.png", size=10)
    with Image.open(tmp_path / "x.png") as opened:
        assert opened.size == (10, 1)


def test_webm_without_pyav_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingError, match=r"WebM needs PyAV: pip install 'edgemm\[video\]'"):
        Clip((disc(),), motion="bounce").save(tmp_path / "x.webm")


def test_telegrams_sticker_is_vp9_with_transparency_of_a_second(tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    monkeypatch.setitem(clips.MESSENGERS, "telegram", replace(MESSENGERS["telegram"], side=64, most_bytes=20_000))
    Clip((disc(),), motion="slide").save(tmp_path / "x.webm", SavingOptions(messenger="telegram"))
    assert (tmp_path / "x.webm").stat().st_size <= 20_000
    with av.open(str(tmp_path / "x.webm")) as container:
        video = container.streams.video[0]
        assert "vp9" in video.codec.name and (video.width, video.height) == (64, 64)
        assert video.metadata.get("alpha_mode", video.metadata.get("ALPHA_MODE")) == "1"
        assert len(list(container.decode(video))) == 25
        assert container.duration == pytest.approx(1_000_000, abs=45_000)  # microseconds; a frame of slack


def test_a_bundle_draws_in_motion(model, tmp_path):
    result = model.generate_image("a", motion="bounce", num_images=2, num_inference_steps=2)
    still = model.generate_image("a", num_inference_steps=2)
    assert len(result.frames) == 25 and len(still.frames) == 1
    assert np.array_equal(result.pixels, still.pixels)  # the drawing is the one that it would be without
    result.save(tmp_path / "x.gif", size=32)
    assert sum(times((tmp_path / "x.gif").read_bytes())) == 1000


def test_the_command_says_that_nothing_moves():
    from edgemm.cli.draw import _said

    white = np.ones((3, 4, 4), np.float32)
    assert _said(Picture(white, 0, Clip((white,), motion="pulse")), None) == "25 frames, all alike: nothing moves"


def test_the_command_writes_a_clip_and_refuses_a_wrong_name_before_any_work(bundle_path, tmp_path, capsys, monkeypatch):
    from edgemm.cli.main import main

    words = ["draw", str(bundle_path), "--prompt", "a", "--threads", "1", "--num-inference-steps", "1"]
    assert main([*words, "--motion", "pulse", "--size", "40", "--output", str(tmp_path / "x.gif")]) == 0
    assert sum(times((tmp_path / "x.gif").read_bytes())) == 1000
    assert "25 frames, 1 s" in capsys.readouterr().out
    assert main([*words[:1], "no.bundle", *words[2:], "--motion", "pulse", "--output", "x.jpg"]) == 2
    assert main([*words, "--size", "40", "--output", str(tmp_path / "x.png")]) == 0
    assert "x.png (40 x 40, " in capsys.readouterr().out
    monkeypatch.setattr("edgemm.runtimes.model.Model.stream_image", None)  # nothing is drawn
    for more in (["--for", "whatsapp", "--output", "x.webp"], ["--size", "5000", "--output", "x.png"]):
        assert main([*words, *more]) == 2
    assert "expected a whole number from 1 to 2048" in capsys.readouterr().err
