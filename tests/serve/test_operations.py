"""What the one who runs a server relies on: health, numbers, keys, limits, logs, the signals, and the OpenAPI file."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import edgemm
import edgemm.serve
from edgemm.errors import InputError, UsageError
from tests.serve.conftest import client_of, running

httpx = pytest.importorskip("httpx", reason="needs the extras serve and dev")
openai = pytest.importorskip("openai", reason="needs the extras serve and dev")
prometheus = pytest.importorskip("prometheus_client.parser")
applications = pytest.importorskip("starlette.applications")
routing = pytest.importorskip("starlette.routing")
wire = pytest.importorskip("edgemm.serve.wire", exc_type=ImportError)

ROOT = Path(__file__).resolve().parents[2]
HELLO = [{"role": "user", "content": "hello"}]


def numbers(url):
    families = prometheus.text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def wait_ready(url):
    for _ in range(600):
        if httpx.get(f"{url}/readyz").status_code == 200:
            return
        time.sleep(0.05)
    raise AssertionError("never ready")


def test_health_and_models(url, client):
    wait_ready(url)
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    assert [model.id for model in client.models.list()] == ["tiny", "gpt-image-1"]
    assert client.models.retrieve("gpt-image-1").root == "tiny"
    assert httpx.get(f"{url}/v1/models/gpt-9").json()["error"]["code"] == "model_not_found"
    assert httpx.get(f"{url}/nothing").json()["error"]["code"] == "not_found"
    assert httpx.get(f"{url}/v1/models/").json() == httpx.get(f"{url}/v1/models").json()
    assert httpx.get(f"{url}/v1/chat/completions").json()["error"]["code"] == "method_not_allowed"


def test_numbers_move_with_what_is_done(url, client):
    before = numbers(url)
    client.chat.completions.create(model="tiny", messages=HELLO, max_completion_tokens=9)
    client.images.generate(model="tiny", prompt="x", n=2)
    after = numbers(url)
    moved = {key: after[key] - before.get(key, 0) for key in after}
    assert moved["vllm:generation_tokens_total", "tiny"] == 9
    assert moved["vllm:request_success_total", "length", "tiny"] == 1
    assert moved["vllm:time_to_first_token_seconds_count", "tiny"] == 1
    assert moved["vllm:inter_token_latency_seconds_count", "tiny"] == 8
    assert moved["vllm:e2e_request_latency_seconds_count", "tiny"] == 2
    assert moved["edgemm:pictures_total", "tiny"] == 2
    assert (after["vllm:num_requests_running",], after["vllm:num_requests_waiting",]) == (0, 0)


def test_tokens_are_counted(url, model):
    ids = httpx.post(f"{url}/tokenize", json={"prompt": "hello"}).json()
    assert ids["tokens"] == model.tokenizer.encode("hello") and ids["count"] == 5
    count = httpx.post(f"{url}/tokenize", json={"messages": HELLO}).json()
    assert count == {"count": model.count_tokens("hello"), "max_model_len": 600}


def test_keys_are_asked_for_and_never_told(bundle, tmp_path, caplog):
    keys = tmp_path / "keys"
    keys.write_text("# ours\nsesame\n\nother\n")
    with (
        caplog.at_level(logging.DEBUG, "edgemm.serve"),
        running(edgemm.serve.app(bundle, api_key_file=str(keys))) as url,
    ):
        with pytest.raises(openai.AuthenticationError) as refused:
            client_of(url).models.list()
        assert refused.value.code == "invalid_api_key"
        for key in ("sesame", "other"):
            headers = {"Authorization": f"Bearer {key}"}
            assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
        assert httpx.get(f"{url}/healthz").status_code == httpx.get(f"{url}/metrics").status_code == 200
        assert "security" in httpx.get(f"{url}/openapi.json").json()
    assert "sesame" not in str([vars(record) for record in caplog.records])
    keys.write_text("# none\n")
    with pytest.raises(InputError, match="holds no key"):
        edgemm.serve.app(bundle, api_key_file=str(keys))


def test_large_requests_are_refused_with_a_length_and_without(bundle):
    edgemm.serve.app(bundle, max_body_mb=float("inf")).close()  # none is too large
    with running(edgemm.serve.app(bundle, max_body_mb=0.01)) as url:
        large = json.dumps({"messages": [{"role": "user", "content": "x" * 20_000}]}).encode()
        path, kind = f"{url}/v1/chat/completions", {"content-type": "application/json"}
        for content in (large, iter([large])):
            answer = httpx.post(path, content=content, headers=kind)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_body_that_never_ends_is_waited_for_no_longer_than_a_reply(bundle):
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    )
    with running(edgemm.serve.app(bundle, timeout_s=0.3)) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as connection:
            connection.sendall(head + b'{"messages"')
            said = b"".join(iter(lambda: connection.recv(4096), b""))
    assert said.startswith(b"HTTP/1.1 408 ") and b"deadline_exceeded" in said


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b'{"messages": NaN}', "application/json", 400, "invalid_json"),
        (b'"\\ud800"', "application/json", 400, "invalid_json"),
        (b"\xff", "application/json", 400, "invalid_json"),
        (b"[" * 100_000, "application/json", 400, "invalid_json"),
        (b"[]", "application/json", 400, "invalid_type"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
    ],
)
def test_what_is_no_json_is_refused(url, content, kind, status, code):
    answer = httpx.post(f"{url}/v1/chat/completions", content=content, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_browsers_ask_from_nowhere_unless_that_is_allowed(bundle, url):
    asked = {"origin": "https://example.org", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{url}/v1/models", headers=asked).headers
    with running(edgemm.serve.app(bundle, cors_origin=["https://example.org"])) as open_url:
        allowed = httpx.options(f"{open_url}/v1/models", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "https://example.org"


def line_of(caplog):
    """What the log has of the one request; it is written once the answer is sent."""
    for _ in range(500):
        lines = [record.fields for record in caplog.records if record.message == "request"]
        if lines:
            (line,) = lines
            return line
        time.sleep(0.01)
    raise AssertionError("nothing was logged")


def test_the_log_has_one_line_a_request_and_no_prompt(url, client, caplog):
    caplog.set_level(logging.INFO, "edgemm.serve")
    client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "secret words"}], max_completion_tokens=3,
        extra_headers={"x-request-id": "abc-1"},
    )  # fmt: skip
    line = line_of(caplog)
    assert line["id"] == "abc-1" and line["status"] == 200 and line["model"] == "tiny"
    assert (line["completion_tokens"], line["finish_reason"]) == (3, "length")
    assert "secret" not in caplog.text and "secret" not in str(line)


def test_prompts_are_logged_when_that_is_asked_for(model, caplog):
    caplog.set_level(logging.INFO, "edgemm.serve")
    with running(edgemm.serve.app(model, log_prompts=True)) as url:
        client_of(url).images.generate(model="tiny", prompt="secret words")
        assert line_of(caplog)["request"] == {"prompt": "secret words", "model": "tiny"}


def test_no_picture_is_logged(model):
    drawn = {"type": "image_generation_call", "result": "iVBORw0KGgo" * 9}
    shown = {"type": "input_image", "image_url": "data:image/png;base64," + "iVBORw0KGgo" * 9}
    logged = str(wire.without_pictures({"input": [drawn, {"role": "user", "content": [shown]}], "model": "tiny"}))
    assert len(logged) < 250 and "'model': 'tiny'" in logged


def test_it_mounts_into_another_application(model):
    inner = edgemm.serve.app(model)
    outer = applications.Starlette(routes=[routing.Mount("/ai", app=inner)])
    with running(outer) as url:
        client = client_of(f"{url}/ai")
        assert [each.id for each in client.models.list()] == ["tiny"]
        wait_ready(f"{url}/ai")
        reply = client.chat.completions.create(model="tiny", messages=HELLO, max_completion_tokens=5)
        assert reply.choices[0].message.content == model.generate_text("hello", max_new_tokens=5).text
    inner.close()
    model.generate_text("hello", max_new_tokens=1)  # a model that was opened elsewhere stays open


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draw_share": 1.0}, "draw_share is 1.0, expected 0.01 to 0.99"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"timeout_s": 0.0}, "timeout_s is 0.0, expected above 0"),
        ({"alias": ["a=b"]}, "models are tiny"),
        ({"alias": ["tiny"]}, "two models are called 'tiny'"),
        ({"adapter": ["x"]}, "expected NAME=FOLDER"),
        ({"drawshare": 0.5}, "did you mean 'draw_share'"),
    ],
)
def test_options_that_make_no_sense_are_refused(model, options, message):
    with pytest.raises(UsageError, match=message):
        edgemm.serve.app(model, **options)


# The command


def start(*words):
    command = [sys.executable, "-m", "edgemm", "serve", *map(str, words), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    assert line.startswith("Serving tiny on http://127.0.0.1:"), line + process.stderr.read()
    return process, line.split(" on ")[1].split("/v1")[0]


def test_sigterm_lets_what_was_asked_be_answered_and_leaves_with_0(bundle):
    process, url = start(bundle)
    try:
        wait_ready(url)
        chunks, began = [], threading.Event()

        def listen():
            for chunk in client_of(url).chat.completions.create(
                model="tiny", messages=HELLO, max_completion_tokens=400, extra_body={"ignore_eos": True}, stream=True
            ):
                chunks.append(chunk)
                began.set()

        thread = threading.Thread(target=listen)
        thread.start()
        assert began.wait(30)
        process.send_signal(signal.SIGTERM)
        thread.join(60)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert process.wait(30) == 0
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
        assert lines[-1]["event"] == "request" and lines[-1]["completion_tokens"] == 400
    finally:
        process.kill()
        process.wait()


def test_a_port_that_is_taken_is_one_line(bundle, url):
    words = [sys.executable, "-m", "edgemm", "serve", str(bundle), "--port", url.rpartition(":")[2]]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 5 and "cannot be listened on" in ran.stderr and "a bug" not in ran.stderr


# The OpenAPI file


def test_what_is_published_is_what_is_checked(url):
    document = httpx.get(f"{url}/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert document["openapi"].startswith("3.1")
    chat = schemas["ChatRequest"]
    assert chat["additionalProperties"] is False and chat["required"] == ["messages"]
    assert {"temperature", "tools", "user", "modalities"} <= chat["properties"].keys()
    names = json.dumps(document).split('"#/components/schemas/')[1:]
    assert {name.partition('"')[0] for name in names} <= schemas.keys()
    for path, methods in document["paths"].items():
        for method in methods:
            answer = httpx.request(method, url + path.replace("{model}", "tiny"), json={} if method == "post" else None)
            assert str(answer.status_code) in methods[method]["responses"], (path, answer.text)
