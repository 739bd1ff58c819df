"""The parity half of `edgemm verify`: run the bundle's loops here and compare with what torch answered at export.

Needs no torch: the answers are in the bundle.  Hashes and graph rules come first, in cli/verify.py.
"""

from __future__ import annotations

import dataclasses

from edgemm.bundle.bundle import Bundle
from edgemm.errors import BundleError
from edgemm.runtimes.backend.engine import plan_threads
from edgemm.runtimes.engines import Choice, select
from edgemm.verify.parity import require
from edgemm.verify.recorded import read_recorded
from edgemm.verify.reference_backend import REFERENCE

__all__ = ["check_bundle"]


def check_bundle(bundle: Bundle) -> list[str]:
    """One line a comparison. Raises CheckFailedError when this machine's answers differ from the recorded ones."""
    from edgemm.runtimes.engines import Engines
    from edgemm.runtimes.model import Model
    from edgemm.verify.loops import compare_loops, precision_of

    recorded = read_recorded(bundle)
    choice = _choose(bundle)
    recorded = dataclasses.replace(recorded, precision=precision_of(bundle.manifest, choice.target))
    with Model(Engines(bundle, choice, plan_threads())) as model:
        comparisons = list(compare_loops(model, recorded))
    require(comparisons, f"{bundle.path}: not what was recorded at export")
    return [comparison.line() for comparison in comparisons]


def _choose(bundle: Bundle) -> Choice:
    """What runs the bundle here; else ONNX Runtime's CPU, which reads every dialect, for one of its targets."""
    try:
        return select("auto", bundle.manifest.targets)
    except BundleError:
        target = next(iter(bundle.manifest.targets))
        return Choice("cpu", REFERENCE, target, "CPUExecutionProvider", "no target of the bundle runs here")
