"""The driver probe, against a driver library compiled for the purpose."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from edgemm.device.gpu import Gpu, probe_cuda

WORKING = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Orin", length); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 7990116352u; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 7; return 0; }
int cuDeviceGetUuid_v2(char *uuid, int device) { for (int i = 0; i < 16; i++) uuid[i] = i; return 0; }
int cuGetErrorName(int error, const char **name) { *name = "CUDA_ERROR_NO_DEVICE"; return 0; }
"""
CRASHING = "int cuInit(unsigned flags) { return *(volatile int *)0; }"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a driver with")

    def build(source: str) -> None:
        (tmp_path / "driver.c").write_text(source)
        command = [compiler, "-shared", "-fPIC", "-O0", "-o", tmp_path / "libcuda.so.1", tmp_path / "driver.c"]
        subprocess.run(command, check=True)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    return build


def test_a_working_driver_tells_its_gpus(driver):
    driver(WORKING.replace("INIT", "0"))
    found = probe_cuda()
    assert (found.version, found.problem) == ("12.6", "")
    assert found.gpus == (Gpu("Orin", "8.7", 7990116352, "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"),)


def test_a_driver_that_does_not_start_says_why(driver):
    driver(WORKING.replace("INIT", "100"))
    found = probe_cuda()
    assert found.gpus == () and "CUDA_ERROR_NO_DEVICE" in found.problem


def test_a_driver_that_crashes_takes_only_the_child_down(driver):
    driver(CRASHING)
    assert "crashed with SIGSEGV" in probe_cuda().problem


def test_a_machine_is_asked_whatever_it_is():
    found = probe_cuda()
    assert bool(found.gpus) != bool(found.problem)
