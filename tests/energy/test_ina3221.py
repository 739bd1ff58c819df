"""A Jetson's watts from the files of its power monitors."""

from __future__ import annotations

import pytest

from edgemm.energy.sensor import open_ina3221, read_rails
from edgemm.errors import MissingError
from tests.bench.recorded import ORIN_NANO, lay_out
from tests.energy.layouts import AGX_POWER, INA238, NANO_POWER, THOR_POWER


@pytest.mark.parametrize(
    ("files", "watts", "covers"),
    [
        (NANO_POWER, 6.0, "VDD_IN, the input of the module"),
        (AGX_POWER, 4 + 1 + 3.5 + 0.5, "sum of the rails VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0, VDDQ_VDD2_1V8AO"),
        (THOR_POWER, 28.548, "VIN, the input of the kit"),
    ],
)
def test_the_total_is_the_input_or_else_the_sum_of_the_modules_rails(tmp_path, files, watts, covers):
    sensor = open_ina3221(lay_out(tmp_path, files))
    assert sensor.read() == pytest.approx(watts)
    assert (sensor.source, sensor.covers, sensor.counts) == ("INA3221", covers, False)


def test_every_rail_is_millivolts_times_milliamperes(tmp_path):
    rails = read_rails(lay_out(tmp_path, NANO_POWER))
    assert rails == pytest.approx({"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 1.5, "VDD_SOC": 1.4})


def test_thor_without_its_input_monitor_says_that_it_is_a_sum(tmp_path):
    sensor = open_ina3221(lay_out(tmp_path, {name: text for name, text in THOR_POWER.items() if INA238 not in name}))
    assert sensor.read() == pytest.approx(5.5 + 7.48 + 6.31)
    assert sensor.covers == "sum of the rails VDD_GPU, VDD_CPU_SOC_MSS, VIN_SYS_5V0"


def test_a_calibration_offset_below_zero_is_kept(tmp_path):
    files = {**NANO_POWER, "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/curr3_input": "-20\n"}
    assert read_rails(lay_out(tmp_path, files))["VDD_SOC"] == pytest.approx(-0.1)


def test_a_board_without_monitors_is_told(tmp_path):
    with pytest.raises(MissingError, match="no INA3221 with labelled rails"):
        open_ina3221(lay_out(tmp_path, ORIN_NANO))


@pytest.mark.parametrize(("text", "reason"), [(None, "does not exist"), ("", "holds ''"), ("5 V", "holds '5 V'")])
def test_a_rail_that_cannot_be_read_is_told_when_it_is_opened(tmp_path, text, reason):
    root = lay_out(tmp_path, NANO_POWER)
    path = root / "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/in1_input"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(MissingError, match=reason):
        open_ina3221(root)


def test_a_rail_that_vanishes_later_is_told_and_not_zero(tmp_path):
    sensor = open_ina3221(lay_out(tmp_path, AGX_POWER))
    (tmp_path / "sys/bus/i2c/devices/1-0041/hwmon/hwmon4/curr2_input").unlink()
    with pytest.raises(MissingError, match="curr2_input does not exist"):
        sensor.read()
