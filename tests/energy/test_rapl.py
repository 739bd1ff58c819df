"""An x86 processor's joules from its counters."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemm.energy import sensor
from edgemm.energy.sensor import open_rapl
from edgemm.errors import MissingError
from tests.bench.recorded import PC, lay_out
from tests.energy.layouts import POWERCAP, X86_POWER, zone


def set_energy(root: Path, number: str, energy_uj: int) -> None:
    (root / f"{POWERCAP}/intel-rapl:{number}/energy_uj").write_text(f"{energy_uj}\n")


def test_packages_and_memory_count_but_not_what_is_inside_or_around_them(tmp_path):
    sensor = open_rapl(lay_out(tmp_path, X86_POWER))
    assert (sensor.counts, sensor.covers) == (True, "package-0, dram of package-0")
    assert sensor.read() == 0
    for number in ("0", "0:0", "0:1", "1"):
        set_energy(tmp_path, number, 12_000_000)
    assert sensor.read() == pytest.approx(7 + 11)


def test_a_counter_that_wraps_around_goes_on(tmp_path):
    sensor = open_rapl(lay_out(tmp_path, zone("0", "package-0", 262_143_000_000, 262_143_328_850)))
    set_energy(tmp_path, "0", 671_150)
    assert sensor.read() == pytest.approx(1.0)  # 328 850 to the end of its range, 671 150 after
    set_energy(tmp_path, "0", 2_671_150)
    assert sensor.read() == pytest.approx(3.0)


def test_a_counter_that_was_reset_is_told_and_stays_untrusted(tmp_path):
    sensor = open_rapl(lay_out(tmp_path, zone("0", "package-0", 90_000_000)))
    set_energy(tmp_path, "0", 5)
    for _ in range(2):
        with pytest.raises(MissingError, match="went back from 90000000 to 5"):
            sensor.read()


def test_permission_denied_is_told_with_its_cure(tmp_path, monkeypatch):
    root = lay_out(tmp_path, X86_POWER)
    read_plain = sensor.read_plain

    def refuse(path):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_plain(path)

    monkeypatch.setattr(sensor, "read_plain", refuse)
    with pytest.raises(MissingError, match=r"permission denied; .* sudo chmod a\+r .*/intel-rapl:\*/energy_uj"):
        open_rapl(root)


def test_a_machine_without_counters_is_told(tmp_path):
    with pytest.raises(MissingError, match="no RAPL counter of a package"):
        open_rapl(lay_out(tmp_path, PC))


def test_a_counter_that_vanishes_is_told(tmp_path):
    sensor = open_rapl(lay_out(tmp_path, X86_POWER))
    (tmp_path / f"{POWERCAP}/intel-rapl:0:1/energy_uj").unlink()
    with pytest.raises(MissingError, match="does not exist"):
        sensor.read()
