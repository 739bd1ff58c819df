"""/v1/chat/completions: text, and pictures among it, whole or as they come.

    {"modalities": ["text", "image"], ...}  ->  message.content, message.images[]; streamed in delta.content and .images

A picture in a reply looks as OpenRouter's and LiteLLM's do: {"type": "image_url", "image_url": {"url": "data:..."}}.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgemm import ImageResult, InterleavedResult, TextChunk
from edgemm.runtimes.text_call import TokenLogprob
from edgemm.serve.drawing import drawing_options, size_of
from edgemm.serve.fields import ChatRequest, Sampled
from edgemm.serve.metrics import Measured
from edgemm.serve.pictures import as_url
from edgemm.serve.problems import Problem
from edgemm.serve.registry import Named
from edgemm.serve.service import Service, Work, as_asked, chosen_seed, graph_of, with_adapter
from edgemm.serve.text_lane import TextWork
from edgemm.serve.wire import Event, Events, EventStream, fields_of

__all__ = ["Asked", "chat", "logprob_body", "text_options", "told", "works"]

REASONS = {"stop": "stop", "length": "length"}  # "cancelled" and "error" never reach a client


@dataclass
class Asked:
    """A request for text, or text with pictures, however its endpoint says it."""

    named: Named
    messages: list[dict[str, Any]]
    text: dict[str, Any]  # keywords of the runtime
    drawing: dict[str, Any] | None  # keywords of the runtime; None: text alone
    max_images: int
    choices: int
    seed: int
    prompt_tokens: int = 0
    image_tokens: int = 0

    def count(self) -> None:
        loop, shown = self.named.model.manifest.loops.text, [one for each in self.messages for one in each["images"]]
        graph = self.text.get("graph")
        shown += [] if graph is None else graph.pictures
        self.prompt_tokens = self.named.model.count_tokens(self.messages, graph=graph)
        self.image_tokens = sum(loop.rows_of(picture) for picture in shown) if loop else 0

    def usage(self, completion_tokens: int) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {
                "cached_tokens": 0,
                "image_tokens": self.image_tokens,
                "text_tokens": self.prompt_tokens - self.image_tokens,
            },
        }


async def chat(request: Request) -> Response:
    service: Service = request.app.state.service
    asked = await fields_of(request, ChatRequest)
    named = service.registry.get(asked.model)
    request.state.log.update(model=named.id)
    measured = service.measured(named)
    made, ready = await service.prepared(lambda: _prepared(asked, named, service), "messages")
    asked.messages, asked.graph = [], None  # with files of pictures, as long as the reply is written
    reply = _Reply(asked, made, measured, request.state.log)
    if asked.stream:
        events = reply.events(service, ready)
        return EventStream(request, await anext(events), events, told, done=True)
    return JSONResponse(await reply.whole(service, ready))


def told(problem: Problem) -> list[Event]:
    """An error in the middle of a stream; the openai clients raise it."""
    return [(None, problem.body)]


def _prepared(asked: ChatRequest, named: Named, service: Service) -> tuple[Asked, list[Work]]:
    media, most_shown = asked.media_io_kwargs, service.options.max_images
    messages = as_asked(asked.messages, named, most_shown, video=media and media.video)
    modalities = asked.modalities or ["text"]
    if "text" not in modalities:
        raise Problem(400, "unsupported_value", 'modalities is ["image"]: ask /v1/images/generations', "modalities")
    pictured = "image" in modalities
    if not pictured and (asked.drawing is not None or asked.max_images is not None):
        name = "drawing" if asked.drawing is not None else "max_images"
        raise Problem(400, "invalid_value", f'{name} needs modalities ["text", "image"]', name)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise Problem(400, "invalid_value", "top_logprobs needs logprobs", "top_logprobs")
    if pictured and asked.logprobs:
        raise Problem(400, "unsupported_value", "logprobs are told of text alone, without pictures", "logprobs")
    if asked.stream_options is not None and not asked.stream:
        raise Problem(400, "invalid_value", "stream_options needs stream", "stream_options")
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if asked.max_tokens and asked.max_completion_tokens and asked.max_tokens != asked.max_completion_tokens:
        raise Problem(400, "invalid_value", "max_tokens and max_completion_tokens differ", "max_tokens")
    most = asked.max_completion_tokens or asked.max_tokens
    drawing = None
    if pictured:
        drawn = asked.drawing
        drawing = {} if drawn is None else drawing_options(named, drawn, size_of(drawn.size, named, "drawing.size"))
        drawing["seed"] = chosen_seed(None if drawn is None else drawn.seed)
    text = text_options(asked, named, most, stop, _format(asked))
    if asked.graph is not None:
        text["graph"] = graph_of(asked.graph, named, most_shown - sum(len(each["images"]) for each in messages))
    if asked.logprobs:
        text["logprobs"] = asked.top_logprobs or 0
    most_images = min(asked.max_images or 4, service.options.max_images)
    made = Asked(named, messages, text, drawing, most_images, asked.n or 1, chosen_seed(asked.seed))
    made.count()
    return made, works(made)


def text_options(
    asked: Sampled, named: Named, most: int | None, stop: list[str], form: dict[str, Any]
) -> dict[str, Any]:
    """How the runtime writes the reply; without a limit it may fill the context."""
    limit = named.model.manifest.limits.max_context
    given = {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k if asked.top_k and asked.top_k > 0 else None,  # 0 and -1: all, as elsewhere
        "min_p": asked.min_p,
        "repetition_penalty": asked.repetition_penalty,
        "ignore_eos": asked.ignore_eos,
        "max_new_tokens": min(most or limit, limit),
        "stop": stop,
    }
    return {name: value for name, value in given.items() if value is not None} | form


def _format(asked: ChatRequest) -> dict[str, Any]:
    form = asked.response_format
    if form is None or form.type == "text":
        return {}
    if form.type == "json_object":
        return {"json_schema": {"type": "object"}}
    if form.type == "grammar":
        return {"grammar": form.grammar}
    return {"json_schema": form.json_schema.schema_ or {"type": "object"}}


def works(asked: Asked) -> list[Work]:
    """One a choice; each has a seed of its own."""
    model, made = asked.named.model, []
    for choice in range(asked.choices):
        options = {**asked.text, "seed": (asked.seed + choice) % 2**63}
        if asked.drawing is None:
            made.append(("text", TextWork(asked.named, model.text_writing(asked.messages, **options))))
        else:
            drawing: Any = {**asked.drawing, "seed": (asked.drawing["seed"] + choice) % 2**63}
            stream: Iterator[Any] = model.generate(
                asked.messages, drawing=drawing, max_images=asked.max_images, **options
            )
            made.append(("draw", with_adapter(asked.named, lambda stream=stream: stream)))
    return made


@dataclass
class _Choice:
    """One reply so far."""

    text: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)  # data: URLs
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    held: list[dict[str, Any]] = field(default_factory=list)  # of letters that are not whole yet
    reason: str | None = None


class _Reply:
    def __init__(self, asked: ChatRequest, made: Asked, measured: Measured, log: dict[str, Any]) -> None:
        self.asked, self.made, self.measured, self.log = asked, made, measured, log
        self.choices = [_Choice() for _ in range(made.choices)]
        self.head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": made.named.id,
            "system_fingerprint": made.named.fingerprint,
        }

    async def whole(self, service: Service, ready: list[Work]) -> dict[str, Any]:
        async for _ in self._deltas(service, ready):
            pass
        choices = []
        for index, choice in enumerate(self.choices):
            message: dict[str, Any] = {"role": "assistant", "content": "".join(choice.text), "refusal": None}
            if self.made.drawing is not None:
                message["images"] = [_shown(url, place) for place, url in enumerate(choice.images)]
            logprobs = {"content": choice.logprobs, "refusal": None} if self.asked.logprobs else None
            choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.reason})
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        return self.made.usage(self.measured.tokens)

    async def events(self, service: Service, ready: list[Work]) -> Events:
        """Chunks; none says nothing, but the first of a choice, which says whose words follow."""
        head = {**self.head, "object": "chat.completion.chunk"}
        options = self.asked.stream_options
        usage = {"usage": None} if options is not None and options.include_usage else {}
        begun: set[int] = set()
        async for index, delta, logprobs, reason in self._deltas(service, ready):
            if index not in begun:
                begun.add(index)
                first = {"role": "assistant", "content": ""}
                yield None, {**head, **usage, "choices": [_chunk(index, first, None, None)]}
            yield None, {**head, **usage, "choices": [_chunk(index, delta, logprobs, reason)]}
        if usage:
            yield None, {**head, "choices": [], "usage": self.usage()}

    async def _deltas(
        self, service: Service, ready: list[Work]
    ) -> AsyncIterator[tuple[int, dict[str, Any], list[dict[str, Any]] | None, str | None]]:
        """(choice, delta, logprobs, why it ended) as they come."""
        with service.ticket(ready, self.asked.timeout_s) as ticket:
            async for index, event in ticket:
                choice = self.choices[index]
                if isinstance(event, TextChunk):
                    if event.token_ids:
                        self.measured.token(index, len(event.token_ids))
                    choice.held += [logprob_body(each) for each in event.logprobs]
                    if event.text:
                        choice.text.append(event.text)
                        yield index, {"content": event.text}, self._told(choice), None
                    if event.result is not None:
                        yield index, {}, self._told(choice), self._end(choice, event.result.finish_reason)
                elif isinstance(event, ImageResult):
                    self.measured.drew(len(event.images), event.metrics)
                    for picture in event.images[:1]:
                        url = await asyncio.to_thread(as_url, picture)
                        choice.images.append(url)
                        yield index, {"images": [_shown(url, len(choice.images) - 1)]}, None, None
                elif isinstance(event, InterleavedResult):
                    yield index, {}, None, self._end(choice, event.finish_reason)
            reasons = [choice.reason or "stop" for choice in self.choices]
            self.measured.end(self.made.prompt_tokens, reasons, ticket.queued_s)
            self.log.update(
                prompt_tokens=self.made.prompt_tokens,
                completion_tokens=self.measured.tokens,
                pictures=self.measured.pictures,
                queue_ms=round(1e3 * ticket.queued_s, 1),
                ttft_ms=round(1e3 * (self.measured.ttft_s or 0), 1),
                finish_reason=reasons[0],
            )

    def _told(self, choice: _Choice) -> list[dict[str, Any]] | None:
        """Logprobs of what is said now."""
        held, choice.held = choice.held, []
        choice.logprobs += held
        return held if self.asked.logprobs else None

    def _end(self, choice: _Choice, reason: str) -> str:
        choice.reason = REASONS.get(reason)
        if choice.reason is None:
            raise Problem(503, "cancelled", "the server ended this reply")
        return choice.reason


def _chunk(
    index: int, delta: dict[str, Any], logprobs: list[dict[str, Any]] | None, reason: str | None
) -> dict[str, Any]:
    told = {"content": logprobs, "refusal": None} if logprobs else None
    return {"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}


def _shown(url: str, index: int) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}, "index": index}


def logprob_body(of: TokenLogprob) -> dict[str, Any]:
    top = [{"token": text, "logprob": value, "bytes": _bytes(text)} for _, text, value in of.top]
    return {"token": of.token, "logprob": of.logprob, "bytes": _bytes(of.token), "top_logprobs": top}


def _bytes(token: str) -> list[int]:
    """Empty of a token that is a part of a letter: it has none that are UTF-8."""
    return [] if "\ufffd" in token else list(token.encode())
