"""`edgemm trim`: a checkpoint with fewer words, which goes on learning from a teacher that knows more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgemm.cli.main import main
from edgemm.data.format import read_dataset
from edgemm.model import checkpoint
from edgemm.train.distill import distill
from tests.model.tiny_words import SIZE, worded
from tests.train.conftest import EMOJI
from tests.train.test_distill import settings


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "whole"
    checkpoint.save(worded(2 * SIZE), folder, torch.bfloat16)
    return folder


def trim(*words: object) -> int:
    return main(["trim", *map(str, words)])


def test_the_verb_keeps_what_datasets_say(whole, tmp_path, capsys, shapes):
    """Every word of a caption and an answer stays as many tokens as it was."""
    assert trim(whole, "--vocabulary", 1600, "--output", tmp_path / "small", "--text", shapes) == 0
    model, small = checkpoint.load(whole), checkpoint.load(tmp_path / "small")
    assert (len(small.tokenizer), small.config.name) == (1600, "small")
    assert load_file(tmp_path / "small" / "model.safetensors")["denoiser.position"].dtype == torch.bfloat16
    dataset = read_dataset(shapes)
    said = [caption for sample in dataset.samples for caption in sample.captions] + [
        q.answer for q in dataset.questions
    ]
    assert all(len(small.encode(text)) == len(model.encode(text)) for text in said)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--vocabulary", 1600, "--text", "none"], 3, "none: no such file or dataset folder"),
        (["--vocabulary", 300], 2, "a vocabulary of 300 tokens: expected"),
    ],
)
def test_what_cannot_be_is_one_line(whole, tmp_path, capsys, flags, code, said):
    assert trim(whole, *flags, "--output", tmp_path / "small") == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_a_student_with_fewer_words_learns_from_a_teacher_with_more(whole, tmp_path):
    assert trim(whole, "--vocabulary", 1600, "--output", tmp_path / "small", "--text", EMOJI) == 0
    distill(settings(whole, tmp_path / "run", student=tmp_path / "small", parts="denoiser", steps=1, warmup=0))
    before, after = (checkpoint.load(folder) for folder in (tmp_path / "small", tmp_path / "run" / "checkpoint"))
    assert after.tokenizer_json == before.tokenizer_json
