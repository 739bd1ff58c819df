"""One engine, built in a process of its own: `python -m edgemm.engines.child`, a wish as JSON on stdin, news on stdout.

NVIDIA's libraries may take a process down with them, and memory is only a process's own when it began there.  Every
line of news is one JSON object: {"phase", "done", "of"} while it works, at last {"result"} or {"failure": {"kind",
"text"}}.
Works with TensorRT 10.3 to 11 and TensorRT for RTX: what a version lacks is looked for, not assumed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgemm.bundle.held_file import HeldFile, same_file
from edgemm.device.child import die_with_parent
from edgemm.errors import BundleError

__all__ = ["build", "main"]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Tell = Callable[[dict[str, Any]], None]


class Failure(Exception):
    """Why there is no engine: "refused", "altered", "attention", "disk", "compiler" or "other"."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def main() -> int:
    wish = json.load(sys.stdin)
    news = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # TensorRT prints where it likes
    die_with_parent()
    if hasattr(signal, "SIGXFSZ"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file limit is then an error like a full disk

    def tell(line: dict[str, Any]) -> None:
        news.write(json.dumps(line) + "\n")
        news.flush()

    try:
        tell({"result": build(wish, tell)})
        return 0
    except Failure as failure:
        tell({"failure": {"kind": failure.kind, "text": str(failure)}})
    except BundleError as error:
        tell({"failure": {"kind": "altered", "text": str(error)}})
    except MemoryError:
        tell({"failure": {"kind": "memory", "text": "out of memory"}})
    except OSError as error:
        kind = "disk" if error.errno in DISK_FULL else "other"
        tell({"failure": {"kind": kind, "text": f"{error.filename or wish['engine']}: {error.strerror}"}})
    return 1


def build(wish: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Writes wish["engine"]; answers what it is made of."""
    import importlib

    trt = importlib.import_module(wish["tensorrt"])
    began = time.monotonic()
    messages: list[str] = []
    logger = _logger(trt, messages)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt, wish["tensorrt"]))
    tell({"phase": "parsing", "done": 0, "of": 1})
    with _unaltered(wish.get("files", {})):
        _parse(trt, network, logger, wish["graph"])
    layers = Counter(str(network.get_layer(i).type).rpartition(".")[2] for i in range(network.num_layers))
    if wish["decomposable"]:
        _let_attention_be_taken_apart(trt, network)
    config = _config(trt, builder, wish, tell)
    tell({"phase": "building", "done": 0, "of": 1})
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        text = messages[-1] if messages else "TensorRT gave no engine and no reason"
        raise Failure("attention" if "decomposable" in text else "memory" if _is_memory(text) else "compiler", text)
    tell({"phase": "writing", "done": 0, "of": 1})
    with open(wish["engine"], "wb") as stream:
        stream.write(memoryview(engine))
        stream.flush()
        os.fsync(stream.fileno())
    return {"layers": dict(layers), "seconds": round(time.monotonic() - began, 2)}


def _logger(trt: Any, errors: list[str]) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                errors.append(" ".join(text.split()))

    return Logger()


def _network_flags(trt: Any, package: str) -> int:
    """Precision is in the graph: strongly typed where that is a choice (TensorRT 10; from 11 on it is the rule)."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None or package == "tensorrt_rtx" else 1 << int(flag)


def _parse(trt: Any, network: Any, logger: Any, graph: str) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(graph):
        return
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = f"{error.node_operator()} {error.node_name()!r}: " if hasattr(error, "node_operator") else ""
        found.append(" ".join(f"{node}{error.desc()}".split()))
    raise Failure("refused", found[0] if found else "the parser gave no reason")


@contextlib.contextmanager
def _unaltered(files: dict[str, str]) -> Iterator[None]:
    """The parser opens paths by itself: what it reads in here is what has these hashes, or there is no engine."""
    before = {path: os.stat(path) for path in files}
    for path, wanted in files.items():
        if HeldFile(Path(path)).sha256() != wanted:
            raise Failure("altered", f"{path}: is not the file that was verified")
    yield
    for path, state in before.items():
        if same_file(state) != same_file(os.stat(path)):
            raise Failure("altered", f"{path}: was changed while it was parsed")


def _let_attention_be_taken_apart(trt: Any, network: Any) -> None:
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if str(layer.type).endswith("ATTENTION_INPUT"):
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _config(trt: Any, builder: Any, wish: dict[str, Any], tell: Tell) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, wish["workspace_bytes"])
    config.builder_optimization_level = wish["opt_level"]
    if not wish["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)  # on in a fresh one
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT for RTX: without it no stream is captured
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if wish["sm"]:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{wish['sm']}"), 0)
    for shapes in wish["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (least, usual, largest) in shapes.items():
            profile.set_shape(name, least, usual, largest)
        if config.add_optimization_profile(profile) < 0:
            raise Failure("other", "TensorRT does not take the shapes of a profile")
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt, tell)
    return config


def _monitor(trt: Any, tell: Tell) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            tell({"phase": phase_name, "done": 0, "of": num_steps})

        def step_complete(self, phase_name: str, step: int) -> bool:
            tell({"phase": phase_name, "done": step + 1, "of": self.steps.get(phase_name, 0)})
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def _is_memory(text: str) -> bool:
    return any(word in text.lower() for word in ("out of memory", "bad_alloc", "memory limit", "insufficient memory"))


if __name__ == "__main__":
    sys.exit(main())
