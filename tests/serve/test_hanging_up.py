"""Three ways in which servers of this kind fail, as tests: a disconnect that blocks the event loop, an abort that kills
the requests after it, and streams with empty partial pictures."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import threading
import time
import urllib.parse

import pytest
from PIL import Image

import edgemm
import edgemm.serve
from tests.serve.conftest import client_of, running

wire = pytest.importorskip("edgemm.serve.wire", reason="needs the extras serve and dev", exc_type=ImportError)
httpx = pytest.importorskip("httpx", reason="needs the extras serve and dev")
pytest.importorskip("openai")
pytest.importorskip("starlette")

HELLO = [{"role": "user", "content": "hello"}]
LONG = {"model": "tiny", "messages": HELLO, "max_completion_tokens": 500, "stream": True, "ignore_eos": True}
STEP_S = 0.01


class Slow:
    """A real engine whose every run takes a while longer, and is counted."""

    def __init__(self, engine, runs):
        self._engine, self._runs = engine, runs
        self.component, self.inputs, self.outputs = engine.component, engine.inputs, engine.outputs

    def bind(self, inputs, outputs):
        binding, runs, component = self._engine.bind(inputs, outputs), self._runs, self.component

        class Bound:
            def run(self):
                runs.append(component)
                time.sleep(STEP_S)
                binding.run()

        return Bound()


@pytest.fixture(scope="module")
def slow(bundle):
    """A server whose steps take 10 ms, and the runs of its engines."""
    runs = []
    with edgemm.load(bundle, device="cpu", threads=1) as model:
        model._engines.watch(lambda engine: Slow(engine, runs))
        application = edgemm.serve.app(model, max_batch=2)
        with running(application) as url:
            yield url, application, runs


def hang_up_on(url, path, body, after):
    """Asks on a bare socket, reads until `after` bytes of the answer came, and drops the connection."""
    at, content = urllib.parse.urlsplit(url), json.dumps(body).encode()
    with socket.create_connection((at.hostname, at.port)) as connection:
        head = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json"]
        head += [f"Content-Length: {len(content)}", "", ""]
        connection.sendall("\r\n".join(head).encode() + content)
        read = 0
        while read < after:
            read += len(connection.recv(4096))


def idle(application):
    """Seconds until nothing is worked on."""
    start = time.monotonic()
    while application.service.scheduler.running or application.service.scheduler.waiting:
        assert time.monotonic() - start < 20
        time.sleep(0.001)
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", LONG),
        ("/v1/chat/completions", LONG | {"stream": False}),
        ("/v1/images/generations", {"prompt": "x", "steps": 50, "n": 10}),
        ("/v1/images/generations", {"prompt": "x", "steps": 50, "stream": True, "partial_images": 3}),
        ("/v1/responses", {"input": "hello", "stream": True, "max_output_tokens": 500, "ignore_eos": True}),
    ],
)
def test_who_hangs_up_stops_the_work_within_a_step_and_blocks_nobody(slow, path, body):
    url, application, runs = slow
    httpx.get(f"{url}/healthz")
    streams = body.get("stream", False)
    thread = threading.Thread(target=hang_up_on, args=(url, path, body, 200 if streams else 0))
    thread.start()
    thread.join()
    waits = []
    for _ in range(10):
        start = time.monotonic()
        assert httpx.get(f"{url}/healthz").status_code == 200
        waits.append(time.monotonic() - start)
    idle(application)
    before = len(runs)
    time.sleep(10 * STEP_S)
    assert len(runs) == before, "work goes on that nobody waits for"
    assert max(waits) < 2.0
    assert len(runs) < 200


def test_hanging_up_touches_no_other_request_and_none_after_it(slow, model):
    """Two run, the others wait; one of each kind hangs up; everybody else gets what they would get alone."""
    url, application, _ = slow
    wanted = model.generate_text("hello", max_new_tokens=40, ignore_eos=True).text
    said: list[str] = []

    def ask():
        reply = client_of(url).chat.completions.create(
            model="tiny", messages=HELLO, max_completion_tokens=40, extra_body={"ignore_eos": True}
        )
        said.append(reply.choices[0].message.content)

    leavers = [threading.Thread(target=hang_up_on, args=(url, "/v1/chat/completions", LONG, 3000))]  # beside a stayer
    leavers += [threading.Thread(target=hang_up_on, args=(url, "/v1/chat/completions", LONG, 0)) for _ in range(3)]
    stayers = [threading.Thread(target=ask) for _ in range(4)]
    for thread in (leavers[0], stayers[0], *leavers[1:], *stayers[1:]):
        thread.start()
        time.sleep(0.02)
    for thread in (*leavers, *stayers):
        thread.join(60)
    assert said == [wanted] * 4
    idle(application)
    ask()
    assert said == [wanted] * 5


def test_no_event_of_a_stream_is_empty(url):
    """Read without a client's help."""
    body = {"prompt": "x", "stream": True, "partial_images": 3, "seed": 4}
    frames = httpx.post(f"{url}/v1/images/generations", json=body).text.strip().split("\n\n")
    assert len(frames) == 4
    for frame in frames:
        name, data = frame.split("\n")
        said = json.loads(data.removeprefix("data: "))
        assert name == f"event: {said['type']}"
        Image.open(io.BytesIO(base64.b64decode(said["b64_json"], validate=True))).load()
    text = httpx.post(f"{url}/v1/chat/completions", json=LONG | {"max_completion_tokens": 20}).text
    *chunks, done = text.strip().split("\n\n")
    assert done == "data: [DONE]"
    for chunk in chunks[1:-1]:
        assert json.loads(chunk.removeprefix("data: "))["choices"][0]["delta"]["content"]


def test_a_deadline_is_an_error_of_its_own_and_ends_the_work(slow):
    url, application, _ = slow
    answer = httpx.post(f"{url}/v1/chat/completions", json=LONG | {"stream": False, "timeout_s": 0.2})
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "deadline_exceeded")
    text = httpx.post(f"{url}/v1/chat/completions", json=LONG | {"timeout_s": 0.2}).text
    assert json.loads(text.strip().split("\n\n")[-2].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert idle(application) < 5


def test_a_full_queue_is_429_and_the_client_is_told_when(bundle):
    runs = []
    with edgemm.load(bundle, device="cpu", threads=1) as model:
        model._engines.watch(lambda engine: Slow(engine, runs))
        application = edgemm.serve.app(model, max_batch=1, max_queue=1)
        with running(application) as url:
            body = LONG | {"stream": False, "max_completion_tokens": 100}
            scheduler = application.service.scheduler
            threads = [
                threading.Thread(
                    target=httpx.post, args=(f"{url}/v1/chat/completions",), kwargs={"json": body, "timeout": 60}
                )
                for _ in range(2)
            ]
            for thread, there in zip(threads, ((1, 0), (1, 1))):
                thread.start()
                while (scheduler.running, scheduler.waiting) != there:
                    time.sleep(0.001)
            answer = httpx.post(f"{url}/v1/chat/completions", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
            assert int(answer.headers["retry-after"]) >= 1
            for thread in threads:
                thread.join(30)


def test_a_stream_that_is_silent_for_long_says_that_it_is_still_at_it(slow, monkeypatch):
    """Proxies hang up on silent streams; clients skip comments."""
    url, _, _ = slow
    monkeypatch.setattr(wire, "KEEP_ALIVE_S", 0.1)
    body = {"prompt": "x", "steps": 50, "stream": True, "partial_images": 1}
    text = httpx.post(f"{url}/v1/images/generations", json=body, timeout=60).text
    assert ": still at it\n\n" in text
    assert (
        len(list(client_of(url).images.generate(model="tiny", prompt="x", stream=True, extra_body={"steps": 50}))) == 1
    )


def test_who_hangs_up_is_counted(slow):
    url, application, _ = slow

    def counted():
        (line,) = re.findall(r"^edgemm:requests_cancelled_total (\S+)", httpx.get(f"{url}/metrics").text, re.MULTILINE)
        return float(line)

    before = counted()
    hang_up_on(url, "/v1/chat/completions", LONG, 200)
    idle(application)
    for _ in range(100):
        if counted() > before:
            return
        time.sleep(0.02)
    raise AssertionError("not counted")
