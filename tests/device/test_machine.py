"""Processor, cores and memory as recorded machines show them."""

from __future__ import annotations

import pytest

from edgemm.device.machine import cpu_features, cpu_model, read_machine, this_processor
from tests.bench.recorded import ORIN_NANO, PC, lay_out


def test_an_x86_processor_is_named_with_the_features_that_matter():
    assert cpu_model(PC["proc/cpuinfo"]) == "Intel(R) Xeon(R) Processor"
    assert cpu_features(PC["proc/cpuinfo"]) == ("avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16")


def test_an_arm_core_is_named_by_its_part_number():
    assert cpu_model(ORIN_NANO["proc/cpuinfo"]) == "Cortex-A78AE"
    assert cpu_features(ORIN_NANO["proc/cpuinfo"]) == ("asimd", "fphp", "asimdhp", "asimddp")


@pytest.mark.parametrize("recorded", [PC, ORIN_NANO])
def test_a_processor_is_another_with_one_flag_more_and_the_same_with_another_clock(tmp_path, recorded):
    text = recorded["proc/cpuinfo"]
    files = {
        "here": text,
        "clock": f"cpu MHz : 1234.5\n{text}",
        "flag": text.replace("asimd ", "").replace("avx2 ", ""),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    here, clock, flag = (this_processor(tmp_path / name) for name in files)
    assert here.startswith(cpu_model(text)) and here == clock != flag


def test_an_unknown_arm_core_is_told_by_number():
    assert cpu_model("CPU implementer : 0x61\nCPU part : 0x022\n") == "Arm core 0x022 by 0x61"


def test_a_quota_on_an_ancestor_limits_the_cores(tmp_path):
    machine = read_machine(lay_out(tmp_path, PC), tmp_path)
    assert (machine.cores, machine.cores_usable) == (2, 1.5)


def test_the_group_limits_the_memory(tmp_path):
    machine = read_machine(lay_out(tmp_path, PC), tmp_path)
    assert machine.memory_bytes == 16_000_000 * 1024
    assert machine.memory_limit_bytes == machine.memory_available_bytes == 2**32


def test_version_one_groups_are_read_and_no_limit_is_no_number(tmp_path):
    old = {name: text for name, text in PC.items() if "cgroup" not in name}
    old["sys/fs/cgroup/cpu/cpu.cfs_quota_us"] = "100000\n"
    old["sys/fs/cgroup/cpu/cpu.cfs_period_us"] = "100000\n"
    old["sys/fs/cgroup/memory/memory.limit_in_bytes"] = "9223372036854771712\n"
    machine = read_machine(lay_out(tmp_path, old), tmp_path)
    assert (machine.cores_usable, machine.memory_limit_bytes) == (1.0, None)


def test_a_group_path_cannot_leave_the_control_groups(tmp_path):
    escaping = {**PC, "proc/self/cgroup": "0::/../../etc\n", "etc/memory.max": "1\n"}
    assert read_machine(lay_out(tmp_path, escaping), tmp_path).memory_limit_bytes is None


def test_nothing_readable_is_unknown_not_an_error(tmp_path):
    machine = read_machine(tmp_path, tmp_path / "missing")
    assert (machine.cpu, machine.memory_bytes, machine.disk_free_bytes) == ("unknown", None, None)
    assert machine.cores >= 1


def test_this_machine_is_read():
    machine = read_machine()
    assert machine.memory_bytes and machine.memory_available_bytes and machine.disk_free_bytes
    assert 0 < machine.cores_usable <= machine.cores
