"""The image expert: noisy image tokens and time in, the clean image tokens out, over a constant prefix.

A diffusion transformer with adaptive layer norm (arXiv:2212.09748) that shares only attention with the language model:
image queries attend to [the prompt's prefix ; the image's own keys], as in mixtures of transformers (arXiv:2411.04996).
Time and the pooled prompt enter through the norms only, so the prefix is the same at every step; a model for few steps
is also told the size of the step that its prediction is for (arXiv:2410.12557).
It predicts x, the clean picture, rather than noise or velocity (arXiv:2511.13720).
A clip is denoised as one picture of several frames, each of which sees all: sines of its number tell it apart.
Axes: b batch, n image tokens, p numbers a token, w width, h heads, d head width, t prefix slots, c conditioning.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgemm.model.conditioner import Prefix
from edgemm.model.config import MixtureConfig, ModelConfig
from edgemm.model.feed_forward import ExpertChoice
from edgemm.model.transformer import RMSNorm, attend

__all__ = ["Denoiser"]


def time_features(time: Tensor, width: int) -> Tensor:
    """Sines and cosines of 1000 * time (b) -> (b, width) (arXiv:2006.11239's embedding of a continuous time)."""
    rates = torch.exp(-math.log(10_000.0) * torch.arange(width // 2, device=time.device) / (width // 2))
    angles = 1000.0 * time.float()[:, None] * rates
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class Block(nn.Module):
    def __init__(
        self, width: int, heads: int, ffn_width: int, conditioning: int, mixture: MixtureConfig | None = None
    ) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = RMSNorm(self.head_width, eps=2**-23)
        self.key_norm = RMSNorm(self.head_width, eps=2**-23)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.norm_ffn = nn.LayerNorm(width, elementwise_affine=False)
        self.experts = None if mixture is None else ExpertChoice(width, mixture)
        if self.experts is None:
            self.up_proj = nn.Linear(width, ffn_width)
            self.down_proj = nn.Linear(ffn_width, width)
        self.modulation = nn.Linear(conditioning, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        b, n, _ = x.shape
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation(condition)[:, None].chunk(6, dim=-1)
        normed = self.norm_attention(x) * (1 + scale) + shift
        qkv = self.qkv_proj(normed).reshape(b, n, 3, self.heads, self.head_width)
        queries, own_keys, own_values = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (b, h, n, d) each
        joint_keys = torch.cat((keys.to(qkv.dtype), self.key_norm(own_keys)), dim=2)  # (b, h, t + n, d)
        joint_values = torch.cat((values.to(qkv.dtype), own_values), dim=2)
        attended = attend(self.query_norm(queries), joint_keys, joint_values, mask)
        x = x + gate * self.o_proj(attended.transpose(1, 2).reshape(b, n, -1))
        normed = self.norm_ffn(x) * (1 + ffn_scale) + ffn_shift
        if self.experts is not None:
            return x + ffn_gate * self.experts(normed)
        return x + ffn_gate * self.down_proj(nn.functional.gelu(self.up_proj(normed), approximate="tanh"))


class Denoiser(nn.Module):
    frame_waves: Tensor  # (frames, w)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        expert, tokens = config.denoiser, config.image_tokens
        self.embed = nn.Linear(tokens.token_width, expert.width)
        self.layout_proj = nn.Linear(expert.layout_width, expert.width, bias=False)
        self.position = nn.Parameter(torch.randn(tokens.cell_count, expert.width) * 0.02)
        self.frames = tokens.frames
        if tokens.frames > 1:
            waves = time_features(torch.arange(tokens.frames) / 1000, expert.width)  # (frames, w)
            self.register_buffer("frame_waves", waves, persistent=False)
            tells_apart = waves.std(dim=0) > 0.1  # the slow ones are a constant
            self.frame_scale = nn.Parameter(tells_apart.float())  # beside noise a whisper would not be heard
        self.time_width = 256
        self.time_mlp = nn.Sequential(
            nn.Linear(self.time_width, expert.conditioning),
            nn.SiLU(),
            nn.Linear(expert.conditioning, expert.conditioning),
        )
        self.step_mlp: nn.Sequential | None = None
        if expert.step_size:
            last = nn.Linear(expert.conditioning, expert.conditioning)
            nn.init.zeros_(last.weight)  # at birth any step is predicted for as one of no size
            nn.init.zeros_(last.bias)
            self.step_mlp = nn.Sequential(nn.Linear(self.time_width, expert.conditioning), nn.SiLU(), last)
        self.blocks = nn.ModuleList(
            Block(expert.width, expert.heads, expert.ffn_width, expert.conditioning, expert.mixture)
            for _ in range(expert.depth)
        )
        self.norm = nn.LayerNorm(expert.width, elementwise_affine=False)
        self.modulation = nn.Linear(expert.conditioning, 2 * expert.width)
        self.head = nn.Linear(expert.width, tokens.token_width)
        for layer in (self.modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, noisy_tokens: Tensor, time: Tensor, prefix: Prefix, step_size: Tensor | None = None) -> Tensor:
        """noisy_tokens (b, n, p) at time (b) in [0, 1), over the prefix -> the clean tokens (b, n, p) it expects.

        step_size (b) is how far the next step goes; a model without that input ignores it.
        """
        x = self.embed(noisy_tokens) + self.layout_proj(prefix.layout) + self._places()
        features = time_features(time, self.time_width).to(noisy_tokens.dtype)
        embedded = self.time_mlp(features)
        if self.step_mlp is not None:
            if step_size is None:
                raise ValueError("this denoiser has to be told the step size")
            embedded = embedded + self.step_mlp(time_features(step_size, self.time_width).to(noisy_tokens.dtype))
        condition = nn.functional.silu(embedded + prefix.prompt_vector)
        own = torch.ones(x.shape[0], x.shape[1], dtype=torch.bool, device=x.device)
        mask = torch.cat((prefix.mask, own), dim=1)[:, None, None]  # (b, 1, 1, t + n)
        for block, keys, values in zip(self.blocks, prefix.keys, prefix.values, strict=True):
            x = block(x, condition, keys, values, mask)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        return self.head(self.norm(x) * (1 + scale) + shift)

    def _places(self) -> Tensor:
        """What tells a place of a picture, or of every frame of a clip: (n, w)."""
        if self.frames == 1:
            return self.position
        frames = (self.frame_waves * self.frame_scale).to(self.position.dtype)  # (frames, w)
        return (self.position + frames[:, None]).flatten(0, 1)
