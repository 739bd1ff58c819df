"""Teaching a model's own eye (`vision = "conv"`) before anything reads with it: which words a picture's caption has.
Of clips it is what reads motion, by each frame and what changed since the one before.

Words and pairs of neighbors ("green circle") are told from the mean and the largest of each number over the picture's
tokens, each for itself (arXiv:1511.02251, arXiv:1612.09161).  That needs neither a language model nor questions, so
half a minute of a core teaches a `micro` which color each shape has, which the cross-entropy of answers does not find
in six.  The projection learns along.  While it learns, every convolution is followed by a batch normalization
(arXiv:1502.03167), which is folded into it afterwards.
Axes: b batch, n pictures of a caption, S side in pixels, m squares of the grid, f features a square, w transformer
width, v words.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

from edgemm.errors import InputError, UsageError
from edgemm.model import checkpoint
from edgemm.model.unified import Unified
from edgemm.model.vision import ConvEye, ImageEncoder, moved
from edgemm.train.ranks import Share
from edgemm.train.recipe import EyeRecipe
from edgemm.train.samples import batch_rows, pick_samples, pictures_of

__all__ = ["EyeTask", "caption_words", "words_of"]

SEEN_OFTEN = 5  # pictures a word has to be said of
MOST_WORDS = 4096  # the commonest


class EyeTask:
    """What the loop trains; see train/loop.py for the interface."""

    def __init__(self, model: Unified, recipe: EyeRecipe, share: Share | None = None) -> None:
        self.model, self.recipe, self.share = model, recipe, share or Share()
        if self.share.count > 1:
            raise UsageError("recipe: an eye is taught by one process, for it is normalized by a whole batch")
        _, samples = pick_samples(recipe.data, recipe.splits, recipe.groups, recipe.pictures)
        self.frames, size = samples[0].frames, model.config.vision.image_size
        encoder = model.image_encoder if self.frames == 1 else model.motion_encoder
        if encoder is None:
            raise InputError(
                f"{recipe.data}: holds clips, and an eye is taught by still pictures; give those, or motion = '4'"
            )
        if not isinstance(encoder.encoder, ConvEye):
            raise InputError(f"{recipe.start}: its eye is {model.config.vision.encoder}; give vision = 'conv'")
        self.pixels = pictures_of(Path(recipe.data), samples, size, self.frames)
        said = [words_of(sample.captions[-1]) for sample in samples]  # the last tells most
        self.words = caption_words(said)
        if not self.words:
            raise InputError(f"{recipe.data}: no word is in {SEEN_OFTEN} captions; an eye is taught by captions' words")
        self.targets = torch.tensor([[word in one for word in self.words] for one in said], dtype=torch.uint8)
        self.learner = Learner(encoder, len(self.words)).to(model.device).requires_grad_(True).train()
        what = "pictures" if self.frames == 1 else "clips"
        self.description = f"{len(samples)} {what}, {len(self.words)} words"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The untaught convolutions, which the learner's replace, aside."""
        named = self.learner.named_parameters()
        return ((name, parameter) for name, parameter in named if not name.startswith("encoder.encoder."))

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self.learner.named_buffers()

    def prepare(self) -> None:
        """Nothing comes before the first step."""

    def loss(self, step: int) -> Tensor:
        logits, targets = self._told(step)
        return nn.functional.binary_cross_entropy_with_logits(logits.float(), targets)

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        """Share of the pictures all of whose words were told, and no other."""
        logits, targets = self._told(step)
        return {"all_words": ((logits > 0) == targets.bool()).all(1).float().mean().item()}

    def samples(self, model: Unified) -> None:
        return None

    def save(self, path: Path) -> None:
        self.learner.fold()
        checkpoint.save(self.model, path)  # float32: later stages learn from these very features

    def _told(self, step: int) -> tuple[Tensor, Tensor]:
        rows = batch_rows(len(self.pixels), self.recipe.batch, self.recipe.seed, step)
        shown = self.pixels[rows].to(self.model.device).float().div(255).unflatten(2, (self.frames, -1))
        shown = shown.transpose(1, 2)  # (b, frames, 3, S, S)
        if self.frames > 1:
            frames, before = shown[:, 1:].flatten(0, 1), shown[:, :-1].flatten(0, 1)
            shown = moved(frames, before).unflatten(0, (len(rows), -1))
        return self.learner(shown), self.targets[rows].to(self.model.device).float()


class Learner(nn.Module):
    """pixels (b, n, 3, S, S) in [0, 1], or what `moved` makes of them -> logits of the words (b, v), by an eye's
    convolutions with a normalization each, and the projection that the model reads with."""

    def __init__(self, encoder: ImageEncoder, words: int) -> None:
        super().__init__()
        self.encoder, eye = encoder, encoder.encoder
        assert isinstance(eye, ConvEye)
        shapes = [(c.in_channels, c.out_channels, c.stride[0]) for c in eye.layers if isinstance(c, nn.Conv2d)]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride, 1, bias=False) for a, b, stride in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _ in shapes)
        width = 2 * encoder.norm_out.normalized_shape[0]
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, words))

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.flatten(0, 1) * 2 - 1
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)).relu()
        tokens = self.encoder.project_grid(x.flatten(2).transpose(1, 2))  # (b * n, m, w)
        tokens = tokens.unflatten(0, pixels.shape[:2]).flatten(1, 2)  # (b, n * m, w)
        return self.head(torch.cat((tokens.mean(1), tokens.amax(1)), dim=1))

    @torch.no_grad()
    def fold(self) -> None:
        """The eye's convolutions then do what these do with their normalizations."""
        eye = self.encoder.encoder
        assert isinstance(eye, ConvEye)
        for layer, conv, norm in zip(eye.layers, self.convs, self.norms, strict=True):
            assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
            kernel, (mean, var) = conv.get_parameter("weight"), (norm.running_mean, norm.running_var)
            weight, bias = fuse_conv_bn_weights(kernel, None, mean, var, norm.eps, norm.weight, norm.bias)
            layer.get_parameter("weight").copy_(weight)
            layer.get_parameter("bias").copy_(bias)


def words_of(caption: str) -> set[str]:
    """Its words, and its pairs of neighbors: which color goes with which shape."""
    words = re.findall(r"\w+", caption.lower())
    return {*words, *(f"{first} {second}" for first, second in itertools.pairwise(words))}


def caption_words(said: Iterable[set[str]]) -> list[str]:
    """The words that captions share, commonest first: those of one picture alone teach nothing about others."""
    counts = Counter(word for one in said for word in one)
    shared = sorted((word for word in counts if counts[word] >= SEEN_OFTEN), key=lambda word: (-counts[word], word))
    return shared[:MOST_WORDS]
