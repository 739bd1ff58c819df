"""`--root FOLDER`: a recorded board's files instead of this machine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemm.bench.conditions import machine_card
from edgemm.bench.options import Plan
from edgemm.cli.main import main
from edgemm.errors import UsageError
from edgemm.estimate.devices import device_of
from tests.bench.recorded import AGX_ORIN, ORIN_NANO, PC, THOR, lay_out


@pytest.mark.parametrize(
    ("files", "device"), [(ORIN_NANO, "orin-nano-8gb"), (AGX_ORIN, "agx-orin-64gb"), (THOR, "thor-t5000")]
)
def test_a_board_is_a_device_that_can_be_estimated(files, device):
    assert device_of(files["proc/device-tree/model"].strip("\0")) == device


def test_a_benchmarks_card_tells_the_recorded_board_and_its_mode(tmp_path):
    card = machine_card(lay_out(tmp_path, ORIN_NANO))
    assert (card["board"], card["power_mode"]) == ("NVIDIA Jetson Orin Nano Developer Kit", "MAXN_SUPER")
    assert card["cpu"] == "Cortex-A78AE"


def test_a_root_that_is_none_is_told(tmp_path, capsys):
    with pytest.raises(UsageError, match="expected a folder with proc, sys and etc"):
        Plan(root=str(tmp_path / "nowhere"))
    assert main(["estimate", "x.bundle", "--root", str(lay_out(tmp_path / "pc", PC))]) == 3
    assert "no recorded Jetson" in capsys.readouterr().err


def test_estimate_takes_device_and_mode_of_a_recorded_board(tmp_path, capsys):
    root = lay_out(tmp_path, ORIN_NANO)
    main(["estimate", str(Path("nowhere.bundle")), "--root", str(root)])
    told = capsys.readouterr().err
    assert "nowhere.bundle" in told and "no figures" not in told, "the device was found, and the bundle is looked for"


def test_a_mode_that_has_no_figures_is_told_with_the_one_that_stands_for_it(tmp_path, capsys):
    main(["estimate", "nowhere.bundle", "--root", str(lay_out(tmp_path, THOR))])
    assert "the board is in 120W, of which no figures are known: these are MAXN's" in capsys.readouterr().err
