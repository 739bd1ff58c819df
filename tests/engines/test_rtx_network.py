"""What TensorRT for RTX makes of a bundle, through its own Python API: its parser's network against the manifest, and
how far its runtime opens an engine where there is no driver.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.uncompared_graphs import write_bundles
from edgemm.bundle.bundle import Bundle, open_bundle
from edgemm.device.gpu import probe_cuda
from edgemm.engines import child
from edgemm.engines.builder import build_engine
from edgemm.engines.cache import EngineCache
from edgemm.engines.engine_spec import profiles_of
from tests.engines.tiny_engines import LIMITS, needs_rtx, spec_of, write_graph
from tests.export.nano import needs_opset_24

pytestmark = [needs_rtx, needs_opset_24]

ROOT = Path(__file__).resolve().parents[2]
TYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "BOOL": "bool"}  # TensorRT's word -> the manifest's


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    (path,) = write_bundles(ROOT / "checkpoints" / "micro-shapes", ["fp16"], tmp_path_factory.mktemp("rtx"))
    return open_bundle(path)


@pytest.mark.slow
def test_the_parsers_network_has_the_manifests_tensors_and_takes_every_profile(bundle):
    """Names, types, sizes that do not change; and a cache update for each cache, which is then one buffer."""
    import tensorrt_rtx as trt

    for component in bundle.manifest.targets["rtx"]:
        variant, errors = bundle.manifest.variant(component, "rtx"), []
        logger = child._logger(trt, errors)
        builder = trt.Builder(logger)
        network = builder.create_network(child._network_flags(trt, "tensorrt_rtx"))
        child._parse(trt, network, logger, str(bundle.file(variant.graph)))
        sides = [(variant.inputs, network.num_inputs, network.get_input)]
        sides += [(variant.outputs, network.num_outputs, network.get_output)]
        for specs, count, tensor_at in sides:
            found = {tensor.name: tensor for tensor in map(tensor_at, range(count))}
            assert found.keys() == {spec.name for spec in specs}, component
            for spec in specs:
                tensor = found[spec.name]
                assert TYPES[tensor.dtype.name] == np.dtype(spec.dtype).name, spec.name
                fixed = [entry if isinstance(entry, int) else size for entry, size in zip(spec.shape, tensor.shape)]
                assert list(tensor.shape) == fixed and len(tensor.shape) == len(spec.shape), spec.name
        kinds = Counter(str(network.get_layer(index).type) for index in range(network.num_layers))
        caches = sum(spec.name.startswith("present_") for spec in variant.outputs)
        assert kinds["LayerType.KV_CACHE_UPDATE"] == caches, component
        for profile in profiles_of(bundle.manifest, component, "rtx"):  # Failure where one is not taken
            wish = {"workspace_bytes": 1 << 28, "opt_level": 0, "tf32": False, "sm": "89"}
            child._config(trt, builder, wish | {"profiles": [profile.shapes]}, lambda line: None)
        assert not errors


OPENING = """
import sys, tensorrt_rtx as trt
runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
print(runtime.deserialize_cuda_engine(open(sys.argv[1], "rb").read()))
"""


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda engine: engine, "ScopedCudaStream"),
        (lambda engine: engine[: len(engine) // 2], "plan.header.size == blobSize failed"),
        (lambda engine: b"\0" + engine[1:], "header.magicTag == kEXPECTED_MAGIC_TAG failed"),
    ],
    ids=["sound", "cut", "another's"],
)
def test_an_engine_opens_up_to_the_driver(tmp_path, damage, told):
    """Its header is read and judged; then the runtime wants a stream, and says that there is no driver."""
    if not probe_cuda().problem:
        pytest.skip("there is a driver: here engines open")
    graph = write_graph(tmp_path / "product.onnx")
    built = build_engine(spec_of(graph), graph, EngineCache(tmp_path / "engines"), LIMITS)
    (tmp_path / "engine").write_bytes(damage(built.entry.path.read_bytes()))
    command = [sys.executable, "-c", OPENING, str(tmp_path / "engine")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith("None") and "CUDA driver version is insufficient" in done.stdout + done.stderr
    first = next(line for line in (done.stdout + done.stderr).splitlines() if "deserializeCudaEngine" in line)
    assert told in first
