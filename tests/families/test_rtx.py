"""Every component of every foreign family, exported for RTX: NVIDIA's own builder builds it, with no GPU.  Rounded ones
keep the rules of JetPack 6, too (float16's: test_nvidia_graphs.py).

That an engine is built says nothing about its numbers: nothing is run here.  Graphs in float16 are those that ONNX
Runtime compared with the library when they were exported; int8's and int4's are compared for some (test_precisions.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.uncompared_graphs import write_foreign_bundles
from edgemm.bundle.bundle import open_bundle
from edgemm.cli.verify import check_rules
from edgemm.verify.export_foreign import export_foreign
from tests.engines.tiny_engines import build_for_rtx, needs_rtx
from tests.export.nano import needs_opset_24
from tests.families.golden import Cases, found_at
from tests.families.tiny.folders import write_folder

pytestmark = [pytest.mark.slow, needs_rtx, needs_opset_24]

COMPONENTS = {
    "llama": {"transformer"},
    "llava": {"image_encoder", "transformer"},
    "janus": {
        "image_encoder", "transformer", "text_head", "image_head", "image_embedder", "vq_decoder",
    },
    "chameleon": {"vq_encoder", "transformer"},
    "emu3": {"vq_encoder", "transformer", "vq_decoder"},
    "fuyu": {"image_encoder", "transformer"},
    "qwen3_vl": {"image_encoder", "transformer"},
}  # fmt: skip
DRAWS = {"image_encoder", "transformer", "conditioner", "denoiser", "image_decoder"}
RECORDED = {  # in float16 they are built by their own tests
    "janusflow": DRAWS,
    "bagel": DRAWS | {"latent_encoder"},
    "mobileo": DRAWS,
    "showo2": DRAWS,
    "cosmos3-edge": DRAWS,
    "cosmos3-omni": DRAWS,
}


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_builds_for_an_rtx_device_that_is_not_here(tmp_path, name):
    folder, place = write_folder(name, tmp_path / "checkpoint"), tmp_path / "made.bundle"
    export_foreign(found_at(folder), place, target="rtx", max_context=256)
    assert build_for_rtx(place, tmp_path / "engines") == COMPONENTS[name]


@pytest.mark.parametrize("name", [*COMPONENTS, *RECORDED])
def test_every_component_builds_with_rounded_weights(tmp_path, name):
    folder, targets = _folder(name, tmp_path), "rtx,jetson-orin-jp6"
    for place in write_foreign_bundles(folder, ("int8", "int4"), tmp_path, target=targets):
        check_rules(open_bundle(place))
        assert build_for_rtx(place, place.with_suffix(".engines")) == {**COMPONENTS, **RECORDED}[name]


def _folder(name: str, path: Path) -> Path:
    if name in RECORDED:
        return Cases(name).folder / "checkpoint"
    return write_folder(name, path / "checkpoint")


def test_layers_with_biases_everywhere_and_heads_of_twelve_build_too(tmp_path):
    """Myelin has no engine for either as it stands: bias_to_residual.py, padded_heads.py."""
    biases = {"attention_bias": True, "mlp_bias": True, "hidden_size": 48, "num_attention_heads": 4}
    folder = write_folder("llama", tmp_path / "checkpoint", **biases)
    export_foreign(found_at(folder), tmp_path / "made.bundle", target="rtx", max_context=64)
    assert build_for_rtx(tmp_path / "made.bundle", tmp_path / "engines") == {"transformer"}
