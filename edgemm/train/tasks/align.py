"""A cheap start for reading: image tokens that the transformer nearly understands before it was run once.

The grid's tokens are pulled towards the embedding of the picture's name: their mean should point where the mean of its
label's token embeddings points, against all other labels (a contrastive loss as in arXiv:2103.00020, over fixed
targets).  Visual words, where the model has them, are the labels themselves, spelled with the transformer's embeddings;
telling them apart is plain classification.  Minutes instead of hours.
Axes: c labels, v views, m squares of the grid, f features, w transformer width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgemm import progress
from edgemm.bundle.beside import written_beside
from edgemm.data.format import Sample
from edgemm.errors import InputError
from edgemm.model.config import VisionConfig
from edgemm.model.unified import Unified
from edgemm.model.vision import LENGTH, NEVER, VisualWords
from edgemm.train.ranks import refusing_full_disk
from edgemm.train.recipe import Answering

__all__ = [
    "align_projection",
    "label_directions",
    "learn_words",
    "spell_words",
    "changed_view",
    "clip_features",
    "eye_features",
    "features_key",
    "kept_features",
    "may_be_mirrored",
]

BATCH = 128
RATE = 1e-3
FEATURE_NOISE = 0.1  # of the features' spread: another artist's hand
START_SCALE = 20.0  # of the cosine, learned
SMOOTHING = 0.05  # of the labels to point at
WORD_SMOOTHING = 0.1  # of the words to tell apart: a few thousand pictures are soon known by heart


def label_directions(model: Unified, labels: Sequence[str]) -> Tensor:
    """Unit vectors (c, w): the mean embedding of each label's tokens, less the mean of all labels."""
    table = model.transformer.embed_tokens.weight.detach()
    means = torch.stack([table[model.encode(" " + label, special=False)].mean(0) for label in labels])
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
    blank = model.encode(model.config.image_close)[:1]
    slots = words.spelling.shape[1]
    spelled = [(model.encode(" " + label, special=False)[:slots] + blank * slots)[:slots] for label in known]
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

    taught = list(words.requires_grad_(True).parameters())
    last = _descend("words", [{"params": taught, "weight_decay": 0.05}], features, loss, steps, random)
    words.requires_grad_(False)
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
    for step in progress.track(range(steps), steps, what, "steps"):
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


# What the frozen eye sees of each training picture and of changed views of it, computed once and kept on disk.
#
# A view is mirrored, turned, moved, scaled and tinted a little, so that another artist's hand looks less new.
# Axes: b pictures, S side in pixels, v views, m squares of the grid, f features.

CHUNK = 64
MIRROR_LIES_IN = ("symbols", "flags")  # groups whose pictures mean something else in a mirror
MIRROR_LIES_ABOUT = re.compile(r"left|right|clock|thirty")


def may_be_mirrored(sample: Sample) -> bool:
    """Whether the picture's label is true of its mirror image."""
    return sample.group not in MIRROR_LIES_IN and not MIRROR_LIES_ABOUT.search(sample.label)


@torch.no_grad()
def eye_features(model: Unified, pixels: Tensor, mirrored: Tensor, views: int, seed: int) -> Tensor:
    """Features (b, v, m, f), bfloat16, of pictures uint8 (b, 3, S, S): as they are, then views - 1 changed ones.

    mirrored (b) says which of them may be mirrored.
    """
    stacked, device = [], model.image_encoder.position.device
    for view in progress.track(range(views), views, "looking", "views"):
        random = torch.Generator().manual_seed(seed * 1000 + view)
        seen = []
        for chunk, may in zip(pixels.split(CHUNK), mirrored.split(CHUNK), strict=True):
            shown = chunk.float() / 255
            shown = changed_view(shown, may, random) if view else shown
            shown = shown.to(device, memory_format=torch.channels_last)  # convolutions take two thirds of the time
            seen.append(model.image_encoder.features(shown).bfloat16().cpu())
        stacked.append(torch.cat(seen))
    return torch.stack(stacked, dim=1)


@torch.no_grad()
def clip_features(model: Unified, clips: Tensor) -> Tensor:
    """Features (b, 1, m, f), bfloat16, of clips uint8 (b, frames, 3, S, S), frame after frame."""
    device, chunks = model.image_encoder.position.device, clips.split(CHUNK)
    seen = [
        model.clip_features(chunk.to(device).float() / 255).bfloat16().cpu()
        for chunk in progress.track(chunks, len(chunks), "looking", "chunks")
    ]
    return torch.cat(seen)[:, None]


def changed_view(pixels: Tensor, may_mirror: Tensor, random: torch.Generator) -> Tensor:
    """pixels (b, 3, S, S) in [0, 1], each mirrored (half of those that may), turned, scaled, moved, tinted on white."""
    b = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(b, *shape, generator=random) * (high - low) + low

    mirror = (torch.rand(b, generator=random) < 0.5) & may_mirror
    pixels = torch.where(mirror[:, None, None, None], pixels.flip(3), pixels)
    angle, scale = uniform(-0.25, 0.25), uniform(0.85, 1.25)
    cos, sin, shift = angle.cos() * scale, angle.sin() * scale, uniform(-0.12, 0.12, 2)
    matrix = torch.stack([torch.stack([cos, -sin, shift[:, 0]], -1), torch.stack([sin, cos, shift[:, 1]], -1)], 1)
    grid = nn.functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    moved = 1 + nn.functional.grid_sample(pixels - 1, grid, align_corners=False)  # white outside
    gain, lift = uniform(0.75, 1.25, 3, 1, 1), uniform(-0.05, 0.05, 3, 1, 1)
    tinted = 1 - (1 - moved) * gain + lift * (moved < 0.98)
    grey = tinted.mean(dim=1, keepdim=True)
    return (grey + (tinted - grey) * uniform(0.3, 1.4, 1, 1, 1)).clamp(0, 1)


def features_key(
    recipe: Answering, samples: Sequence[Sample], vision: VisionConfig, taught: Sequence[nn.Module] = ()
) -> str:
    """What the features depend on, a released eye's weights aside, as a hash; `taught` are eyes of one's own."""
    eye = {name: dataclasses.asdict(vision)[name] for name in ("encoder", "image_size", "stride", "blocks")}
    pictures = [hashlib.sha256(Path(recipe.data, sample.image).read_bytes()).hexdigest() for sample in samples]
    weights = [tensor.cpu().numpy().tobytes() for module in taught for tensor in module.state_dict().values()]
    document = [recipe.views, recipe.seed, eye, pictures, *(hashlib.sha256(weight).hexdigest() for weight in weights)]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def kept_features(path: Path, key: str, look: Callable[[], Tensor]) -> Tensor:
    """The features stored at `path` if they are those of `key`, else newly looked at and stored whole."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    try:
        with safe_open(path, "pt") as stored:
            if (stored.metadata() or {}).get("key") == key:
                return stored.get_tensor("features")
    except (OSError, SafetensorError):
        pass  # not there, or not whole: looked at again
    features = look()
    path.parent.mkdir(parents=True, exist_ok=True)
    with refusing_full_disk(path, None, features.nbytes), written_beside(path) as temporary:
        save_file({"features": features}, temporary, metadata={"key": key})
    return features
