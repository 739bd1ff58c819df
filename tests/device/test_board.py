"""Jetsons by their files."""

from __future__ import annotations

import pytest

from edgemm.device.machine import read_board
from tests.bench.recorded import AGX_ORIN, AGX_ORIN_JP6, ORIN_NANO, PC, THOR, lay_out


@pytest.mark.parametrize(
    ("files", "soc", "capability", "l4t", "jetpack", "power_mode", "target"),
    [
        (ORIN_NANO, "Orin", "8.7", "36.4.3", "6", "MAXN_SUPER", "jetson-orin-jp6"),
        (AGX_ORIN, "Orin", "8.7", "39.2.0", "7", "MAXN", "jetson-orin"),
        (AGX_ORIN_JP6, "Orin", "8.7", "36.4.3", "6", "MODE_50W", "jetson-orin-jp6"),
        (THOR, "Thor", "11.0", "38.2.0", "7", "120W", "jetson-thor"),
    ],
)
def test_a_jetson_is_recognised(tmp_path, files, soc, capability, l4t, jetpack, power_mode, target):
    board = read_board(lay_out(tmp_path, files))
    assert board is not None
    assert board.model == files["proc/device-tree/model"].strip("\0")
    assert (board.soc, board.compute_capability, board.l4t, board.jetpack) == (soc, capability, l4t, jetpack)
    assert (board.power_mode, board.target) == (power_mode, target)


def test_a_power_mode_without_its_name_is_told_by_number_and_none_by_nothing(tmp_path):
    unnamed = {name: text for name, text in AGX_ORIN.items() if "nvpmodel.conf" not in name}
    board = read_board(lay_out(tmp_path / "unnamed", unnamed))
    assert board is not None and board.power_mode == "mode 0"
    silent = read_board(lay_out(tmp_path / "silent", {k: v for k, v in THOR.items() if "nvpmodel" not in k}))
    assert silent is not None and silent.power_mode is None


def test_a_jetson_without_its_release_file_takes_no_orin_target(tmp_path):
    files = {name: text for name, text in ORIN_NANO.items() if "release" not in name}
    board = read_board(lay_out(tmp_path, files))
    assert board is not None and (board.l4t, board.jetpack, board.target) == (None, None, None)


def test_a_pc_and_another_board_are_no_jetson(tmp_path):
    assert read_board(lay_out(tmp_path / "pc", PC)) is None
    raspberry = {"proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0"}
    assert read_board(lay_out(tmp_path / "pi", raspberry)) is None
