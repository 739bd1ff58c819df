"""An application under uvicorn: the socket, the signals, and the end that loses nobody's reply."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import uvicorn

from edgemm.errors import ResourceError

if TYPE_CHECKING:
    from edgemm.serve.application import Application

__all__ = ["serve"]


def serve(application: Application, host: str, port: int, drain_s: int) -> int:
    """Answers until SIGTERM or Ctrl-C, then lets what was asked be answered for so many seconds; 0."""
    listening = _bound(host, port)
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=drain_s,
        server_header=False,
        lifespan="on",
        ws="none",  # there are none, and importing what speaks them takes a tenth of a second
    )
    server = _Server(config, application)
    with listening:
        shown = f"[{host}]" if ":" in host else host
        names = ", ".join(named.id for named in application.service.registry)
        url = f"http://{shown}:{listening.getsockname()[1]}"
        print(f"Serving {names} on {url}/v1; Ctrl-C ends it", file=sys.stderr, flush=True)
        asyncio.run(server.serve(sockets=[listening]))
    return 0


def _bound(host: str, port: int) -> socket.socket:
    try:
        (family, kind, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()  # who reads the line that tells the address may ask at once
    except OSError as error:
        raise ResourceError(
            f"{host}:{port} cannot be listened on: {error.strerror}; give another --host or --port"
        ) from error
    return listening


class _Server(uvicorn.Server):
    """uvicorn's, whose signals end it with 0: its own raises them again once it has ended."""

    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self._application = application

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.force_exit = self.should_exit  # a second one
        self.should_exit = self._application.draining = True
