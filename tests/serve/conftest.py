"""A real server on loopback over a tiny bundle, and the official client."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

import edgemm.serve
from tests.runtimes.tiny_bundle import build

MARKED = 'start: "Here: <draw>" /[a-c]{4}/ "</draw>" /[a-z ]{6}/ "<draw>dd</draw>!"'  # draws twice


def data_url(seed, size=(20, 30)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(), pixels


@contextlib.contextmanager
def running(application):
    """The address of an application that answers in a thread of its own."""
    import uvicorn

    config = uvicorn.Config(application, port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=20)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def client_of(url, **options):
    import openai

    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60, **options)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return build(tmp_path_factory.mktemp("serve") / "tiny.bundle")


@pytest.fixture(scope="session")
def model(bundle):
    """The same bundle, asked without a server."""
    with edgemm.load(bundle, device="cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def application(bundle):
    return edgemm.serve.app(bundle, alias=["gpt-image-1"])


@pytest.fixture(scope="session")
def url(application):
    with running(application) as address:
        yield address


@pytest.fixture(scope="session")
def client(url):
    return client_of(url)
