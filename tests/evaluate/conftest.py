"""The shipped real subset, a place for its judge, and a random micro checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemm.data.format import Dataset, read_dataset
from tests.shared import run_folder

FIXTURE = Path(__file__).parent.parent / "fixtures" / "emoji64"
SEED = 7


@pytest.fixture(scope="session")
def emoji64() -> Dataset:
    return read_dataset(FIXTURE)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Where the judge of the real subset is trained once for all tests."""
    return run_folder(tmp_path_factory, "judges")


@pytest.fixture(scope="session")
def micro_checkpoint(tmp_path_factory) -> Path:
    """Random in every weight: a fresh denoiser's last layer is zero, and it would draw grey."""
    import torch

    from edgemm.model.checkpoint import build, save

    model = build("micro", seed=SEED)
    random = torch.Generator().manual_seed(SEED)
    for weight in [*model.denoiser.parameters(), *model.conditioner.parameters()]:
        weight.data += 0.05 * torch.randn(weight.shape, generator=random)
    folder = tmp_path_factory.mktemp("checkpoints") / "micro"
    save(model, folder)
    return folder
