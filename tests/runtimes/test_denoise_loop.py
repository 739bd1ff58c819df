"""Pictures: the loop against the reference, guidance, the prefix that is handed over without a copy, cancel."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

import edgemm
from edgemm import DrawingOptions
from edgemm.bundle.manifest import Loops
from edgemm.bundle.prompt import Prompt, drawing_prompt
from edgemm.errors import EdgemmError, InputError, UsageError
from edgemm.runtimes import denoise_loop as loop_module
from edgemm.runtimes import schedule
from edgemm.runtimes.image_call import DenoiseProgress, ImageResult
from tests.runtimes import reference
from tests.runtimes.tiny_bundle import LIMITS, SKIP, build, denoise_loop
from tests.runtimes.tiny_weights import TINY, Weights

TOLERANCE = 5e-5  # float32 graphs against a float64 reference, over at most 8 steps


def empty_prompt(model) -> Prompt:
    template = model.manifest.loops.denoise.template
    ids = [*model.tokenizer.encode(template.open, special=True), *model.tokenizer.encode(template.close, special=True)]
    whole = np.arange(len(ids))
    return Prompt(np.array(ids), np.full(len(ids), -1), whole, np.zeros(len(ids), dtype=np.float32))


def expected(model, weights, prompt, seed, steps=4, scale=2.0):
    loop = model.manifest.loops.denoise
    noise = schedule.initial_noise(seed, TINY.token_count, TINY.token_width)
    tokens = drawing_prompt(prompt, loop.template, model.tokenizer)
    interval, shift = loop.guidance_interval, loop.shift
    return reference.draw(weights, tokens, empty_prompt(model), SKIP, noise, steps, scale, interval, shift)


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.0, 5.5])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_a_picture_is_the_references(model, weights, steps, scale):
    result = model.generate_image("a red heart", num_inference_steps=steps, guidance_scale=scale, seed=3)
    difference = np.abs(result.pixels - expected(model, weights, "a red heart", 3, steps, scale)).max()
    assert result.pixels.dtype == np.float32
    assert difference < TOLERANCE * max(1.0, scale)


def test_guidance_applies_inside_its_interval_only(tmp_path, weights):
    loops = Loops(denoise=denoise_loop(guidance_interval=(0.2, 0.6)))
    with edgemm.load(build(tmp_path / "interval.bundle", weights, loops), device="cpu", threads=1) as model:
        result = model.generate_image("a red heart", num_inference_steps=8, guidance_scale=3.0)
        everywhere = reference.draw(
            weights,
            drawing_prompt("a red heart", denoise_loop().template, model.tokenizer),
            empty_prompt(model),
            SKIP,
            schedule.initial_noise(0, TINY.token_count, TINY.token_width),
            *(8, 3.0, (0.0, 1.0), 2.0),
        )
        assert np.abs(result.pixels - expected(model, weights, "a red heart", 0, 8, 3.0)).max() < 3 * TOLERANCE
        assert np.abs(result.pixels - everywhere).max() > 1e-2


def test_the_prompt_and_the_guidance_matter(model):
    red = model.generate_image("a red heart").pixels
    assert np.abs(red - model.generate_image("a blue fish").pixels).max() > 1e-2
    assert np.abs(red - model.generate_image("a red heart", guidance_scale=1.0).pixels).max() > 1e-2


@pytest.mark.parametrize("length", [1, 4, 5, 60, 500])
def test_the_padding_of_the_prefix_changes_nothing(model, weights, length):
    prompt = ("heart " * length)[:length]
    difference = np.abs(model.generate_image(prompt).pixels - expected(model, weights, prompt, 0)).max()
    assert difference < TOLERANCE


def test_the_conditioner_writes_the_memory_that_the_denoiser_reads(model, monkeypatch):
    bound = {}
    for component in ("conditioner", "denoiser"):
        engine = model._engines.get(component)

        def record(inputs, outputs, bind=engine.bind, component=component):
            bound.setdefault(component, []).append((dict(inputs), dict(outputs)))
            return bind(inputs, outputs)

        monkeypatch.setattr(engine, "bind", record)
    model.generate_image("a red heart", guidance_scale=2.0)
    model.generate_image("a red heart", guidance_scale=1.0)
    for call, rows in ((0, 2), (1, 1)):
        given, taken = bound["conditioner"][call][1], bound["denoiser"][call][0]
        for name in given:
            assert taken[name].shape[0] == rows
            assert taken[name].ctypes.data == given[name].ctypes.data, f"{name} was copied"
    assert len(bound["denoiser"]) == 2  # one binding a picture, not one a step


def test_without_guidance_the_denoiser_runs_one_row(model, monkeypatch):
    rows = []
    engine = model._engines.get("denoiser")

    def record(inputs, outputs, bind=engine.bind):
        rows.append(inputs["noisy_tokens"].shape[0])
        return bind(inputs, outputs)

    monkeypatch.setattr(engine, "bind", record)
    model.generate_image("a red heart", guidance_scale=1.0)
    assert rows == [1]


def test_one_prompt_is_read_once_for_many_pictures(model, monkeypatch):
    reads = []
    read = loop_module.read_prompts
    monkeypatch.setattr(loop_module, "read_prompts", lambda *arguments: reads.append(1) or read(*arguments))
    result = model.generate_image("a red heart", num_images=3, seed=7)
    assert len(reads) == 1
    assert [picture.seed for picture in result.images] == [7, 8, 9]
    for picture in result.images:
        assert np.array_equal(picture.pixels, model.generate_image("a red heart", seed=picture.seed).pixels)


def test_given_noise_takes_the_place_of_the_seed(model):
    noise = schedule.initial_noise(11, TINY.token_count, TINY.token_width)
    given = model.generate_image("a red heart", noise=noise).pixels
    assert np.array_equal(given, model.generate_image("a red heart", seed=11).pixels)
    with pytest.raises(InputError, match=r"noise has shape \(3, 12\), expected \(1, 4, 12\)"):
        model.generate_image("a red heart", noise=noise[:3])


def test_a_stream_tells_every_step_and_ends_with_the_picture(model):
    events = list(model.stream_image("a red heart", num_inference_steps=4, num_images=2, preview=True))
    progress, last = events[:-1], events[-1]
    assert isinstance(last, ImageResult)
    assert all(isinstance(event, DenoiseProgress) for event in progress)
    assert [(event.index, event.step, event.steps) for event in progress] == [
        (i, k, 4) for i in (0, 1) for k in (1, 2, 3, 4)
    ]
    assert [event.preview is not None for event in progress] == [True, True, True, False] * 2
    assert progress[3].time == 1.0
    assert progress[0].preview.pixels.shape == last.pixels.shape
    assert last.metrics.steps == 8


@pytest.mark.parametrize("step", [0, 5, 999])
def test_a_preview_of_a_step_that_is_not_taken_is_refused(model, step):
    with pytest.raises(UsageError, match=f"a step of preview is {step}, expected a whole number from 1 to 4"):
        model.stream_image("a red heart", num_inference_steps=4, preview=[1, step])


def test_a_preview_is_what_the_denoiser_expects_so_far(model, weights):
    first = next(model.stream_image("a red heart", num_inference_steps=4, preview=True))
    assert np.abs(first.preview.pixels - expected(model, weights, "a red heart", 0, steps=1)).max() < TOLERANCE


def test_cancel_keeps_the_picture_in_the_making(model):
    stream = model.stream_image("a red heart", num_inference_steps=40, preview=True)
    seen = [next(stream) for _ in range(3)]
    thread = threading.Thread(target=model.cancel)
    thread.start()
    thread.join()
    (last,) = list(stream)
    assert isinstance(last, ImageResult)
    assert (last.finish_reason, last.metrics.steps) == ("cancelled", 3)
    assert np.array_equal(last.pixels, seen[-1].preview.pixels)
    assert model.generate_image("a red heart").finish_reason == "stop"


def test_a_timeout_before_the_first_step_gives_no_picture(model):
    result = model.generate_image("a red heart", timeout_s=1e-9)
    assert (result.finish_reason, result.images) == ("cancelled", ())
    with pytest.raises(UsageError, match="no picture"):
        _ = result.image


@pytest.mark.parametrize("heard_at", [2, 3])
def test_cancel_is_heard_while_a_long_drawing_prompt_is_read(model, heard_at):
    """Between two pieces of 256 tokens, and not first behind all of them."""
    asked = []

    def cancelled():
        asked.append(1)
        return len(asked) >= heard_at

    prompt = "a red heart " * 45
    (result,) = model._image.start(prompt, DrawingOptions())(cancelled)
    assert (result.finish_reason, result.images, len(asked)) == ("cancelled", (), heard_at)
    assert result.metrics.steps == 0
    assert model.generate_image(prompt, num_inference_steps=1).finish_reason == "stop"


def test_a_picture_is_saved_whole(model, tmp_path):
    from PIL import Image

    picture = model.generate_image("a red heart").image
    (tmp_path / "heart.png").write_bytes(b"an old file")
    with open(tmp_path / "heart.png", "rb") as reader:
        picture.save(tmp_path / "heart.png")
        assert reader.read() == b"an old file"  # replaced, not written over: no reader ever sees half
    with Image.open(tmp_path / "heart.png") as saved:
        assert np.array_equal(np.asarray(saved), picture.to_array())
    assert picture.to_array().shape == (TINY.draw_size, TINY.draw_size, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["heart.png"]
    assert (tmp_path / "heart.png").stat().st_mode & 0o444 == 0o444


def test_nan_while_drawing_is_reported_with_its_step(tmp_path):
    weights = Weights()
    weights.arrays["draw_out"] = np.full_like(weights["draw_out"], np.nan)
    with edgemm.load(build(tmp_path / "nan.bundle", weights), device="cpu", threads=1) as broken:
        with pytest.raises(EdgemmError, match="denoiser, step 1 of 4: NaN"):
            broken.generate_image("a red heart")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0, expected a whole number from 1 to 50"),
        ({"num_inference_steps": 51}, "num_inference_steps is 51, expected a whole number from 1 to 50"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan, expected 0 to 100"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0, expected 0 to 100"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0"),
        ({"num_images": 0}, "num_images is 0, expected a whole number from 1 to 64"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_by_name(model, options, message):
    with pytest.raises(UsageError, match=message):
        model.stream_image(**{"prompt": "a red heart", **options})


def test_a_drawing_prompt_longer_than_the_cache_is_refused_with_both_numbers(model):
    with pytest.raises(InputError, match="takes 713 tokens, this bundle holds at most 600"):
        model.generate_image("x" * 700)


def test_a_bundle_that_only_talks_does_not_draw(tmp_path, weights):
    from tests.runtimes.tiny_bundle import text_loop

    path = build(tmp_path / "talks.bundle", weights, Loops(text=text_loop()))
    with edgemm.load(path, device="cpu", threads=1) as text_only:
        assert text_only.generate_text("hello", max_new_tokens=2).finish_reason == "length"
        with pytest.raises(InputError, match="does not draw"):
            text_only.generate_image("a red heart")


def test_a_cache_smaller_than_a_block_is_enough_to_draw(tmp_path, weights, model):
    limits = dataclasses.replace(LIMITS, max_context=25)
    whole = model.generate_image("a red heart").pixels
    with edgemm.load(build(tmp_path / "small.bundle", weights, limits=limits), device="cpu", threads=1) as small:
        assert np.abs(small.generate_image("a red heart").pixels - whole).max() < TOLERANCE


def test_guidance_leads_away_from_the_negative_prompt(model):
    plain = model.generate_image("a red heart", seed=3).pixels
    away = model.generate_image("a red heart", seed=3, negative_prompt="a blue fish with a long tail").pixels
    assert not np.array_equal(plain, away)
    # With guidance w the prediction is n + w (c - n): the prompt itself as its negative is no guidance at all.
    unguided = model.generate_image("a red heart", seed=3, guidance_scale=1.0).pixels
    itself = model.generate_image("a red heart", seed=3, guidance_scale=7.0, negative_prompt="a red heart").pixels
    assert np.abs(itself - unguided).max() < 1e-4
    assert np.abs(away - unguided).max() > 1e-3


def test_a_negative_prompt_longer_than_the_prompt_is_read_whole(model):
    longer = "a blue fish " * 12
    one, other = (
        model.generate_image("a heart", seed=3, negative_prompt=text).pixels for text in (longer, longer + "x")
    )
    assert not np.array_equal(one, other)


def test_a_negative_prompt_without_guidance_is_refused(model):
    with pytest.raises(UsageError, match="negative_prompt needs guidance"):
        model.stream_image("a heart", guidance_scale=1, negative_prompt="fish")
