"""Which ONNX Runtime providers really work here: each runs a one-node model in a process of its own.

`get_available_providers()` lists what was compiled in, not what runs; a session quietly falls back to the CPU when a
provider's libraries or device are missing.  So fallback is forbidden, and the answer is compared with x @ x.  The same
model in newer and newer opsets tells which bundles this ONNX Runtime reads at all.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemm.device.child import ask
from edgemm.device.fatbin import CUDA_PROVIDER

__all__ = [
    "Provider",
    "probe_providers",
    "OLDEST_OPSET",
    "SIDE",
    "one_integer_node_model",
    "one_node_model",
    "what_it_lacks",
]

UNHEARD_OF_OPSET = 99
NOT_A_DEVICE = ("AzureExecutionProvider",)  # forwards to a web service


@dataclass(frozen=True)
class Provider:
    name: str
    problem: str  # "" when it ran the model
    newest_opset: int | None = None  # that its ONNX Runtime reads

    @property
    def usable(self) -> bool:
        return not self.problem


def probe_providers(timeout_s: float = 60.0) -> tuple[Provider, ...]:
    """() when ONNX Runtime is not installed or cannot be imported."""
    listed = ask("edgemm.device.providers", timeout_s=timeout_s)
    names = listed.value["providers"] if listed.value else []
    return tuple(_probe(name, timeout_s) for name in names if name not in NOT_A_DEVICE)


def _probe(name: str, timeout_s: float) -> Provider:
    answer = ask("edgemm.device.providers", [name], timeout_s)
    return Provider(name, answer.problem) if answer.value is None else Provider(name, **answer.value)


def _list() -> dict[str, Any]:
    import onnxruntime

    return {"providers": onnxruntime.get_available_providers()}


def _run(name: str) -> dict[str, Any]:
    import numpy as np
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # what goes wrong is in the exception
    if name == "CUDAExecutionProvider" and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()  # CUDA's own libraries, where they came as wheels
    options = onnxruntime.SessionOptions()
    if name != "CPUExecutionProvider":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(one_node_model(), options, providers=[name])
        if session.get_providers()[0] != name:
            got = f"asked for {name}, got {session.get_providers()[0]}: its libraries or device are missing"
            return {"problem": what_it_lacks(name) or got}
        x = np.arange(SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE) / SIDE
        y = np.asarray(session.run(None, {"x": x})[0])
    except Exception as error:  # any of the runtime's own errors is an answer: it does not work here
        return {"problem": what_it_lacks(name) or (str(error).strip().splitlines() or [type(error).__name__])[0]}
    if not np.allclose(y, x @ x, rtol=1e-2):
        return {"problem": "gives a wrong product"}
    return {"problem": "", "newest_opset": _newest_opset(name)}


def what_it_lacks(name: str) -> str:
    """The library that CUDA's provider does not find, in the loader's words, which ONNX Runtime keeps for its log; ""
    where all are there.  They are loaded by that."""
    import onnxruntime

    library = Path(onnxruntime.__file__).parent / CUDA_PROVIDER
    if name != "CUDAExecutionProvider" or not library.is_file():
        return ""
    try:
        ctypes.CDLL(str(library.with_name("libonnxruntime_providers_shared.so")), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return ""


def _newest_opset(name: str) -> int:
    import onnxruntime

    opset = OLDEST_OPSET
    with contextlib.suppress(Exception):  # what the first one too new raises
        while opset < UNHEARD_OF_OPSET:
            onnxruntime.InferenceSession(one_node_model(opset + 1), providers=[name])
            opset += 1
    return opset


# The smallest ONNX model that proves a backend works: y = x @ x, written as bytes by hand.
#
# The doctor runs where the onnx package is not installed, so the few protobuf fields that are needed are written here.
# Field numbers are those of onnx.proto.

SIDE = 4
IR_VERSION, OLDEST_OPSET = 8, 13  # old enough for every runtime that edgemm meets
FLOAT, UINT8, INT8, INT32 = 1, 2, 3, 6  # TensorProto.DataType


def one_node_model(opset: int = OLDEST_OPSET, side: int = SIDE) -> bytes:
    """ModelProto with input x and output y, both float32 (side, side)."""
    return _model("MatMul", {"x": FLOAT}, ("x", "x"), FLOAT, opset, side)


def one_integer_node_model(side: int = SIDE) -> bytes:
    """y = x @ w, uint8 times int8 added up in int32, all (side, side)."""
    return _model("MatMulInteger", {"x": UINT8, "w": INT8}, ("x", "w"), INT32, OLDEST_OPSET, side)


def _model(operator: str, inputs: dict[str, int], taken: tuple[str, ...], output: int, opset: int, side: int) -> bytes:
    node = b"".join(_text(1, name) for name in taken) + _text(2, "y") + _text(4, operator)
    given = b"".join(_bytes(11, _value(name, kind, side)) for name, kind in inputs.items())
    graph = _bytes(1, node) + _text(2, "one_node") + given + _bytes(12, _value("y", output, side))
    operators = _text(1, "") + _number(2, opset)
    return _number(1, IR_VERSION) + _bytes(7, graph) + _bytes(8, operators)


def _value(name: str, kind: int, side: int) -> bytes:
    """ValueInfoProto: a name, and a tensor type with its element type and its shape."""
    length = _bytes(1, _number(1, side))
    tensor = _number(1, kind) + _bytes(2, length + length)
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1]) if len(sys.argv) > 1 else _list()))
