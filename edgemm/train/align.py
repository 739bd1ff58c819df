"""A cheap start for reading: image tokens that the transformer nearly understands before it was run once.

The grid's tokens are pulled towards the embedding of the picture's name: their mean should point where the mean of its
label's token embeddings points, against all other labels (a contrastive loss as in arXiv:2103.00020, over fixed
targets).  Visual words, where the model has them, are the labels themselves, spelled with the transformer's embeddings;
telling them apart is plain classification.  Minutes instead of hours.
Axes: c labels, v views, m squares of the grid, f features, w transformer width.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from edgemm.errors import InputError
from edgemm.model.unified import Unified
from edgemm.model.visual_words import LENGTH, NEVER, VisualWords

__all__ = ["align_projection", "label_directions", "learn_words", "spell_words"]

BATCH = 128
RATE = 1e-3
FEATURE_NOISE = 0.1  # of the features' spread: another artist's hand
START_SCALE = 20.0  # of the cosine, learned
SMOOTHING = 0.05  # of the labels to point at
WORD_SMOOTHING = 0.1  # of the words to tell apart: a few thousand pictures are soon known by heart


def label_directions(model: Unified, labels: Sequence[str]) -> Tensor:
    """Unit vectors (c, w): the mean embedding of each label's tokens, less the mean of all labels."""
    table = model.transformer.embed_tokens.weight.detach()
    means = torch.stack([table[model.encode(" " + label)].mean(0) for label in labels])
    return nn.functional.normalize(means - means.mean(0), dim=-1)


def align_projection(model: Unified, features: Tensor, labels: Sequence[str], steps: int, seed: int) -> float:
    """Train the projection of the grid on features (pictures, v, m, f) and one label a picture; last loss."""
    known = sorted(set(labels))
    directions = label_directions(model, known)
    targets = torch.tensor([known.index(label) for label in labels])
    device = directions.device
    centre = model.transformer.embed_tokens.weight.detach().mean(0)
    scale = nn.Parameter(torch.tensor(START_SCALE, device=device).log())
    taught = [p for name, p in model.image_encoder.named_parameters() if not name.startswith(("encoder.", "words."))]

    def loss(rows: Tensor, picked: Tensor) -> Tensor:
        picked = picked + FEATURE_NOISE * picked.std() * torch.randn(picked.shape, generator=random)
        tokens = model.image_encoder.project_grid(picked.to(device))
        pooled = nn.functional.normalize(tokens.float().mean(1) - centre, dim=-1)  # (batch, w)
        return nn.functional.cross_entropy(
            pooled @ directions.T * scale.exp(), targets[rows].to(device), label_smoothing=SMOOTHING
        )

    random = torch.Generator().manual_seed(seed)
    groups = [{"params": taught, "weight_decay": 0.05}, {"params": [scale], "weight_decay": 0.0}]
    return _descend("align", groups, features, loss, steps, random)


def spell_words(model: Unified, labels: Iterable[str]) -> list[str]:
    """Give the model's visual words the labels as meanings, the commonest first; the labels that became words.

    Raises InputError when the model has fewer words, or fewer letters, than there are labels or tokens in them.
    """
    words = _words(model)
    known = [label for label, _ in sorted(Counter(labels).items(), key=lambda item: (-item[1], item[0]))]
    blank = model.encode(model.config.chat.image_close)[:1]
    slots = words.spelling.shape[1]
    spelled = [(model.encode(" " + label)[:slots] + blank * slots)[:slots] for label in known]
    letters = sorted({token for ids in spelled for token in ids})
    room = len(words.letters)
    if max(len(known), len(letters)) > room:
        raise InputError(f"{len(known)} labels of {len(letters)} tokens do not fit vision words {room}; raise it")
    row_of = {token: row for row, token in enumerate(letters)}
    with torch.no_grad():
        words.letters[: len(letters)] = model.transformer.embed_tokens.weight[letters]
        words.spelling[: len(known)] = torch.tensor([[row_of[token] for token in ids] for ids in spelled])
        words.proj.bias[len(known) :] = NEVER
    return known


def learn_words(model: Unified, features: Tensor, labels: Sequence[str], steps: int, seed: int) -> float:
    """Spell the visual words and teach them on features (pictures, v, m, f), one label a picture; last loss."""
    words = _words(model)
    known = spell_words(model, labels)
    targets = torch.tensor([known.index(label) for label in labels])
    device = words.centre.device
    seen = words.seen(features[:, 0].float())
    words.centre.copy_(seen.mean(0))
    words.spread.copy_(seen.std(0) + 0.01 * seen.std())  # what hardly differs between pictures is not blown up
    noise = FEATURE_NOISE * LENGTH / seen.shape[1] ** 0.5
    random = torch.Generator().manual_seed(seed)

    def loss(rows: Tensor, picked: Tensor) -> Tensor:
        standard = words.standard(picked.to(device))
        strayed = standard + noise * torch.randn(standard.shape, generator=random).to(device)
        logits = words.proj(strayed)[:, : len(known)]
        return nn.functional.cross_entropy(logits, targets[rows].to(device), label_smoothing=WORD_SMOOTHING)

    groups = [{"params": list(words.parameters()), "weight_decay": 0.05}]
    last = _descend("words", groups, features, loss, steps, random)
    with torch.no_grad():
        words.proj.bias[len(known) :] = NEVER
    return last


def _descend(
    what: str,
    groups: list[dict],
    features: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    random: torch.Generator,
) -> float:
    """AdamW with a linear decay over random views of random pictures."""
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    loss = torch.zeros(())
    for step in tqdm(range(steps), what, unit="step", file=sys.stderr, mininterval=1.0, disable=None):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * (1 - step / steps)
        rows = torch.randint(len(features), (BATCH,), generator=random)
        views = torch.randint(features.shape[1], (BATCH,), generator=random)
        loss = loss_of(rows, features[rows, views].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()  # or the first step of training would add these gradients to its own
    return loss.item()


def _words(model: Unified) -> VisualWords:
    if model.image_encoder.words is None:
        raise InputError("this model has no visual words: its vision config says words 0")
    return model.image_encoder.words
