"""VQGAN's terms: the judge's pull is weighed by gradients, each side learns from its own loss, runs go on."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from edgemm.errors import UsageError
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS
from edgemm.model.designs import variant
from edgemm.train.ranks import Share
from edgemm.train.run import train
from edgemm.train.tasks.tokenizer import Adversary, PerceptualDistance, SquareJudge, VqTask, adaptive_weight, hinge
from tests.train.conftest import read_log, recipe

QUICK = {"kind": "autoencode", "start": "micro", "batch": 4, "log_every": 1, "warmup": 1, "precision": "fp32"}
CODES = {"image_tokens": "vq", "objective": "ar"}


@pytest.fixture
def task_of(tmp_path, shapes):
    def make(share: Share | None = None, **changes) -> VqTask:
        asked = recipe("micro-shapes", tmp_path, data=shapes, **{**QUICK, **CODES, "steps": 9, **changes})
        model = checkpoint.build(variant(PRESETS["micro"](), image_tokens="vq", objective="ar"), seed=0)
        return VqTask(model.requires_grad_(False), asked, share)

    return make


def gradients(task: VqTask, step: int) -> dict[str, torch.Tensor]:
    named = dict(task.named_parameters())
    found = torch.autograd.grad(task.loss(step), list(named.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(named, found) if gradient is not None}


def pictures(sharp: bool, seed: int) -> torch.Tensor:
    """Noise of single pixels, or the same noise blurred: equal in the mean, unlike in every square."""
    noise = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return noise if sharp else nn.functional.avg_pool2d(noise, 5, stride=1, padding=2, count_include_pad=False)


def test_the_weight_makes_both_pull_alike_at_the_last_layer():
    """By hand, on a layer whose gradients are known: d/dW mean((Wx)^2) and d/dW mean(c Wx)."""
    x, weight = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([[0.5, -1.0]], requires_grad=True)
    y = x @ weight.T
    error, opposed = y.square().mean(), 4 * y.mean()
    by_hand = (2 * y * x).mean(0).norm() / ((4 * x).mean(0).norm() + 1e-4)
    assert adaptive_weight(error, opposed, weight).item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert not adaptive_weight(error, opposed, weight).requires_grad
    assert adaptive_weight(error, 1e-9 * opposed, weight) <= 1e4, (
        "a judge that says nothing is not listened to ever harder"
    )


def test_hinge_loss_is_the_papers():
    assert hinge(torch.tensor([2.0, 1.0]), torch.tensor([-1.0, -3.0])) == 0
    assert hinge(torch.tensor([0.0, -1.0]), torch.tensor([0.0, 1.0])) == pytest.approx(0.5 * (1.5 + 1.5))


def test_each_side_learns_from_its_own_loss_alone(task_of):
    plain, judged = task_of(), task_of(adversarial_weight=0.8)
    alone, both = gradients(plain, 1), gradients(judged, 1)
    own = {name: gradient for name, gradient in both.items() if name.startswith("judge.")}
    assert set(both) - set(own) == set(alone) and own
    pixels = judged.batch_of(1)
    judge = judged.adversary.judge
    latents = judged.vq.latents(pixels)
    drawn = judged.vq.render(nn.functional.embedding(judged.vq.nearest(latents), judged.vq.entries()))
    wanted = torch.autograd.grad(hinge(judge(pixels), judge(drawn.detach())), list(judge.parameters()))
    for (name, found), gradient in zip(own.items(), wanted, strict=True):
        torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-4, msg=name)
    name = f"up.{len(judged.vq.up) - 1}.weight"
    added = both[name] - alone[name]
    error = plain.error(drawn, pixels, step=1)
    (pull,) = torch.autograd.grad(error, judged._last.weight)
    assert added.norm().item() == pytest.approx(0.8 * pull.norm().item(), rel=0.02), "as hard as the error, times 0.8"
    assert (both["down.0.weight"] - alone["down.0.weight"]).norm() > 0, "it reaches the encoder"


def test_before_it_is_heard_the_judge_learns_and_has_no_say(task_of):
    plain, waiting = task_of(), task_of(adversarial_weight=0.8, adversarial_start=3)
    alone, before, after = gradients(plain, 2), gradients(waiting, 2), gradients(waiting, 3)
    assert all(torch.equal(before[name], gradient) for name, gradient in alone.items())
    assert any(before[name].any() for name in before if name.startswith("judge."))
    assert any(not torch.equal(after[name], gradient) for name, gradient in gradients(plain, 3).items())


def test_a_judge_learns_to_tell_blurred_from_sharp():
    torch.manual_seed(0)
    adversary = Adversary(1.0)
    optimizer = torch.optim.AdamW(adversary.judge.parameters(), lr=2e-3)
    for step in range(30):
        loss = hinge(adversary.judge(pictures(True, step)), adversary.judge(pictures(False, step)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert adversary.told_apart(pictures(True, 99), pictures(False, 99)) > 0.95
    assert adversary.told_apart(pictures(True, 99), pictures(True, 99)) == pytest.approx(0.5), (
        "it cannot tell equal ones"
    )


def test_a_score_is_about_22_pixels():
    judge, pixels = SquareJudge(), torch.rand(1, 3, 64, 64, requires_grad=True)
    scores = judge.layers[5](judge.layers[4](judge.layers[2](judge.layers[1](judge.layers[0](pixels)))))  # no norm
    scores[0, 0, 7, 7].backward()
    seen = pixels.grad.abs().sum((0, 1)).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [22, 22]


def test_the_eye_sees_blur_where_pixels_see_brightness():
    distance, real = PerceptualDistance(), pictures(True, 1)
    blurred = pictures(False, 1).requires_grad_()
    brighter = real + 0.35
    assert distance(real, real) == 0
    assert (blurred - real).square().mean() < (brighter - real).square().mean()
    assert distance(blurred, real) > 2 * distance(brighter, real)
    distance(blurred, real).backward()
    assert blurred.grad.abs().sum() > 0 and not any(p.requires_grad for p in distance.parameters())


def test_a_stopped_run_goes_on_with_the_judge_it_had(tmp_path, shapes):
    changes = {**QUICK, **CODES, "data": shapes, "decay": 0, "perceptual_weight": 1, "adversarial_weight": 0.8}
    whole = recipe("micro-shapes", tmp_path / "whole", **changes, steps=4, adversarial_start=1)
    train(whole)
    stopped = dataclasses.replace(whole, output=str(tmp_path / "stopped"))
    train(dataclasses.replace(stopped, steps=2))
    train(stopped)
    logs = [read_log(tmp_path / name) for name in ("whole", "stopped")]
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]
    assert all(0 <= line["told_apart"] <= 1 for line in logs[0])
    assert checkpoint.load(tmp_path / "whole" / "checkpoint").vq is not None, (
        "and the judge stays out of the checkpoint"
    )


def test_several_processes_are_refused(task_of):
    with pytest.raises(UsageError, match="adversarial_weight is for one process"):
        task_of(Share(0, 2), adversarial_weight=0.8)
