"""The denoise loop of latents, over engines written in numpy: sizes, rows of guidance, renorm, points, prompts."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from edgemm.bundle.components import TensorSpec
from edgemm.bundle.drawing import DenoiseLoop, DenoiseTemplate, EditGuidance, LatentGrid
from edgemm.bundle.manifest import Limits, TextLoop, TextTemplate
from edgemm.bundle.prompt import PictureTokens, drawing_prompt, negative_drawing_prompt
from edgemm.errors import InputError, UsageError
from edgemm.runtimes.denoise_loop import DrawEngines, Prompts, draw
from edgemm.runtimes.draw import _sized_as, denoise_request
from edgemm.runtimes.image_call import DenoiseProgress, DrawingClock, DrawingOptions

GRID = LatentGrid(channels=3, cell=8, height=16, width=32, smallest=8, largest=64, most_pixels=2048)
LOOP = DenoiseLoop(
    template=DenoiseTemplate("<", ">", joined=True),
    prefix_layers=(0,),
    skip=0,
    prediction="velocity",
    num_inference_steps=3,
    guidance_scale=3.0,
    guidance_interval=(0.0, 1.0),
    shift=1.0,
    latents=GRID,
    time_zero="picture",
    unconditional="empty",
)
LIMITS = Limits(max_context=64, max_image_pixels=10_000, max_steps=50)
READS = TextLoop(TextTemplate("", "", "", "", "", "", ""), "", 8, 2, (0, 0, 0), ())


class Letters:
    """A tokenizer whose ids are bytes, without special tokens."""

    def encode(self, text: str, special: bool = False) -> list[int]:
        return list(text.encode())

    def encode_whole(self, pieces, add_special: bool = False) -> list[int]:
        return self.encode("".join(piece for piece, _ in pieces))

    def spells_special(self, text: str) -> bool:
        return False


def spec(name: str, *shape, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


class NumpyEngine:
    """A component in numpy: `compute(inputs, outputs)` fills the outputs."""

    def __init__(self, component, inputs, outputs, compute):
        self.component, self.compute, self.runs = component, compute, []
        self.inputs, self.outputs = ({each.name: each for each in side} for side in (inputs, outputs))

    def bind(self, inputs, outputs):
        assert inputs.keys() == self.inputs.keys() and outputs.keys() == self.outputs.keys()
        return Bound(self, inputs, outputs)


class Bound:
    def __init__(self, engine, inputs, outputs):
        self.engine, self.inputs, self.outputs = engine, inputs, outputs

    def run(self):
        self.engine.runs.append({name: array.copy() for name, array in self.inputs.items()})
        self.engine.compute(self.inputs, self.outputs)


def read(inputs, outputs):
    """Keys and values of a token are its id, plus a hundred where a picture's row stands."""
    past, slot = inputs["past_key.0"], int(inputs["write_index"][0])
    said = inputs["input_ids"][0] + 100 * (inputs["image_index"][0] >= 0)
    for part in ("key", "value"):
        outputs[f"present_{part}.0"][:] = inputs[f"past_{part}.0"]
        outputs[f"present_{part}.0"][0, 0, slot : slot + len(said), 0] = said
    outputs["logits"][:] = 0
    assert past.shape[2] >= slot + len(said)


def condition(inputs, outputs):
    seen = np.arange(outputs["prefix_mask"].shape[1]) < inputs["prefix_length"][:, None]
    outputs["prefix_mask"][:] = seen
    for part in ("key", "value"):
        outputs[f"prefix_{part}.0"][:] = np.where(seen[:, None, :, None], inputs[f"past_{part}.0"], 0)


def predicted(latents: np.ndarray, time: float, said: float) -> np.ndarray:
    """What the denoiser below says of one row whose visible prompt sums to `said`."""
    return 0.2 * latents + time + np.float32(said / 1000) * np.arange(1, 4, dtype=np.float32)[:, None, None]


def denoise(inputs, outputs):
    visible = (inputs["prefix_value.0"][:, 0, :, 0] * inputs["prefix_mask"]).sum(1)
    for row, (latents, time, said) in enumerate(zip(inputs["latents"], inputs["time"], visible)):
        outputs["prediction"][row] = predicted(latents, time, said)


def decode(inputs, outputs):
    means = inputs["latents"].mean(axis=1, keepdims=True)
    outputs["pixels"][:] = np.repeat(np.repeat(means, 8, axis=2), 8, axis=3)


def engines() -> DrawEngines:
    cache = [spec(f"past_{part}.0", "b", 1, "T", 1) for part in ("key", "value")]
    kept = [spec(f"present_{part}.0", "b", 1, "T", 1) for part in ("key", "value")]
    prefix = [spec(f"prefix_{part}.0", "b", 1, "t", 1) for part in ("key", "value")]
    mask = spec("prefix_mask", "b", "t", dtype="bool")
    words = [
        *(spec(name, "b", "s", dtype="int64") for name in ("input_ids", "image_index", "attention_limit")),
        *(spec(name, "b", dtype="int64") for name in ("write_index", "logits_index")),
        spec("image_tokens", "b", "m", 2),
    ]
    latents = spec("latents", "b", 3, "h", "w")
    given = [mask, *prefix]
    return DrawEngines(
        NumpyEngine("transformer", [*words, *cache], [spec("logits", "b", 300), *kept], read),
        NumpyEngine("conditioner", [*cache, spec("prefix_length", "b", dtype="int64")], given, condition),
        NumpyEngine("denoiser", [latents, spec("time", "b"), *given], [spec("prediction", "b", 3, "h", "w")], denoise),
        NumpyEngine("image_decoder", [latents], [spec("pixels", "b", 3, "H", "W")], decode),
        max_context=64,
    )


def drawn(loop: DenoiseLoop = LOOP, parts: DrawEngines | None = None, picture: int = 0, **options):
    """Every event of drawing "ab"; the prompt is < a b >."""
    reads = dataclasses.replace(READS, image_token_count=picture) if picture else None
    request = denoise_request(DrawingOptions(**options), "ab", loop, LIMITS, Letters(), reads)
    if picture:
        tokens = np.zeros((1, picture, 2), dtype=np.float32)
        request = dataclasses.replace(request, prompts=dataclasses.replace(request.prompts, image_tokens=tokens))
    return list(draw(request, loop, parts or engines(), lambda: False, DrawingClock()))


def by_hand(noise: np.ndarray, times: list[float], velocity) -> np.ndarray:
    """Euler over `velocity(latents, time)`."""
    x = noise
    for now, later in pairwise(times):
        x = x + np.float32(later - now) * velocity(x, now)
    return x


NOISE = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
PROMPT = sum(b"<ab>")


def last(events) -> np.ndarray:
    return [event for event in events if isinstance(event, DenoiseProgress)][-1].latents


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({"unconditional": "empty"}, 0),
        ({"unconditional": "mask", "seen_slots": 2}, sum(b"<a")),
        ({"unconditional": "zeros"}, 0),
        ({"unconditional": "prompt"}, sum(b"<>")),
        ({"unconditional": "prompt", "negative_prompt": "no"}, sum(b"<no>")),
        ({"unconditional": "prompt", "negative_template": DenoiseTemplate("(", ")", joined=True)}, sum(b"()")),
    ],
    ids=lambda value: str(value)[:60],
)
def test_guidance_leads_away_from_what_the_loop_says(fields, row):
    loop = dataclasses.replace(LOOP, **fields)
    wanted = by_hand(
        NOISE,
        [1.0, 2 / 3, 1 / 3, 0.0],
        lambda x, t: predicted(x, t, row) + 3 * (predicted(x, t, PROMPT) - predicted(x, t, row)),
    )
    np.testing.assert_allclose(last(drawn(loop, noise=NOISE)), wanted, atol=1e-5)
    negative = last(drawn(loop, noise=NOISE, negative_prompt="xy"))
    around = sum(b"<xy>") if "negative_template" not in fields else sum(b"(xy)")
    wanted = by_hand(
        NOISE,
        [1.0, 2 / 3, 1 / 3, 0.0],
        lambda x, t: predicted(x, t, around) + 3 * (predicted(x, t, PROMPT) - predicted(x, t, around)),
    )
    np.testing.assert_allclose(negative, wanted, atol=1e-5)


def test_a_conditioner_of_zeros_is_told_how_long_the_prompt_is():
    parts = engines()
    drawn(dataclasses.replace(LOOP, unconditional="zeros"), parts)
    first, second = parts.conditioner.runs
    assert first["prefix_length"] == second["prefix_length"] == 4
    assert first["past_key.0"].any() and not second["past_key.0"].any()


@pytest.mark.parametrize("source", ["mask", "zeros", "empty", "prompt"])
def test_without_guidance_one_row_is_read_and_run(source):
    parts = engines()
    loop = dataclasses.replace(LOOP, unconditional=source, seen_slots=1)
    drawn(loop, parts, guidance_scale=1.0)
    assert len(parts.transformer.runs) == len(parts.conditioner.runs) == 1
    assert all(len(run["latents"]) == 1 for run in parts.denoiser.runs)


def test_guidance_is_left_out_beyond_its_interval():
    parts = engines()
    drawn(dataclasses.replace(LOOP, guidance_interval=(0.5, 1.0)), parts)
    assert [len(run["latents"]) for run in parts.denoiser.runs] == [2, 2, 1]


def renormed(guided, conditional, axis, least):
    length, wanted = (np.sqrt((x**2).sum(axis=axis, keepdims=True)) for x in (guided, conditional))
    return guided * np.clip(wanted / (length + 1e-8), least, 1)


@pytest.mark.parametrize(("renorm", "axis"), [("global", None), ("token", 0), ("text_token", 0)])
@pytest.mark.parametrize("least", [0.0, 0.9])
def test_a_guided_prediction_is_no_longer_than_before(renorm, axis, least):
    loop = dataclasses.replace(LOOP, renorm=renorm, renorm_min=least, image_guidance_scale=1.0)

    def velocity(x, t):
        c, u = predicted(x, t, PROMPT), predicted(x, t, 0)
        return renormed(u + 3 * (c - u), c, axis, least)

    wanted = by_hand(NOISE, [1.0, 2 / 3, 1 / 3, 0.0], velocity)
    np.testing.assert_allclose(last(drawn(loop, noise=NOISE)), wanted, atol=1e-5)
    plain = last(drawn(dataclasses.replace(loop, renorm="none"), noise=NOISE))
    assert np.abs(plain - wanted).max() > 1e-3


@pytest.mark.parametrize("renorm", ["none", "global", "text_token"])
def test_an_edit_is_guided_by_its_text_and_then_by_its_picture(renorm):
    loop = dataclasses.replace(LOOP, edits=True, image_guidance_scale=2.0, renorm=renorm)
    parts = engines()
    found = last(drawn(loop, parts, picture=2, image="stands for one", noise=NOISE))
    both, pictured = PROMPT + 2 * 100, sum(b"<>") + 2 * 100  # a picture's token has the id 0

    def velocity(x, t):
        c, u, i = (predicted(x, t, said) for said in (both, pictured, PROMPT))
        w = u + 3 * (c - u)
        w = renormed(w, c, 0, 0) if renorm == "text_token" else w
        w = i + 2 * (w - i)
        return renormed(w, c, None, 0) if renorm == "global" else w

    np.testing.assert_allclose(found, by_hand(NOISE, [1.0, 2 / 3, 1 / 3, 0.0], velocity), atol=2e-5)
    assert [len(run["latents"]) for run in parts.denoiser.runs] == [3, 3, 3]
    assert len(parts.transformer.runs) == 3
    unguided = engines()
    drawn(loop, unguided, picture=2, image="x", guidance_scale=1.0, image_guidance_scale=1.0)
    assert [len(run["latents"]) for run in unguided.denoiser.runs] == [1, 1, 1]


class Reading(NumpyEngine):
    """The denoiser above that also tells what a picture it reads leaves: the sum of its latents, once a slot."""

    def __init__(self, plain: NumpyEngine) -> None:
        block = [spec(f"block_{part}.0", "b", 1, "k", 1) for part in ("key", "value")]
        super().__init__("denoiser", plain.inputs.values(), [*plain.outputs.values(), *block], self.tell)

    def bind(self, inputs, outputs):
        assert "prediction" in outputs and len(outputs) in (1, 3)
        return Bound(self, inputs, outputs)

    def tell(self, inputs, outputs):
        denoise(inputs, outputs)
        for part in ("key", "value"):
            if f"block_{part}.0" in outputs:
                outputs[f"block_{part}.0"][:] = inputs["latents"].sum()


def test_a_picture_to_edit_is_read_as_clean_latents_and_as_a_block_before_the_prompt():
    guidance = EditGuidance(4.0, (0.0, 1.0), "none", 0.0)
    loop = dataclasses.replace(LOOP, edits=True, image_guidance_scale=2.0, picture_words=1, edit_guidance=guidance)
    reads = dataclasses.replace(READS, block=True, image_open="[", image_end="]", image_token_count=3)
    request = denoise_request(DrawingOptions(noise=NOISE, image="x"), "ab", loop.editing, LIMITS, Letters(), reads)
    latents = np.full((1, *NOISE.shape), 0.25, dtype=np.float32)  # 9 slots of their sum, 6
    tokens = np.zeros((1, 3, 2), dtype=np.float32)
    prompts = dataclasses.replace(request.prompts, image_tokens=tokens, latents=latents)
    parts = engines()
    parts = dataclasses.replace(parts, denoiser=Reading(parts.denoiser))
    request = dataclasses.replace(request, prompts=prompts)
    found = last(list(draw(request, loop.editing, parts, lambda: False, DrawingClock())))
    picture = 9 * 6 + sum(b"[]") + 3 * 100

    def velocity(x, t):
        c, u, i = (predicted(x, t, said) for said in (picture + PROMPT, picture, PROMPT))
        return i + 2 * ((u + 4 * (c - u)) - i)

    np.testing.assert_allclose(found, by_hand(NOISE, [1.0, 2 / 3, 1 / 3, 0.0], velocity), atol=1e-4)
    clean, *steps = parts.denoiser.runs
    assert clean["time"] == 0 and not clean["prefix_mask"].any() and [len(run["latents"]) for run in steps] == [3, 3, 3]
    first, alone = parts.transformer.runs  # what guidance leads away from was read with the first
    assert first["write_index"] == 9 and first["attention_limit"][0].tolist() == [13] * 5 + [14, 15, 16, 17]
    assert alone["write_index"] == 0 and alone["attention_limit"][0].tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="takes 18 tokens, this bundle holds at most 17"):
        short = dataclasses.replace(LIMITS, max_context=17)
        denoise_request(DrawingOptions(noise=NOISE, image="x"), "ab", loop, short, Letters(), reads)


def test_a_picture_to_edit_says_how_large_the_new_one_is():
    assert LOOP.latents.nearest(16, 32) == (16, 32)
    assert LOOP.latents.nearest(100, 200) == (32, 64)  # 2048 pixels at most
    assert LOOP.latents.nearest(3, 30) == (8, 64)
    for height, width in ((1000, 1), (1, 1), (61, 45), (33, 47)):
        assert LOOP.problem(*LOOP.latents.nearest(height, width)) is None


@pytest.mark.parametrize(
    ("given", "size"),
    [({}, (32, 64)), ({"width": 32}, (16, 32)), ({"height": 8}, (8, 16)), ({"height": 64}, (64, 64))]
    + [({"height": 16, "width": 16}, (16, 16)), ({"width": 8}, (8, 8))],
)
def test_of_a_picture_to_edit_one_side_says_the_other(given, size):
    """Of 100 x 200 pixels here: it was squeezed to the height that the bundle draws without a picture."""
    found = _sized_as(DrawingOptions(**given), 100, 200, LOOP)
    assert (found.height, found.width) == size


def test_from_words_alone_the_pictures_guidance_stretches_the_texts():
    loop = dataclasses.replace(LOOP, image_guidance_scale=2.0)
    plain, stretched = (last(drawn(loop, noise=NOISE, **more)) for more in ({}, {"image_guidance_scale": 1.5}))
    wider = last(drawn(loop, noise=NOISE, guidance_scale=1 + 1.5 * (3 - 1)))
    np.testing.assert_allclose(stretched, wider, atol=1e-5)
    assert np.abs(plain - stretched).max() > 1e-3


def test_an_image_guidance_that_means_nothing_is_refused():
    with pytest.raises(UsageError, match="image_guidance_scale: this bundle does not guide by the picture it edits"):
        drawn(image_guidance_scale=2.0)


def test_points_of_time_are_one_more_than_steps():
    loop = dataclasses.replace(LOOP, counts="points", num_inference_steps=4)
    events = drawn(loop, noise=NOISE)
    np.testing.assert_allclose(last(events), last(drawn(noise=NOISE)), atol=1e-6)
    assert [event.steps for event in events[:-1]] == [3, 3, 3]
    with pytest.raises(UsageError, match="num_inference_steps is 1, expected a whole number from 2 to 50"):
        drawn(loop, num_inference_steps=1)


def test_the_model_is_told_its_own_time():
    parts = engines()
    drawn(dataclasses.replace(LOOP, time_scale=1000.0, time_whole=True), parts)
    assert [run["time"].tolist() for run in parts.denoiser.runs] == [[1000.0] * 2, [666.0] * 2, [333.0] * 2]
    parts = engines()
    drawn(dataclasses.replace(LOOP, time_zero="noise", shift=2.0), parts)
    np.testing.assert_allclose([run["time"][0] for run in parts.denoiser.runs], [0, 0.2, 0.5])


def test_progress_counts_from_noise_to_picture_whatever_the_model_calls_it():
    for zero in ("noise", "picture"):
        events = drawn(dataclasses.replace(LOOP, time_zero=zero))
        np.testing.assert_allclose([event.time for event in events[:-1]], [1 / 3, 2 / 3, 1])


@pytest.mark.parametrize(("height", "width"), [(16, 32), (64, 8), (8, 64), (None, 64)])
def test_pictures_need_not_be_square(height, width):
    (result,) = drawn(height=height, width=width)[-1:]
    assert result.image.pixels.shape == (3, height or 16, width)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"width": 20}, "width is 20, expected a multiple of 8"),
        ({"width": 72}, "width is 72, expected 8 to 64"),
        ({"width": 64, "height": 64}, "64 x 64 is 4096 pixels, expected at most 2048"),
        ({"height": 0}, "height is 0, expected a whole number from 1"),
        ({"height": 16.0}, "height is 16.0, expected a whole number"),
    ],
)
def test_a_size_beyond_the_limits_is_refused_before_anything_runs(size, message):
    with pytest.raises(UsageError, match=message):
        drawn(**size)


def test_noise_may_come_as_it_is_drawn_or_as_rows_of_the_grid():
    wanted = last(drawn(noise=NOISE))
    for form in (NOISE[None], NOISE[:, None], NOISE.reshape(3, -1).T, NOISE.reshape(3, -1).T[None]):
        np.testing.assert_array_equal(last(drawn(noise=form)), wanted)
    two = np.stack([NOISE, -NOISE])
    np.testing.assert_array_equal(last(drawn(noise=two, num_images=2)), last(drawn(noise=-NOISE)))
    for wrong in (NOISE[:, :1], NOISE[..., None] + np.zeros(2), NOISE.T):
        with pytest.raises(InputError, match="noise has shape"):
            drawn(noise=wrong)
    with pytest.raises(InputError, match="finite"):
        drawn(noise=NOISE * np.nan)


def test_a_seeds_noise_has_the_shape_of_the_picture():
    parts = engines()
    drawn(parts=parts, height=8, width=24, seed=5)
    generator = np.random.Generator(np.random.PCG64(5))
    noise = generator.standard_normal((3, 1, 3), dtype=np.float32)
    np.testing.assert_array_equal(parts.denoiser.runs[0]["latents"][0], noise)


SIZED = DenoiseTemplate("<", ">", joined=True, size_sentence="It is {height}x{width}.")


@pytest.mark.parametrize(
    ("prompt", "text"),
    [("a cube", "<a cube. It is 8x24.>"), ("a cube..", "<a cube. It is 8x24.>"), ("", "<It is 8x24.>")],
)
def test_a_sentence_names_the_size(prompt, text):
    found = negative_drawing_prompt(prompt, SIZED, Letters(), size=(8, 24))
    assert bytes(found.input_ids.tolist()).decode() == text


def test_a_joined_prompt_has_no_blank_and_may_lose_its_own():
    joined = DenoiseTemplate("<", ">", joined=True, strip=True)
    assert bytes(drawing_prompt(" a ", joined, Letters()).input_ids.tolist()) == b"<a>"
    pieces = drawing_prompt("a", DenoiseTemplate("<", ">"), Letters())
    assert bytes(pieces.input_ids.tolist()) == b"< a>" and pieces.users_own.tolist() == [0, 1, 1, 0]


def test_a_picture_to_edit_sees_itself_or_what_is_before():
    template = DenoiseTemplate("<", ">", joined=True, image_close="|")
    block = drawing_prompt("a", template, Letters(), PictureTokens(3))
    causal = drawing_prompt("a", template, Letters(), PictureTokens(3, causal=True))
    assert block.input_ids.tolist() == causal.input_ids.tolist() == [60, 0, 0, 0, *b"|a>"]
    assert block.attention_limit.tolist() == [0, 3, 3, 3, 4, 5, 6]
    assert causal.attention_limit.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert block.image_index.tolist() == [-1, 0, 1, 2, -1, -1, -1]


def test_prompts_of_unequal_length_fit_side_by_side():
    """The slots are those of the longest, whichever row it is."""
    loop = dataclasses.replace(LOOP, unconditional="prompt", negative_prompt="n" * 40)
    parts = engines()
    drawn(loop, parts)
    (run, *_) = parts.denoiser.runs
    assert run["prefix_mask"].sum(1).tolist() == [4, 42]
    assert Prompts(drawing_prompt("a", LOOP.template, Letters())).rows[0][2] is None
