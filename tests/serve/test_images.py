"""/v1/images through the official client: its own types read every answer and every event."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

import edgemm
import edgemm.serve
from edgemm.bundle.drawing import LatentGrid
from edgemm.bundle.manifest import Loops
from tests.runtimes.tiny_bundle import build, denoise_loop, text_loop
from tests.serve.conftest import client_of, running

httpx = pytest.importorskip("httpx", reason="needs the extras serve and dev")
openai = pytest.importorskip("openai", reason="needs the extras serve and dev")
registry = pytest.importorskip("edgemm.serve.registry", reason="needs the extras serve and dev", exc_type=ImportError)


def opened(content):
    picture = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
    picture.load()
    return picture


def draw(client, prompt="a heart", **options):
    more = {name: options.pop(name) for name in ("seed", "steps", "guidance", "negative_prompt") if name in options}
    return client.images.generate(model="tiny", prompt=prompt, extra_body=more, **options)


def test_a_picture_is_the_one_that_the_model_draws_without_a_server(client, model):
    answer = draw(client, seed=7, steps=3, guidance=1.5, negative_prompt="red")
    wanted = model.generate_image(
        "a heart", seed=7, num_inference_steps=3, guidance_scale=1.5, negative_prompt="red"
    ).image
    picture = opened(answer.data[0].b64_json)
    assert picture.format == "PNG" and np.array_equal(np.asarray(picture), wanted.to_array())
    height, width = wanted.pixels.shape[1:]
    assert (answer.size, answer.output_format, answer.background) == (f"{width}x{height}", "png", "opaque")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.data[0].seed == 7


def test_several_pictures_have_the_next_seeds(client, model):
    answer = draw(client, n=3, seed=2)
    wanted = [model.generate_image("a heart", seed=seed).image.to_array() for seed in (2, 3, 4)]
    assert [each.seed for each in answer.data] == [2, 3, 4]
    for each, array in zip(answer.data, wanted):
        assert np.array_equal(np.asarray(opened(each.b64_json)), array)


def test_without_a_seed_pictures_differ_and_tell_theirs(client):
    first, second = draw(client).data[0], draw(client).data[0]
    assert first.seed != second.seed and first.b64_json != second.b64_json
    assert draw(client, seed=first.seed).data[0].b64_json == first.b64_json


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_every_format_of_file_and_answer(client, kind):
    content = draw(client, output_format=kind, seed=1).data[0].b64_json
    assert opened(content).format == kind.upper()
    url = draw(client, output_format=kind, seed=1, response_format="url").data[0].url
    assert url == f"data:image/{kind};base64,{content}"


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_partial_pictures_come_before_the_whole_one_and_each_decodes(client, count):
    *partial, last = draw(client, stream=True, partial_images=count, seed=1)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * count
    assert [event.partial_image_index for event in partial] == list(range(count))
    assert last.type == "image_generation.completed"
    pictures = {np.asarray(opened(event.b64_json)).tobytes() for event in (*partial, last)}
    assert len(pictures) == count + 1
    assert last.b64_json == draw(client, seed=1).data[0].b64_json
    assert last.usage.output_tokens > 0
    for event in (*partial, last):
        assert (event.quality, event.background, event.output_format) == ("auto", "opaque", "png")
        assert event.size == "4x4" and event.created_at > 0


def test_the_alias_is_the_model(client):
    assert (
        client.images.generate(model="gpt-image-1", prompt="x", extra_body={"seed": 1}).data
        == draw(client, "x", seed=1).data
    )


def test_a_graph_is_drawn(client, model):
    told = {"nodes": [{"id": "a", "text": "a heart"}], "edges": []}
    more = {"seed": 3, "steps": 2, "graph": told}
    drawn = client.images.generate(model="tiny", prompt="noto style", extra_body=more).data[0]
    wanted = model.generate_image("noto style", seed=3, num_inference_steps=2, graph=told)
    assert np.array_equal(np.asarray(opened(drawn.b64_json)), wanted.image.to_array())
    assert drawn.b64_json != draw(client, "noto style", seed=3, steps=2).data[0].b64_json


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"size": "1024x1024"}, "unsupported_value", "size"),
        ({"size": "large"}, "invalid_value", "size"),
        ({"quality": "high"}, "unsupported_parameter", "quality"),
        ({"background": "transparent"}, "unsupported_parameter", "background"),
        ({"output_format": "gif"}, "invalid_value", "output_format"),
        ({"steps": 51}, "invalid_value", "steps"),
        ({"guidance": 1, "negative_prompt": "x"}, "invalid_value", "negative_prompt"),
        ({"n": 17}, "too_many_images", "n"),
        ({"partial_images": 4, "stream": True}, "invalid_value", "partial_images"),
        ({"partial_images": 1}, "invalid_value", "partial_images"),
        ({"output_compression": 50}, "unsupported_parameter", "output_compression"),
        ({"prompt": "x" * 700}, "context_length_exceeded", "prompt"),
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"extra_body": {"temperature": 1}}, "invalid_value", "temperature"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client, options, code, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(model="tiny", **{"prompt": "x"} | moved(options))
    assert (refused.value.code, refused.value.param) == (code, param)


def moved(options):
    own = {name: options[name] for name in ("steps", "guidance", "negative_prompt") if name in options}
    left = {name: value for name, value in options.items() if name not in own}
    return left | {"extra_body": own | left.get("extra_body", {})}


def png(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def test_a_bundle_that_does_not_edit_says_so(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.edit(model="tiny", image=png(1), prompt="redder")
    assert (refused.value.code, refused.value.param) == ("unsupported_value", "image")


def large(content, size=3_000_000):
    """The same PNG in a larger file, with a chunk that nobody reads behind its header."""
    chunk = b"teSt" + bytes(size)
    return content[:33] + struct.pack(">I", size) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]


def held_when_answering(application, path, body):
    """Bytes of Python's that an application took and has not let go of when the first piece of an answer comes."""
    kinds, pieces = {"type": "http", "method": "POST", "query_string": b""}, iter(range(0, len(body), 65_536))
    scope = {**kinds, "path": path, "headers": [(b"content-type", b"application/json")]}
    held = []

    async def receive():
        start = next(pieces, None)
        if start is None:  # the client waits
            await asyncio.sleep(3600)
        more = start + 65_536 < len(body)
        return {"type": "http.request", "body": body[start : start + 65_536], "more_body": more}

    async def send(message):
        if message["type"] == "http.response.body":
            held.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        asyncio.run(application(scope, receive, send))
    finally:
        tracemalloc.stop()
    return held[0]


class TestEdits:
    @pytest.fixture(scope="class")
    def path(self, tmp_path_factory):
        loops = Loops(text_loop(), denoise_loop(edits=True))
        return build(tmp_path_factory.mktemp("edits") / "tiny.bundle", loops=loops)

    @pytest.fixture(scope="class")
    def application(self, path):
        return edgemm.serve.app(path)

    @pytest.fixture(scope="class")
    def editor(self, application):
        with running(application) as address:
            yield client_of(address)

    @pytest.fixture(scope="class")
    def wanted(self, path):
        with edgemm.load(path, device="cpu", threads=1) as model:
            return model.generate_image("redder", image=png(1), seed=3).image.to_array()

    @pytest.mark.parametrize("several", [False, True])
    def test_a_picture_of_a_form_is_edited(self, editor, wanted, several):
        image = [("a.png", png(1), "image/png")] if several else ("a.png", png(1), "image/png")
        answer = editor.images.edit(model="tiny", image=image, prompt="redder", n=2, extra_body={"seed": 3})
        assert np.array_equal(np.asarray(opened(answer.data[0].b64_json)), wanted)
        assert len(answer.data) == 2 and answer.usage.input_tokens_details.image_tokens > 0

    @pytest.mark.parametrize("name", ["image", "images"])
    def test_a_picture_of_a_json_request_is_edited(self, editor, wanted, name):
        url = "data:image/png;base64," + base64.b64encode(png(1)).decode()
        given = {"image": url} if name == "image" else {"images": [{"image_url": url}]}
        answer = httpx.post(f"{editor.base_url}images/edits", json={"prompt": "redder", "seed": 3, **given})
        assert np.array_equal(np.asarray(opened(answer.json()["data"][0]["b64_json"])), wanted)

    def test_an_edit_is_streamed_under_its_own_names(self, editor, wanted):
        events = editor.images.edit(
            model="tiny", image=png(1), prompt="redder", stream=True, partial_images=2, extra_body={"seed": 3}
        )
        *partial, last = events
        assert [event.type for event in partial] == ["image_edit.partial_image"] * 2
        assert last.type == "image_edit.completed"
        assert np.array_equal(np.asarray(opened(last.b64_json)), wanted)

    def test_a_picture_that_responses_show_is_edited_whole(self, editor, wanted):
        url = "data:image/png;base64," + base64.b64encode(png(1)).decode()
        said = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "redder"}]
        tool = {"type": "image_generation", "action": "edit", "seed": 3}
        asked = {"input": [{"role": "user", "content": said}], "tools": [tool], "tool_choice": "required"}
        answer = httpx.post(f"{editor.base_url}responses", json=asked).json()
        assert np.array_equal(np.asarray(opened(answer["output"][0]["result"])), wanted)
        said[0]["image_url"] = "data:image/png;base64,AAAA"
        error = httpx.post(f"{editor.base_url}responses", json=asked).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_image", "input[0].content[0].image_url")

    @pytest.mark.parametrize("name", ["prompt", "seed", "user"])
    def test_a_file_in_the_place_of_a_value_is_refused_and_not_read_by_its_name(self, editor, name):
        files = {"image": ("a.png", png(1)), name: ("5", b"redder")}
        values = {"prompt": "redder"} if name != "prompt" else {}
        answer = httpx.post(f"{editor.base_url}images/edits", data=values, files=files)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_type", name)

    def test_a_file_that_comes_in_many_pieces_is_edited(self, editor, wanted):
        """It is kept on disk from one megabyte on, by another thread: what came meanwhile was lost, and nobody
        answered."""
        answer = editor.images.edit(model="tiny", image=large(png(1)), prompt="redder", extra_body={"seed": 3})
        assert np.array_equal(np.asarray(opened(answer.data[0].b64_json)), wanted)

    @pytest.mark.parametrize("where", ["images/edits", "chat/completions", "responses"])
    def test_no_file_of_a_picture_is_held_while_its_reply_is_made(self, application, where):
        url = "data:image/png;base64," + base64.b64encode(large(png(1), 12_000_000)).decode()
        chat = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": url}}]
        said = [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": url}]
        asked = {
            "images/edits": {"prompt": "x", "image": url, "partial_images": 2},
            "chat/completions": {"messages": [{"role": "user", "content": chat}], "max_tokens": 9},
            "responses": {"input": [{"role": "user", "content": said}], "max_output_tokens": 9},
        }[where]
        body = json.dumps({**asked, "stream": True}).encode()
        assert held_when_answering(application, f"/v1/{where}", body) < 0.25 * len(body)

    def test_what_an_edit_cannot_honour_is_refused_by_name(self, editor):
        for options, param in (
            ({"mask": png(2)}, "mask"),
            ({"image": [png(1), png(2)]}, "image"),
            ({"image": b"no picture"}, "image"),
            ({"input_fidelity": "high"}, "input_fidelity"),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                editor.images.edit(model="tiny", **{"image": png(1), "prompt": "x"} | options)
            assert refused.value.param == param


def test_a_model_of_several_sizes_says_which(model):
    """What /v1/models says leads to a size that is drawn, and the next larger one is refused."""
    grid = LatentGrid(channels=3, cell=8, height=16, width=32, smallest=8, largest=64, multiple=16)
    assert registry.Named("tiny", model, None, "tiny").body["drawing"]["sizes"] is None
    sizes = registry._sizes(grid)
    assert sizes == {"smallest": 8, "largest": 64, "multiple": 16, "most_pixels": None}
    assert grid.problem(sizes["largest"], sizes["multiple"]) is None
    assert grid.problem(sizes["largest"] + sizes["multiple"], sizes["multiple"])
