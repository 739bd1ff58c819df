"""Flow matching by hand, and the same loop as the thin runtime's."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from edgemm.model import flow
from edgemm.model.config import SamplerConfig
from edgemm.runtimes import schedule as runtime


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_noised_tokens_lie_on_the_line_from_noise_to_picture():
    tokens, noise = torch.full((3, 1, 1), 10.0), torch.full((3, 1, 1), 2.0)
    assert flow.noised(tokens, noise, torch.tensor([0.0, 0.25, 1.0])).flatten().tolist() == [2.0, 4.0, 10.0]


@pytest.mark.parametrize(("time", "expected"), [(0.0, 1.0), (0.5, 4.0), (0.75, 16.0), (0.9, 25.0), (0.99, 25.0)])
def test_an_error_of_one_costs_one_over_the_time_left_squared_down_to_the_floor(time, expected):
    loss = flow.velocity_loss(torch.zeros(1, 2, 3), torch.ones(1, 2, 3), torch.tensor([time]), floor=0.2)
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_the_loss_is_the_mean_square_of_the_velocitys_error():
    tokens, noise, prediction = random(4, 3, 5), random(4, 3, 5, seed=1), random(4, 3, 5, seed=2)
    time = torch.tensor([0.1, 0.4, 0.6, 0.8])
    t = time[:, None, None]
    velocity = (prediction - flow.noised(tokens, noise, time)) / (1 - t)
    expected = (velocity - (tokens - noise)).square().mean(dim=(1, 2))
    torch.testing.assert_close(flow.velocity_loss(prediction, tokens, time, floor=0.1), expected, rtol=1e-5, atol=1e-6)


def test_times_are_logit_normal():
    times = flow.logit_normal_times(torch.tensor([-1.0, 0.0, 1.0]), mean=-0.8, spread=2.0)
    torch.testing.assert_close(times.logit(), torch.tensor([-2.8, -0.8, 1.2]))


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_the_schedule_is_the_runtimes(shift):
    assert flow.schedule(7, shift) == runtime.times(7, shift)
    assert flow.schedule(7, shift)[0] == 0.0
    assert flow.schedule(7, shift)[-1] == 1.0


@pytest.mark.parametrize("sampler", [SamplerConfig(1), SamplerConfig(6, 3.0, (0.2, 0.7), 2.0), SamplerConfig(5, 1.0)])
def test_sampling_walks_the_runtimes_steps(sampler):
    def right(x, t, size):
        return x * 0.5 + t[:, None, None] + 3 * size[:, None, None]

    def free(x, t, size):
        return x * -0.25 + size[:, None, None]

    x = noise = random(2, 3, 4)
    times = runtime.times(sampler.num_inference_steps, sampler.shift)
    for now, later in pairwise(times):
        size = torch.full((2,), later - now)
        clean = right(x, torch.full((2,), now), size)
        if runtime.is_guided(now, sampler.guidance_scale, sampler.guidance_interval):
            clean = runtime.guide(clean, free(x, None, size), sampler.guidance_scale)
        x = runtime.step(x, clean, now, later)
    torch.testing.assert_close(flow.sample(right, free, noise, sampler), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("scale", "interval", "calls"), [(1.0, (0.0, 1.0), 0), (2.0, (0.0, 1.0), 4), (2.0, (0.25, 0.5), 2)]
)
def test_without_guidance_the_unconditional_prompt_costs_nothing(scale, interval, calls):
    asked = []

    def free(x, t, size):
        asked.append(t[0].item())
        return x

    flow.sample(lambda x, t, size: x, free, random(1, 2, 3), SamplerConfig(4, scale, interval))
    assert len(asked) == calls


def test_the_last_step_returns_what_the_network_expects():
    clean = random(1, 2, 3)
    assert torch.equal(
        flow.sample(lambda x, t, size: clean, lambda x, t, size: clean, random(1, 2, 3, seed=1), SamplerConfig(3)),
        clean,
    )
