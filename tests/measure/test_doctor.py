"""`edgemm doctor` as a person and as a program see it."""

from __future__ import annotations

import argparse
import json

import pytest

from edgemm.errors import BundleError
from edgemm.measure import doctor_verb
from edgemm.measure.doctor import examine, report_json, report_text
from tests.measure.recorded import ORIN_NANO, lay_out


def doctor(*words: str) -> int:
    parser = argparse.ArgumentParser()
    doctor_verb.add_arguments(parser)
    return doctor_verb.run(parser.parse_args(words))


def test_json_is_one_document_with_a_version(capsys):
    code = doctor("--json")
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert document["healthy"] == (code == 0)
    assert {verdict["target"] for verdict in document["verdicts"]} >= {"cpu", "jetson-thor"}
    assert document["board"] is None or document["board"]["soc"]


def test_the_page_ends_with_what_runs(capsys):
    pytest.importorskip("onnxruntime")
    assert doctor() == 0
    assert "[✓] cpu" in (page := capsys.readouterr().out)
    assert page.strip().splitlines()[-1].startswith("Bundles exported for cpu")


def test_a_recorded_board_is_examined_like_a_live_one(tmp_path):
    report = examine(root=lay_out(tmp_path, ORIN_NANO))
    assert report.board and report.machine.cpu == "Cortex-A78AE"
    assert "Linux for Tegra 36.4.3 (JetPack 6)" in report_text(report)
    assert json.loads(json.dumps(report_json(report)))["board"]["target"] == "jetson-orin-jp6"


def test_a_missing_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="does not exist"):
        examine(tmp_path / "missing.bundle")
