"""Is the bundle the model? Component by component and loop by loop, against torch.

Components get the same numbers in; loops get the same prompts and the same noise.  Float graphs must agree closely,
quantized ones have floors that catch a broken graph, not a coarse one: how much quality a precision costs is measured by
`edgemm eval`, not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemm.errors import CheckFailedError

if TYPE_CHECKING:
    from edgemm.export.component_graphs import ComponentGraph

__all__ = ["Comparison", "compare_component", "compare_pictures", "compare_tokens", "require"]

COMPONENT_TOLERANCE = 1e-4  # of the largest value, float graphs: sums of thousands of terms in another order
PIXEL_TOLERANCE = 1e-3  # after all steps, float graphs
SIGNAL_FLOOR_DB = {"int8": 20.0, "int4": 10.0}  # of a component's outputs on noise-like inputs
PSNR_FLOOR_DB = {"int8": 20.0, "int4": 20.0}  # of a drawn picture
AGREEMENT_FLOOR = {"int8": 0.5, "int4": 0.1}  # of greedy tokens up to the first that differs


@dataclass(frozen=True)
class Comparison:
    """One thing that was compared, and the verdict."""

    what: str
    measure: str  # "max_difference", "signal_db", "psnr_db" or "agreement"
    value: float
    limit: float
    passed: bool

    def line(self) -> str:
        sign = "✓" if self.passed else "x"
        words = {
            "max_difference": ("max diff", "atol"),
            "signal_db": ("signal-to-noise dB", "at least"),
            "psnr_db": ("PSNR dB", "at least"),
            "agreement": ("tokens equal", "at least"),
        }[self.measure]
        verdict = "values close" if self.passed else "values not close enough"
        return f"-[{sign}] {self.what}: {verdict}, {words[0]}: {self.value:.4g} ({words[1]}: {self.limit:.4g})"

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        document["value"] = None if not np.isfinite(self.value) else self.value
        return document


def compare_component(name: str, precision: str, path: Path, graph: ComponentGraph) -> Comparison:
    """The graph at `path` in ONNX Runtime against the module, on the module's example inputs."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = session.run(list(graph.outputs), {key: value.numpy() for key, value in graph.inputs.items()})
    with torch.no_grad():
        expected = graph.module(*graph.inputs.values())
    wanted = [t.float().numpy() for t in ([expected] if isinstance(expected, torch.Tensor) else expected)]
    pairs = [(np.asarray(a, np.float32), b) for a, b in zip(found, wanted, strict=True)]
    if any(a.shape != b.shape or not np.isfinite(a).all() for a, b in pairs):
        return Comparison(f"{name} ({precision})", "max_difference", float("inf"), COMPONENT_TOLERANCE, False)
    if precision == "fp32":
        worst = max(float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) for a, b in pairs)
        return Comparison(
            f"{name} (fp32)", "max_difference", worst, COMPONENT_TOLERANCE, bool(worst <= COMPONENT_TOLERANCE)
        )
    worst = min(_signal_db(a, b) for a, b in pairs)
    limit = SIGNAL_FLOOR_DB[precision]
    return Comparison(f"{name} ({precision})", "signal_db", worst, limit, bool(worst >= limit))


def _signal_db(found: np.ndarray, wanted: np.ndarray) -> float:
    noise = float(np.square(found - wanted).mean())
    return float("inf") if noise == 0 else float(10 * np.log10(float(np.square(wanted).mean()) / noise))


def compare_tokens(what: str, precision: str, found: Sequence[int], wanted: Sequence[int]) -> Comparison:
    """Greedy tokens: how long both say the same, over what torch said."""
    if precision == "fp32":
        equal = float(list(found) == list(wanted))
        return Comparison(what, "agreement", equal, 1.0, equal == 1.0)
    same = 0
    for a, b in zip(found, wanted, strict=False):
        if a != b:
            break
        same += 1
    share = same / len(wanted) if wanted else 1.0
    return Comparison(what, "agreement", share, AGREEMENT_FLOOR[precision], True)


def compare_pictures(what: str, precision: str, found: np.ndarray, wanted: np.ndarray) -> Comparison:
    """Pixels (3, H, W) in [0, 1] drawn from the same noise."""
    if precision == "fp32":
        worst = float(np.abs(found - wanted).max())
        return Comparison(what, "max_difference", worst, PIXEL_TOLERANCE, bool(worst <= PIXEL_TOLERANCE))
    error = float(np.square(found - wanted).mean())
    psnr = float("inf") if error == 0 else float(-10 * np.log10(error))
    return Comparison(what, "psnr_db", psnr, PSNR_FLOOR_DB[precision], bool(psnr >= PSNR_FLOOR_DB[precision]))


def require(comparisons: Sequence[Comparison]) -> None:
    """Raises CheckFailedError naming the first that failed."""
    failed = [c for c in comparisons if not c.passed]
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise CheckFailedError(
            f"the bundle differs from the model: {failed[0].line()[5:]}{more}; no bundle was written"
        )
