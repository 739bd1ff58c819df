"""Every component of foreign families, exported for RTX, builds with NVIDIA's own builder; no GPU needed.

That an engine is built says nothing about its numbers: nothing is run here.  The graphs are those that ONNX Runtime
compared with the library when they were exported.
"""

from __future__ import annotations

import pytest

from edgemm.families.folder import find_foreign
from edgemm.verify.export_foreign import export_foreign
from tests.engines.tiny_engines import build_for_rtx, needs_rtx
from tests.export.nano import needs_opset_24
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


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_builds_for_an_rtx_device_that_is_not_here(tmp_path, name):
    found = find_foreign(write_folder(name, tmp_path / "checkpoint"))
    assert found is not None
    export_foreign(found, tmp_path / "made.bundle", target="rtx", max_context=256)
    assert build_for_rtx(tmp_path / "made.bundle", tmp_path / "engines") == COMPONENTS[name]


def test_layers_with_biases_everywhere_and_heads_of_twelve_build_too(tmp_path):
    """Myelin has no engine for either as it stands: bias_to_residual.py, padded_heads.py."""
    biases = {"attention_bias": True, "mlp_bias": True, "hidden_size": 48, "num_attention_heads": 4}
    found = find_foreign(write_folder("llama", tmp_path / "checkpoint", **biases))
    assert found is not None
    export_foreign(found, tmp_path / "made.bundle", target="rtx", max_context=64)
    assert build_for_rtx(tmp_path / "made.bundle", tmp_path / "engines") == {"transformer"}
