"""The ASGI application: which path is answered by what, and how it begins and ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edgemm.bundle.files import read_text
from edgemm.errors import InputError
from edgemm.serve.chat import chat
from edgemm.serve.drawing import edits, generations
from edgemm.serve.fields import TokenizeRequest
from edgemm.serve.gate import Gate
from edgemm.serve.openapi import document
from edgemm.serve.options import ServeOptions
from edgemm.serve.page import routes as page_routes
from edgemm.serve.problems import Problem
from edgemm.serve.registry import Registry, Served, opened
from edgemm.serve.responses import count_input, respond
from edgemm.serve.service import Service, as_asked
from edgemm.serve.wire import answered, fields_of, noted, refused

__all__ = ["Application"]

LOG = logging.getLogger(__name__)
Endpoint = Callable[[Request], Awaitable[Response]]


class Application:
    """Call it as an ASGI application, mount it into another, and `close` it where no lifespan does."""

    def __init__(self, bundles: Sequence[Served], options: ServeOptions, **how: Any) -> None:
        """`how` is what edgemm.load takes beside the path."""
        self.options = options
        keys = keys_of(options.api_key_file) if options.api_key_file else []
        models, self._own = opened(bundles, **how)
        self.service = Service(Registry(models, options.alias, options.adapter), options)
        self.draining = False
        self._prepared = threading.Event()
        self._preparing: asyncio.Future[None] | None = None
        inner = Starlette(routes=self._routes(), exception_handlers=HANDLERS, lifespan=self._lifespan)
        inner.state.service = self.service
        gated: ASGIApp = Gate(inner, self.service.metrics, keys, options)
        if options.cors_origin:
            origins = list(options.cors_origin)
            gated = CORSMiddleware(gated, origins, allow_methods=["GET", "POST"], allow_headers=["*"])
        self._app = gated
        self._document = document([named.id for named in self.service.registry], bool(keys))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def close(self, patience_s: float = 0.0) -> None:
        """Ends what is worked on, after so many seconds at the latest, and closes the models that were opened here."""
        self.draining = True
        self.service.scheduler.close(patience_s)
        for model in self._own:
            model.close()

    def _routes(self) -> list[Route]:
        posts = {
            "/v1/chat/completions": chat,
            "/v1/images/generations": generations,
            "/v1/images/edits": edits,
            "/v1/responses": respond,
            "/v1/responses/input_tokens": count_input,
            "/tokenize": tokenize,
        }
        gets: dict[str, Endpoint] = {
            "/v1/models": models,
            "/v1/models/{model:path}": model,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": metrics,
            "/openapi.json": self._openapi,
        }
        return [
            *(Route(path, _watched(endpoint), methods=["POST"]) for path, endpoint in posts.items()),
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()),
            *page_routes(),
        ]

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._begin_preparing()
        try:
            yield
        finally:
            await asyncio.to_thread(self.close)

    def _begin_preparing(self) -> None:
        """Loads every engine beside the event loop, so that no first request waits for one."""
        if self._preparing is None:
            self._preparing = asyncio.ensure_future(asyncio.to_thread(self._prepare))

    def _prepare(self) -> None:
        try:
            for each in self.service.registry.models:
                each.prepare()
            self._prepared.set()
        except Exception:
            LOG.exception("a bundle cannot be loaded")

    async def _healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _readyz(self, request: Request) -> Response:
        self._begin_preparing()  # in an application that is mounted nobody else does
        scheduler = self.service.scheduler
        ready = self._prepared.is_set() and not self.draining
        said = "ready" if ready else "shutting down" if self.draining else "loading"
        body = {"status": said, "running": scheduler.running, "waiting": scheduler.waiting}
        return JSONResponse(body, 200 if ready else 503)

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(self._document)


def keys_of(path: str) -> list[str]:
    """One a line; blank lines and those that begin with # are none."""
    lines = [line.strip() for line in read_text(path, "a file of keys, one a line").splitlines()]
    keys = [line for line in lines if line and line[0] != "#"]
    if not keys:
        raise InputError(f"{path}: holds no key; expected one a line")
    return keys


def _watched(endpoint: Endpoint) -> Endpoint:
    async def watched(request: Request) -> Response:
        try:
            return await answered(request, endpoint)
        except ClientDisconnect:
            raise
        except Exception as error:
            return _refuse(request, error)

    return watched


async def models(request: Request) -> Response:
    service: Service = request.app.state.service
    return JSONResponse({"object": "list", "data": [named.body for named in service.registry]})


async def model(request: Request) -> Response:
    service: Service = request.app.state.service
    return JSONResponse(service.registry.get(request.path_params["model"]).body)


async def metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def tokenize(request: Request) -> Response:
    """Token ids of a text; of a conversation how many it takes, whose pictures are decoded to be checked."""
    service: Service = request.app.state.service
    asked = await fields_of(request, TokenizeRequest)
    named = service.registry.get(asked.model)
    if (asked.prompt is None) == (asked.messages is None):
        raise Problem(400, "missing_required_parameter", "expected prompt or messages, one of them", "prompt")

    def count() -> dict[str, Any]:
        if asked.prompt is not None:
            ids = named.model.tokenizer.encode(asked.prompt)
            return {"count": len(ids), "tokens": ids}
        messages = as_asked(asked.messages or [], named, service.options.max_images)
        return {"count": named.model.count_tokens(messages)}

    counted = await service.prepared(count, "messages")
    return JSONResponse({**counted, "max_model_len": named.model.manifest.limits.max_context})


def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        problem = Problem(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")
        response = refused(noted(request, problem))
        response.headers.update(error.headers or {})
        return response
    return refused(noted(request, error))


HANDLERS: Any = {Problem: _refuse, HTTPException: _refuse}
