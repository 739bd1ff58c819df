"""The real packages, once in a while: counts, twins, leaks and the second rasteriser.  Needs npm or a filled cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from edgemm.data.emoji import draw_emoji
from edgemm.data.icons import on_white, rasterise, read_icons
from edgemm.data.labels import read_labels
from edgemm.data.sources import LABELS, PACKAGES, STYLES, default_cache, fetch
from edgemm.errors import MissingError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache() -> Path:
    folder = Path(os.environ.get("EDGEMM_CACHE", default_cache()))
    try:
        for package in PACKAGES.values():
            fetch(package, folder)
    except MissingError as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="module")
def drawn(cache):
    return draw_emoji(64, STYLES, cache)


def test_styles_hold_what_we_counted_by_hand(cache):
    labels = read_labels(fetch(PACKAGES[LABELS], cache))
    assert len(labels) == 1914
    counts = {
        style: len(read_icons(fetch(PACKAGES[style], cache), labels, {}))
        for style in ("fluent", "noto", "twemoji", "openmoji")
    }
    assert counts == {"fluent": 1594, "noto": 1652, "twemoji": 1914, "openmoji": 1914}
    assert len({label.family for label in labels.values()}) == 1570


def test_no_family_leaks_and_no_twins_remain(drawn):
    families, pixels = defaultdict(set), Counter()
    for sample, drawing in drawn:
        families[sample.split].add(sample.family)
        pixels[sample.style, hashlib.sha256(drawing.picture.tobytes()).digest()] += 1
    assert max(pixels.values()) == 1
    assert not families["train"] & families["held-out-family"]
    assert families["held-out-style"] <= families["train"]
    assert families["held-out-pair"] <= families["train"]
    assert len(drawn) > 6200


def test_training_pictures_are_nowhere_in_the_tests(drawn):
    trained = {drawing.picture.tobytes() for sample, drawing in drawn if sample.split == "train"}
    assert not [
        sample.id for sample, drawing in drawn if sample.split != "train" and drawing.picture.tobytes() in trained
    ]


def test_second_rasteriser_agrees_on_real_drawings(cache):
    pytest.importorskip("cairosvg")
    labels = read_labels(fetch(PACKAGES[LABELS], cache))
    for style in ("fluent", "noto"):
        svgs = list(read_icons(fetch(PACKAGES[style], cache), labels, {}).values())[::40]
        differences = [
            np.abs(
                np.subtract(
                    *(
                        np.asarray(on_white(rasterise(svg, 64, rasteriser=name)), float)
                        for name in ("resvg", "cairosvg")
                    )
                )
            ).mean()
            for svg in svgs
        ]
        assert np.mean(differences) < 1.0  # of 255; edges are antialiased differently


def test_pins_are_what_the_registry_says():
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    for package in PACKAGES.values():
        asked = [npm, "view", f"{package.name}@{package.version}", "dist.integrity", "--json"]
        shown = subprocess.run(asked, capture_output=True, text=True, timeout=60)
        if shown.returncode:
            pytest.skip("the npm registry does not answer")
        assert json.loads(shown.stdout) == f"sha512-{package.sha512}"
