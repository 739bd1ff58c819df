"""Many processes train as one: two on the CPU (gloo) against a single one, started by Accelerate's own launcher."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgemm.errors import InputError, UsageError
from edgemm.train.ranks import Ranks, Share
from edgemm.train.run import train
from tests.train.conftest import EMOJI, ROOT, read_log, recipe

CHANGES = {"steps": 6, "batch": 8, "log_every": 1, "save_every": 3, "sample_every": 100, "precision": "fp32"}


def launch(name: str, output: Path, launcher: tuple[str, ...] = (), **changes) -> subprocess.CompletedProcess[str]:
    """Two processes of `edgemm train`."""
    words = [f"{key}={value}" for key, value in {**CHANGES, "threads": 1, "output": output, **changes}.items()]
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--num_processes", "2", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *(launcher or ("--multi_gpu",)),
        *("-m", "edgemm", "train", "--config", str(ROOT / "recipes" / f"{name}.toml")),
        *(word for change in words for word in ("--set", change)),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)


def test_shares_are_disjoint_and_make_the_whole_batch():
    rows = list(range(12))
    assert [rows[Share(rank, 3).of(12)] for rank in range(3)] == [rows[:4], rows[4:8], rows[8:]]
    with pytest.raises(UsageError, match="batch is 12, expected a multiple of the 5 processes"):
        Share(0, 5).of(12)


def same(one: Path, two: Path) -> None:
    """The logs and weights of two runs, but for sums of floats in another order."""
    expected, found = read_log(one), read_log(two)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for key in ("loss", "gradient_norm"):
        assert [line[key] for line in found] == pytest.approx([line[key] for line in expected], rel=2e-3), key
    for file in ("model.safetensors", "transformer_adapter/adapter_model.safetensors"):
        if (one / "checkpoint" / file).exists():
            weights = load_file(two / "checkpoint" / file)
            for name, tensor in load_file(one / "checkpoint" / file).items():
                torch.testing.assert_close(weights[name].float(), tensor.float(), atol=2e-3, rtol=2e-2, msg=name)


def test_two_processes_draw_with_the_losses_and_weights_of_one(tmp_path, shapes):
    train(recipe("micro-shapes", tmp_path / "one", data=shapes, **CHANGES))
    ran = launch("micro-shapes", tmp_path / "two", data=shapes)
    assert ran.returncode == 0, ran.stderr
    same(tmp_path / "one", tmp_path / "two")
    assert ran.stdout.count("Wrote ") == 1  # the first process alone says so


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [("--multi_gpu",), ("--use_fsdp", "--fsdp_version", "2")], ids=["ddp", "fsdp"])
def test_two_processes_go_on_with_what_one_began_and_one_with_what_two_left(tmp_path, shapes, launcher):
    """1, 2, 2 and 1 processes, against one that is never stopped."""
    changes = {"data": shapes, "decay": 0}  # so that the number of steps does not change the rates
    train(recipe("micro-shapes", tmp_path / "one", **{**CHANGES, **changes}))
    train(recipe("micro-shapes", tmp_path / "two", **{**CHANGES, **changes, "steps": 1}))
    for steps in (2, 4):
        ran = launch("micro-shapes", tmp_path / "two", launcher, **changes, steps=steps)
        assert ran.returncode == 0, ran.stderr
    assert ("sharded" in ran.stderr) == ("--use_fsdp" in launcher)
    train(recipe("micro-shapes", tmp_path / "two", **{**CHANGES, **changes}))
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [("--multi_gpu",), ("--use_fsdp", "--fsdp_version", "2")], ids=["ddp", "fsdp"])
def test_two_processes_read_with_the_losses_and_weights_of_one(tmp_path, launcher):
    """Answers differ in length, so a mean of two means would not be the mean."""
    changes = {"data": EMOJI, "start": "micro", "align_steps": 2}
    train(recipe("micro-read", tmp_path / "one", **{**CHANGES, **changes}))
    ran = launch("micro-read", tmp_path / "two", launcher, **changes)
    assert ran.returncode == 0, ran.stderr
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_a_gpu_trains_with_the_losses_of_the_cpu(tmp_path, shapes, monkeypatch):
    train(recipe("micro-shapes", tmp_path / "gpu", data=shapes, **CHANGES))
    ran = launch("micro-shapes", tmp_path / "cpu", ("--cpu",), data=shapes)
    assert ran.returncode == 0, ran.stderr
    losses = [[line["loss"] for line in read_log(tmp_path / run)] for run in ("gpu", "cpu")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_processes_that_do_not_see_the_same_folder_are_refused(monkeypatch):
    ranks = Ranks()
    monkeypatch.setattr(ranks, "share", Share(1, 2))
    monkeypatch.setattr(ranks.accelerator, "gather", lambda mine: torch.tensor([400, *mine.tolist()]))
    with pytest.raises(InputError, match=r"state.pt: processes found it at steps \[400, 0\]; output must be a folder"):
        ranks.check_same(0, "state.pt")
    ranks.check_same(400, "state.pt")
