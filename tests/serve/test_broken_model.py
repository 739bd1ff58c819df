"""A bundle that breaks while it answers: no client asked for that, so it is a 500, and everybody else goes on."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

import edgemm
import edgemm.serve
from tests.runtimes import tiny_graphs
from tests.runtimes.tiny_bundle import build
from tests.serve.conftest import client_of, running

httpx = pytest.importorskip("httpx", reason="needs the extras serve and dev")
openai = pytest.importorskip("openai", reason="needs the extras serve and dev")
pytest.importorskip("starlette")

TOKENS = 40  # that the broken transformer reads, before it fails
HELLO = {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 100, "ignore_eos": True}
DRAW = {"prompt": "x", "steps": 8}
CASES = [("/v1/chat/completions", HELLO), ("/v1/images/generations", DRAW)]
CASES += [("/v1/responses", {"input": "hi", "max_output_tokens": 100, "ignore_eos": True})]


def failing(make, output, index, allowed):
    """A component whose `output` is right as long as `index`(graph) stays below `allowed`; then its run fails."""

    def made(weights, *more):
        graph = make(weights, *more)
        (last,) = [node for node in graph.nodes if output in node.output]
        graph.nodes.remove(last)
        few = graph.array("few", np.zeros(allowed, dtype=np.float32))
        nothing = graph.op("ReduceSum", graph.op("Gather", few, index(graph)), keepdims=0)
        graph.nodes.append(tiny_graphs.helper.make_node("Add", [last.input[0], nothing], [output]))
        return graph

    return made


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Its transformer fails at the 40th token, its denoiser in the middle of the steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tiny_graphs,
            "transformer",
            failing(tiny_graphs.transformer, "logits", lambda graph: "attention_limit", TOKENS),
        )
        late = failing(
            tiny_graphs.denoiser,
            "prediction",
            lambda graph: graph.op("Cast", graph.op("Mul", "time", graph.array("hundred", np.float32(100))), to=7),
            50,
        )
        patch.setattr(tiny_graphs, "denoiser", late)
        bundle = build(tmp_path_factory.mktemp("broken") / "broken.bundle")
    application = edgemm.serve.app(bundle)
    with running(application) as url:
        yield url, application, bundle


def events_of(text):
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize(("path", "body"), CASES)
def test_a_model_that_fails_in_the_middle_is_a_500(broken, path, body, caplog):
    url, application, _ = broken
    with caplog.at_level(logging.ERROR, "edgemm.serve"):
        answer = httpx.post(url + path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_error")
    assert answer.json()["error"]["param"] is None
    assert "Gather" not in answer.text and "Gather" in caplog.text  # the log says how
    scheduler = application.service.scheduler
    assert (scheduler.running, scheduler.waiting) == (0, 0)


@pytest.mark.parametrize(("path", "body"), CASES)
def test_its_stream_ends_with_an_error_that_says_so(broken, path, body, caplog):
    url, *_ = broken
    partial = {"partial_images": 3} if "images" in path else {}
    with caplog.at_level(logging.ERROR, "edgemm.serve"):
        answer = httpx.post(url + path, json=body | {"stream": True} | partial)
    assert answer.status_code == 200
    events = events_of(answer.text)
    assert len(events) > 2
    (said,) = [each.get("error") or each for each in events if "error" in each or each.get("type") == "error"]
    assert said["code"] == "model_error"
    assert "Gather" in caplog.text
    assert 'edgemm:requests_refused_total{code="model_error"}' in httpx.get(f"{url}/metrics").text


def test_who_breaks_the_model_takes_nobody_with_it(broken):
    """Both are written side by side when the longer one fails."""
    with edgemm.load(broken[2], device="cpu", threads=1) as model:
        wanted = model.generate_text("hi", max_new_tokens=TOKENS - 25, ignore_eos=True).text
        batch, said = model.text_batch(2), {}
        for words, most in (("hi", TOKENS - 25), ("hi, I am longer", 100)):
            batch.add(model.text_writing(words, max_new_tokens=most, ignore_eos=True))
        while len(batch):
            for writing, event in batch.turn():
                said.setdefault(writing.request.max_new_tokens, []).append(event)
    assert "".join(event.text for event in said[TOKENS - 25]) == wanted
    assert isinstance(said[100][-1], edgemm.BundleError) and len(said[100]) < TOKENS - 25


def test_the_official_client_raises_and_the_next_request_is_answered(broken):
    url, *_ = broken
    client = client_of(url)
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="tiny", messages=HELLO["messages"], extra_body={"ignore_eos": True})
    with pytest.raises(openai.APIError, match="the model failed"):
        list(client.chat.completions.create(model="tiny", messages=HELLO["messages"], stream=True))
    reply = client.chat.completions.create(model="tiny", messages=HELLO["messages"], max_tokens=1)
    assert reply.choices[0].finish_reason == "length"


def test_a_bundle_that_is_altered_under_the_server_is_no_fault_of_the_request(tmp_path):
    bundle = build(tmp_path / "altered.bundle")
    application = edgemm.serve.app(bundle)
    weights = bundle / "components/denoiser/cpu-fp32.onnx.data"
    content = bytearray(weights.read_bytes())
    content[:4] = b"\xff\xff\xff\xff"
    weights.write_bytes(content)
    with running(application) as url:
        answer = httpx.post(f"{url}/v1/images/generations", json=DRAW)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_error")
        assert str(tmp_path) not in answer.text
        assert httpx.get(f"{url}/readyz").status_code == 503
