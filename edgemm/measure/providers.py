"""Which ONNX Runtime providers really work here: each runs a one-node model in a process of its own.

`get_available_providers()` lists what was compiled in, not what runs; a session quietly falls back to the CPU when a
provider's libraries or device are missing.  So fallback is forbidden, and the answer is compared with x @ x.  The same
model in newer and newer opsets tells which bundles this ONNX Runtime reads at all.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass
from typing import Any

from edgemm.measure.child import ask

__all__ = ["Provider", "probe_providers"]

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
    listed = ask("edgemm.measure.providers", timeout_s=timeout_s)
    names = listed.value["providers"] if listed.value else []
    return tuple(_probe(name, timeout_s) for name in names if name not in NOT_A_DEVICE)


def _probe(name: str, timeout_s: float) -> Provider:
    answer = ask("edgemm.measure.providers", [name], timeout_s)
    return Provider(name, answer.problem) if answer.value is None else Provider(name, **answer.value)


def _list() -> dict[str, Any]:
    import onnxruntime

    return {"providers": onnxruntime.get_available_providers()}


def _run(name: str) -> dict[str, Any]:
    import numpy as np
    import onnxruntime

    from edgemm.measure.one_node_model import SIDE, one_node_model

    onnxruntime.set_default_logger_severity(4)  # what goes wrong is in the exception
    options = onnxruntime.SessionOptions()
    if name != "CPUExecutionProvider":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(one_node_model(), options, providers=[name])
        if session.get_providers()[0] != name:
            return {
                "problem": f"asked for {name}, got {session.get_providers()[0]}: its libraries or device are missing"
            }
        x = np.arange(SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE) / SIDE
        y = np.asarray(session.run(None, {"x": x})[0])
    except Exception as error:  # any of the runtime's own errors is an answer: it does not work here
        return {"problem": (str(error).strip().splitlines() or [type(error).__name__])[0]}
    if not np.allclose(y, x @ x, rtol=1e-2):
        return {"problem": "gives a wrong product"}
    return {"problem": "", "newest_opset": _newest_opset(name)}


def _newest_opset(name: str) -> int:
    import onnxruntime

    from edgemm.measure.one_node_model import OLDEST_OPSET, one_node_model

    opset = OLDEST_OPSET
    with contextlib.suppress(Exception):  # what the first one too new raises
        while opset < UNHEARD_OF_OPSET:
            onnxruntime.InferenceSession(one_node_model(opset + 1), providers=[name])
            opset += 1
    return opset


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1]) if len(sys.argv) > 1 else _list()))
