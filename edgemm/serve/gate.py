"""What every request passes: its number, its key, its size; and the one line that the log has of it.

Pure ASGI, around the whole application.  The log has no prompts, no pictures and no keys, unless prompts are asked for.
"""

from __future__ import annotations

import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgemm.serve.metrics import Metrics
from edgemm.serve.options import ServeOptions
from edgemm.serve.page import PATHS
from edgemm.serve.problems import Problem
from edgemm.serve.wire import refused

__all__ = ["Gate", "JsonLines"]

LOG = logging.getLogger(__name__)
OPEN = ("/healthz", "/readyz", "/metrics", "/openapi.json", *PATHS)  # without a key
NUMBER = re.compile(r"[\w.:-]{1,100}")


class Gate:
    """Around an application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, keys: Sequence[str], options: ServeOptions) -> None:
        self._app, self._metrics, self._log_prompts = app, metrics, options.log_prompts
        self._keys, self._most = [key.encode() for key in keys], options.max_body_mb * 1e6
        self._timeout_s = options.timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {name.lower(): value for name, value in scope["headers"]}
        asked = headers.get(b"x-request-id", b"").decode("latin-1")
        number = asked if NUMBER.fullmatch(asked) else secrets.token_hex(12)
        root = scope.get("root_path", "")
        path = scope["path"].removeprefix(root).rstrip("/") or "/"
        scope["path"] = root + path  # a slash at the end names nothing else
        line: dict[str, Any] = {"id": number, "method": scope["method"], "path": path}
        scope.setdefault("state", {})["log"] = line
        began, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", number.encode())]}
            await send(message)

        try:
            problem = self._problem(path, headers)
            if problem is not None:
                line["code"] = problem.code
                self._metrics.refused.labels(problem.code).inc()
                await refused(problem)(scope, receive, sending)
            else:
                await self._app(scope, self._measured(receive), sending)
        except ClientDisconnect:
            line["cancelled"], status = True, 499  # nobody sees it; nginx's number
            self._metrics.cancelled.inc()
        finally:
            if self._log_prompts and "asked" in scope["state"]:
                line["request"] = scope["state"]["asked"]
            line.update(status=status, ms=round(1e3 * (time.perf_counter() - began), 1))
            LOG.log(logging.DEBUG if path in OPEN else logging.INFO, "request", extra={"fields": line})

    def _problem(self, path: str, headers: dict[bytes, bytes]) -> Problem | None:
        if self._keys and path not in OPEN:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            known = [hmac.compare_digest(key.strip(), each) for each in self._keys]  # all: no time tells which
            if scheme.lower() != b"bearer" or not any(known):
                return Problem(401, "invalid_api_key", "no valid key: Authorization: Bearer KEY")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most:
            return self._too_large()
        return None

    def _too_large(self) -> Problem:
        return Problem(413, "request_too_large", f"the request is larger than {self._most / 1e6:g} MB")

    def _measured(self, receive: Receive) -> Receive:
        """Counts, too, what comes without saying its length, and waits for all of it no longer than for a reply."""
        read, whole, until = 0, False, time.monotonic() + self._timeout_s

        async def receiving() -> Message:
            nonlocal read, whole
            try:
                with anyio.fail_after(None if whole else max(until - time.monotonic(), 0)):
                    message = await receive()
            except TimeoutError:
                raise Problem(408, "deadline_exceeded", "the request did not come to its end in time") from None
            whole = whole or not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > self._most:
                raise self._too_large()
            return message

        return receiving


class JsonLines(logging.Formatter):
    """A log record as one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        line = {"time": stamp, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
