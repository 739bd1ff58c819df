"""Results of every kind against the JSON Schema that is published with the package, by a library that knows schemas."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

import edgemm
from edgemm.bench import bench
from edgemm.bench.bench import run_bench
from edgemm.bench.components import bench_component
from edgemm.bench.options import Plan
from edgemm.bench.pooled import SCHEMA_VERSION
from edgemm.bench.scenarios import run_scenario
from edgemm.cli.main import main
from edgemm.device.child import Answer
from tests.bench.paper_bundle import PaperModel, write_paper_bundle
from tests.runtimes.tiny_bundle import build

fastjsonschema = pytest.importorskip("fastjsonschema")
SCHEMA = json.loads((Path(bench.__file__).parent / "bench.schema.json").read_text())
valid = fastjsonschema.compile(SCHEMA)


@pytest.fixture
def result(tmp_path, monkeypatch):
    monkeypatch.setattr(edgemm, "load", lambda path, device, threads: PaperModel())
    monkeypatch.setattr(bench, "measure_fresh", lambda request, timeout_s: Answer(None, "was left out"))
    return run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=2, new_tokens=60))


def as_read(document):
    return json.loads(json.dumps(document))


def test_a_result_is_what_the_schema_says(result):
    valid(as_read(result))
    assert SCHEMA["properties"]["schema_version"]["const"] == SCHEMA_VERSION


def test_results_that_really_ran_are_what_the_schema_says(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "measure_fresh", lambda request, timeout_s: Answer(None, "was left out"))
    path = build(tmp_path / "tiny.bundle")
    plan = Plan(prompt_tokens=60, new_tokens=4, steps=2, repetitions=2, warmup=1, device="cpu", threads=1, growth=True)
    valid(as_read(run_bench(path, plan)))
    valid(as_read(bench_component(path, "denoiser", plan, by_operators=True)[0]))
    valid(as_read(run_scenario(path, "offline", plan)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document.update(schema_version=1),
        lambda document: document["rows"]["image_s"].update(p99=1.0),  # from two samples
        lambda document: document["rows"]["image_s"].pop("samples"),
        lambda document: document["rows"]["image_s"].pop("per_process"),
        lambda document: document["card"].pop("cpu"),
        lambda document: document["memory"].update(device_bytes=0),  # 0 is not what could not be measured
        lambda document: document["other_work"].pop("cores"),
    ],
)
def test_a_document_that_is_wrong_is_refused(result, spoil):
    document = copy.deepcopy(as_read(result))
    spoil(document)
    with pytest.raises(fastjsonschema.JsonSchemaException):
        valid(document)


def test_the_schema_is_had_from_the_command_line(capsys):
    assert main(["bench", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA
    assert main(["bench", "--schema", "comparison"]) == 0
    assert json.loads(capsys.readouterr().out)["$id"] == "urn:edgemm:comparison:2"
