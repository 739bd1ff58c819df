"""What the comparison with peers rests on: the arithmetic they share, and a table without holes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"


@pytest.fixture(scope="module", autouse=True)
def on_the_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield
    for name in ("job", "compare", "environments"):
        sys.modules.pop(name, None)


def test_likelihood_is_that_of_a_reference_library():
    torch = pytest.importorskip("torch")
    from job import negative_log_likelihood

    generator = np.random.default_rng(0)
    logits, ids = generator.normal(0, 5, (20, 50)).astype(np.float32), generator.integers(0, 50, 20).tolist()
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits[:-1]), torch.tensor(ids[1:]))
    assert negative_log_likelihood(logits, ids) == pytest.approx(float(expected), rel=1e-5)
    assert negative_log_likelihood(np.zeros((20, 50)), ids) == pytest.approx(np.log(50))


def test_every_entry_has_a_script_and_an_environment():
    from compare import ENTRIES, PEERS

    for entry in ENTRIES.values():
        assert (FOLDER / entry.script).is_file() and (entry.environment is None or entry.environment in PEERS)
    assert {entry.environment for entry in ENTRIES.values()} == {None, *PEERS}
