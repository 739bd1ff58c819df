"""The tool that prints those lines, with a script in its place."""

from __future__ import annotations

import pytest

from edgemm.energy.tegrastats import TegrastatsStream, open_tegrastats
from edgemm.errors import MissingError
from tests.energy.test_tegrastats import ORIN_NANO


def write_tool(root, body: str):
    path = root / "usr/bin/tegrastats"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_its_power_is_read_and_closing_ends_it(tmp_path):
    sensor = open_tegrastats(write_tool(tmp_path, f"while true; do echo '{ORIN_NANO}'; sleep 0.05; done"))
    assert (sensor.read(), sensor.covers) == (12.479, "VDD_IN, the input of the module")
    sensor.close()
    with pytest.raises(MissingError, match="tegrastats ended"):
        sensor.read()


def test_it_is_asked_for_ten_lines_a_second(tmp_path):
    tool = write_tool(tmp_path, f'echo "$@" > "{tmp_path}/arguments"; echo "{ORIN_NANO}"; exec sleep 60')
    open_tegrastats(tool).close()
    assert (tmp_path / "arguments").read_text() == "--interval 100\n"


@pytest.mark.parametrize(
    ("body", "reason"),
    [("echo must be root", "tegrastats ended"), ("echo 'RAM 1/2MB'; exec sleep 60", "prints no power on this board")],
)
def test_a_tool_that_says_no_power_is_told(tmp_path, body, reason):
    with pytest.raises(MissingError, match=reason):
        open_tegrastats(write_tool(tmp_path, body))


def test_an_old_line_does_not_pass_for_a_new_one(tmp_path):
    now = [0.0]
    stream = TegrastatsStream(write_tool(tmp_path, f"echo '{ORIN_NANO}'; exec sleep 60"), lambda: now[0])
    stream.wait()
    now[0] = 3.0
    with pytest.raises(MissingError, match=r"printed nothing for 3\.0 s"):
        stream.newest()
    stream.close()


def test_a_machine_without_it_is_told(tmp_path):
    with pytest.raises(MissingError, match="comes with Linux for Tegra"):
        open_tegrastats(tmp_path / "usr/bin/tegrastats")
