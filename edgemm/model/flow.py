"""Flow matching with x-prediction: times, loss and the sampling loop, as pure functions.

Time runs from 0 (noise) to 1 (picture): x_t = t x + (1 - t) e (arXiv:2210.02747).  The network predicts x and is judged
by the velocity that follows from it, (x_hat - x_t) / (1 - t) (arXiv:2511.13720).
The thin runtime has the same loop on numpy; the exporter's parity check holds the two together.
Axes: b batch, n image tokens, p numbers a token.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from edgemm.model.config import SamplerConfig

__all__ = ["Predict", "logit_normal_times", "noised", "sample", "schedule", "velocity_loss"]

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # tokens (b, n, p), time (b), step size (b) -> clean tokens


def logit_normal_times(uniform_normal: Tensor, mean: float, spread: float) -> Tensor:
    """Times in (0, 1) from standard normal numbers (arXiv:2403.03206): a lower mean trains more on noisy pictures."""
    return torch.sigmoid(uniform_normal * spread + mean)


def noised(tokens: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t (b, n, p) at time (b)."""
    t = time[:, None, None]
    return t * tokens + (1 - t) * noise


def velocity_loss(prediction: Tensor, tokens: Tensor, time: Tensor, floor: float) -> Tensor:
    """Mean square of the velocity's error, a sample -> (b). `floor` bounds 1 - t, so near-clean times stay finite."""
    weight = (1 - time).clamp(min=floor) ** -2
    return (prediction.float() - tokens.float()).square().mean(dim=(1, 2)) * weight


def schedule(steps: int, shift: float) -> list[float]:
    """steps + 1 times from 0 to 1; shift > 1 spends more of them near the noise."""
    return [u / (u + shift * (1 - u)) for u in (k / steps for k in range(steps + 1))]


@torch.no_grad()
def sample(
    predict: Predict,
    predict_unconditional: Predict,
    noise: Tensor,
    sampler: SamplerConfig,
) -> Tensor:
    """Euler steps from noise (b, n, p) to tokens (b, n, p), with classifier-free guidance (arXiv:2207.12598) inside the
    interval (arXiv:2404.07724). Each predict returns the clean tokens it expects."""
    x = noise
    times = schedule(sampler.num_inference_steps, sampler.shift)
    low, high = sampler.guidance_interval
    for now, later in pairwise(times):
        t = torch.full((len(x),), now, dtype=torch.float32, device=x.device)
        size = torch.full_like(t, later - now)
        clean = predict(x, t, size).float()
        if sampler.guidance_scale != 1 and low <= now <= high:
            free = predict_unconditional(x, t, size).float()
            clean = free + sampler.guidance_scale * (clean - free)
        x = clean if later >= 1 else x + (later - now) / (1 - now) * (clean - x)
    return x
