"""What every endpoint works with: the names, the scheduler, the numbers, and how a request becomes work.

Reading a request (tokens, pictures, grammars) happens in threads beside the event loop; the work itself in the
scheduler's thread.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from edgemm.bundle.picture import fit_square, open_picture
from edgemm.device.machine import give_back_memory
from edgemm.errors import EdgemmError, InputError
from edgemm.serve.fields import ChatMessage, ImageUrlPart, TextPart, VideoFrames, VideoUrlPart
from edgemm.serve.metrics import Measured, Metrics
from edgemm.serve.options import ServeOptions
from edgemm.serve.pictures import of_url
from edgemm.serve.problems import Problem, as_problem
from edgemm.serve.registry import Named, Registry
from edgemm.serve.scheduler import Kind, Lanes, Scheduler, Ticket, Turns
from edgemm.serve.text_lane import TextLane

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgemm.bundle.node_link import Graph

__all__ = ["Service", "Work", "as_asked", "chosen_seed", "graph_of", "is_large", "picture_of", "with_adapter"]

T = TypeVar("T")
Work = tuple[Kind, Any]
MOST_DRAWINGS = 4  # that take turns, so that a long one does not hold up a short one
LARGE = 4_000_000  # pixels: 16 MB of a picture, several times
MOST_FRAMES = 16  # of a video, where a request says no other number
PICTURES = threading.Semaphore(2)  # that are decoded at once: each may take half a GB meanwhile
DECODERS = threading.Semaphore(2)  # of videos at once: each may take a GiB, for a minute, and its client may be gone


class Service:
    """One device's models, and everybody who asks of them."""

    def __init__(self, registry: Registry, options: ServeOptions) -> None:
        self.registry, self.options = registry, options
        lanes = Lanes({"text": TextLane(options.max_batch), "draw": Turns(MOST_DRAWINGS)}, options.draw_share)
        self.scheduler = Scheduler(lanes, options.max_queue)
        self.metrics = Metrics(self.scheduler)

    def measured(self, named: Named) -> Measured:
        return Measured(self.metrics, named.id)

    async def prepared(self, prepare: Callable[[], T], prompt_param: str) -> T:
        """What `prepare` makes, in a thread; what it refuses, as a Problem."""
        self.scheduler.check_room()  # before the work of reading a request that is refused anyway
        try:
            return await asyncio.to_thread(prepare)
        except EdgemmError as error:
            raise as_problem(error, prompt_param) from error

    def ticket(self, works: Sequence[Work], timeout_s: float | None) -> Ticket:
        """The events of the works, which end with it."""
        longest = self.options.timeout_s
        deadline = time.monotonic() + (longest if timeout_s is None else min(timeout_s, longest))
        return Ticket(self.scheduler).submit(list(works), deadline)


def with_adapter(named: Named, start: Callable[[], Iterator[T]]) -> Callable[[], Iterator[T]]:
    """Work whose every step is done with the adapter that was asked for; all steps run in one thread."""

    def steps() -> Iterator[T]:
        events: Any = start()
        try:
            while True:
                named.model.set_adapter(named.adapter)
                try:
                    event = next(events)
                except StopIteration:
                    return
                yield event
        finally:
            events.close()

    return steps


def picture_of(raw: bytes, named: Named, param: str, whole: bool = False) -> Image:
    """A picture, upright, as the square that the model reads, or `whole` where it is edited; or the Problem of one that
    cannot be used.  Eight kilobytes may be 50 million pixels: none is kept that nobody reads."""
    loop = named.model.manifest.loops.text
    try:
        with PICTURES:
            picture = open_picture(raw, named.model.manifest.limits.max_image_pixels)
            if whole or loop is None:
                return picture
            rule, large = (loop.image_fit, loop.image_resample, loop.image_least), is_large(picture)
            picture = fit_square(picture, loop.image_size, loop.background, *rule)
            if large:
                give_back_memory()
            return picture
    except InputError as error:
        code = "image_too_large" if "pixels" in str(error) else "invalid_image"
        raise Problem(400, code, str(error), param) from error


def is_large(picture: Image) -> bool:
    """What is freed of it the C library would keep, for each thread that ever opened such a one."""
    return picture.width * picture.height > LARGE


def frames_of(raw: bytes, named: Named, how: VideoFrames, left: int, param: str) -> tuple[Any, ...]:
    """Frames of a video, decoded by a process of their own; at most `left`, which a request may still show."""
    from edgemm.runtimes.video import read_video

    manifest = named.model.manifest
    if manifest.loops.text is None:
        raise Problem(400, "unsupported_value", f"{manifest.name} reads no videos", param)
    if left < (how.num_frames or 1):
        raise Problem(400, "too_many_images", f"the request may show {left} pictures more, frames included", param)
    try:
        most = how.num_frames or min(MOST_FRAMES, left)
        with DECODERS:
            frames = read_video(raw, manifest.loops.text, how.fps, most, manifest.limits.max_image_pixels)
        return manifest.loops.text.clip(frames)
    except InputError as error:
        raise Problem(400, "invalid_video", str(error), param) from error


def graph_of(told: dict[str, Any], named: Named, most: int) -> Graph:
    """A graph of node-link JSON, with at most so many pictures, which are data: URLs."""
    from edgemm.bundle.node_link import Graph, Node, read_graph

    try:
        graph, nodes = read_graph(told), []
    except InputError as error:
        raise Problem(400, "invalid_value", str(error), "graph") from error
    if len(graph.pictures) > most:
        raise Problem(400, "too_many_images", f"the graph shows more than {most} pictures", "graph")
    for index, node in enumerate(graph.nodes):
        param = f"graph.nodes[{index}].image"
        if node.image is not None and not isinstance(node.image, str):
            raise Problem(400, "invalid_type", f"{param} is no string, expected a data: URL", param)
        image = None if node.image is None else picture_of(of_url(node.image, param), named, param)
        nodes.append(Node(node.id, node.text, image))
    return Graph(nodes, graph.edges, graph.directed)


def as_asked(
    messages: Sequence[ChatMessage],
    named: Named,
    most: int,
    names: Sequence[str] = (),
    video: VideoFrames | None = None,
    opened: Callable[[bytes, Named, str], Any] = picture_of,
) -> list[dict[str, Any]]:
    """Messages as the runtime takes them.  What the assistant drew is shown with the user's next message.

    `names` are what errors call each, where that is not messages[i]; `video` is how many frames are read of one;
    `opened` makes the pictures of their bytes.
    """
    told: list[dict[str, Any]] = []
    drawn: list[Any] = []
    shown = 0
    for index, message in enumerate(messages):
        where, texts, images = names[index] if names else f"messages[{index}]", [], []
        parts = [] if message.content is None else message.content
        if isinstance(parts, str):
            texts, parts = [parts], []
        for place, part in enumerate((*parts, *(message.images or ()))):
            if isinstance(part, TextPart):
                texts.append(part.text)
                continue
            if isinstance(part, VideoUrlPart):
                param = f"{where}.content[{place}].video_url"
                if message.role != "user":
                    raise Problem(400, "unsupported_value", f"{param}: only users show videos", param)
                url = part.video_url if isinstance(part.video_url, str) else part.video_url.url
                frames = frames_of(of_url(url, param, "video"), named, video or VideoFrames(), most - shown, param)
                images, shown = [*images, *frames], shown + len(frames)
                continue
            own = place - len(parts)
            param = f"{where}.content[{place}].image_url" if own < 0 else f"{where}.images[{own}].image_url"
            url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
            param += ".url" if isinstance(part, ImageUrlPart) and not isinstance(part.image_url, str) else ""
            shown += 1
            if shown > most:
                raise Problem(400, "too_many_images", f"the request shows more than {most} pictures", param)
            images.append(opened(of_url(url, param), named, param))
        role = "system" if message.role == "developer" else message.role
        if role == "assistant":
            drawn, images = [*drawn, *images], []
        elif role == "user":
            drawn, images = [], [*drawn, *images]
        elif images:
            raise Problem(400, "unsupported_value", f"{where}: only users and the assistant show pictures", where)
        told.append({"role": role, "content": "\n".join(texts), "images": images})
    if drawn:
        raise Problem(400, "invalid_value", "the last message is the assistant's, expected the user's", "messages")
    return told


def chosen_seed(seed: int | None) -> int:
    """The seed of a request that names none: the answer tells it."""
    return secrets.randbits(32) if seed is None else seed
