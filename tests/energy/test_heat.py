"""Temperatures and throttling from recorded layouts."""

from __future__ import annotations

from edgemm.energy.heat import Heat, read_heat, report_heat
from tests.bench.recorded import lay_out

THERMAL = "sys/class/thermal"
JETSON = {
    f"{THERMAL}/thermal_zone0/type": "cpu-thermal\n",
    f"{THERMAL}/thermal_zone0/temp": "53968\n",
    f"{THERMAL}/thermal_zone1/type": "gpu-thermal\n",  # suspended: its file cannot be read
    f"{THERMAL}/thermal_zone2/type": "cv0-thermal\n",
    f"{THERMAL}/thermal_zone2/temp": "-256000\n",
    f"{THERMAL}/cooling_device0/type": "pwm-fan\n",
    f"{THERMAL}/cooling_device0/cur_state": "3\n",
    f"{THERMAL}/cooling_device1/type": "cpufreq-cpu0\n",
    f"{THERMAL}/cooling_device1/cur_state": "0\n",
    "sys/class/hwmon/hwmon2/oc3_event_cnt": "4\n",
}
THROTTLE = "sys/devices/system/cpu"
X86 = {
    f"{THERMAL}/thermal_zone0/type": "acpitz\n",
    f"{THERMAL}/thermal_zone0/temp": "27800\n",
    f"{THERMAL}/thermal_zone1/type": "acpitz\n",
    f"{THERMAL}/thermal_zone1/temp": "29800\n",
    **{f"{THROTTLE}/cpu{core}/thermal_throttle/core_throttle_count": f"{core}\n" for core in range(3)},
    **{f"{THROTTLE}/cpu{core}/thermal_throttle/package_throttle_count": "7\n" for core in range(3)},
}


def test_a_jetsons_zones_clocks_and_events(tmp_path):
    assert read_heat(lay_out(tmp_path, JETSON)) == Heat({"cpu-thermal 0": 53.968}, {"cpufreq-cpu0 1": 0}, {"oc3": 4})


def test_a_pc_counts_cores_together_and_its_package_once(tmp_path):
    heat = read_heat(lay_out(tmp_path, X86))
    assert heat.zones_c == {"acpitz 0": 27.8, "acpitz 1": 29.8}
    assert heat.throttle_events == {"core temperature": 0 + 1 + 2, "package temperature": 7}


def test_a_machine_that_says_nothing_is_null_and_not_cool(tmp_path):
    report = report_heat([read_heat(tmp_path), read_heat(tmp_path)])
    assert report == {"zones": None, "throttled": None, "problems": []}


def test_no_throttling_is_an_empty_list_where_it_would_be_seen(tmp_path):
    assert report_heat([read_heat(lay_out(tmp_path, JETSON))] * 2)["throttled"] == []


def test_throttling_in_between_is_told():
    readings = [
        Heat({"cpu 0": 60.0}, {"cpufreq-cpu0 1": 0}, {"oc3": 4}),
        Heat({"cpu 0": 99.0}, {"cpufreq-cpu0 1": 2}, {"oc3": 5}),
        Heat({"cpu 0": 80.0}, {"cpufreq-cpu0 1": 0}, {"oc3": 6}),
    ]
    report = report_heat(readings)
    assert report["zones"] == {"cpu 0": {"first_c": 60.0, "highest_c": 99.0}}
    assert report["throttled"] == ["cpufreq-cpu0 1 held a clock down (state 2)", "oc3 counted 2 throttling events"]


def test_a_zone_that_vanishes_is_told():
    report = report_heat([Heat({"cpu 0": 60.0, "gpu 1": 50.0}, {}, {}), Heat({"cpu 0": 61.0}, {}, {})])
    assert report["problems"] == ["thermal zones that could not be read all the time: gpu 1"]
