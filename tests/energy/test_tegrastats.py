"""The rails of every form of tegrastats' line."""

from __future__ import annotations

import pytest

from edgemm.energy.sensor import total_rails
from edgemm.energy.tegrastats import rails_of

ORIN_NANO = (
    "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) CPU [15%@729,11%@729,off,off] "
    "EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] cpu@53.968C tj@53.968C VDD_IN 12479mW/12479mW "
    "VDD_CPU_GPU_CV 4667mW/4667mW VDD_SOC 2817mW/2817mW"
)
THOR = (
    "RAM 117456/125772MB (lfb 9x4MB) CPU [0%@1890,1%@1890] cpu@43.812C tj@44.218C gpu@43.968C VDD_GPU 5517mW "
    "VDD_CPU_SOC_MSS 7484mW VIN_SYS_5V0 6309mW VIN 28548mW"
)
AGX_ORIN = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201] EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] "
    "cpu@52.968C/52.968C VDD_GPU_SOC 5139mW/5139mW/5139mW VDD_CPU_CV 3268mW/3268mW/3268mW "
    "VIN_SYS_5V0 5500mW/5500mW/5500mW"
)
LINES = {
    ORIN_NANO: {"VDD_IN": 12.479, "VDD_CPU_GPU_CV": 4.667, "VDD_SOC": 2.817},
    THOR: {"VDD_GPU": 5.517, "VDD_CPU_SOC_MSS": 7.484, "VIN_SYS_5V0": 6.309, "VIN": 28.548},
    AGX_ORIN: {"VDD_GPU_SOC": 5.139, "VDD_CPU_CV": 3.268, "VIN_SYS_5V0": 5.5},
}
RAM = "RAM 1/2MB (lfb 1x4MB) "


@pytest.mark.parametrize(("line", "rails_w"), LINES.items(), ids=["orin-nano", "thor", "agx-orin"])
def test_the_rails_of_a_recorded_line(line, rails_w):
    assert rails_of(line) == rails_w
    assert rails_of(f"{line}\n") == rails_w


@pytest.mark.parametrize(
    ("line", "total"), [(ORIN_NANO, ("VDD_IN",)), (THOR, ("VIN",)), (AGX_ORIN, tuple(LINES[AGX_ORIN]))]
)
def test_the_rails_of_the_total(line, total):
    assert total_rails(LINES[line]) == total


@pytest.mark.parametrize(
    ("field", "rails_w"),
    [
        ("VDD_IN 4046mW/4236mW", {"VDD_IN": 4.046}),
        ("VDD_GPU -392mW/10mW", {"VDD_GPU": -0.392}),
        ("VDD_IN 0mW", {"VDD_IN": 0.0}),
        ("VIC_FREQ 115 NVDLA0_FREQ @1600 APE 174", {}),
        ("CPU [15%,off]@1190 GR3D_FREQ @[1000,1000,1000] cv0@-256C SWAP 0/0MB (cached 0MB)", {}),
    ],
)
def test_a_power_in_its_other_forms_beside_what_is_none(field, rails_w):
    for line in (RAM + field, f"{RAM}{field} VIC 0%", f"01-02-2026 03:04:05 {RAM}{field}"):
        assert rails_of(line) == rails_w


@pytest.mark.parametrize(
    "line", ["", "\n", "tegrastats: must be run as root", "RAM 61", "SWAP 851/3810MB (cached 1MB)"]
)
def test_what_is_no_line_of_it_is_none(line):
    assert rails_of(line) is None


@pytest.mark.parametrize("line", LINES, ids=["orin-nano", "thor", "agx-orin"])
def test_a_torn_line_says_fewer_rails_but_never_wrong_ones(line):
    for end in range(len(line)):
        assert (rails_of(line[:end]) or {}).items() <= LINES[line].items()
