"""A cheap start for reading: pull each picture's image tokens towards the embedding of its name.

Before the transformer is run once, the projection learns that the mean of a picture's tokens should point where the
mean of its label's token embeddings points, against all other labels (a contrastive loss as in arXiv:2103.00020, over
fixed targets).  Minutes instead of hours: image tokens start as soft words that the transformer nearly understands.
Axes: c labels, v views, m image tokens, f features, w transformer width.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from edgemm.model.unified import Unified

__all__ = ["align_projection", "label_directions"]

BATCH = 128
RATE = 1e-3
FEATURE_NOISE = 0.1  # of the features' spread: another artist's hand
START_SCALE = 20.0  # of the cosine, learned


def label_directions(model: Unified, labels: Sequence[str]) -> Tensor:
    """Unit vectors (c, w): the mean embedding of each label's tokens, less the mean of all labels."""
    table = model.transformer.embed_tokens.weight.detach()
    means = torch.stack([table[model.encode(" " + label)].mean(0) for label in labels])
    return nn.functional.normalize(means - means.mean(0), dim=-1)


def align_projection(model: Unified, features: Tensor, labels: Sequence[str], steps: int, seed: int) -> float:
    """Train the image encoder's projection on features (pictures, v, m, f) and one label a picture; last loss."""
    known = sorted(set(labels))
    directions = label_directions(model, known)
    targets = torch.tensor([known.index(label) for label in labels])
    centre = model.transformer.embed_tokens.weight.detach().mean(0)
    scale = nn.Parameter(torch.tensor(START_SCALE).log())
    trained = [p for name, p in model.image_encoder.named_parameters() if not name.startswith("encoder.")]
    optimizer = torch.optim.AdamW(
        [{"params": trained, "weight_decay": 0.05}, {"params": [scale], "weight_decay": 0.0}], lr=RATE, fused=True
    )
    random = torch.Generator().manual_seed(seed)
    loss = torch.zeros(())
    for step in tqdm(range(steps), "align", unit="step", file=sys.stderr, mininterval=1.0, disable=None):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * (1 - step / steps)
        rows = torch.randint(len(features), (BATCH,), generator=random)
        views = torch.randint(features.shape[1], (BATCH,), generator=random)
        picked = features[rows, views].float()
        picked += FEATURE_NOISE * picked.std() * torch.randn(picked.shape, generator=random)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = model.image_encoder.project(picked)
        pooled = nn.functional.normalize(tokens.float().mean(1) - centre, dim=-1)  # (batch, w)
        loss = nn.functional.cross_entropy(pooled @ directions.T * scale.exp(), targets[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()
