"""A web application of your own with a model in it: OpenAI's interface under /ai, and your own routes beside it.

pip install 'edgemm[serve]'; EDGEMM_BUNDLE=sticker.bundle uvicorn --factory examples.web_handler:from_environment

curl localhost:8000/ai/v1/images/generations -H 'Content-Type: application/json' -d '{"prompt": "red heart"}'
curl 'localhost:8000/say?prompt=Name+a+fruit'          text, streamed as it is written
curl 'localhost:8000/draw?prompt=red+heart' > x.png    a picture
"""

from __future__ import annotations

import contextlib
import io
import os

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

import edgemm
import edgemm.serve
from edgemm import ImageResult, InputError, UsageError


def application(model):
    ai = edgemm.serve.app(model)

    async def say(request) -> Response:
        chunks = model.astream_text(request.query_params.get("prompt", ""), max_new_tokens=64, timeout_s=30)
        first = await anext(chunks)  # what cannot be said is an error before the answer begins

        async def texts():
            async with contextlib.aclosing(chunks):
                yield first.text
                async for chunk in chunks:
                    yield chunk.text

        return StreamingResponse(texts(), media_type="text/plain")

    async def draw(request) -> Response:
        file = io.BytesIO()
        async for event in model.astream_image(request.query_params.get("prompt", ""), timeout_s=30):
            if isinstance(event, ImageResult):
                event.to_pil().save(file, format="PNG")
        return Response(file.getvalue(), media_type="image/png")

    async def refuse(request, error) -> Response:
        return PlainTextResponse(f"{error}\n", 400)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        ai.close()

    return Starlette(
        routes=[Route("/say", say), Route("/draw", draw), Mount("/ai", app=ai)],
        exception_handlers={InputError: refuse, UsageError: refuse},
        lifespan=lifespan,
    )


def from_environment():
    return application(edgemm.load(os.environ["EDGEMM_BUNDLE"]))
