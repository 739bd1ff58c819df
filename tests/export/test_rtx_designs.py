"""Designs that edgemm trains, exported for RTX: every component builds with NVIDIA's own builder; no GPU needed.

`mot` is test_nvidia_precisions.py, and whole `make build-rtx`; codes and the connector have a test beside their others.
"""

from __future__ import annotations

import pytest

from edgemm.model import checkpoint
from edgemm.model.designs import variant
from edgemm.verify.export_native import export_bundle
from tests.engines.tiny_engines import build_for_rtx, needs_rtx
from tests.export.nano import nano, needs_opset_24
from tests.model.tiny import random_micro

DESIGNS = {
    "dense": {"experts": "dense"},
    "autoencoder": {"image_tokens": "ae"},
    "dual encoder": {"vision": "dual"},
    "taught eye": {"vision": "conv"},
}


@pytest.mark.slow
@needs_rtx
@needs_opset_24
@pytest.mark.parametrize("name", DESIGNS)
def test_every_component_builds_for_an_rtx_device_that_is_not_here(tmp_path, name):
    checkpoint.save(random_micro(variant(nano(), **DESIGNS[name])), tmp_path / "made")
    export_bundle(tmp_path / "made", tmp_path / "made.bundle", target="rtx")
    components = {"image_encoder", "transformer", "conditioner", "denoiser", "image_decoder"}
    assert build_for_rtx(tmp_path / "made.bundle", tmp_path / "engines") == components
