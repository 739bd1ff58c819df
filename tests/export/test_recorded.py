"""parity.json and recorded.safetensors: written once, read on any machine, and refused when they make no sense."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemm.bundle.bundle import Bundle
from edgemm.bundle.picture import seeded_picture
from edgemm.errors import BundleError
from edgemm.verify.parity import (
    PARITY_FILE,
    PIXELS_FILE,
    DrawCase,
    Recorded,
    TextCase,
    compare_pictures,
    parity_document,
    pixels_file,
    read_recorded,
)

PIXELS = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 2, 2)
RECORDED = Recorded(
    "int8", (TextCase("Why?", None, (1, 2)), TextCase("What?", 3, (5,))), (DrawCase("heart ♥", 1, 8, 2.0),), (PIXELS,)
)
LOGITS = np.linspace(-3, 3, 20, dtype=np.float32).reshape(4, 5)


@pytest.fixture
def write(tmp_path):
    def run(document=None, pixels=None) -> Bundle:
        text = parity_document(RECORDED, [compare_pictures("it", "int8", PIXELS, PIXELS)])
        (tmp_path / PARITY_FILE).write_text(text if document is None else document)
        if pixels is None:
            (tmp_path / PIXELS_FILE).write_bytes(pixels_file(dataclasses.replace(RECORDED, logits={"cpu": LOGITS})))
        else:
            save_file(pixels, tmp_path / PIXELS_FILE)
        return Bundle(tmp_path, None)  # type: ignore[arg-type]

    return run


def test_what_was_recorded_is_read_back(write):
    found = read_recorded(write())
    assert dataclasses.replace(found, pixels=(), logits={}) == dataclasses.replace(RECORDED, pixels=())
    assert np.array_equal(found.pixels[0], PIXELS) and np.array_equal(found.logits["cpu"], LOGITS)


def changed(**changes):
    return json.dumps(json.loads(parity_document(RECORDED, [])) | changes)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "parity.json"),
        (changed(precision="fp3"), "precision is 'fp3', expected one of: fp32, fp16, int8, fp8, int4"),
        (changed(precision=None), "precision is None"),
        (changed(precision={}), "precision is {}, expected one of"),
        (changed(text_cases=[{"prompt": "x", "picture_seed": None, "tokens": []}]), "text_cases: one without tokens"),
        (changed(draw_cases=[{"prompt": "x", "seed": -1, "steps": 8, "guidance": 1}]), "seed is -1, expected 0 to 9.2"),
        (changed(text_cases=None), "text_cases: null, expected a list"),
        (changed(text_cases=[{"prompt": "x", "tokens": []}]), "picture_seed: missing"),
        (
            changed(draw_cases=[{"prompt": "x", "seed": "1", "steps": 8, "guidance": 1.0}]),
            "seed: '1', expected a whole number",
        ),
    ],
)
def test_a_malformed_record_names_its_field(write, document, message):
    with pytest.raises(BundleError, match=message):
        read_recorded(write(document))


def test_missing_pixels_are_named(write):
    with pytest.raises(BundleError, match=r"recorded\.safetensors: 'draw\.0' is missing"):
        read_recorded(write(pixels={"other": PIXELS}))


def test_logits_of_another_form_are_named(write):
    with pytest.raises(BundleError, match=r"recorded\.safetensors: logits\.cpu has 1 axes, expected 2"):
        read_recorded(write(pixels={"draw.0": PIXELS, "logits.cpu": LOGITS[0]}))


def test_a_bundle_without_a_record_says_so(tmp_path: Path):
    with pytest.raises(BundleError, match=r"parity\.json: missing"):
        read_recorded(Bundle(tmp_path, None))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 3, 4, 18, 128])
def test_a_seeded_picture_has_any_size_and_never_changes(size):
    picture = seeded_picture(1, size)
    assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
    assert picture[0, 0].tolist() == [255, 228, 34]
    assert (seeded_picture(2, size) != picture).any()
