"""Published models' loops as graphs: what the loop draws, from the same noise, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import edgemm
from edgemm.cli.main import main
from edgemm.verify.export_foreign import export_foreign
from tests.export.nano import needs_opset_24
from tests.families.golden import Cases, found_at
from tests.families.tiny.folders import write_folder

pytestmark = needs_opset_24
BESIDE = {  # model -> folders that parts of it lie in
    "bagel": (),
    "cosmos3-edge": (),
    "janusflow": ("vae",),
    "mobileo": ("sana",),
    "showo2": ("clip", "llm", "vae"),
}


LONG = ("bagel", "cosmos3-edge", "mobileo", "showo2")  # half a minute each


def compared(bundle: Path) -> list[dict[str, Any]]:
    """What the export's gate saw of one call: each graph against the loop, pixels or tokens."""
    rows = json.loads((bundle / "parity.json").read_text())["comparisons"]
    return [row for row in rows if row["what"].startswith("one call")]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in BESIDE])
def test_one_graph_draws_what_the_loop_draws(name, tmp_path):
    cases = Cases(name)
    found = found_at(cases.folder / "checkpoint", **{part: cases.folder / part for part in BESIDE[name]})
    export_foreign(found, tmp_path / "made.bundle", one_call=("draw", "read"), steps=4)
    rows = compared(tmp_path / "made.bundle")
    assert {row["measure"] for row in rows} == {"max_difference", "reply"} and all(row["passed"] for row in rows)
    assert all(row["value"] == 1 for row in rows if row["measure"] == "reply")  # token for token
    with edgemm.load(tmp_path / "made.bundle", device="cpu", threads=1) as runtime:
        call = runtime.manifest.one_call["draw"]
        asked = {"num_inference_steps": 4, "guidance_scale": call.guidance_scale, "seed": 3}
        one, looped = (runtime.generate_image("a red kite", one_call=way, **asked) for way in (True, False))
        other = runtime.generate_image("two small boats", one_call=True, seed=3)
    assert np.abs(one.pixels - looped.pixels).max() <= 1e-4  # bagel, showo2 6e-7; mobileo 2e-5, as fused kernels round
    assert not np.array_equal(one.pixels, other.pixels)


READ = {"llama": 1, "llava": 2, "qwen3_vl": 2, "janus": 2, "fuyu": 2, "chameleon": 2, "emu3": 2}  # and its questions


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_one_graph_and_its_step_say_what_the_loop_says(name, tmp_path):
    """With a picture and without: image tokens beside the words, in their place, or codes among the ids."""
    found = found_at(write_folder(name, tmp_path / "checkpoint"))
    export_foreign(found, tmp_path / "made.bundle", one_call=("read",))
    rows = compared(tmp_path / "made.bundle")
    assert [(row["measure"], row["value"]) for row in rows] == [("reply", 1)] * READ[name]


@pytest.mark.slow
def test_a_family_that_draws_code_by_code_is_refused_by_name(tmp_path: Path, capsys):
    folder = write_folder("janus", tmp_path / "checkpoint")
    assert main(["export", str(folder), "--one-call", "draw", "--output", str(tmp_path / "made.bundle")]) == 2
    assert "family janus" in capsys.readouterr().err
    assert not (tmp_path / "made.bundle").exists()
