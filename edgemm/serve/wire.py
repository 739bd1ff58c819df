"""Requests in, responses and event streams out, and whoever hangs up is noticed at once.

A reply is worked on only as long as somebody listens: `answered` and EventStream watch the connection beside the work
and cancel it, which closes its Ticket.  Nothing here runs longer than a moment on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import pydantic_core
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from edgemm.serve.fields import Fields, read_fields
from edgemm.serve.problems import Problem, as_problem

__all__ = ["Event", "EventStream", "Events", "answered", "fields_of", "noted", "refused", "without_pictures"]

LOG = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0  # proxies hang up on a stream that is silent for longer, commonly 60 s
PROMPTS = {"/v1/images/generations": "prompt", "/v1/images/edits": "prompt", "/v1/responses": "input"}  # what is asked
Event = tuple[str | None, Any]  # its name, or None, and what it says
Events = AsyncGenerator[Event, None]
F = TypeVar("F", bound=Fields)


async def fields_of(request: Request, kind: type[F]) -> F:
    """The body as this request, read and checked in a thread: JSON in UTF-8, without NaN, without halves of letters.

    Its pictures are held once, in the request that is given back; whoever has read them forgets them there.
    """
    said = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if said != "application/json":
        raise Problem(415, "unsupported_media_type", f"the body is {said[:60]!r}, expected application/json")
    body = bytearray()
    async for piece in request.stream():  # request.body() would keep it
        body += piece

    def read() -> F:
        try:
            asked = pydantic_core.from_json(body, allow_inf_nan=False)
        except (ValueError, RecursionError) as error:
            raise Problem(400, "invalid_json", f"the body is not JSON: {error}") from None
        body.clear()
        request.state.asked = without_pictures(asked)
        return read_fields(kind, asked)

    return await asyncio.to_thread(read)


def without_pictures(asked: Any) -> Any:
    """What the log may have of a request: data: URLs, and what an earlier response drew, are cut short."""
    if isinstance(asked, dict):
        return {key: without_pictures(_cut(value) if key == "result" else value) for key, value in asked.items()}
    if isinstance(asked, list):
        return [without_pictures(value) for value in asked]
    return _cut(asked) if isinstance(asked, str) and asked[:5].lower() == "data:" else asked


def _cut(value: Any) -> Any:
    return f"{value[:30]}..." if isinstance(value, str) and len(value) > 30 else value


def noted(request: Request, error: Exception) -> Problem:
    """An error as a Problem, which the log and the numbers have; of our own faults and the model's the log has all."""
    problem = as_problem(error, PROMPTS.get(request.state.log["path"], "messages"))
    if problem.status == 500:
        LOG.error("a request failed", exc_info=error, extra={"fields": {"id": request.state.log["id"]}})
    request.state.log["code"] = problem.code
    request.app.state.service.metrics.refused.labels(problem.code).inc()
    return problem


def refused(problem: Problem) -> Response:
    return JSONResponse(problem.body, problem.status, headers=problem.headers)


async def answered(request: Request, endpoint: Callable[[Request], Awaitable[Response]]) -> Response:
    """What an endpoint answers; when the client hangs up before, its work is cancelled and nobody gets anything.

    Until the body has come the endpoint alone listens, who would miss the pieces of it that somebody else heard.
    """
    whole = asyncio.Event()

    async def receive() -> Message:
        message = await request.receive()
        if not message.get("more_body", False):
            whole.set()
        return message

    async def hang_up() -> None:
        await whole.wait()
        await _gone(request.receive)

    task = asyncio.ensure_future(endpoint(Request(request.scope, receive)))
    gone = asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await _ended(task, gone)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(Response):
    """Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

    media_type = "text/event-stream"

    def __init__(
        self,
        request: Request,
        first: Event,
        events: Events,
        told: Callable[[Problem], list[Event]],
        done: bool = False,
    ) -> None:
        """`first` has come already: what goes wrong before it has a status of its own, what comes too late for one
        `told` says.  `done` ends the stream with [DONE]."""
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first, self._events, self._told, self._done = first, events, told, done
        self._noted = partial(noted, request)
        self._said_at = math.inf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump, gone = asyncio.ensure_future(self._pump(send)), asyncio.ensure_future(_gone(receive))
        alive = asyncio.ensure_future(self._keep_alive(send))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not pump.done():
                raise ClientDisconnect
            pump.result()
        finally:
            await _ended(pump, gone, alive)
            await self._events.aclose()  # also where the pump never ran

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._say(send, self._first)
        try:
            async for event in self._events:
                await self._say(send, event)
        except Exception as error:
            for event in self._told(self._noted(error)):
                await self._say(send, event)
        self._said_at = math.inf
        await _send(send, b"data: [DONE]\n\n" if self._done else b"", more=False)

    async def _say(self, send: Send, event: Event) -> None:
        self._said_at = time.monotonic()
        await _send(send, _frame(*event))

    async def _keep_alive(self, send: Send) -> None:
        """A comment whenever nothing was said for a while."""
        while True:
            await asyncio.sleep(KEEP_ALIVE_S)
            if time.monotonic() - self._said_at >= KEEP_ALIVE_S:
                await _send(send, b": still at it\n\n")


def _frame(name: str | None, said: Any) -> bytes:
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + pydantic_core.to_json(said) + b"\n\n"


async def _send(send: Send, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
