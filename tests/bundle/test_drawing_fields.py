"""The denoise loop's fields: what may be left out, what is refused, and which pictures a bundle draws."""

import dataclasses
import json

import pytest

from edgemm.bundle.components import TensorSpec, check_component
from edgemm.bundle.drawing import DenoiseLoop, DenoiseTemplate, LatentGrid
from edgemm.bundle.files import decode, encode
from edgemm.errors import BundleError

OLD = {
    "template": {"open": "Draw", "close": "."},
    "prefix_layers": [0, 1],
    "skip": 1,
    "prediction": "x",
    "token_count": 4,
    "token_width": 12,
    "image_size": 8,
    "num_inference_steps": 10,
    "guidance_scale": 2.0,
    "guidance_interval": [0.0, 1.0],
    "shift": 1.5,
}
GRID = LatentGrid(channels=4, cell=8, height=48, width=80)
FREE = dataclasses.replace(GRID, smallest=32, largest=128, multiple=16, most_pixels=8192)
NEW = dict(OLD, latents=encode(GRID), token_count=0, token_width=0, image_size=0)


def read(**changes) -> DenoiseLoop:
    return decode(DenoiseLoop, json.loads(json.dumps({**NEW, **changes})), "loops.denoise")


def test_a_loop_of_before_these_fields_reads_as_euler_on_x_from_the_file():
    loop = decode(DenoiseLoop, OLD, "loops.denoise")
    assert (loop.solver, loop.time_zero, loop.time_scale, loop.time_whole) == ("euler", "noise", 1.0, False)
    assert (loop.unconditional, loop.renorm, loop.counts, loop.spacing) == ("file", "none", "steps", "linear")
    assert (loop.height, loop.width, loop.state_shape(8, 8)) == (8, 8, (4, 12))
    assert decode(DenoiseLoop, encode(loop), "loops.denoise") == loop


def test_latents_are_as_many_as_the_picture_asks_for():
    loop = read()
    assert (loop.height, loop.width) == (48, 80)
    assert loop.state_shape(48, 80) == (4, 6, 10)
    assert loop.places == 60
    assert decode(DenoiseLoop, encode(loop), "loops.denoise") == loop


@pytest.mark.parametrize(
    ("grid", "height", "width", "problem"),
    [
        (GRID, 48, 80, None),
        (GRID, 80, 48, "height is 80, this bundle draws pictures of 80 x 48 only"),
        (FREE, 128, 64, None),
        (FREE, 64, 72, "width is 72, expected a multiple of 16"),
        (FREE, 16, 64, "height is 16, expected 32 to 128"),
        (FREE, 144, 32, "height is 144, expected 32 to 128"),
        (FREE, 128, 80, "80 x 128 is 10240 pixels, expected at most 8192"),
        (FREE, 0, 64, "height is 0, expected 32 to 128"),
    ],
)
def test_sizes_within_the_limits_are_drawn_and_others_told_why_not(grid, height, width, problem):
    assert grid.problem(height, width) == problem
    assert read(latents=encode(grid)).problem(height, width) == problem


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver": "heun"}, "solver is 'heun', this edgemm knows: euler, "),
        ({"time_zero": "x"}, "time_zero is 'x'"),
        ({"spacing": "cosine"}, "spacing is 'cosine'"),
        ({"renorm": "channel"}, "renorm is 'channel'"),
        ({"unconditional": "none"}, "unconditional is 'none'"),
        ({"counts": "intervals"}, "counts is 'intervals'"),
        ({"counts": "points", "num_inference_steps": 1}, "num_inference_steps is 1, expected 2 to"),
        ({"image_size": 8}, "image_size is given beside latents"),
        ({"latents": None}, "token_count is 0, expected 1"),
        ({"prefix_layers": []}, "prefix_layers and hidden_layers are empty"),
        ({"sigma_first": 1.5}, "sigma_first is 1.5, expected 0 to 1"),
        ({"sigma_first": 0.5, "sigma_last": 0.5}, "sigma_last is 0.5, expected 0 <= sigma_last < sigma_first"),
        ({"spacing": "karras", "sigma_first": 80}, "sigma_last is 0, expected 0 < sigma_last < sigma_first"),
        ({"spacing": "karras", "sigma_first": 0.002, "sigma_last": 80}, "sigma_last is 80, expected 0 < sigma_last"),
        ({"time_scale": float("inf")}, "time_scale: Infinity, expected a finite number"),
        ({"renorm_min": 2}, "renorm_min is 2, expected 0 to 1"),
        ({"image_guidance_scale": -1}, "image_guidance_scale is -1, expected 0 to"),
        ({"template": {"open": "", "close": "", "size_sentence": "{prompt}"}}, "size_sentence is '{prompt}'"),
        ({"template": {"open": "", "close": "", "size_sentence": "{width.real}{"}}, "size_sentence is "),
        ({"latents": {**encode(GRID), "width": 81}}, "width is 81, expected a multiple of 8"),
        ({"latents": {**encode(FREE), "multiple": 12}}, "multiple is 12, expected a multiple of cell 8"),
        ({"latents": {**encode(FREE), "largest": 16}}, "smallest is 32, more than largest 16"),
        ({"latents": {**encode(GRID), "height": 2**40}}, "height is 1.09951e"),
    ],
)
def test_a_loop_that_makes_no_sense_is_refused_with_the_fields_name(changes, message):
    with pytest.raises(BundleError, match=message):
        read(**changes)


def picture(*names: str, shape: tuple = ("b", 4, "h", "w")) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "float32", shape) for name in names)


def test_a_denoiser_of_latents_gives_latents_and_one_of_tokens_gives_tokens():
    prefix = (
        TensorSpec("time", "float32", ("b",)),
        TensorSpec("prefix_mask", "bool", ("b", "t")),
        *(TensorSpec(f"prefix_{part}.0", "float32", ("b", 2, "t", 8)) for part in ("key", "value")),
    )
    check_component("denoiser", (*picture("latents"), *prefix), picture("prediction"))
    tokens = ("b", 4, 12)
    check_component("denoiser", (*picture("noisy_tokens", shape=tokens), *prefix), picture("prediction", shape=tokens))
    with pytest.raises(BundleError, match="'prediction' is float32 of rank 3, expected float32 of rank 4"):
        check_component("denoiser", (*picture("latents"), *prefix), picture("prediction", shape=tokens))
    with pytest.raises(BundleError, match="neither 'noisy_tokens' nor 'latents' is there"):
        check_component("denoiser", prefix, picture("prediction"))


def test_a_template_may_say_more_than_two_strings():
    template = {"open": "a", "close": "b", "joined": True, "size_sentence": "It is {height}x{width}."}
    assert decode(DenoiseTemplate, template, "template").image_close == ""
