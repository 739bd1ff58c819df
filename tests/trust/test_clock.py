"""A clock that jumps: time limits, waits and rates go by one that does not."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AGES = {"prepacked.py"}  # of files, which know no other clock: a jump costs a cache's entry
SHOWN = {
    "responses.py",
    "drawing.py",
    "chat.py",
    "registry.py",
}  # of serve/: when something was made, as clients want it

# The wall clock jumps a day back or forth at every look, in this process and its children (as libfaketime does).
JUMPS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static long turn;
static long jump(void) { return (++turn % 2 ? 1 : -1) * 86400 * (turn % 7); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += jump();
    return code;
}
time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *restrict to, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    to->tv_sec = now.tv_sec, to->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""
USED = """
import sys, time, edgemm
looks = [time.time() for _ in range(8)]
assert max(looks) - min(looks) > 80_000, "the clock does not jump"
with edgemm.load(sys.argv[1], device="cpu", threads=1) as model:
    whole = model.generate_text("hi", max_new_tokens=8, ignore_eos=True, timeout_s=600)
    assert whole.finish_reason == "length", whole.finish_reason
    assert 0 < whole.metrics.time_to_first_token_ms < 600_000
    short = model.generate_text("hi", max_new_tokens=100, ignore_eos=True, timeout_s=1e-4)
    assert short.finish_reason not in ("length", "stop"), short.finish_reason
    assert model.generate_image("hi", num_inference_steps=2, timeout_s=600).image is not None
"""


def test_the_wall_clock_is_asked_only_for_what_is_shown():
    asked = [
        path.name
        for path in sorted((ROOT / "edgemm").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("time.time", "datetime.now", "datetime.datetime.now")
    ]
    assert set(asked) <= SHOWN | AGES, asked


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs LD_PRELOAD and a C compiler")
def test_limits_hold_and_nothing_ends_early_while_it_jumps_by_days(sound, tmp_path):
    (tmp_path / "jumps.c").write_text(JUMPS)
    library = tmp_path / "jumps.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "jumps.c", "-ldl"], check=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LD_PRELOAD": str(library),
        "EDGEMM_CACHE": str(tmp_path / "c"),
    }
    subprocess.run([sys.executable, "-c", USED, str(sound)], env=environment, check=True)
    words = ("verify", str(sound), "--no-parity", "--timeout", "600", "--max-memory", "4GiB")  # a watched process
    subprocess.run([sys.executable, "-m", "edgemm", *words], env=environment, check=True)
