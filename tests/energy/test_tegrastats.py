"""Every form of tegrastats' line, field by field."""

from __future__ import annotations

import pytest

from edgemm.energy.sensor import total_rails
from edgemm.energy.tegrastats import Core, TegraStats, parse_line

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
    ORIN_NANO: TegraStats(
        time="11-15-2024 08:38:09",
        ram_used_mb=6185,
        ram_total_mb=7620,
        swap_used_mb=851,
        swap_total_mb=3810,
        cores=(Core(15, 729), Core(11, 729), None, None),
        memory_load_percent=43,
        memory_mhz=2133,
        gpu_load_percent=63,
        gpu_mhz=(621,),
        temperatures_c={"cpu": 53.968, "tj": 53.968},
        rails_w={"VDD_IN": 12.479, "VDD_CPU_GPU_CV": 4.667, "VDD_SOC": 2.817},
    ),
    THOR: TegraStats(
        time=None,
        ram_used_mb=117456,
        ram_total_mb=125772,
        swap_used_mb=None,
        swap_total_mb=None,
        cores=(Core(0, 1890), Core(1, 1890)),
        memory_load_percent=None,
        memory_mhz=None,
        gpu_load_percent=None,
        gpu_mhz=(),
        temperatures_c={"cpu": 43.812, "tj": 44.218, "gpu": 43.968},
        rails_w={"VDD_GPU": 5.517, "VDD_CPU_SOC_MSS": 7.484, "VIN_SYS_5V0": 6.309, "VIN": 28.548},
    ),
    AGX_ORIN: TegraStats(
        time="07-25-2026 09:08:28",
        ram_used_mb=20642,
        ram_total_mb=62817,
        swap_used_mb=None,
        swap_total_mb=None,
        cores=(Core(23, 2201),),
        memory_load_percent=3,
        memory_mhz=3199,
        gpu_load_percent=12,
        gpu_mhz=(1300, 1300),
        temperatures_c={"cpu": 52.968},
        rails_w={"VDD_GPU_SOC": 5.139, "VDD_CPU_CV": 3.268, "VIN_SYS_5V0": 5.5},
    ),
}
RAM = "RAM 1/2MB (lfb 1x4MB) "


@pytest.mark.parametrize(("line", "expected"), LINES.items(), ids=["orin-nano", "thor", "agx-orin"])
def test_every_field_of_a_recorded_line(line, expected):
    assert parse_line(line) == expected
    assert parse_line(f"{line}\n") == expected


@pytest.mark.parametrize(
    ("line", "total"), [(ORIN_NANO, ("VDD_IN",)), (THOR, ("VIN",)), (AGX_ORIN, tuple(LINES[AGX_ORIN].rails_w))]
)
def test_the_rails_of_the_total(line, total):
    assert total_rails(LINES[line].rails_w) == total


@pytest.mark.parametrize(
    ("field", "name", "value"),
    [
        ("VDD_IN 4046mW/4236mW", "rails_w", {"VDD_IN": 4.046}),
        ("VDD_GPU -392mW/10mW", "rails_w", {"VDD_GPU": -0.392}),
        ("VDD_IN 0mW", "rails_w", {"VDD_IN": 0.0}),
        ("CPU [off,off]", "cores", (None, None)),
        ("CPU [15%,off]@1190", "cores", (Core(15, 1190), None)),
        ("CPU [100%@2201]", "cores", (Core(100, 2201),)),
        ("CPU [15%]", "cores", (Core(15, None),)),
        ("GR3D_FREQ 0%", "gpu_load_percent", 0),
        ("GR3D_FREQ 0%", "gpu_mhz", ()),
        ("GR3D_FREQ @[1000,1000,1000]", "gpu_load_percent", None),
        ("GR3D_FREQ @[1000,1000,1000]", "gpu_mhz", (1000, 1000, 1000)),
        ("GR3D_FREQ 99%@306", "gpu_mhz", (306,)),
        ("EMC_FREQ 0%", "memory_mhz", None),
        ("EMC_FREQ @2133", "memory_mhz", 2133),
        ("EMC_FREQ @2133", "memory_load_percent", None),
        ("cv0@-256C gpu@48C", "temperatures_c", {"gpu": 48.0}),
        ("cpu@52.968C/52.968C Tboard@-5.5C", "temperatures_c", {"cpu": 52.968, "Tboard": -5.5}),
        ("soc012-thermal@40.1C", "temperatures_c", {"soc012-thermal": 40.1}),
        ("VIC_FREQ 115 NVDLA0_FREQ @1600 APE 174", "rails_w", {}),
        ("SWAP 0/0MB (cached 0MB)", "swap_used_mb", 0),
    ],
)
def test_a_field_in_its_other_forms(field, name, value):
    for line in (RAM + field, f"{RAM}{field} VIC 0%", f"01-02-2026 03:04:05 {RAM}{field}"):
        stats = parse_line(line)
        assert stats is not None and getattr(stats, name) == value


@pytest.mark.parametrize(
    "line", ["", "\n", "tegrastats: must be run as root", "RAM 61", "SWAP 851/3810MB (cached 1MB)"]
)
def test_what_is_no_line_of_it_is_none(line):
    assert parse_line(line) is None


@pytest.mark.parametrize("line", LINES, ids=["orin-nano", "thor", "agx-orin"])
def test_a_torn_line_says_fewer_rails_temperatures_and_cores_but_never_wrong_ones(line):
    whole = LINES[line]
    for end in range(len(line)):
        torn = parse_line(line[:end])
        if torn:
            assert torn.ram_total_mb == whole.ram_total_mb
            assert torn.rails_w.items() <= whole.rails_w.items()
            assert torn.temperatures_c.items() <= whole.temperatures_c.items()
            assert torn.cores in ((), whole.cores)
