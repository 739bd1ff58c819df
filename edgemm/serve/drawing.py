"""/v1/images/generations and /v1/images/edits: pictures, whole or with what they are expected to become on the way."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgemm import DenoiseProgress, ImageResult, Picture
from edgemm.device.machine import give_back_memory
from edgemm.serve.fields import EditRequest, GenerateRequest, HowToDraw, free_and_refused, read_fields
from edgemm.serve.pictures import as_base64, of_url
from edgemm.serve.problems import Problem, unsupported
from edgemm.serve.registry import Named
from edgemm.serve.service import Service, Work, chosen_seed, graph_of, is_large, picture_of, with_adapter
from edgemm.serve.wire import Event, Events, EventStream, fields_of, without_pictures

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Sketch",
    "draw_work",
    "drawing_options",
    "edit_work",
    "edits",
    "generations",
    "kind_of",
    "size_of",
    "usage_of",
]

EDITS = threading.Semaphore(2)
SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


async def generations(request: Request) -> Response:
    return await _answer(request, await fields_of(request, GenerateRequest), None, "image_generation")


async def edits(request: Request) -> Response:
    """Files of a form as `image` or `image[]`, or JSON with data: URLs."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        asked, files = await _form(request)
    else:
        asked = await fields_of(request, EditRequest)
        files = _files_of(asked)
    if not files:
        raise Problem(400, "missing_required_parameter", "image is missing", "image")
    if len(files) > 1:
        raise Problem(400, "unsupported_value", f"{len(files)} pictures: a model edits one at a time", "image")
    return await _answer(request, asked, files.pop(), "image_edit")


def _files_of(asked: EditRequest) -> list[bytes]:
    """The pictures of a request, which it then holds no more."""
    urls = [asked.image] if isinstance(asked.image, str) else list(asked.image or ())
    urls += [each.image_url for each in asked.images or ()]
    asked.image = asked.images = None
    return [of_url(url, "image") for url in urls]


async def _form(request: Request) -> tuple[EditRequest, list[bytes]]:
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException

    given: dict[str, Any] = {}
    files: list[bytes] = []
    try:
        async with request.form(max_files=20, max_fields=100) as form:
            for name, value in form.multi_items():
                if name in ("image", "image[]") and isinstance(value, UploadFile):
                    files.append(await value.read())
                elif isinstance(value, UploadFile):
                    if name.removesuffix("[]") not in free_and_refused(EditRequest)[1]:
                        raise Problem(400, "invalid_type", f"{name} is a file, expected a value", name)
                    given[name.removesuffix("[]")] = value.filename
                elif name in ("image", "image[]"):
                    files.append(of_url(value, "image"))
                elif name in given:
                    raise Problem(400, "invalid_value", f"{name} is given twice", name)
                else:
                    given[name] = value
    except HTTPException as error:
        raise Problem(400, "invalid_form", f"the form cannot be read: {error.detail}") from None
    request.state.asked = without_pictures(given)
    return read_fields(EditRequest, given, strict=False), files


@dataclass
class Sketch:
    """A picture that was asked for, however its endpoint says it."""

    named: Named
    options: dict[str, Any]  # keywords of the runtime
    steps: int  # of each picture
    partials: int
    kind: str  # of file
    quality: int | None

    def shown(self) -> set[int]:
        """After which steps a partial picture is sent: spread evenly, and never the last."""
        count = min(self.partials, self.steps - 1)
        return {round((i + 1) * self.steps / (count + 1)) for i in range(count)}

    @property
    def preview(self) -> bool | list[int]:
        """For the runtime; asked of a model that draws token by token it is refused."""
        return bool(self.partials) and (sorted(self.shown()) or True)

    async def file(self, picture: Picture) -> str:
        return await asyncio.to_thread(as_base64, picture, self.kind, self.quality)


async def _answer(request: Request, asked: GenerateRequest, picture: bytes | None, kind: str) -> Response:
    service: Service = request.app.state.service
    named = service.registry.get(asked.model)
    request.state.log.update(model=named.id)
    if asked.partial_images and not asked.stream:
        raise Problem(400, "invalid_value", "partial_images needs stream", "partial_images")
    if asked.stream and asked.response_format == "url":
        raise Problem(400, "unsupported_value", "a stream has base64, no URLs", "response_format")
    if (asked.n or 1) > service.options.max_images:
        most = service.options.max_images
        raise Problem(400, "too_many_images", f"n is {asked.n}, at most {most} pictures are drawn here", "n")
    answer = _Answer(asked, service, named, kind, request.state.log)
    work = await service.prepared(lambda: answer.prepare(picture), "prompt")
    picture = asked.graph = None  # as long as it is drawn
    if asked.stream:
        events = answer.events(work)
        return EventStream(request, await anext(events), events, _told)
    return JSONResponse(await answer.whole(work))


def _told(problem: Problem) -> list[Event]:
    return [("error", {"type": "error", **problem.body})]


class _Answer:
    def __init__(self, asked: GenerateRequest, service: Service, named: Named, kind: str, log: dict[str, Any]) -> None:
        self.asked, self.service, self.named, self.kind, self.log = asked, service, named, kind, log
        self.measured = service.measured(named)
        self.sketch: Sketch

    def prepare(self, picture: bytes | None) -> Work:
        asked, named = self.asked, self.named
        if asked.output_compression not in (None, 100) and (asked.output_format or "png") == "png":
            raise unsupported("output_compression", "output_compression is of jpeg and webp; PNG loses nothing")
        kind = kind_of(asked.output_format, named, "output_format")
        options = drawing_options(named, asked, size_of(asked.size, named, "size"))
        options |= {"seed": chosen_seed(asked.seed), "num_images": asked.n or 1}
        for name in ("temperature", "top_k", "top_p"):
            if getattr(asked, name) is not None:
                options[name] = getattr(asked, name)
        if asked.graph is not None:
            options["graph"] = graph_of(asked.graph, named, self.service.options.max_images)
        self.sketch = Sketch(
            named,
            options,
            steps_of(named, asked.steps),
            asked.partial_images or 0,
            kind,
            asked.output_compression,
        )
        if picture is not None:
            return edit_work(self.sketch, asked.prompt, lambda: picture_of(picture, named, "image", whole=True))
        return draw_work(self.sketch, asked.prompt)

    @property
    def head(self) -> dict[str, Any]:
        return {"background": "opaque", "output_format": self.sketch.kind}

    async def whole(self, work: Work) -> dict[str, Any]:
        async for event in self._drawn(work):
            if isinstance(event, ImageResult):
                files = [await self.sketch.file(picture) for picture in event.images]
                url = f"data:image/{self.sketch.kind};base64,"
                data = [
                    ({"url": url + file} if self.asked.response_format == "url" else {"b64_json": file})
                    | {"seed": picture.seed}
                    for file, picture in zip(files, event.images)
                ]
                size, usage = size_in_words(event.images[0]), usage_of(self.named, event)
                return {"created": int(time.time()), **self.head, "size": size, "data": data, "usage": usage}
        raise Problem(503, "cancelled", "the server ended this drawing")

    async def events(self, work: Work) -> Events:
        """Partial pictures, and each whole one once all are; `index` tells them apart where n is above 1."""
        shown, sent = self.sketch.shown(), 0
        async for event in self._drawn(work):
            if isinstance(event, DenoiseProgress) and event.step in shown and event.preview is not None:
                place = sent % max(len(shown), 1)
                said = await self._said("partial_image", event.preview) | {"partial_image_index": place}
                yield f"{self.kind}.partial_image", said | {"index": event.index}
                sent += 1
            elif isinstance(event, ImageResult):
                usage, step_ms = usage_of(self.named, event), round(event.metrics.step_ms, 3)
                for index, picture in enumerate(event.images):
                    said = await self._said("completed", picture) | {"usage": usage, "step_ms": step_ms}
                    yield f"{self.kind}.completed", said | {"index": index, "seed": picture.seed}

    async def _said(self, what: str, picture: Picture) -> dict[str, Any]:
        return {
            "type": f"{self.kind}.{what}",
            "b64_json": await self.sketch.file(picture),
            "created_at": int(time.time()),
            "quality": "auto",
            "size": size_in_words(picture),
            **self.head,
        }

    async def _drawn(self, work: Work) -> AsyncIterator[Any]:
        with self.service.ticket([work], self.asked.timeout_s) as ticket:
            async for _, event in ticket:
                if isinstance(event, ImageResult):
                    if event.finish_reason != "stop":
                        raise Problem(503, "cancelled", "the server ended this drawing")
                    self.measured.drew(len(event.images), event.metrics)
                    self.measured.end(event.metrics.prompt_tokens, ["stop"], ticket.queued_s)
                    self.log.update(
                        prompt_tokens=event.metrics.prompt_tokens,
                        pictures=len(event.images),
                        steps=event.metrics.steps,
                        queue_ms=round(1e3 * ticket.queued_s, 1),
                        finish_reason="stop",
                    )
                yield event


def draw_work(sketch: Sketch, prompt: str) -> Work:
    """What draws it; prompt and options are checked now."""
    stream: Iterator[Any] = sketch.named.model.stream_image(prompt, **sketch.options, preview=sketch.preview)
    return "draw", with_adapter(sketch.named, lambda: stream)


def edit_work(sketch: Sketch, prompt: str, opened: Callable[[], Image]) -> Work:
    """What edits a picture, which is read now and not kept: two at once, for each takes several times its size."""
    with EDITS:
        options = {**sketch.options, "image": opened()}
        work, large = draw_work(replace(sketch, options=options), prompt), is_large(options.pop("image"))
        if large:
            give_back_memory()
        return work


def drawing_options(named: Named, asked: HowToDraw, size: tuple[int, int] | None) -> dict[str, Any]:
    """How the runtime draws it; the seed is the caller's business."""
    if not named.draws:
        raise Problem(400, "unsupported_value", f"{named.id} does not draw", "model")
    given = {
        "num_inference_steps": asked.steps,
        "guidance_scale": asked.guidance,
        "image_guidance_scale": asked.image_guidance,
        "negative_prompt": asked.negative_prompt,
    }
    if size is not None and named.model.manifest.loops.denoise is not None:
        given |= {"width": size[0], "height": size[1]}
    return {name: value for name, value in given.items() if value is not None}


def size_of(size: str | None, named: Named, param: str) -> tuple[int, int] | None:
    """(width, height) that was asked for, where the model draws that; None leaves it to the model."""
    if size is None or size == "auto":
        return None
    found = SIZE.fullmatch(size)
    if not found:
        raise Problem(400, "invalid_value", f"{param} is {size[:40]!r}, expected WIDTHxHEIGHT or auto", param)
    width, height = int(found[1]), int(found[2])
    loops = named.model.manifest.loops
    problem = None
    if loops.denoise is not None:
        problem = loops.denoise.problem(height, width)
    elif loops.image_tokens is not None:
        own = (loops.image_tokens.image_width, loops.image_tokens.image_height)
        if (width, height) != own:
            problem = f"size is {size}, this bundle draws pictures of {own[0]} x {own[1]} only"
    if problem:
        raise Problem(400, "unsupported_value", f"{problem}; leave size out, or say auto", param)
    return width, height


def kind_of(output_format: str | None, named: Named, param: str) -> str:
    """The kind of file that was asked for; JPEG holds no clip, of which the first frame would be shown alone."""
    loop = named.model.manifest.loops.denoise
    if output_format == "jpeg" and loop is not None and loop.frames > 1:
        raise Problem(400, "unsupported_value", f"{named.id} draws clips, which are png or webp", param)
    return output_format or "png"


def steps_of(named: Named, asked: int | None) -> int:
    """Events of one picture: denoising steps, or tokens."""
    loops = named.model.manifest.loops
    if loops.denoise is not None:
        return (asked or loops.denoise.num_inference_steps) - int(loops.denoise.counts == "points")
    return loops.image_tokens.rows * loops.image_tokens.columns if loops.image_tokens else 1


def size_in_words(picture: Picture) -> str:
    height, width = picture.pixels.shape[1:]
    return f"{width}x{height}"


def usage_of(named: Named, result: ImageResult) -> dict[str, Any]:
    """Tokens read, and those of the pictures that were drawn."""
    loops, drawn = named.model.manifest.loops, 0
    for picture in result.images:
        height, width = picture.pixels.shape[1:]
        if loops.denoise is not None:
            shape = loops.denoise.state_shape(height, width)
            drawn += shape[0] if len(shape) == 2 else shape[1] * shape[2]
        elif loops.image_tokens is not None:
            drawn += loops.image_tokens.length
    read = result.metrics.prompt_tokens
    seen = loops.text.image_token_count if loops.text and result.metrics.image_encode_ms else 0
    return {
        "input_tokens": read,
        "input_tokens_details": {"image_tokens": seen, "text_tokens": read - seen},
        "output_tokens": drawn,
        "output_tokens_details": {"image_tokens": drawn, "text_tokens": 0},
        "total_tokens": read + drawn,
    }
