"""/v1/chat/completions through the official client: its own types read every answer."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import platform
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from PIL import Image

import edgemm
from tests.runtimes.tiny_bundle import LIMITS, build
from tests.serve.conftest import MARKED, data_url

openai = pytest.importorskip("openai", reason="needs the extras serve and dev")
pytest.importorskip("starlette")
fields, registry, service = (pytest.importorskip(f"edgemm.serve.{name}") for name in ("fields", "registry", "service"))

HELLO = [{"role": "user", "content": "hello"}]
SEEN = "messages[0].content[0].image_url.url"
FILMED = "messages[0].content[0].video_url"


def pictured(*images):
    return {"nodes": [{"id": str(place), "image": image} for place, image in enumerate(images)], "edges": []}


def shown(url, text="What is this?"):
    return [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
        }
    ]


def clip_url(frames=3):
    """An animation of half a second a frame, and its bytes."""
    pictures = [Image.fromarray(data_url(20 + seed)[1]) for seed in range(frames)]
    file = io.BytesIO()
    pictures[0].save(file, format="GIF", save_all=True, append_images=pictures[1:], duration=500)
    return "data:image/gif;base64," + base64.b64encode(file.getvalue()).decode(), file.getvalue()


def filmed(url, text="What is this?", role="user"):
    part = {"type": "video_url", "video_url": {"url": url}}
    return [{"role": role, "content": [part, {"type": "text", "text": text}]}]


def opened(url):
    kind, _, content = url.partition(";base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    picture.load()
    return kind, picture


def ask(client, messages=HELLO, **options):
    return client.chat.completions.create(model="tiny", messages=messages, **options)


def test_a_reply_is_the_one_that_the_model_gives_without_a_server(client, model):
    reply, wanted = ask(client, max_completion_tokens=12), model.generate_text("hello", max_new_tokens=12)
    assert reply.choices[0].message.content == wanted.text
    assert reply.choices[0].finish_reason == wanted.finish_reason == "length"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (wanted.metrics.prompt_tokens, 12)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 12


def test_a_picture_is_seen(client, model):
    url, pixels = data_url(5)
    reply = ask(client, shown(url), max_completion_tokens=12)
    assert reply.choices[0].message.content == model.generate_text("What is this?", [pixels], max_new_tokens=12).text
    assert reply.usage.prompt_tokens_details.image_tokens > 0
    other = ask(client, shown(data_url(6)[0]), max_completion_tokens=12)
    assert other.choices[0].message.content != reply.choices[0].message.content


def test_of_a_large_picture_the_square_that_is_read_is_kept(model):
    """A few kilobytes may be as many pixels as a server has room for: sixteen a request, and many requests."""
    named, file, size = registry.Named("tiny", model, None, "tiny"), io.BytesIO(), model.manifest.loops.text.image_size
    large = Image.linear_gradient("L").resize((900, 700)).convert("RGB")
    large.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    told = service.as_asked([fields.ChatMessage.model_validate(shown(url)[0])], named, 16)
    assert [picture.size for picture in told[0]["images"]] == [(size, size)]
    graph = service.graph_of({"nodes": [{"id": "a", "image": url}], "edges": []}, named, 16)
    assert [picture.size for picture in graph.pictures] == [(size, size)]
    whole, square = (model.generate_text("What?", pictures, logprobs=1) for pictures in (large, told[0]["images"]))
    assert whole.logprobs == square.logprobs


def test_pictures_are_decoded_two_at_once(model, monkeypatch):
    named, content, lock = registry.Named("tiny", model, None, "tiny"), io.BytesIO(), threading.Lock()
    inside = most = 0
    Image.new("RGB", (4, 4)).save(content, "PNG")
    decode = service.open_picture

    def counted(raw, limit):
        nonlocal inside, most
        with lock:
            inside, most = inside + 1, max(most, inside + 1)
        time.sleep(0.05)
        with lock:
            inside -= 1
        return decode(raw, limit)

    monkeypatch.setattr(service, "open_picture", counted)
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(lambda _: service.picture_of(content.getvalue(), named, "image"), range(6)))
    assert len(opened) == 6 and most == 2


def test_a_video_is_seen(client, model):
    """As vLLM's clients show one; frames are those that the runtime takes."""
    url, raw = clip_url()
    reply = ask(client, filmed(url), max_completion_tokens=12)
    wanted = model.generate_text("What is this?", video=raw, max_new_tokens=12)
    assert reply.choices[0].message.content == wanted.text
    assert reply.usage.prompt_tokens == wanted.metrics.prompt_tokens
    fewer = ask(
        client, filmed(url), max_completion_tokens=1, extra_body={"media_io_kwargs": {"video": {"num_frames": 1}}}
    )
    each = model.manifest.loops.text.image_token_count
    assert fewer.usage.prompt_tokens_details.image_tokens == each
    assert reply.usage.prompt_tokens_details.image_tokens == 3 * each


def test_two_videos_are_decoded_at_once_and_all_are_answered(client):
    """Each may take a GiB: who sends twenty would have a server's whole memory."""
    url, most, self = clip_url()[0], 0, psutil.Process()
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(ask, client, filmed(url), max_completion_tokens=1) for _ in range(5)]
        while not all(one.done() for one in asked):
            most = max(most, sum(map(decodes, self.children())))
            time.sleep(0.01)
    assert most == 2 and all(one.result().choices for one in asked)


def decodes(process):
    try:
        return "edgemm.runtimes.video" in process.cmdline()
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return False


def test_a_graph_is_asked_about(client, model):
    """Node-link JSON in a field beside the messages, with pictures as data: URLs."""
    url, pixels = data_url(5)
    nodes, edge = (
        [{"id": "a", "text": "a star"}, {"id": "b", "image": url}],
        {"source": "a", "target": "b", "type": "on"},
    )
    told = {"directed": True, "nodes": nodes, "edges": [edge]}
    reply = ask(client, max_completion_tokens=12, extra_body={"graph": told})
    graph = edgemm.Graph([nodes[0], {"id": "b", "image": pixels}], [("a", "on", "b")])
    wanted = model.generate_text("hello", graph=graph, max_new_tokens=12)
    assert reply.choices[0].message.content == wanted.text
    assert reply.usage.prompt_tokens == wanted.metrics.prompt_tokens
    assert reply.usage.prompt_tokens_details.image_tokens == model.manifest.loops.text.image_token_count


def test_the_same_seed_gives_the_same_reply_and_every_choice_has_its_own(client, model):
    how = {"temperature": 1.3, "top_p": 0.9, "seed": 5, "max_completion_tokens": 12}
    reply = ask(client, n=3, **how)
    wanted = [
        model.generate_text("hello", temperature=1.3, top_p=0.9, seed=seed, max_new_tokens=12) for seed in (5, 6, 7)
    ]
    texts = [result.text for result in wanted]
    assert [choice.message.content for choice in reply.choices] == texts and len(set(texts)) == 3
    assert reply.usage.completion_tokens == sum(len(result.token_ids) for result in wanted)


def test_a_stream_says_the_same_piece_by_piece_and_no_piece_is_empty(client):
    whole = ask(client, max_completion_tokens=30).choices[0].message.content
    chunks = list(ask(client, max_completion_tokens=30, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    for chunk in chunks[1:-2]:
        assert chunk.choices[0].delta.content
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 30
    assert len({chunk.id for chunk in chunks}) == 1


def test_stop_strings_end_a_reply(client):
    whole = ask(client, max_completion_tokens=30).choices[0].message.content
    stop = whole[4:6]
    reply = ask(client, max_completion_tokens=30, stop=stop).choices[0]
    assert (reply.message.content, reply.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_logprobs_are_told_whole_and_streamed(client, model):
    how = {"max_completion_tokens": 6, "logprobs": True, "top_logprobs": 3}
    told = ask(client, **how).choices[0].logprobs.content
    wanted = model.generate_text("hello", max_new_tokens=6, logprobs=3).logprobs
    assert [(each.token, len(each.top_logprobs)) for each in told] == [(each.token, 3) for each in wanted]
    assert [each.logprob for each in told] == pytest.approx([each.logprob for each in wanted])
    streamed = []
    for chunk in ask(client, stream=True, **how):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content
    assert [each.logprob for each in streamed] == pytest.approx([each.logprob for each in told])


class TestConstrained:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("llguidance")

    def test_a_reply_follows_a_json_schema(self, client):
        schema = {
            "type": "object",
            "properties": {"fruit": {"enum": ["fig", "kiwi"]}, "ripe": {"type": "boolean"}},
            "required": ["fruit", "ripe"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "fruit", "schema": schema, "strict": True}}
        said = json.loads(ask(client, response_format=form).choices[0].message.content)
        assert said["fruit"] in ("fig", "kiwi") and isinstance(said["ripe"], bool)

    def test_a_reply_follows_a_grammar(self, client):
        form = {"type": "grammar", "grammar": 'start: "yes" | "no"'}
        assert ask(client, response_format=form).choices[0].message.content in ("yes", "no")

    def test_pictures_stand_in_the_reply(self, client, model):
        more = {"modalities": ["text", "image"], "drawing": {"seed": 7, "steps": 2}}
        form = {"type": "grammar", "grammar": MARKED}
        message = ask(client, response_format=form, extra_body=more).choices[0].message
        *_, wanted = model.generate("hello", grammar=MARKED, drawing={"seed": 7, "num_inference_steps": 2})
        assert message.content == wanted.text
        pictures = [opened(each["image_url"]["url"]) for each in message.images]
        assert [kind for kind, _ in pictures] == ["data:image/png"] * 2
        for (_, picture), drawn in zip(pictures, wanted.images):
            assert np.array_equal(np.asarray(picture), drawn.to_array())

    def test_pictures_are_streamed_in_the_order_of_the_reply(self, client):
        more = {"modalities": ["text", "image"], "drawing": {"seed": 7, "steps": 2}}
        form = {"type": "grammar", "grammar": MARKED}
        kinds, text = [], ""
        for chunk in ask(client, response_format=form, stream=True, extra_body=more):
            delta = chunk.choices[0].delta
            images = getattr(delta, "images", None)
            kinds += ["image"] * bool(images) + ["text"] * bool(delta.content)
            text += delta.content or ""
            for each in images or ():
                opened(each["image_url"]["url"])
        assert "".join(kind[0] for kind in kinds).strip("t").replace("t", "") == "ii"
        assert kinds[0] == "text" and text.startswith("Here: ") and text.endswith("!")

    def test_what_was_drawn_is_seen_when_it_comes_back(self, client):
        more = {"modalities": ["text", "image"], "drawing": {"seed": 7, "steps": 2}}
        form = {"type": "grammar", "grammar": MARKED}
        message = ask(client, response_format=form, extra_body=more).choices[0].message
        asked = [*HELLO, {"role": "assistant", "content": message.content, "images": message.images}]
        asked.append({"role": "user", "content": "and?"})
        with_them = ask(client, asked, max_completion_tokens=8)
        without = ask(client, [*HELLO, {"role": "assistant", "content": message.content}, asked[-1]])
        assert with_them.usage.prompt_tokens > without.usage.prompt_tokens


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"extra_body": {"temperature": "hot"}}, "invalid_type", "temperature"),
        ({"extra_body": {"tempreature": 1}}, "unknown_parameter", "tempreature"),
        ({"frequency_penalty": 0.5}, "unsupported_parameter", "frequency_penalty"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported_parameter", "tools"),
        ({"logit_bias": {"5": 1}}, "unsupported_parameter", "logit_bias"),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"extra_body": {"modalities": ["image"]}}, "unsupported_value", "modalities"),
        ({"extra_body": {"modalities": ["audio"]}}, "invalid_value", "modalities[0]"),
        ({"extra_body": {"drawing": {}}}, "invalid_value", "drawing"),
        (
            {"extra_body": {"modalities": ["text", "image"], "drawing": {"steps": 10_000}}},
            "invalid_value",
            "steps",
        ),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 700}]}, "context_length_exceeded", "messages"),
        ({"messages": shown("https://example.org/a.png")}, "remote_image_refused", SEEN),
        ({"messages": shown("/etc/passwd")}, "remote_image_refused", SEEN),
        ({"messages": shown("data:image/png;base64,AAAA")}, "invalid_image", SEEN),
        ({"messages": shown(data_url(1)[0]) * 17}, "too_many_images", SEEN.replace("[0]", "[16]", 1)),
        ({"messages": filmed("https://example.org/a.mp4")}, "remote_video_refused", FILMED),
        ({"messages": filmed("/etc/passwd")}, "remote_video_refused", FILMED),
        ({"messages": filmed(clip_url()[0][:322])}, "invalid_video", FILMED),
        ({"messages": filmed(clip_url()[0], role="system")}, "unsupported_value", FILMED),
        (
            {"messages": filmed(clip_url()[0]), "extra_body": {"media_io_kwargs": {"video": {"num_frames": 17}}}},
            "too_many_images",
            FILMED,
        ),
        ({"extra_body": {"media_io_kwargs": {"audio": {}}}}, "unknown_parameter", "media_io_kwargs.audio"),
        ({"extra_body": {"graph": "plan.json"}}, "invalid_type", "graph"),
        ({"extra_body": {"graph": {"nodes": [], "edges": []}}}, "invalid_value", "graph"),
        ({"extra_body": {"graph": pictured("/etc/passwd")}}, "remote_image_refused", "graph.nodes[0].image"),
        ({"extra_body": {"graph": pictured(7)}}, "invalid_value", "graph"),
        ({"extra_body": {"graph": pictured(*[data_url(1)[0]] * 17)}}, "too_many_images", "graph"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "missing_required_parameter",
            "messages[0].content[0].text",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client, changes, code, param):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **changes)
    assert (refused.value.code, refused.value.param) == (code, param)
    assert refused.value.type == "invalid_request_error" and refused.value.message


def test_what_changes_nothing_is_accepted(client):
    ask(
        client, max_tokens=2, frequency_penalty=0, user="me", store=False, metadata={"a": "b"}, tool_choice="none",
        logit_bias={}, tools=[], parallel_tool_calls=False, presence_penalty=None, service_tier="auto",
    )  # fmt: skip


def test_a_name_that_nobody_has_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


OPENED = """
import io, sys, threading
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
import edgemm
from edgemm.device.machine import resident_bytes
from edgemm.serve.registry import Named
from edgemm.serve.service import picture_of

content, together = io.BytesIO(), threading.Barrier(6)
Image.new("RGB", (3000, 3000)).save(content, "PNG")
with edgemm.load(sys.argv[1], device="cpu", threads=1) as model:
    named = Named("tiny", model, None, "tiny")

    def opened(_):
        together.wait(30)  # each in a thread of its own
        return picture_of(content.getvalue(), named, "image")

    before = resident_bytes()
    with ThreadPoolExecutor(6) as pool:
        kept = list(pool.map(opened, range(6)))
        print(resident_bytes() - before)
"""


def test_no_thread_keeps_the_memory_of_a_large_picture(tmp_path_factory):
    """glibc keeps what was freed for each thread that took it: thirty threads of a server may decode."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("no glibc, which alone keeps what was freed")
    limits = dataclasses.replace(LIMITS, max_image_pixels=10_000_000)
    bundle = build(tmp_path_factory.mktemp("large") / "tiny.bundle", limits=limits)
    ran = subprocess.run([sys.executable, "-c", OPENED, bundle], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 40e6, "a picture of 36 MB, six times"
