"""Graphs that would hang, crash or mislead NVIDIA's parser never reach it."""

from __future__ import annotations

import dataclasses
import os

import onnx
import pytest
from onnx import helper

from edgemm.bundle.bundle import Bundle, open_bundle
from edgemm.engines import bundle_engines
from edgemm.engines.bundle_engines import Destination, bundle_specs, checked_graph
from edgemm.engines.engine_spec import Place
from edgemm.errors import BundleError
from tests.runtimes.tiny_bundle import build

COMPONENT = "denoiser"


@pytest.fixture
def bundle(tmp_path):
    """Its denoiser is offered to RTX as well."""
    opened = open_bundle(build(tmp_path / "tiny.bundle"))
    targets = {**opened.manifest.targets, "rtx": opened.manifest.targets["cpu"]}
    return Bundle(opened.path, dataclasses.replace(opened.manifest, targets=targets))


@pytest.fixture
def files(bundle):
    variant = bundle.manifest.variant(COMPONENT, "rtx")
    return bundle.path / variant.graph, bundle.path / variant.data


def change(path, edit):
    model = onnx.load(path, load_external_data=False)
    edit(model)
    path.write_bytes(model.SerializeToString())


def refused(bundle, message):
    with pytest.raises(BundleError, match=message):
        checked_graph(bundle, COMPONENT, "rtx")


def test_a_sound_graph_passes(bundle, files):
    assert checked_graph(bundle, COMPONENT, "rtx") == files[0]


@pytest.mark.parametrize("wanted", ["0", "1"])
def test_an_engine_rounds_to_tf32_where_that_is_asked_for_alone(bundle, monkeypatch, wanted):
    monkeypatch.setenv("EDGEMM_TF32", wanted)
    destination = Destination("rtx", "tensorrt_rtx", "1.7", Place("8.9", here=False))
    monkeypatch.setattr(bundle_engines, "checked_graph", lambda *_: bundle.path)  # graphs for CPUs: not built here
    specs = [spec for spec, _ in bundle_specs(bundle, destination)]
    assert specs and all(spec.tf32 == (wanted == "1") for spec in specs)


@pytest.mark.parametrize("which", [0, 1], ids=["graph", "weights"])
def test_a_link_is_refused(bundle, files, which):
    files[which].rename(bundle.path / "elsewhere")
    files[which].symlink_to(bundle.path / "elsewhere")
    refused(bundle, "is a link")


@pytest.mark.parametrize("which", [0, 1], ids=["graph", "weights"])
def test_a_pipe_is_refused_at_once(bundle, files, which):
    """NVIDIA's parser waits for somebody to write into it."""
    files[which].unlink()
    os.mkfifo(files[which])
    refused(bundle, "is not a regular file")


def test_weights_outside_the_bundle_are_refused(bundle, files):
    def point_out(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
        next(entry for entry in tensor.external_data if entry.key == "location").value = "../../../etc/passwd"

    change(files[0], point_out)
    refused(bundle, "reads weights from '../../../etc/passwd', the manifest allows only")


@pytest.mark.parametrize(("key", "value"), [("offset", "99999999"), ("length", "99999999"), ("offset", "-8")])
def test_weights_beyond_their_file_are_refused(bundle, files, key, value):
    def stretch(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
        kept = [entry for entry in tensor.external_data if entry.key != key]
        pairs = [(entry.key, entry.value) for entry in kept] + [(key, value)]
        del tensor.external_data[:]
        for name, content in pairs:
            tensor.external_data.add(key=name, value=content)

    change(files[0], stretch)
    refused(bundle, r"lies at bytes -?\d+ to \d+ of a file of \d+")


def test_a_function_that_calls_itself_is_refused(bundle, files):
    def recurse(model):
        body = helper.make_node("F", ["a"], ["b"], domain="own")
        model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [body], [helper.make_opsetid("own", 1)]))

    change(files[0], recurse)
    refused(bundle, "function 'F': a graph may not define operators of its own")


def test_what_is_no_graph_is_refused(bundle, files):
    files[0].write_bytes(b"\xff" * 100)
    refused(bundle, "not an ONNX graph")
