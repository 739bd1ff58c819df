"""Processor, cores and memory as recorded machines show them."""

from __future__ import annotations

import os

import pytest

from edgemm.device.machine import cpu_features, cpu_model, read_board, read_machine, this_processor
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


def test_a_recorded_folder_cannot_stop_the_process_or_its_screen(tmp_path):
    """A pipe nobody writes, what has no end, numbers of thousands of digits, bytes that a terminal obeys."""
    root = lay_out(tmp_path, {**ORIN_NANO, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "9" * 5000})
    (root / "proc/cpuinfo").unlink()
    os.symlink("/dev/zero", root / "proc/cpuinfo")
    (root / "etc/os-release").parent.mkdir(exist_ok=True)
    os.mkfifo(root / "etc/os-release")
    (root / "proc/meminfo").write_text(f"MemTotal: {'9' * 5000} kB\nMemAvailable: 1000 kB\n")
    (root / "proc/device-tree/model").write_bytes(b"Orin \x1b[2J\nsecond line" + b"A" * 5000)
    (root / "etc/nv_tegra_release").write_text(f"# R{'3' * 5000} (release), REVISION: 4.3,")
    (root / "var/lib/nvpmodel/status").write_text(f"pmode:{'0' * 5000}")
    machine, board = read_machine(root, tmp_path), read_board(root)
    assert (machine.cpu, machine.distribution, machine.memory_bytes) == ("unknown", None, None)
    assert machine.memory_limit_bytes is None and machine.memory_available_bytes == 1000 * 1024
    assert board and (board.model, board.l4t, board.power_mode) == ("Orin [2J", None, None)
    with open(root / "proc/meminfo", "wb") as stream:
        stream.truncate(1 << 34)
    assert read_machine(root, tmp_path).memory_bytes is None, "4 MB of it were read"


def test_this_machine_is_read():
    machine = read_machine()
    assert machine.memory_bytes and machine.memory_available_bytes and machine.disk_free_bytes
    assert 0 < machine.cores_usable <= machine.cores
