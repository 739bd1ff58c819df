"""What TensorRT for RTX builds in seconds: a graph of one node, or one component of a tiny bundle."""

from __future__ import annotations

import dataclasses
import hashlib
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemm.bundle.bundle import Bundle, open_bundle
from edgemm.engines.builder import Limits, build_engine
from edgemm.engines.bundle_engines import build_bundle, choose_destinations
from edgemm.engines.cache import EngineCache
from edgemm.engines.engine_spec import EngineSpec, Place, Profile, profiles_of

__all__ = ["LIMITS", "build_component", "build_for_rtx", "needs_rtx", "spec_of", "write_graph"]

LIMITS = Limits(memory_bytes=4 << 30, timeout_s=600)
WIDTH = 64


def rtx_version() -> str:
    try:
        return metadata.version("tensorrt-rtx")
    except metadata.PackageNotFoundError:
        return ""


needs_rtx = pytest.mark.skipif(not rtx_version(), reason="pip install tensorrt-rtx: the real builder, needs no GPU")


def write_graph(path: Path, op_type: str = "MatMul") -> Path:
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", WIDTH]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "w")
    inputs = ["x", "w"] if op_type == "MatMul" else ["x"]
    nodes = [helper.make_node(op_type, inputs, ["y"], name="product")]
    graph = helper.make_graph(nodes, "tiny", sides[:1], sides[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def spec_of(graph: Path, **changes) -> EngineSpec:
    shapes = {"x": ((1, WIDTH), (2, WIDTH), (8, WIDTH))}
    spec = EngineSpec(
        component="product",
        graph_sha256=hashlib.sha256(graph.read_bytes()).hexdigest(),
        data_sha256="",
        tensorrt="tensorrt_rtx",
        version=rtx_version(),
        place=Place("8.6", here=False),
        profiles=(Profile("run", shapes),),
        opt_level=3,
        workspace_bytes=256 << 20,
    )
    return dataclasses.replace(spec, **changes)


def build_component(bundle: Bundle, component: str, compute_capability: str, folder: Path) -> dict[str, int]:
    """Through NVIDIA's builder, for an RTX device that is not here: kind of layer -> how many the parser made."""
    variant = bundle.manifest.variant(component, "rtx")
    spec = EngineSpec(
        component=component,
        graph_sha256=bundle.manifest.files[variant.graph].sha256,
        data_sha256=bundle.manifest.files[variant.data].sha256 if variant.data else "",
        tensorrt="tensorrt_rtx",
        version=rtx_version(),
        place=Place(compute_capability, here=False),
        profiles=profiles_of(bundle.manifest, component, "rtx"),
        opt_level=0,
        workspace_bytes=256 << 20,
    )
    return build_engine(spec, bundle.file(variant.graph), EngineCache(folder), LIMITS).entry.record["layers"]


def build_for_rtx(folder: Path, cache: Path, sm: str = "89") -> set[str]:
    """The components of a bundle, each an engine now, for an RTX device that is not here."""
    (destination,) = choose_destinations(("rtx",), "rtx", sm, None)
    built = list(build_bundle(open_bundle(folder), destination, EngineCache(cache), LIMITS))
    assert all(engine.fresh and engine.entry.path.stat().st_size > 1000 for _, engine in built)
    return {spec.component for spec, _ in built}
