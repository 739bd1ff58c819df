"""/v1/responses through the official client: text, pictures by the image_generation tool, events in their order."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.serve.conftest import MARKED, data_url

openai = pytest.importorskip("openai", reason="needs the extras serve and dev")

TOOL = {"type": "image_generation"}
PREFIX = "response.image_generation_call."


def ask(client, **options):
    return client.responses.create(model="tiny", **{"input": "hello"} | options)


def opened(content):
    picture = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
    picture.load()
    return np.asarray(picture)


def test_a_reply_is_the_one_that_the_model_gives_without_a_server(client, model):
    answer, wanted = ask(client, max_output_tokens=12), model.generate_text("hello", max_new_tokens=12)
    assert answer.output_text == wanted.text
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.output_tokens == 12 and answer.usage.input_tokens == wanted.metrics.prompt_tokens


def test_instructions_are_a_system_message_and_pictures_are_seen(client, model):
    url, pixels = data_url(5)
    content = [{"type": "input_image", "image_url": url, "detail": "auto"}, {"type": "input_text", "text": "What?"}]
    answer = ask(client, instructions="be brief", input=[{"role": "user", "content": content}], max_output_tokens=9)
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "What?", "images": [pixels]},
    ]
    assert answer.output_text == model.generate_text(messages, max_new_tokens=9).text


def test_a_picture_is_drawn_when_the_tool_is_chosen(client, model):
    answer = ask(client, input="a heart", tools=[TOOL | {"seed": 7, "steps": 2}], tool_choice={"type": TOOL["type"]})
    (call,) = answer.output
    wanted = model.generate_image("a heart", seed=7, num_inference_steps=2).image.to_array()
    assert (call.type, call.status, answer.status) == ("image_generation_call", "completed", "completed")
    assert np.array_equal(opened(call.result), wanted)
    assert (call.size, call.output_format) == ("4x4", "png")


def test_events_come_in_their_order_and_end_with_the_whole_answer(client):
    *events, last = ask(client, stream=True, max_output_tokens=9)
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-3:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert [event.sequence_number for event in (*events, last)] == list(range(len(events) + 1))
    assert events[0].response.output == [] and events[2].item.content == []
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert last.type == "response.incomplete" and said == last.response.output_text
    assert all(event.delta for event in events if event.type == "response.output_text.delta")


def test_a_drawing_is_streamed_with_partial_pictures(client):
    tools = [TOOL | {"seed": 7, "partial_images": 2, "output_format": "webp"}]
    events = list(ask(client, input="a heart", tools=tools, tool_choice="required", stream=True))
    kinds = [event.type.removeprefix(PREFIX) for event in events]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "in_progress",
        "generating",
        "partial_image",
        "partial_image",
        "completed",
        "response.output_item.done",
        "response.completed",
    ]
    pictures = {opened(event.partial_image_b64).tobytes() for event in events if hasattr(event, "partial_image_b64")}
    pictures.add(opened(events[-1].response.output[0].result).tobytes())
    assert len(pictures) == 3


class TestConstrained:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("llguidance")

    def test_text_and_pictures_are_items_in_the_order_of_the_reply(self, client, model):
        how = {"tools": [TOOL | {"seed": 7, "steps": 2}], "text": {"format": {"type": "grammar", "grammar": MARKED}}}
        answer = ask(client, **how)
        *_, wanted = model.generate("hello", grammar=MARKED, drawing={"seed": 7, "num_inference_steps": 2})
        kinds = [item.type for item in answer.output]
        assert kinds == ["message", "image_generation_call", "message", "image_generation_call", "message"]
        assert answer.output_text == wanted.text and answer.status == "completed"
        drawn = [opened(item.result) for item in answer.output if item.type == "image_generation_call"]
        assert all(np.array_equal(one, other.to_array()) for one, other in zip(drawn, wanted.images))
        *_, last = ask(client, stream=True, **how)
        strip = {"id", "created_at"}
        assert stripped(last.response.model_dump(), strip) == stripped(answer.model_dump(), strip)

    def test_an_answer_may_be_the_next_input(self, client):
        how = {"tools": [TOOL | {"seed": 7, "steps": 2}], "text": {"format": {"type": "grammar", "grammar": MARKED}}}
        first = ask(client, **how)
        before = [{"role": "user", "content": "hello"}, *(item.model_dump(exclude_none=True) for item in first.output)]
        again = ask(client, input=[*before, {"role": "user", "content": "and?"}], max_output_tokens=4)
        assert again.usage.input_tokens > first.usage.input_tokens + 10

    def test_a_json_schema_is_followed(self, client):
        schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
        form = {"type": "json_schema", "name": "a", "schema": schema | {"additionalProperties": False}}
        assert json.loads(ask(client, text={"format": form}).output_text)["a"] in (1, 2)


def stripped(value, names):
    if isinstance(value, dict):
        return {key: stripped(each, names) for key, each in value.items() if key not in names}
    return [stripped(each, names) for each in value] if isinstance(value, list) else value


def test_logprobs_are_told_when_they_are_included(client, model):
    answer = ask(client, max_output_tokens=4, include=["message.output_text.logprobs"], top_logprobs=2)
    told = answer.output[0].content[0].logprobs
    wanted = model.generate_text("hello", max_new_tokens=4, logprobs=2).logprobs
    assert [each.logprob for each in told] == pytest.approx([each.logprob for each in wanted])


def test_tokens_are_counted(client, model):
    assert client.responses.input_tokens.count(model="tiny", input="hello").input_tokens == model.count_tokens("hello")


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"previous_response_id": "resp_1"}, "unsupported_parameter", "previous_response_id"),
        ({"background": True}, "unsupported_parameter", "background"),
        ({"tools": [{"type": "web_search"}]}, "invalid_value", "tools[0].type"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tools": [TOOL | {"size": "9x9"}]}, "unsupported_value", "tools[0].size"),
        ({"tools": [TOOL | {"input_image_mask": {}}]}, "unknown_parameter", "tools[0].input_image_mask"),
        ({"extra_body": {"reasoning": {"effort": "high"}}}, "unsupported_parameter", "reasoning"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}]},
            "remote_image_refused",
            "input[0].content[0].image_url",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client, options, code, param):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **options)
    assert (refused.value.code, refused.value.param) == (code, param)
