"""What runs once a prompt, between the transformer and the denoiser.

It turns the transformer's cached keys and values of the prompt into three things that stay constant over the denoising
steps: keys and values in the denoiser's own terms (a norm and a linear layer each, because random queries cannot read a
language model's raw keys), a pooled prompt vector (whitened over the training prompts, because the template is common
to all and would drown the rest), and a layout: a first guess at every image token, drawn from the pooled prompt alone,
of which each frame of a clip hears another part.
It knows cached tensors, never ids, time or pictures.
Axes: b batch, T cache slots, t = T - skip slots kept, g/h heads of transformer and denoiser, d head width, n image
tokens, l numbers of the layout, c conditioning, L prefix layers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgemm.model.config import ModelConfig
from edgemm.model.transformer import KeyValues, RMSNorm

__all__ = ["Conditioner", "Prefix", "pool_prompt"]


class Prefix(NamedTuple):
    """The prompt as the denoiser reads it, at every step the same."""

    keys: list[Tensor]  # a denoiser layer: (b, h, t, d)
    values: list[Tensor]  # a denoiser layer: (b, h, t, d)
    mask: Tensor  # (b, t) bool: slots in use
    prompt_vector: Tensor  # (b, c)
    layout: Tensor  # (b, n, l)

    def of(self, rows: Tensor) -> Prefix:
        """The same of some prompts, or of some more than once: rows (k) -> k prompts."""
        keys, values = ([tensor[rows] for tensor in side] for side in (self.keys, self.values))
        return Prefix(keys, values, self.mask[rows], self.prompt_vector[rows], self.layout[rows])


def pool_prompt(values: list[Tensor], prompt_mask: Tensor, used: Tensor) -> Tensor:
    """Means of the values (b, g, t, d) of every prefix layer, over the user's tokens and over all -> (b, 2*L*g*d).

    Only values: keys carry rotary phases, which say where a token stood, not what it was.
    """
    stacked = torch.cat([value.float().transpose(1, 2).flatten(2) for value in values], dim=-1)  # (b, t, L*g*d)
    pooled = []
    for mask in (prompt_mask.float(), used.float()):
        weights = mask / mask.sum(dim=1, keepdim=True).clamp(min=1)  # (b, t)
        pooled.append((weights[:, None] @ stacked)[:, 0])
    return torch.cat(pooled, dim=-1)


class Conditioner(nn.Module):
    whiten_mean: Tensor  # (2*L*g*d)
    whiten_matrix: Tensor  # (2*L*g*d, prompt_width)

    def __init__(self, config: ModelConfig, skip: int) -> None:
        super().__init__()
        expert, source = config.denoiser, config.transformer
        self.skip = skip  # tokens of the template's opening, the same for every prompt
        self.heads, self.head_width = expert.heads, expert.head_width
        self.cell_count = config.image_tokens.cell_count
        self.layout_width = expert.layout_width
        self.queries = source.queries  # of a connector
        raw, pooled = source.kv_heads * source.head_width, self.pooled_width(config)
        adapted = (
            () if config.experts == "dense" else expert.prefix_layers
        )  # dense layers read their own cache as it is
        self.key_norms = nn.ModuleList(RMSNorm(raw) for _ in adapted)
        self.value_norms = nn.ModuleList(RMSNorm(raw) for _ in adapted)
        self.key_projs = nn.ModuleList(nn.Linear(raw, expert.width, bias=False) for _ in adapted)
        self.value_projs = nn.ModuleList(nn.Linear(raw, expert.width, bias=False) for _ in adapted)
        self.register_buffer("whiten_mean", torch.zeros(pooled))
        self.register_buffer("whiten_matrix", torch.zeros(pooled, expert.prompt_width))
        self.prompt_mlp = nn.Sequential(
            nn.Linear(expert.prompt_width, 2 * expert.conditioning),
            nn.SiLU(),
            nn.Linear(2 * expert.conditioning, expert.conditioning),
        )
        self.layout_mlp = nn.Sequential(
            nn.Linear(expert.prompt_width, 2 * expert.conditioning),
            nn.SiLU(),
            nn.Linear(2 * expert.conditioning, self.cell_count * expert.layout_width),
        )
        self.frames = config.image_tokens.frames
        if self.frames > 1:
            self.frame_gate = nn.Parameter(1 + torch.randn(self.frames, 2 * expert.conditioning) / 2)

    @staticmethod
    def pooled_width(config: ModelConfig) -> int:
        """Numbers of a pooled prompt before whitening."""
        return 2 * config.denoiser.depth * config.transformer.kv_heads * config.transformer.head_width

    def pool(self, cached: KeyValues, prompt_mask: Tensor, prefix_length: Tensor) -> Tensor:
        """What the whitening is fitted to, from the arguments of `forward`."""
        used = torch.arange(self.skip, prompt_mask.shape[1], device=prompt_mask.device) < prefix_length[:, None]
        return pool_prompt([values[:, :, self.skip :] for _, values in cached], prompt_mask[:, self.skip :], used)

    @torch.no_grad()
    def fit_whitening(self, pooled: Tensor, follow: bool = False) -> None:
        """Set the whitening from pooled training prompts (count, 2*L*g*d): each feature scaled, then PCA-whitened.

        Directions with less than 1e-3 of the mean variance are damped, not blown up: they are noise for unseen prompts.
        `follow` is for prompts that change while they are learned from: of all whitenings, which differ by a turn, the
        one that leaves each prompt nearest to where it was (Procrustes), so that the denoiser still knows it.
        """
        pooled = pooled.float()  # as an autocast makes it, it may be bfloat16
        mean, spread = pooled.mean(0), pooled.std(0, correction=0)
        scale = torch.where(spread > 1e-6, 1 / spread, 0.0)  # what never varied says nothing
        _, singular, directions = torch.linalg.svd((pooled - mean) * scale, full_matrices=False)
        kept = min(self.whiten_matrix.shape[1], directions.shape[0])
        variance = singular**2 / len(pooled)
        gains = (variance[:kept] + 1e-3 * variance.mean()).clamp(min=1e-12).rsqrt()
        gains = torch.where(variance[:kept] > 1e-6 * variance[0], gains, 0.0)  # the last of few prompts: rounding alone
        matrix = torch.zeros_like(self.whiten_matrix)
        matrix[:, :kept] = directions[:kept].T * gains * scale[:, None]
        if follow:
            with torch.autocast(pooled.device.type, enabled=False):
                before, after = (pooled - self.whiten_mean) @ self.whiten_matrix, (pooled - mean) @ matrix
                left, _, right = torch.linalg.svd(after.T @ before)
                matrix = matrix @ (left @ right)
        self.whiten_mean.copy_(mean)
        self.whiten_matrix.copy_(matrix)

    def forward(self, cached: KeyValues, prompt_mask: Tensor, prefix_length: Tensor) -> Prefix:
        """Keys and values (b, g, T, d) of the prefix layers, prompt_mask (b, T) float, prefix_length (b) -> Prefix."""
        cached = [(keys[:, :, self.skip :], values[:, :, self.skip :]) for keys, values in cached]
        return self.adapt(cached, prompt_mask[:, self.skip :], prefix_length - self.skip)

    def adapt(self, cached: KeyValues, prompt_mask: Tensor, length: Tensor) -> Prefix:
        """The same after the opening tokens were dropped (the trainer caches only what is left)."""
        used = torch.arange(prompt_mask.shape[1], device=length.device) < length[:, None]  # (b, t)
        pooled = pool_prompt([values for _, values in cached], prompt_mask, used)
        return self.project(cached, pooled, used, prompt_mask.sum(1, keepdim=True) > 0)

    def project(self, cached: KeyValues, pooled: Tensor, used: Tensor, asked: Tensor) -> Prefix:
        """In the denoiser's own terms; `asked` (b, 1) is false for the empty prompt, which stands at the origin."""
        whitened = ((pooled - self.whiten_mean) @ self.whiten_matrix).to(self._dtype)
        whitened = whitened * asked
        layout = self._layout(whitened)
        if not self.key_projs:
            raw_keys, raw_values = ([pair[i] for pair in cached] for i in (0, 1))
            return Prefix(raw_keys, raw_values, used, self.prompt_mlp(whitened), layout)
        keys, values = [], []
        for index, (raw_keys, raw_values) in enumerate(cached):
            keys.append(self._split(self.key_projs[index](self.key_norms[index](self._join(raw_keys)))))
            values.append(self._split(self.value_projs[index](self.value_norms[index](self._join(raw_values)))))
        return Prefix(keys, values, used, self.prompt_mlp(whitened), layout)

    def _layout(self, whitened: Tensor) -> Tensor:
        """Of all frames, one after the other: (b, n, l)."""
        hidden = self.layout_mlp[:-1](whitened)
        if self.frames > 1:
            hidden = hidden[:, None] * self.frame_gate  # (b, frames, 2 c)
        guess = self.layout_mlp[-1](hidden).unflatten(-1, (self.cell_count, self.layout_width))
        return guess.flatten(1, 2) if self.frames > 1 else guess

    @property
    def _dtype(self) -> torch.dtype:
        return self.prompt_mlp[0].weight.dtype  # type: ignore[return-value]

    def _join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2).to(self._dtype)  # (b, t, g*d)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, self.head_width).transpose(1, 2)  # (b, h, t, d)
