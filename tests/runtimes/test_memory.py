"""A memory limit: what fits is computed from the manifest, told, and kept."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys

import numpy as np
import pytest

import edgemm
from edgemm.device.machine import resident_bytes
from edgemm.errors import ResourceError, UsageError
from edgemm.runtimes.cache_budget import COPIES, WORK_BYTES, plan_memory
from tests.runtimes.tiny_weights import TINY

SLOT = 2 * TINY.layers * TINY.kv_heads * TINY.head_width * 4  # keys and values, float32


def weights_bytes(path):
    return sum(file.stat().st_size for file in (path / "components").rglob("*.onnx*"))


def limit_mb(path, slots):
    return (weights_bytes(path) + WORK_BYTES + slots * SLOT) / 1e6


def test_the_plan_is_what_the_files_and_the_cache_take(bundle_path, model):
    plan = plan_memory(model.manifest, "cpu")
    assert (plan.weights_bytes, plan.slot_bytes, plan.cache_slots) == (weights_bytes(bundle_path), SLOT, None)
    assert model.memory == plan and "no limit" in str(plan)


def test_a_reply_ends_with_length_where_the_memory_does(bundle_path):
    with edgemm.load(bundle_path, device="cpu", threads=1, memory_limit_mb=limit_mb(bundle_path, 300)) as model:
        assert model.memory.cache_slots == 300
        assert "leaves room for 300 tokens" in str(model.memory)
        result = model.generate_text("hello", max_new_tokens=1000)
        assert result.finish_reason == "length"
        assert result.metrics.prompt_tokens + result.metrics.new_tokens == 257  # one block, not two
        gc.collect()
        assert model._engines.budget.taken_bytes == 0
        with pytest.raises(ResourceError, match="the memory limit leaves"):
            model.generate_text("x" * 400)


def test_sessions_share_the_limit_and_give_back_what_they_had(bundle_path):
    with edgemm.load(bundle_path, device="cpu", threads=1, memory_limit_mb=limit_mb(bundle_path, 520)) as model:
        chats = [model.session() for _ in range(3)]
        for chat in chats[:2]:
            chat.generate_text("hello", max_new_tokens=2)
        with pytest.raises(ResourceError, match="close other sessions"):
            chats[2].generate_text("hello")
        chats[0].close()
        gc.collect()
        assert chats[2].generate_text("hello", max_new_tokens=2).finish_reason == "length"
        del chats, chat
        gc.collect()
        assert model._engines.budget.taken_bytes == 0


FREED = """
import numpy as np
from edgemm.device.machine import give_back_memory, resident_bytes
blocks = [np.ones(5_000) for _ in range(4_000)]  # 160 MB
before = resident_bytes()
del blocks[:-1:2]
freed = resident_bytes()
give_back_memory()
print(before - freed, freed - resident_bytes())
"""


def test_a_limit_that_does_not_hold_the_weights_is_refused_before_anything_is_loaded(bundle_path):
    with pytest.raises(ResourceError, match=r"memory_limit_mb is 1, this bundle needs at least \d+: "):
        edgemm.load(bundle_path, device="cpu", memory_limit_mb=1)
    with pytest.raises(UsageError, match="memory_limit_mb is 0, expected above 0"):
        edgemm.load(bundle_path, device="cpu", memory_limit_mb=0)


def test_what_is_released_is_nobodys(model):
    """A session goes on from where it stood; the run that is needed for it counts nowhere."""
    with model.session() as kept, model.session() as other:
        for chat in (kept, other):
            chat.generate_text("hello", max_new_tokens=4)
        model.release_memory()
        found = kept.generate_text("and then?", max_new_tokens=6)
        assert found.token_ids == other.generate_text("and then?", max_new_tokens=6).token_ids


def test_freed_memory_goes_back_to_the_system():
    """Blocks below the allocator's threshold stay with it, when only every second one is freed and the last is not.

    In a process of its own: in one that has run for long, blocks come to lie in the holes of earlier ones.
    """
    if platform.libc_ver()[0] != "glibc" or resident_bytes() is None:
        pytest.skip("no glibc, which alone keeps what was freed")
    ran = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    kept, given_back = map(int, ran.stdout.split())
    assert kept < 20e6 and given_back > 60e6, "of 80 MB: with the allocator, and with the system"


def test_a_closed_model_releases_nothing(bundle_path):
    model = edgemm.load(bundle_path, device="cpu", threads=1)
    model.close()
    with pytest.raises(UsageError, match="closed"):
        model.release_memory()


@pytest.fixture
def narrow_mb(model):
    """What holds the largest component, and not all."""
    plan = plan_memory(model.manifest, "cpu")
    assert plan.largest_bytes < plan.weights_bytes
    return (plan.largest_bytes + WORK_BYTES + 300 * SLOT) / 1e6


def answers(model):
    picture = np.full((16, 16, 3), 90, np.uint8)
    said = model.generate_text("what is it?", images=[picture], max_new_tokens=4, ignore_eos=True)
    drawn = model.generate_image("a red heart", num_inference_steps=2, seed=3, preview=True)
    return said.token_ids, drawn.pixels.tobytes()


def test_components_that_take_turns_say_and_draw_the_same(bundle_path, model, narrow_mb):
    with edgemm.load(bundle_path, device="cpu", threads=1, memory_limit_mb=narrow_mb) as narrow:
        assert narrow.memory.in_turns and "in turns" in str(narrow.memory)
        turns = narrow._engines.turns
        assert [answers(narrow) for _ in range(2)] == [answers(model)] * 2
        assert set(turns._sizes) == set(narrow._engines.components), "every one ran"
        narrow.release_memory()
        assert not turns._open
        assert answers(narrow) == answers(model)


def test_what_ran_longest_ago_is_closed_for_what_does_not_fit_beside_it(bundle_path, narrow_mb):
    with edgemm.load(bundle_path, device="cpu", threads=1, memory_limit_mb=narrow_mb) as narrow:
        turns = narrow._engines.turns
        opened = []
        for taker in map(narrow._engines.get, narrow._engines.components):
            open_engine = taker.open_engine
            taker.open_engine = lambda o=open_engine, c=taker.component: (opened.append((c, sorted(turns._open))), o())[
                1
            ]
        answers(narrow)
        assert all(not others for _, others in opened), "what has not run yet is opened alone"
        size = narrow.memory.limit_bytes  # too large for any other beside it
        opened.clear()
        turns._sizes["denoiser"] = size
        narrow.generate_image("a red heart", num_inference_steps=3, seed=3)
        assert ("denoiser", []) in opened and len(opened) == len(dict(opened)), "opened once, for all steps"


def test_a_limit_below_the_largest_component_is_refused(bundle_path, narrow_mb):
    with pytest.raises(ResourceError, match="of the largest component's weights"):
        edgemm.load(bundle_path, device="cpu", memory_limit_mb=narrow_mb - 300 * SLOT / 1e6)


def test_a_limit_that_holds_the_files_and_not_what_kernels_make_of_them_is_kept(bundle_path, model):
    """ONNX Runtime's own copies go beyond the files: then, too, what ran longest ago is closed."""
    with edgemm.load(bundle_path, device="cpu", threads=1, memory_limit_mb=limit_mb(bundle_path, 300)) as near:
        turns = near._engines.turns
        assert near.memory.in_turns and near.memory.cache_slots == 300
        assert answers(near) == answers(model)
        turns._sizes = dict.fromkeys(turns._sizes, 1)  # as if each took nothing
        assert answers(near) == answers(model)
        assert set(turns._open) == set(turns._sizes), "what fits stays open"
        turns._sizes = dict.fromkeys(turns._sizes, near.memory.limit_bytes)  # as if each had copied itself often
        assert answers(near) == answers(model)
        assert len(turns._open) == 1
    far_mb = (COPIES * weights_bytes(bundle_path) + WORK_BYTES) / 1e6 + 1
    with edgemm.load(bundle_path, device="cpu", threads=1, memory_limit_mb=far_mb) as far:
        assert not far.memory.in_turns
