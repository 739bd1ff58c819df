"""An async web handler: any ASGI server runs `application(model)`; the model works in threads, the loop stays free.

pip install uvicorn; EDGEMM_BUNDLE=sticker.bundle uvicorn --factory examples.web_handler:from_environment

curl 'localhost:8000/say?prompt=Name+a+fruit'          text, streamed as it is written
curl 'localhost:8000/draw?prompt=red+heart' > x.png    a picture
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator
from urllib.parse import parse_qs

import edgemm
from edgemm.errors import EdgemmError, InputError, UsageError


async def in_thread(stream) -> AsyncIterator:
    """An iterator of events, each asked for in a thread; closed when nobody listens any more."""
    try:
        while (event := await asyncio.to_thread(next, stream, None)) is not None:
            yield event
    finally:
        await asyncio.to_thread(stream.close)


def application(model):
    async def answer(scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode()).items()}
        routes = {"/say": say, "/draw": draw}
        try:
            if scope["path"] not in routes:
                return await reply(send, 404, b"try /say or /draw\n")
            await routes[scope["path"]](query.get("prompt", ""), send)
        except (InputError, UsageError) as error:
            await reply(send, 400, f"{error}\n".encode())
        except EdgemmError as error:
            await reply(send, 500, f"{error}\n".encode())

    async def say(prompt: str, send) -> None:
        stream = model.stream_text(prompt, max_new_tokens=64, timeout_s=30)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        async for chunk in in_thread(stream):
            await send({"type": "http.response.body", "body": chunk.text.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def draw(prompt: str, send) -> None:
        result = await asyncio.to_thread(model.generate_image, prompt, timeout_s=30)
        file = io.BytesIO()
        result.image.to_pil().save(file, format="PNG")
        await reply(send, 200, file.getvalue(), b"image/png")

    async def reply(send, status: int, body: bytes, kind: bytes = b"text/plain") -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": body})

    return answer


def from_environment():
    return application(edgemm.load(os.environ["EDGEMM_BUNDLE"]))
