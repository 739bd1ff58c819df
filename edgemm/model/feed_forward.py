"""What follows attention in a layer: one network for all tokens, or experts among which a learned router chooses.

    FeedForward    SwiGLU (arXiv:2002.05202)
    Mixture        token choice: a token goes to its `top` likeliest experts (arXiv:2101.03961, arXiv:2401.04088); one
                   expert's weight is its probability, else the router would get no gradient, several share one
    ExpertChoice   an expert takes the n k / E tokens that want it most (arXiv:2202.09368): of one picture, so nothing
                   depends on its neighbours in a batch; only where all tokens are there at once, in the denoiser

While a module is trained it computes each expert on its own tokens; in a traced graph all shapes are static: a token
choice multiplies by every expert, E / k times the work, and an expert's choice is a product with one-hot rows.
Axes: b batch, s or n tokens, t = b s, w width, h hidden numbers of an expert, e experts, k experts a token, c tokens an
expert takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgemm.model.config import MixtureConfig

__all__ = ["ExpertChoice", "FeedForward", "Mixture", "Routed", "feed_forward", "watching"]

ROWS = 64  # an expert's rows come in multiples of so many: a processor makes a program for each new shape of a product
BALANCE, Z = 0.01, 1e-3  # weights of the losses: Switch's, and ST-MoE's (arXiv:2202.08906)


class FeedForward(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, pictured: Tensor | None = None) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def feed_forward(width: int, hidden: int, mixture: MixtureConfig | None) -> FeedForward | Mixture:
    """The transformer's, as its config has it."""
    return FeedForward(width, hidden) if mixture is None else Mixture(width, mixture)


@dataclass
class Routed:
    """What routers did while they were watched."""

    losses: dict[int, list[tuple[int, Tensor]]] = field(default_factory=dict)  # router -> tokens; balance and z
    counts: dict[int, Tensor] = field(default_factory=dict)  # layer -> (2, e): words and picture tokens an expert got

    def loss(self) -> Tensor | float:
        """Of all routers together, each the mean of its calls by their tokens; 0 where there was none."""
        return sum((_mean_of(calls) for calls in self.losses.values()), start=0.0)

    def measures(self) -> dict[str, float]:
        """The fullest expert over the mean, experts that got nothing, and bits that an expert tells of whether a token
        is a picture's (1 where both are as many and go apart)."""
        if not self.counts:
            return {}
        tables = [table.double() for table in self.counts.values()]
        loads = [table.sum(0) for table in tables]
        return {
            "expert_load": max((load.max() / load.mean()).item() for load in loads),
            "dead_experts": float(sum((load == 0).sum().item() for load in loads)),
            "modality_bits": sum(map(_information, tables)) / len(tables),
        }


def _mean_of(calls: list[tuple[int, Tensor]]) -> Tensor:
    return torch.stack([tokens * loss for tokens, loss in calls]).sum() / sum(tokens for tokens, _ in calls)


def _information(table: Tensor) -> float:
    """Mutual information of rows and columns, in bits."""
    joint = table / table.sum()
    apart = joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True)
    return torch.where(joint > 0, joint * (joint / apart).log2(), 0.0).sum().item()


@contextlib.contextmanager
def watching(model: nn.Module) -> Iterator[Routed]:
    """Every router of a model tells what it does until the end of the block."""
    routed = Routed()
    routers = [module for module in model.modules() if isinstance(module, Mixture)]
    for router in routers:
        router.watched = routed
    try:
        yield routed
    finally:
        for router in routers:
            router.watched = None


def _uniform(*shape: int) -> nn.Parameter:
    """As nn.Linear begins: weights (..., in, out), as products want them, by their inputs."""
    bound = shape[-2] ** -0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class Mixture(nn.Module):
    def __init__(self, width: int, config: MixtureConfig) -> None:
        super().__init__()
        self.config = config
        self.router = _uniform(width, config.experts)
        self.gate_up_proj = _uniform(config.experts, width, 2 * config.width)
        self.down_proj = _uniform(config.experts, config.width, width)
        self.shared = FeedForward(width, config.shared) if config.shared else None
        self.watched: Routed | None = None

    def forward(self, x: Tensor, pictured: Tensor | None = None) -> Tensor:
        """x (b, s, w), `pictured` (b, s) true for tokens of pictures -> (b, s, w)."""
        logits = self._logits(x, pictured)
        chosen, weights = self.route(logits)
        if self.watched is not None:
            self._note(logits, chosen, pictured)
        mixed = self._static if torch.compiler.is_exporting() else self._each_alone
        y = mixed(x.flatten(0, 1), chosen, weights).unflatten(0, x.shape[:2])
        return y if self.shared is None else y + self.shared(x)

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """logits (t, e) -> the experts of each token, likeliest first, and their weights, (t, k) each."""
        weights, chosen = logits.softmax(-1).topk(self.config.top, dim=-1)
        return chosen, weights if self.config.top == 1 else weights / weights.sum(-1, keepdim=True)

    def _logits(self, x: Tensor, pictured: Tensor | None) -> Tensor:
        """(t, e) float32; where the halves are for words and pictures the other half's are -inf."""
        logits = (x.flatten(0, 1) @ self.router).float()
        if not self.config.by_modality:
            return logits
        if pictured is None:
            pictured = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        theirs = torch.arange(self.config.experts, device=x.device) >= self.config.experts // 2
        return logits.masked_fill(theirs != pictured.flatten()[:, None], float("-inf"))

    def _each_alone(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Every expert on its own tokens, gathered and put back once for all of them."""
        order = chosen.flatten().argsort(stable=True)  # (t k), the first expert's come first
        counts = chosen.flatten().bincount(minlength=self.config.experts).tolist()
        tokens = order // self.config.top
        said = []
        for rows, gate_up, down in zip(x[tokens].split(counts), self.gate_up_proj, self.down_proj, strict=True):
            rows = nn.functional.pad(rows, (0, 0, 0, -len(rows) % ROWS))
            gate, up = (rows @ gate_up).chunk(2, dim=-1)
            said.append((nn.functional.silu(gate) * up) @ down)
        mine = torch.cat([rows[:count] for rows, count in zip(said, counts, strict=True)])
        weighed = mine * weights.flatten()[order, None]
        return torch.zeros_like(x).index_add(0, tokens, weighed.to(x.dtype))

    def _static(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Every expert on all tokens, weighed by zero where it was not chosen."""
        ours = chosen[..., None] == torch.arange(self.config.experts, device=x.device)  # (t, k, e)
        shares = (ours * weights[..., None]).sum(1)  # (t, e)
        gate, up = (x[None] @ self.gate_up_proj).chunk(2, dim=-1)  # (e, t, h) each
        said = (nn.functional.silu(gate) * up * shares.T[..., None]) @ self.down_proj  # (e, t, w)
        return said.sum(0)

    def _note(self, logits: Tensor, chosen: Tensor, pictured: Tensor | None) -> None:
        """Losses and counts; where the halves are apart each is balanced within itself."""
        assert self.watched is not None
        seen = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        seen = seen if pictured is None else pictured.flatten()
        onehot = nn.functional.one_hot(chosen, self.config.experts).sum(1).float()  # (t, e)
        both = torch.stack([onehot[~seen].sum(0), onehot[seen].sum(0)])
        self.watched.counts[id(self)] = self.watched.counts.get(id(self), 0) + both.detach()
        probabilities, group = logits.softmax(-1), self.config.experts
        groups = [slice(None)]
        if self.config.by_modality:
            groups = [rows for rows in (~seen, seen) if rows.any()]
            group //= 2
        balance = torch.stack(
            [(onehot[rows].mean(0) / self.config.top * probabilities[rows].mean(0)).sum() * group for rows in groups]
        ).mean()
        loss = BALANCE * balance + Z * logits.logsumexp(-1).square().mean()
        self.watched.losses.setdefault(id(self), []).append((len(logits), loss))


class ExpertChoice(nn.Module):
    def __init__(self, width: int, config: MixtureConfig) -> None:
        super().__init__()
        self.config = config
        self.router = _uniform(width, config.experts)
        self.up_proj = _uniform(config.experts, width, config.width)
        self.down_proj = _uniform(config.experts, config.width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (b, n, w) -> (b, n, w); a token that no expert took gets zero."""
        n, config = x.shape[1], self.config
        scores = (x @ self.router).float().softmax(-1).transpose(1, 2)  # (b, e, n)
        weights, taken = scores.topk(max(1, n * config.top // config.experts), dim=-1)  # (b, e, c)
        onehot = (taken[..., None] == torch.arange(n, device=x.device)).to(x.dtype)  # (b, e, c, n)
        rows = onehot @ x[:, None]  # (b, e, c, w)
        hidden = nn.functional.gelu(rows @ self.up_proj, approximate="tanh")
        said = (hidden @ self.down_proj) * weights[..., None].to(x.dtype)
        return (onehot.transpose(2, 3) @ said.to(x.dtype)).sum(1)
