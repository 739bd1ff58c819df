"""An iterator that works, as an async iterator: its work in a thread of its own, the event loop free.

To close it, or to cancel the task that waits for it, ends the work within one token or one denoising step.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["in_thread"]

T = TypeVar("T")
END: Any = object()


async def in_thread(start: Callable[[threading.Event], Iterator[T]]) -> AsyncGenerator[T, None]:
    """What the iterator gives that `start` makes; `start` runs in the thread, too, and is handed what says to end."""
    loop, stopped, made = asyncio.get_running_loop(), threading.Event(), []
    with_one = ThreadPoolExecutor(1, thread_name_prefix="edgemm")

    def begin() -> None:
        made.append(start(stopped))

    def end() -> None:
        for iterator in made:
            iterator.close()

    try:
        await loop.run_in_executor(with_one, begin)
        while (event := await loop.run_in_executor(with_one, next, made[0], END)) is not END:
            yield event
    finally:
        stopped.set()
        ended = loop.run_in_executor(with_one, end)  # after what still runs
        with_one.shutdown(wait=False)
        await asyncio.shield(ended)
