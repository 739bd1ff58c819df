"""`edgemm train` as a user has it: a run killed at any moment, started again, and its messages."""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import edgemm
from edgemm.cli.main import main
from edgemm.model import checkpoint
from edgemm.model.unified import Unified
from edgemm.train.run import train
from edgemm.verify.export_native import export_bundle
from tests.export.nano import nano, random_nano
from tests.train.conftest import ROOT, read_log, recipe

# `edgemm train`, ended by the kernel as by SIGKILL: so many seconds of work after it wrote line `moment` of its log.
KILLED = """
import signal, sys
from edgemm.cli.main import main
from edgemm.train import loop

moment, seconds, really = int(sys.argv[1]), float(sys.argv[2]), loop.refusing_full_disk

def counting(path, done, size):
    if done == moment + 1:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # of this process's own time, however busy the machine is
    return really(path, done, size)

loop.refusing_full_disk = counting
sys.exit(main(sys.argv[3:]))
"""

CHANGES = {"steps": 24, "batch": 8, "log_every": 1, "save_every": 3, "sample_every": 1000}


def command(output: Path, shapes: Path, **more) -> list[str]:
    changes = {**CHANGES, "threads": 1, "data": shapes, "output": output, **more}
    words = ["train", "--config", str(ROOT / "recipes" / "micro-shapes.toml")]
    return words + [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_log(folder)]


def test_a_run_killed_at_any_step_goes_on_with_the_same_losses_to_the_same_weights(tmp_path, shapes, capsys):
    train(recipe("micro-shapes", tmp_path / "whole", data=shapes, **CHANGES))
    chance = random.SystemRandom()
    moment, seconds = chance.randint(1, 12), chance.uniform(0.001, 0.1)
    words = command(tmp_path / "killed", shapes)
    log = tmp_path / "killed" / "log.jsonl"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(moment), str(seconds), *words], cwd=ROOT)
    assert killed.returncode == -signal.SIGPROF, f"it was over before step {moment}"
    assert moment <= len(log.read_text().splitlines()) < CHANGES["steps"]

    capsys.readouterr()
    assert main(words) == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole"), f"killed {seconds} s after {moment} lines"
    weights = [load_file(tmp_path / run / "checkpoint" / "model.safetensors") for run in ("killed", "whole")]
    assert all((weights[0][name] == tensor).all() for name, tensor in weights[1].items())

    result = tmp_path / "killed" / "checkpoint"
    assert capsys.readouterr().out == f"Wrote {result}; export it: edgemm export {result} --output killed.bundle\n"
    assert not list((tmp_path / "killed").glob("*.tmp"))


def test_a_second_run_in_one_folder_is_refused_in_one_line_while_the_first_lives(tmp_path, shapes, capsys):
    words = command(tmp_path / "run", shapes, steps=100_000)
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-m", "edgemm", *words], **quiet) as first:
        try:
            while not (tmp_path / "run" / "state.pt").exists():
                assert first.poll() is None
                time.sleep(0.1)
            second, err = main(words), capsys.readouterr().err
            said = [line for line in err.splitlines() if "error" in line]
            assert second == 3 and len(said) == 1 and "another run writes there now" in said[0], err
            assert first.poll() is None
            begun = len(read_log(tmp_path / "run"))
            while len(read_log(tmp_path / "run")) <= begun:  # undisturbed
                assert first.poll() is None
                time.sleep(0.1)
        finally:
            first.kill()
    words = command(tmp_path / "run", shapes, steps=len(read_log(tmp_path / "run")) + 1)
    assert main(words) == 0  # a dead process holds nothing


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("data=/nowhere", 3, "no dataset folder at /nowhere"),
        ("start=/nowhere", 3, "/nowhere: not a folder; a checkpoint is a folder with config.json"),
        ("splits=test", 3, "no picture is in splits ['test']"),
        ("learning_rate=1e30", 1, "first not finite"),
        ("stesp=1", 2, "stesp=1: kind draw has no stesp, it has: data, output"),
    ],
)
def test_what_cannot_work_is_one_line_and_an_exit_code(tmp_path, shapes, capsys, change, code, message):
    words = [*command(tmp_path / "run", shapes), "--set", "clip=1e30", "--set", "precision=fp32", "--set", change]
    assert main(words) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_micro_learns_its_vocabulary_from_the_datas_texts_and_its_bundle_has_it(tmp_path, shapes, capsys):
    small = {"steps": 2, "batch": 4, "save_every": 2, "train": '["transformer"]'}
    assert main(command(tmp_path / "run", shapes, **small, vocabulary=300)) == 0
    made = checkpoint.load(tmp_path / "run" / "checkpoint")
    assert 264 < len(made.tokenizer) <= 300 and len(made.tokenizer.encode("a red circle")) < 6
    assert made.transformer.embed_tokens.weight.shape[0] == len(made.tokenizer)
    # Its bundle, by a smaller model with that tokenizer, most of which other tests trace too.
    words = dataclasses.replace(nano().transformer, vocab_size=len(made.tokenizer))
    plain = random_nano(nano(transformer=words))
    few = Unified(plain.config, made.tokenizer_json).requires_grad_(False)
    few.load_state_dict(plain.state_dict())
    checkpoint.save(few, tmp_path / "few")
    export_bundle(tmp_path / "few", tmp_path / "few.bundle")
    with edgemm.load(tmp_path / "few.bundle", device="cpu", threads=1) as opened:
        said = opened.generate_text("What is a red circle?", max_new_tokens=6, ignore_eos=True)
    assert list(said.token_ids) == few.generate("What is a red circle?", None, 6, stop=False)[0]
    capsys.readouterr()
    assert main(command(tmp_path / "none", shapes, **small, vocabulary=20)) == 2
    assert "vocabulary is 20, expected 264 or more" in capsys.readouterr().err


def test_flags_stand_beside_set(tmp_path, shapes, capsys):
    words = ["train", "--config", str(ROOT / "recipes" / "micro-shapes.toml"), "--data", str(shapes), "--steps", "1"]
    words += ["--output", str(tmp_path / "run"), "--set", "batch=4", "--set", "threads=1", "--set", "steps=2"]
    assert main(words) == 0
    assert [line["step"] for line in read_log(tmp_path / "run")] == [2]


@pytest.mark.parametrize("verb", ["train", "distill"])
def test_a_recipe_for_another_verb_is_told_which(capsys, verb):
    assert main([verb, "--config", str(ROOT / "recipes" / "style-lora.toml")]) == 3
    assert "style-lora.toml is for `edgemm finetune`: its kind is finetune" in capsys.readouterr().err


def test_a_recipe_that_is_not_there_is_named(capsys):
    assert main(["train", "--config", "recipes/none.toml"]) == 3
    assert "recipes/none.toml" in capsys.readouterr().err
