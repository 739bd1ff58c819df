"""Foreign folders in int8 and int4 for every target: each part is rounded, or one line tells why it is not."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers")

from edgemm import progress
from edgemm.export import variants
from edgemm.verify.export_foreign import export_foreign
from tests.export.nano import needs_opset_24
from tests.families.golden import GOLDEN, found_at

pytestmark = [pytest.mark.slow, needs_opset_24]
TARGETS = ("cpu", "cuda", "rtx", "jetson-orin-jp6")
JANUSFLOW = GOLDEN / "janusflow"


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_every_part_of_a_folder_is_rounded_for_every_target(tmp_path, precision, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(variants, "TOLD_BYTES", 1)  # the folder is tiny
    monkeypatch.setattr(progress, "line", lines.append)
    found = found_at(JANUSFLOW / "checkpoint", vae=JANUSFLOW / "vae")
    written = export_foreign(found, tmp_path / "made.bundle", target=",".join(TARGETS), precision=precision)
    for target in TARGETS:
        chosen = {name: written.variant(name, target).precision for name in written.targets[target]}
        assert chosen["image_encoder"] == chosen["image_decoder"] == "int8", target
        assert chosen["transformer"] == chosen["denoiser"] == precision, target  # they share their weights
        (told,) = (line for line in lines if line.startswith(f"{target}, {precision}: in float stay"))
        assert "image_decoder" in told and "filters of convolutions" in told
    document = json.loads((tmp_path / "made.bundle" / "parity.json").read_text())
    measured = {entry["measure"] for entry in document["comparisons"]}
    assert {"psnr_db", "ssim", "choices"} <= measured and all(entry["passed"] for entry in document["comparisons"])


def test_a_model_of_four_components_on_one_files_weights_is_rounded_for_nvidia(tmp_path):
    """Show-o2: what its transformer, denoiser, conditioner and image encoder share."""
    here, targets = GOLDEN / "showo2", ("rtx", "jetson-orin-jp6")
    found = found_at(here / "checkpoint", **{name: here / name for name in ("llm", "clip", "vae")})
    written = export_foreign(
        found, tmp_path / "made.bundle", target=",".join(targets), precision="int4", max_context=512
    )
    for target in targets:
        chosen = {name: written.variant(name, target).precision for name in written.targets[target]}
        assert chosen["transformer"] == chosen["denoiser"] == "int4"
        assert chosen["conditioner"] == chosen["image_encoder"] == "int8"
    document = json.loads((tmp_path / "made.bundle" / "parity.json").read_text())
    assert min(each["value"] for each in document["comparisons"] if each["measure"] == "psnr_db") > 30
