"""The shipped real subset, and a place to build things."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemm.data.format import Dataset, Sample, read_dataset

FIXTURE = Path(__file__).parent.parent / "fixtures" / "emoji64"


@pytest.fixture(scope="session")
def emoji64() -> Dataset:
    return read_dataset(FIXTURE)


@pytest.fixture
def make_sample():
    def make(name: str, **changes) -> Sample:
        style, label = name.split("/")
        values = {
            "id": name,
            "image": f"images/{name}.png",
            "style": style,
            "label": label,
            "tags": (),
            "family": label,
            "group": "animals-nature",
            "subgroup": "animal-mammal",
            "hexcode": label,
            "split": "train",
            "captions": (label,),
        }
        return Sample(**{**values, **changes})

    return make
