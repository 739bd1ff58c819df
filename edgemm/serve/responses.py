"""/v1/responses: text, and pictures by the `image_generation` tool, whole or as events; nothing is stored.

With `tool_choice` "required", or that names the tool, the user's last words are drawn; with "auto" the model writes and
draws what it puts between its marks, as in /v1/chat/completions.  What the user shows is edited where the model can.
"""

from __future__ import annotations

import asyncio
import copy
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgemm import DenoiseProgress, ImageResult, InterleavedResult, Picture, TextChunk
from edgemm.serve.chat import Asked, logprob_body, text_options, works
from edgemm.serve.drawing import (
    Sketch,
    draw_work,
    drawing_options,
    edit_work,
    kind_of,
    size_in_words,
    size_of,
    steps_of,
)
from edgemm.serve.fields import (
    ChatMessage,
    ImageTool,
    ImageUrlPart,
    InputMessage,
    ResponsesRequest,
    ToolChoice,
)
from edgemm.serve.pictures import as_base64
from edgemm.serve.problems import Problem
from edgemm.serve.registry import Named
from edgemm.serve.service import Service, Work, as_asked, chosen_seed, picture_of
from edgemm.serve.wire import Event, Events, EventStream, fields_of

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["count_input", "respond"]

TOOL = "image_generation"
LOGPROBS = "message.output_text.logprobs"  # of `include`


async def respond(request: Request) -> Response:
    service: Service = request.app.state.service
    asked = await fields_of(request, ResponsesRequest)
    named = service.registry.get(asked.model)
    request.state.log.update(model=named.id)
    answer = _Answer(asked, named, service, request.state.log)
    work = await service.prepared(answer.prepare, "input")
    asked.input = ""  # with files of pictures, as long as the reply is written
    events = answer.events(work)
    if asked.stream:
        return EventStream(request, await anext(events), events, answer.told)
    *_, (_, last) = [event async for event in events]
    return JSONResponse(last["response"])


async def count_input(request: Request) -> Response:
    """/v1/responses/input_tokens: how many tokens the input takes."""
    service: Service = request.app.state.service
    asked = await fields_of(request, ResponsesRequest)
    named = service.registry.get(asked.model)
    messages = await service.prepared(lambda: _messages(asked, named, service.options.max_images), "input")
    count = await service.prepared(lambda: named.model.count_tokens(messages), "input")
    return JSONResponse({"object": "response.input_tokens", "input_tokens": count})


def _later(raw: bytes, named: Named, param: str) -> Callable[[], Image]:
    """A picture that is decoded when it is known that it is edited."""
    return lambda: picture_of(raw, named, param, whole=True)


def _messages(
    asked: ResponsesRequest, named: Named, most: int, opened: Callable[[bytes, Named, str], Any] = picture_of
) -> list[dict[str, Any]]:
    """The input as messages; what an earlier response drew is the assistant's picture."""
    made = [ChatMessage(role="system", content=asked.instructions)] if asked.instructions else []
    names = ["instructions"] * len(made)
    items = [InputMessage(role="user", content=asked.input)] if isinstance(asked.input, str) else asked.input
    for index, item in enumerate(items):
        if isinstance(item, InputMessage):
            made.append(ChatMessage(role=item.role, content=item.content))
        elif item.result:
            part = ImageUrlPart(type="image_url", image_url=f"data:image/any;base64,{item.result}")
            made.append(ChatMessage(role="assistant", images=[part]))
        else:
            continue
        names.append(f"input[{index}]")
    return as_asked(made, named, most, names, opened=opened)


def _format(asked: ResponsesRequest) -> dict[str, Any]:
    form = asked.text.format if asked.text else None
    if form is None or form.type == "text":
        return {}
    if form.type == "grammar":
        if form.grammar is None:
            raise Problem(400, "missing_required_parameter", "text.format.grammar is missing", "text.format.grammar")
        return {"grammar": form.grammar}
    return {"json_schema": form.schema_ or {"type": "object"}}


@dataclass
class _Item:
    """One item of the output in the making."""

    id: str
    kind: str  # "message" or "image_generation_call"
    text: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    result: str | None = None
    picture: Picture | None = None


class _Answer:
    def __init__(self, asked: ResponsesRequest, named: Named, service: Service, log: dict[str, Any]) -> None:
        self.asked, self.named, self.service, self.log = asked, named, service, log
        self.measured = service.measured(named)
        self.tool: ImageTool | None = (asked.tools or [None])[0] if asked.tool_choice != "none" else None
        self.sketch: Sketch | None = None  # how pictures are drawn
        self.made: Asked | None = None  # how text is written; None where a picture alone is asked for
        self.output: list[dict[str, Any]] = []
        self.held: list[dict[str, Any]] = []  # logprobs of letters that are not whole yet
        self.number = 0
        self.id, self.created = f"resp_{secrets.token_hex(16)}", int(time.time())
        self.prompt_tokens = 0

    # What is asked

    def prepare(self) -> Work:
        asked, named = self.asked, self.named
        forced = asked.tool_choice == "required" or isinstance(asked.tool_choice, ToolChoice)
        if forced and self.tool is None:
            raise Problem(400, "invalid_value", f"tool_choice asks for {TOOL}, tools has none", "tool_choice")
        logprobs = asked.top_logprobs is not None or LOGPROBS in (asked.include or ())
        if logprobs and self.tool is not None:
            raise Problem(400, "unsupported_value", "logprobs are told of text alone", "top_logprobs")
        messages = _messages(asked, named, self.service.options.max_images, _later if forced else picture_of)
        if self.tool is not None:
            self.sketch = self._sketch(self.tool)
        if forced:
            return self._forced(messages)
        text = text_options(asked, named, asked.max_output_tokens, [], _format(asked))
        if logprobs:
            text["logprobs"] = asked.top_logprobs or 0
        drawing = self.sketch.options if self.sketch is not None else None
        if drawing is not None and self.sketch is not None and self.sketch.partials:
            drawing = {**drawing, "preview": self.sketch.preview}
        most = min(asked.max_tool_calls or 4, self.service.options.max_images)
        self.made = Asked(named, messages, text, drawing, most, 1, chosen_seed(asked.seed))
        self.made.count()
        self.prompt_tokens = self.made.prompt_tokens
        return works(self.made)[0]

    def _sketch(self, tool: ImageTool) -> Sketch:
        param = "tools[0]"
        options = drawing_options(self.named, tool, size_of(tool.size, self.named, f"{param}.size"))
        options["seed"] = chosen_seed(tool.seed)
        if tool.output_compression not in (None, 100) and (tool.output_format or "png") == "png":
            param += ".output_compression"
            raise Problem(400, "unsupported_parameter", "output_compression is of jpeg and webp", param)
        kind = kind_of(tool.output_format, self.named, "tools[0].output_format")
        steps = steps_of(self.named, tool.steps)
        return Sketch(self.named, options, steps, tool.partial_images or 0, kind, tool.output_compression)

    def _forced(self, messages: list[dict[str, Any]]) -> Work:
        """The user's last words, drawn; or their picture, edited."""
        assert self.sketch is not None and self.tool is not None
        last = messages[-1]
        if last["role"] != "user" or not last["content"].strip():
            raise Problem(400, "invalid_value", "the last message has no words to draw", "input")
        images, action = last["images"], self.tool.action or "auto"
        edits = bool(self.named.body["edits"])
        if action == "edit" and not images:
            raise Problem(400, "invalid_value", "action is edit, and the last message shows no picture", "input")
        if images and (action == "generate" or (action == "auto" and not edits)):
            raise Problem(400, "unsupported_value", "a picture was shown that drawing would not look at", "input")
        if len(images) > 1:
            raise Problem(400, "unsupported_value", "a model edits one picture at a time", "input")
        if images:
            return edit_work(self.sketch, last["content"], images[0])
        return draw_work(self.sketch, last["content"])

    # What is answered

    def body(self, status: str, **more: Any) -> dict[str, Any]:
        asked = self.asked
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "metadata": asked.metadata or {},
            "model": self.named.id,
            "output": self.output,
            "parallel_tool_calls": False,
            "temperature": asked.temperature,
            "tool_choice": {"type": TOOL} if isinstance(asked.tool_choice, ToolChoice) else asked.tool_choice or "auto",
            "tools": [each.model_dump(exclude_none=True) for each in asked.tools or ()],
            "top_p": asked.top_p,
            "max_output_tokens": asked.max_output_tokens,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": None,
        } | more

    async def events(self, work: Work) -> Events:
        items: list[_Item] = []
        reason = "stop"
        opening = [self._event("response.created", response=self.body("in_progress"))]
        opening.append(self._event("response.in_progress", response=self.body("in_progress")))
        with self.service.ticket([work], self.asked.timeout_s) as ticket:
            async for _, event in ticket:
                for each in opening:
                    yield each
                opening = []
                if isinstance(event, TextChunk):
                    if event.token_ids:
                        self.measured.token(0, len(event.token_ids))
                    self.held += map(logprob_body, event.logprobs)
                    if event.text:
                        if not items or items[-1].kind != "message":
                            for each in self._begin(items, "message"):
                                yield each
                        for each in self._text(items[-1], event):
                            yield each
                    reason = event.result.finish_reason if event.result is not None else reason
                elif isinstance(event, (DenoiseProgress, ImageResult)):
                    async for each in self._drawn(items, event):
                        yield each
                    if self.made is None and isinstance(event, ImageResult):
                        reason = event.finish_reason
                elif isinstance(event, InterleavedResult):
                    reason = event.finish_reason
            queued_s = ticket.queued_s
        for each in self._close(items, reason):
            yield each
        if reason not in ("stop", "length"):
            raise Problem(503, "cancelled", "the server ended this reply")
        self._tell(reason, queued_s)
        usage = self._usage()
        if reason == "length":
            details = {"reason": "max_output_tokens"}
            body = self.body("incomplete", incomplete_details=details, usage=usage)
            yield self._event("response.incomplete", response=body)
        else:
            yield self._event("response.completed", response=self.body("completed", usage=usage))

    def told(self, problem: Problem) -> list[Event]:
        """An error in the middle of a stream."""
        said = {"code": "server_error", "message": f"{problem.code}: {problem.message}"}
        return [
            self._event("error", code=problem.code, message=problem.message, param=problem.param),
            self._event("response.failed", response=self.body("failed", error=said)),
        ]

    def _event(self, kind: str, **said: Any) -> Event:
        event = {"type": kind, "sequence_number": self.number, **said}
        self.number += 1
        return kind, copy.deepcopy(event)  # as it is now

    def _begin(self, items: list[_Item], kind: str) -> list[Event]:
        events = self._close(items, "stop")
        item = _Item(f"{'msg' if kind == 'message' else 'ig'}_{secrets.token_hex(12)}", kind)
        items.append(item)
        place = len(items) - 1
        self.output.append(_body(item, "in_progress"))
        if kind == "message":
            self.output[-1]["content"] = []
        events.append(self._event("response.output_item.added", output_index=place, item=dict(self.output[-1])))
        if kind == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            where = {"item_id": item.id, "output_index": place, "content_index": 0}
            events.append(self._event("response.content_part.added", **where, part=part))
        return events

    def _text(self, item: _Item, chunk: TextChunk) -> list[Event]:
        item.text.append(chunk.text)
        told, self.held = self.held, []
        item.logprobs += told
        place = len(self.output) - 1
        where = {"item_id": item.id, "output_index": place, "content_index": 0}
        return [self._event("response.output_text.delta", **where, delta=chunk.text, logprobs=told)]

    async def _drawn(self, items: list[_Item], event: DenoiseProgress | ImageResult) -> AsyncIterator[Event]:
        sketch = self.sketch
        assert sketch is not None
        if not items or items[-1].kind != "image_generation_call" or items[-1].result is not None:
            for each in self._begin(items, "image_generation_call"):
                yield each
            for what in ("in_progress", "generating"):
                yield self._event(f"response.{TOOL}_call.{what}", item_id=items[-1].id, output_index=len(items) - 1)
        item, place = items[-1], len(items) - 1
        where = {"item_id": item.id, "output_index": place}
        if isinstance(event, DenoiseProgress):
            shown = sorted(sketch.shown())
            if event.step in shown and event.preview is not None:
                yield self._event(
                    f"response.{TOOL}_call.partial_image",
                    **where,
                    partial_image_index=shown.index(event.step),
                    partial_image_b64=await sketch.file(event.preview),
                    output_format=sketch.kind,
                    size=size_in_words(event.preview),
                    background="opaque",
                    quality="auto",
                )
            return
        self.measured.drew(len(event.images), event.metrics)
        if self.made is None:
            self.prompt_tokens = event.metrics.prompt_tokens
        if event.images and event.finish_reason == "stop":
            item.picture = event.images[0]
            item.result = await asyncio.to_thread(as_base64, item.picture, sketch.kind, sketch.quality)
            yield self._event(f"response.{TOOL}_call.completed", **where)
            for each in self._close(items, "stop"):
                yield each

    def _close(self, items: list[_Item], reason: str) -> list[Event]:
        """Ends the last item, if it has not ended."""
        place = len(items) - 1
        if not items or self.output[place]["status"] != "in_progress":
            return []
        item, events = items[-1], []
        status = "completed" if reason == "stop" else "incomplete"
        if item.kind == "message":
            where = {"item_id": item.id, "output_index": place, "content_index": 0}
            text = "".join(item.text)
            part = {"type": "output_text", "text": text, "annotations": [], "logprobs": item.logprobs}
            events.append(self._event("response.output_text.done", **where, text=text, logprobs=item.logprobs))
            events.append(self._event("response.content_part.done", **where, part=part))
        elif item.result is None:
            status = "failed"
        self.output[place] = _body(item, status, self.sketch)
        events.append(self._event("response.output_item.done", output_index=place, item=self.output[place]))
        return events

    def _usage(self) -> dict[str, Any]:
        written, read = self.measured.tokens, self.prompt_tokens
        return {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + written,
        }

    def _tell(self, reason: str, queued_s: float) -> None:
        self.measured.end(self.prompt_tokens, [reason], queued_s)
        self.log.update(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.measured.tokens,
            pictures=self.measured.pictures,
            queue_ms=round(1e3 * queued_s, 1),
            finish_reason=reason,
        )


def _body(item: _Item, status: str, sketch: Sketch | None = None) -> dict[str, Any]:
    if item.kind == "message":
        part = {"type": "output_text", "text": "".join(item.text), "annotations": [], "logprobs": item.logprobs}
        return {"id": item.id, "type": "message", "role": "assistant", "status": status, "content": [part]}
    more = {}
    if item.picture is not None and sketch is not None:
        more = {"output_format": sketch.kind, "size": size_in_words(item.picture), "background": "opaque"}
        more |= {"quality": "auto", "seed": item.picture.seed}
    return {"id": item.id, "type": item.kind, "status": status, "result": item.result, **more}
