"""On x86 without VNNI products of int8 add in 16 bits and overflow: sums are widened there, and the numbers are right.

The oracle is integer arithmetic.  The CPU without VNNI is Haswell, emulated, where qemu's user mode is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgemm
from edgemm.bundle.components import Variant
from edgemm.errors import BundleError
from edgemm.runtimes.backend import ort_backend
from edgemm.runtimes.backend.engine import ThreadPlan

K, N = 64, 32
LARGE = 255 * 127 * K  # every product as large as it gets
ALONE = ThreadPlan(1, False, "a test")


def write_product(path: Path) -> Path:
    """y = x w in integers: x float32 (n, K) rounded to uint8, w int8 (K, N) all 127."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["codes", "w", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["y"], to=TensorProto.FLOAT),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", K])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", N])
    w = numpy_helper.from_array(np.full((K, N), 127, np.int8), "w")
    graph = helper.make_graph(nodes, "product", [x], [y], [w])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def largest_sum(path: Path) -> float:
    """Printed by the emulated process, too."""
    session = ort.InferenceSession(path, ort_backend.session_options(ALONE), providers=["CPUExecutionProvider"])
    return float(session.run(None, {"x": np.ones((4, K), np.float32)})[0].max())


def test_large_products_of_int8_are_exact_on_this_cpu(tmp_path):
    assert largest_sum(write_product(tmp_path / "product.onnx")) == LARGE


@pytest.mark.parametrize(
    ("flags", "saturates"),
    [
        ("fpu sse2 avx2 fma", True),  # Haswell, Zen 1 to 3
        ("fpu avx2 avx512f avx512bw", True),  # Skylake-X
        ("fpu avx2 avx_vnni", False),
        ("fpu avx2 avx512f avx512_vnni", False),
        ("", False),  # nobody tells
    ],
)
def test_sums_are_widened_where_a_cpu_has_no_vnni(monkeypatch, flags, saturates):
    monkeypatch.setattr(ort_backend.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(ort_backend, "read_fact", lambda path: f"flags\t\t: {flags}\n" if flags else "")
    ort_backend.sums_saturate.cache_clear()
    try:
        assert ort_backend.sums_saturate() is saturates
        assert (
            ort_backend.session_options(ALONE).get_session_config_entry(ort_backend.WIDE_SUMS) == "1" or not saturates
        )
    except RuntimeError:  # ONNX Runtime raises for an entry that was never set
        assert not saturates
    finally:
        ort_backend.sums_saturate.cache_clear()


def test_arm_has_no_such_sums(monkeypatch):
    monkeypatch.setattr(ort_backend.platform, "machine", lambda: "aarch64")
    ort_backend.sums_saturate.cache_clear()
    assert not ort_backend.sums_saturate()
    ort_backend.sums_saturate.cache_clear()


def test_a_graph_that_cannot_be_widened_says_to_export_again(monkeypatch, tmp_path):
    """Products that share one zero-point, as bundles of before have them."""
    nodes, weights = [helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"])], []
    for name in ("a", "b"):
        nodes += [
            helper.make_node("MatMulInteger", ["codes", f"w_{name}", "zero", "none"], [f"sums_{name}"]),
            helper.make_node("Cast", [f"sums_{name}"], [f"float_{name}"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["scale", f"s_{name}"], [f"scales_{name}"]),
            helper.make_node("Mul", [f"float_{name}", f"scales_{name}"], [f"y_{name}"]),
        ]
        weights.append(numpy_helper.from_array(np.full((K, N), 127, np.int8), f"w_{name}"))
        weights.append(numpy_helper.from_array(np.ones(N, np.float32), f"s_{name}"))
    weights.append(numpy_helper.from_array(np.zeros((), np.int8), "none"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", K])
    outputs = [helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, ["n", N]) for name in ("a", "b")]
    graph = helper.make_graph(nodes, "products", [x], outputs, weights)
    path = tmp_path / "products.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    monkeypatch.setattr(ort_backend, "sums_saturate", lambda: True)
    files = ort_backend.GraphFiles("denoiser", path, None, Variant(path.name, None, "opset21", "int8", (), ()))
    with pytest.raises(BundleError, match="no VNNI; export it again"):
        ort_backend.open_session(files, "CPUExecutionProvider", ALONE)


@pytest.mark.slow
def test_an_emulated_haswell_multiplies_right(tmp_path):
    qemu = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if qemu is None:
        pytest.skip("qemu's user mode is not installed: apt-get install qemu-user-static")
    product = write_product(tmp_path / "product.onnx")
    # Modules of the CPU that is emulated: it reads this machine's /proc/cpuinfo, so the answer is given.
    code = (
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
        "from pathlib import Path\n"
        "from edgemm.runtimes.backend import ort_backend\n"
        "from tests.runtimes.test_saturation import largest_sum\n"
        f"for wide in (False, True):\n"
        f"    ort_backend.sums_saturate = lambda: wide\n"
        f"    print(largest_sum(Path({os.fspath(product)!r})))\n"
    )
    root = Path(edgemm.__file__).parent.parent
    command = [qemu, "-cpu", "Haswell", os.path.realpath(sys.executable), "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=500)
    narrow, wide = map(float, shown.stdout.split()[-2:])
    assert (narrow < LARGE, wide) == (True, LARGE), shown.stderr[-500:]
