"""On-policy distillation: answers that are the student's own, judged word by word."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from edgemm.errors import UsageError
from edgemm.model import checkpoint
from edgemm.model.prompts import stop_ids
from edgemm.train.distill import StudentTask, distill
from edgemm.train.tasks.distill import DistillRead, jensen_shannon, own_answers
from tests.train.conftest import read_log
from tests.train.test_distill import settings


@pytest.fixture(scope="module")
def run(teacher, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "own"
    changes = {"student": "nano", "parts": "transformer", "transformer_layers": 5, "on_policy": 1.0, "replies": 4}
    distill(settings(teacher, output, **changes, steps=30, learning_rate=3e-3, decay=0, reply_tokens=4))
    return output


@pytest.fixture(scope="module")
def task(teacher, run) -> DistillRead:
    recipe = settings(
        teacher, run, student="nano", parts="transformer", transformer_layers=5, replies=4, reply_tokens=4, on_policy=1
    )
    models = [checkpoint.load(folder, merge=False).requires_grad_(False) for folder in (run / "start", teacher)]
    task = StudentTask(models[0], models[1], dataclasses.replace(recipe, lora_first_layer=4)).reading
    assert isinstance(task, DistillRead)
    return task


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_is_the_mean_of_both_kl_to_the_middle(temperature):
    ours, theirs = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)) * 3
    p, q = (Categorical(logits=logits / temperature) for logits in (ours, theirs))
    middle = Categorical(probs=(p.probs + q.probs) / 2)
    wanted = ((kl_divergence(p, middle) + kl_divergence(q, middle)) / 2).mean() * temperature**2
    torch.testing.assert_close(jensen_shannon(ours, theirs, temperature), wanted)
    torch.testing.assert_close(jensen_shannon(theirs, ours, temperature), wanted)


def test_the_divergence_is_nothing_between_equals_and_ln_2_between_strangers():
    one, other = torch.tensor([[90.0, 0.0]]), torch.tensor([[0.0, 90.0]])
    assert jensen_shannon(one, one, 1.0).item() == 0
    assert jensen_shannon(one, other, 1.0).item() == pytest.approx(math.log(2))


def test_the_student_answers_as_its_own_words_are_likely(task):
    """At a temperature near nothing the sample is the greedy answer of the model's own generation."""
    features, prompts, _ = task.asked(0)
    sharp = checkpoint.load(Path(task.recipe.output) / "start")
    norm = sharp.transformer.norm.weight
    norm.data.mul_(1e4)
    said = own_answers(task, sharp, features, prompts, 3, seed=1)
    stops = set(stop_ids(sharp.config, sharp.tokenizer))
    for row, answer in enumerate(said):
        hidden, targets, _ = task.answered(sharp, features[row : row + 1], prompts[row : row + 1], [answer])
        assert targets.tolist() == answer == sharp.transformer.logits(hidden).argmax(-1).tolist()
        assert len(answer) == 3 or answer[-1] in stops


def test_the_same_seed_says_the_same_and_another_seed_does_not(task):
    features, prompts, _ = task.asked(0)
    first, again, other = (own_answers(task, task.model, features, prompts, 4, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_student_that_answers_by_itself_comes_nearer(run):
    """From where it says more than one word over and over: at birth it is sure of that and has little to be judged."""
    losses = [line["loss"] for line in read_log(run)]
    assert sum(losses[-8:]) < 0.9 * sum(losses[4:12])


def test_a_share_beyond_one_is_refused(teacher, tmp_path):
    with pytest.raises(UsageError, match=r"on_policy is 1\.5, expected 0 to 1"):
        settings(teacher, tmp_path, student="nano", on_policy=1.5)
