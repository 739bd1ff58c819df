"""Sensors as boards lay them out under /: recorded forms, with round numbers where the test needs to know the answer.

Rails and addresses are those of Linux's device trees for p3767 (Orin Nano) and p3701 (AGX Orin); Thor's rails are those
that its tegrastats prints, and its INA238 that of rbonghi/jetson_stats#900.
"""

from __future__ import annotations

from tests.bench.recorded import AGX_ORIN, ORIN_NANO, THOR


def monitor(address: str, hwmon: int, rails: dict[int, tuple[str, int, int]]) -> dict[str, str]:
    """An INA3221 with rails channel -> (label, mV, mA)."""
    folder = f"sys/bus/i2c/devices/{address}/hwmon/hwmon{hwmon}"
    files = {
        f"{folder}/name": "ina3221\n",
        f"{folder}/in7_label": "sum of shunt voltages\n",
        f"{folder}/in7_input": "9\n",
    }
    for channel, (label, millivolts, milliamperes) in rails.items():
        files[f"{folder}/in{channel}_label"] = f"{label}\n"
        files[f"{folder}/in{channel}_input"] = f"{millivolts}\n"
        files[f"{folder}/curr{channel}_input"] = f"{milliamperes}\n"
    return files


NANO_POWER = {
    **ORIN_NANO,
    **monitor("1-0040", 1, {1: ("VDD_IN", 5000, 1200), 2: ("VDD_CPU_GPU_CV", 5000, 300), 3: ("VDD_SOC", 5000, 280)}),
}
AGX_POWER = {
    **AGX_ORIN,
    **monitor(
        "1-0040", 3, {1: ("VDD_GPU_SOC", 20000, 200), 2: ("VDD_CPU_CV", 20000, 50), 3: ("VIN_SYS_5V0", 5000, 700)}
    ),
    **monitor("1-0041", 4, {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 5000, 100), 3: ("NC", 0, 0)}),
    **monitor("2-0041", 5, {1: ("CVB_ATX_12V", 12000, 1000)}),
}
INA238 = "sys/bus/i2c/devices/2-0044/hwmon/hwmon2"
THOR_POWER = {
    **THOR,
    **monitor(
        "2-0040", 1, {1: ("VDD_GPU", 20000, 275), 2: ("VDD_CPU_SOC_MSS", 20000, 374), 3: ("VIN_SYS_5V0", 5000, 1262)}
    ),
    f"{INA238}/name": "ina238\n",
    f"{INA238}/power1_input": "28548000\n",
}

POWERCAP = "sys/class/powercap"


def zone(number: str, name: str, energy_uj: int, range_uj: int = 262_143_328_850) -> dict[str, str]:
    folder = f"{POWERCAP}/intel-rapl:{number}"
    return {
        f"{folder}/name": f"{name}\n",
        f"{folder}/energy_uj": f"{energy_uj}\n",
        f"{folder}/max_energy_range_uj": f"{range_uj}\n",
    }


X86_POWER = {
    **zone("0", "package-0", 5_000_000),
    **zone("0:0", "core", 3_000_000),
    **zone("0:1", "dram", 1_000_000, 65_712_999_613),
    **zone("1", "psys", 9_000_000),
    f"{POWERCAP}/intel-rapl-mmio:0/name": "package-0\n",
    f"{POWERCAP}/intel-rapl-mmio:0/energy_uj": "5000000\n",
}
