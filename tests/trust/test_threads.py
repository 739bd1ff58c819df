"""Many hands at once, and the same again and again."""

from __future__ import annotations

import gc
import os
import threading

import numpy as np
import pytest

import edgemm
from edgemm.runtimes.backend.cuda_memory import Shared


def test_what_a_device_sees_is_asked_while_others_change_it():
    shared, wrong, over = Shared(), [], threading.Event()
    array = np.zeros(8)
    shared.add(array.ctypes.data, array.nbytes)

    def change(first: int) -> None:
        turn = 0
        while not over.is_set():
            shared.add(first + turn % 1000, 1)
            shared.remove(first + (turn - 500) % 1000)
            turn += 1

    def ask() -> None:
        try:
            for _ in range(3000):
                assert shared.holds(array)
        except Exception as error:
            wrong.append(error)

    changing = [threading.Thread(target=change, args=(base,)) for base in (1, 10_000)]
    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in (*changing, *asking):
        thread.start()
    for thread in asking:
        thread.join()
    over.set()
    for thread in changing:
        thread.join()
    assert not wrong


def test_eight_threads_draw_and_write_as_one_does(sound):
    def use(model, seed):
        picture = model.generate_image("a heart", seed=seed, num_inference_steps=2).image.pixels
        return picture, model.generate_text("hi", max_new_tokens=4).text

    with edgemm.load(sound, device="cpu", threads=1) as model:
        alone = [use(model, seed) for seed in range(8)]
    found: dict[int, tuple[np.ndarray, str]] = {}
    with edgemm.load(sound, device="cpu", threads=1) as model:
        threads = [threading.Thread(target=lambda s=seed: found.update({s: use(model, s)})) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed, (picture, text) in enumerate(alone):
        np.testing.assert_array_equal(found[seed][0], picture)
        assert found[seed][1] == text


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_load_and_close_again_and_again_takes_no_more_memory(sound, request):
    gc.collect()
    gc.freeze()  # else what earlier tests left is searched 500 times: seconds each, in a process that ran them all
    request.addfinalizer(gc.unfreeze)

    def resident() -> int:
        gc.collect()
        with open("/proc/self/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1])

    sizes = []
    for _ in range(500):
        with edgemm.load(sound, device="cpu", threads=1) as model:
            model.generate_image("a heart", num_inference_steps=1)
        sizes.append(resident())
    assert sizes[-1] <= 1.05 * sizes[100], (sizes[100], sizes[-1])
