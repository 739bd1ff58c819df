"""The loop itself on a task of two numbers: logging, saving, going on, and stopping with a reason."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn

from edgemm.errors import EdgemmError, InputError, ResourceError
from edgemm.train import loop
from edgemm.train.loop import run_loop
from edgemm.train.recipe import DrawRecipe, ReadRecipe, Recipe
from tests.heard import hearing
from tests.train.conftest import read_log


class TwoNumbers:
    """Pull two parameters to a target that depends on the step alone."""

    description = "two numbers"

    def __init__(self, spoil=None, stop_at: int | None = None) -> None:
        self.first = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.second = nn.Parameter(torch.tensor([[3.0]]))
        self.constant = torch.tensor([0.5])
        self.spoil, self.stop_at = spoil, stop_at
        self.saved: list[list[float]] = []
        self.prepared = 0

    def named_parameters(self):
        yield from (("first", self.first), ("second", self.second))

    def named_buffers(self):
        yield "constant", self.constant

    def prepare(self):
        self.prepared += 1

    def loss(self, step):
        if step == self.stop_at:
            raise KeyboardInterrupt
        if self.spoil:
            self.spoil(self, step)
        target = torch.tensor(float(step % 3)) * self.constant
        return (self.first - target).square().sum() + (self.second + target).square().sum()

    def measures(self, step):
        return {"size": self.second.item()}

    def samples(self, model):
        return None

    def save(self, path: Path) -> None:
        self.saved.append(self.first.tolist())
        path.mkdir(exist_ok=True)


def settings(folder: Path, kind=DrawRecipe, **changes) -> Recipe:
    values = {
        "data": "",
        "output": str(folder),
        "steps": 12,
        "precision": "fp32",
        "learning_rate": 0.1,
        "warmup": 2,
        "ema": 0.8,
        "log_every": 1,
        "save_every": 4,
        "sample_every": 6,
    }
    return kind(**{**values, **changes})


def run(task: TwoNumbers, recipe: Recipe) -> TwoNumbers:
    run_loop(None, task, recipe)  # type: ignore[arg-type] - only Task.samples looks at the model
    return task


def compared(folder: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "seconds_a_step"} for line in read_log(folder)]


def test_a_line_says_step_loss_gradient_and_rate(tmp_path):
    run(TwoNumbers(), settings(tmp_path, steps=2))
    first, second = read_log(tmp_path)
    # Step 0 pulls to 0: loss 1 + 4 + 9; gradients 2, 4 and 6; half of the rate in the first of two warm-up steps.
    assert (first["step"], first["loss"], first["rate"]) == (1, 14.0, 0.5)
    assert first["gradient_norm"] == pytest.approx((4 + 16 + 36) ** 0.5, rel=1e-5)
    # AdamW's first step is the rate, 0.05, against each gradient's sign; the matrix decays by 0.05 * 0.01 too.
    assert second["loss"] == pytest.approx(0.45**2 + 1.45**2 + 3.4485**2, rel=1e-4)
    assert second["step"] == 2
    assert first["seconds_a_step"] > 0
    assert "size" in first


def test_what_is_saved_is_the_average_and_training_goes_on_with_the_parameters(tmp_path):
    task = run(TwoNumbers(), settings(tmp_path))
    one = run(TwoNumbers(), settings(tmp_path / "unsampled", sample_every=100))
    assert len(task.saved) == 2
    assert torch.equal(task.first, one.first)  # the samples in between changed nothing
    assert task.saved[-1] != task.first.tolist()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["average"]["first"].tolist() == task.saved[-1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop_at", [1, 4, 7, 11])
def test_a_stopped_run_goes_on_with_the_same_losses(tmp_path, stop_at, optimizer):
    expected = run(TwoNumbers(), settings(tmp_path / "whole", optimizer=optimizer))
    recipe = settings(tmp_path / "stopped", optimizer=optimizer)
    with pytest.raises(KeyboardInterrupt):
        run(TwoNumbers(stop_at=stop_at), recipe)
    resumed = run(TwoNumbers(), recipe)
    assert compared(tmp_path / "stopped") == compared(tmp_path / "whole")
    assert torch.equal(resumed.first, expected.first)
    assert resumed.saved[-1] == expected.saved[-1]


def test_who_waits_hears_step_loss_and_seconds_a_step_and_where_a_resumed_run_begins(tmp_path):
    with hearing() as heard, pytest.raises(KeyboardInterrupt):
        run(TwoNumbers(stop_at=7), settings(tmp_path))
    (bar,) = heard.bars
    told = read_log(tmp_path)[-1]
    assert (bar.what, bar.done, bar.total, bar.unit) == ("training", 7, 12, "steps")
    assert bar.note == f"loss {told['loss']:.4f}, {told['seconds_a_step']:.3g} s/step"
    assert heard.lines == [] and not heard.open and heard.statuses[-1] == "", "nothing is left on a terminal"

    with hearing() as heard:
        run(TwoNumbers(), settings(tmp_path))
    assert heard.bars[0].done == 12
    resumed, last = heard.lines
    assert resumed == "resuming at step 4 of 12" and last == f"step 12 of 12: {heard.bars[0].note}"


def test_a_task_prepares_itself_for_a_new_run_only(tmp_path):
    assert run(TwoNumbers(), settings(tmp_path, steps=4)).prepared == 1
    assert run(TwoNumbers(), settings(tmp_path)).prepared == 0


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(TwoNumbers(stop_at=7), settings(tmp_path))
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{"step": 8, "lo')
    run(TwoNumbers(), settings(tmp_path))
    assert [line["step"] for line in read_log(tmp_path)] == list(range(1, 13))


@pytest.mark.parametrize("text", ["my diary\nof training\n", '{"step": 1}\n{"epoch": 2}\n{"step": 3}\n', "[1]\n2\n"])
def test_a_log_that_no_run_wrote_is_left_alone(tmp_path, text):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"log.jsonl: line \d is no run's, so it will not be written over"):
        run(TwoNumbers(), settings(tmp_path))
    assert (tmp_path / "log.jsonl").read_text() == text


def test_without_a_state_the_log_starts_again(tmp_path):
    run(TwoNumbers(), settings(tmp_path, steps=3))
    (tmp_path / "state.pt").unlink()
    run(TwoNumbers(), settings(tmp_path, steps=3))
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]


def test_a_run_stopped_while_it_wrote_its_result_writes_it_when_run_again(tmp_path):
    expected = run(TwoNumbers(), settings(tmp_path)).saved[-1]
    shutil.rmtree(tmp_path / "checkpoint")
    again = run(TwoNumbers(), settings(tmp_path))
    assert again.saved == [expected]
    assert (tmp_path / "checkpoint").is_dir()


def test_a_resume_keeps_what_was_computed_from_the_data(tmp_path):
    run(TwoNumbers(), settings(tmp_path, steps=4))
    elsewhere = TwoNumbers()
    elsewhere.constant += 1e-3  # another machine's rounding
    run(elsewhere, settings(tmp_path, steps=5))
    assert elsewhere.constant.item() == 0.5


def test_a_state_says_what_all_processes_took_up_to_it(tmp_path, monkeypatch):
    def core_s(task, began, *saved):
        clock = iter((began, *saved))  # of the process: as the loop begins, and at each state
        monkeypatch.setattr(loop.time, "process_time", lambda: next(clock))
        with contextlib.suppress(KeyboardInterrupt):
            run(task, settings(tmp_path))
        return torch.load(tmp_path / "state.pt", weights_only=True)["core_s"]

    assert core_s(TwoNumbers(stop_at=7), 10.0, 13.0) == 3.0  # what came after step 4 is lost, and done again
    assert core_s(TwoNumbers(), 100.0, 101.0, 102.5) == 5.5


def test_a_resume_takes_the_recipes_rate(tmp_path):
    run(TwoNumbers(), settings(tmp_path, steps=4))
    before = torch.load(tmp_path / "state.pt", weights_only=True)["parameters"]["first"]
    task = run(TwoNumbers(), settings(tmp_path, steps=8, learning_rate=0.0))
    assert torch.equal(task.first, before)


def poison_second(task, step):
    if step == 4:
        task.second.register_hook(lambda gradient: gradient * float("nan"))


def overflow_first(task, step):
    if step == 4:
        task.first.data.fill_(1e30)


@pytest.mark.parametrize(
    ("spoil", "found", "name"),
    [(poison_second, "the gradient's norm nan", "second"), (overflow_first, "the loss is inf", "the sum")],
)
def test_what_is_not_finite_stops_the_run_with_step_and_parameter(tmp_path, spoil, found, name):
    with pytest.raises(EdgemmError) as stop:
        run(TwoNumbers(spoil), settings(tmp_path))
    assert str(stop.value).startswith("step 5: ")  # counted from 1, as in the log
    assert found in str(stop.value)
    assert f"first not finite: {name};" in str(stop.value)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 4
    assert all(parameter.isfinite().all() for parameter in state["parameters"].values())


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is always full")
def test_a_full_disk_is_told_as_one_and_the_old_state_kept(tmp_path, monkeypatch):
    write = torch.save

    def save(state, path):
        if state["step"] == 4:
            return write(state, path)
        path.write_bytes(b"the first part")
        return write(state, "/dev/full")  # the library's own error, which carries no errno

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(loop.torch, "save", save)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(
        ResourceError, match="disk full at step 8: needs 48 bytes, 10 are free; the last state was kept"
    ) as stop:
        run(TwoNumbers(), settings(tmp_path))
    assert stop.value.exit_code == 5
    monkeypatch.undo()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4
    assert not list(tmp_path.glob("*.tmp"))
    run(TwoNumbers(), settings(tmp_path))  # with room again it goes on
    assert [line["step"] for line in read_log(tmp_path)] == list(range(1, 13))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is always full")
def test_a_log_that_cannot_grow_is_told_with_its_step(tmp_path):
    def fill_the_disk(task, step):
        full = os.open("/dev/full", os.O_WRONLY)
        for handle in Path("/proc/self/fd").iterdir():
            if os.path.realpath(handle) == os.path.realpath(tmp_path / "log.jsonl"):
                os.dup2(full, int(handle.name))
        os.close(full)

    with pytest.raises(ResourceError, match=r"log.jsonl: disk full at step 1: needs \d+ bytes, \d+ are free"):
        run(TwoNumbers(fill_the_disk), settings(tmp_path))


def too_much(task, step):
    if step == 4:
        torch.empty(2**50, dtype=torch.uint8)  # what the operating system refuses


def test_out_of_memory_is_told_with_its_numbers_and_the_old_state_kept(tmp_path):
    message = r"out of memory on cpu at step 5: batch 64 asked for 1073741824 MiB, \d+ of \d+ MiB are free; lower batch"
    with pytest.raises(ResourceError, match=message) as stop:
        run(TwoNumbers(too_much), settings(tmp_path))
    assert stop.value.exit_code == 5
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4
    run(TwoNumbers(), settings(tmp_path))  # with room again it goes on
    assert [line["step"] for line in read_log(tmp_path)] == list(range(1, 13))


@pytest.mark.parametrize(
    ("changes", "damage", "message"),
    [
        ({}, lambda f: f.write_bytes(f.read_bytes()[:200]), "cannot be read"),
        ({}, lambda f: torch.save({"weights": 1}, f), "belongs to another run"),
        ({}, lambda f: torch.save([1, 2], f), "belongs to another run"),
        ({"kind": ReadRecipe}, None, "belongs to another run"),
        ({"optimizer": "muon"}, None, "was made with another optimizer"),
        ({"steps": 2}, None, "is at step 4, the recipe ends at 2"),
    ],
)
def test_a_state_that_does_not_belong_here_is_refused_and_kept(tmp_path, changes, damage, message):
    class Blocks(TwoNumbers):  # muon takes matrices of blocks
        def named_parameters(self):
            yield from (("a.blocks.first", self.first), ("a.blocks.second", self.second))

    run(Blocks(), settings(tmp_path, steps=4))
    if damage:
        damage(tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(InputError, match=message) as refusal:
        run(Blocks(), settings(tmp_path, **changes))
    assert "state.pt" in str(refusal.value)
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_resume_tells_what_the_recipe_says_otherwise_than_before(tmp_path):
    def lines(**changes) -> list[str]:
        with hearing() as heard:
            run(TwoNumbers(), settings(tmp_path / "run", **changes))
        return [line for line in heard.lines if "another recipe" in line]

    data = tmp_path / "data"
    data.mkdir()
    (data / "samples.jsonl").write_text("one")
    assert lines(steps=4, data=str(data), groups=("a", "b")) == []
    assert lines(steps=8, data=str(data), groups=("a", "b"), log_every=2, threads=0) == []
    (told,) = lines(steps=12, data=str(data), batch=32, seed=3)
    assert "batch was 64, is 32" in told and "seed was 0, is 3" in told and "groups was ('a', 'b'), is ()" in told
    assert "learning_rate" not in told and "nothing new" not in told
    (data / "samples.jsonl").write_text("two")
    (told,) = lines(steps=12, data=str(data), batch=32, seed=3)
    assert f"{data} was made again since" in told and told.endswith("its steps are done, so nothing new is learned")


def test_a_state_from_before_recipes_were_kept_goes_on_without_a_word(tmp_path):
    run(TwoNumbers(), settings(tmp_path, steps=4))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save({key: value for key, value in state.items() if key != "recipe"}, tmp_path / "state.pt")
    with hearing() as heard:
        run(TwoNumbers(), settings(tmp_path, steps=8, batch=32))
    assert heard.lines[0] == "resuming at step 4 of 8" and "another recipe" not in " ".join(heard.lines)


def test_a_state_of_another_shape_is_refused_by_the_parameters_name(tmp_path):
    run(TwoNumbers(), settings(tmp_path, steps=4))
    other = TwoNumbers()
    other.second = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(InputError, match="second has another shape"):
        run(other, settings(tmp_path))


def test_the_log_is_one_json_object_a_line(tmp_path):
    run(TwoNumbers(), settings(tmp_path, log_every=5))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10, 12]
