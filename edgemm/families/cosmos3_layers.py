"""Cosmos3's generator and its autoencoder's decoder, around their published tensors, for one picture.

The generator is a second set of weights for every layer of the language tower: a picture's rows see one another and the
prompt's keys and values, which never see them.  A row stands at a time, a row and a column of the grid (multimodal
rotary embedding, arXiv:2409.12191); the prompt's time goes on a fixed margin before the picture's, which is 0 here.
The decoder is Wan 2.2's with one frame (wan_autoencoder.py says why that is a network in two dimensions).
Axes: b batch, n rows of a picture, T cache slots, t prefix slots, w width, d head width, z latent channels, h rows and
v columns of latents, p side of a patch.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgemm.families.llama import rms
from edgemm.families.own_modules import RmsNorm, check_settings, numbers_of
from edgemm.families.wan_autoencoder import Attention, Doubled, Norm, Shapes, convolution

__all__ = ["Conditioner", "Denoiser", "Generator", "PictureDecoder"]

FREQUENCIES = 256  # of a time
SLOWEST = 10_000.0
USUAL_SECTIONS = (24, 20, 20)  # of half a head that time, row and column turn, where no config says so
COLOURS = 3


class Feed(nn.Module):
    def __init__(self, width: int, inner: int, act: str) -> None:
        super().__init__()
        if act not in ("silu", "relu2"):
            raise ValueError(f"hidden_act is {act!r}, expected silu or relu2")
        self.gate_proj = nn.Linear(width, inner, bias=False) if act == "silu" else None
        self.up_proj, self.down_proj = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up_proj(x)
        inner = up.relu().square() if self.gate_proj is None else nn.functional.silu(self.gate_proj(x)) * up
        return self.down_proj(inner)


class GeneratorAttention(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        width, self.head_dim, eps = c["hidden_size"], c["head_dim"], c["rms_norm_eps"]
        bias = c.get("attention_bias", False)
        heads, groups = c["num_attention_heads"] * self.head_dim, c["num_key_value_heads"] * self.head_dim
        self.add_q_proj = nn.Linear(width, heads, bias=bias)
        self.add_k_proj, self.add_v_proj = (nn.Linear(width, groups, bias=bias) for _ in range(2))
        self.to_add_out = nn.Linear(heads, width, bias=bias)
        self.norm_added_q, self.norm_added_k = (RmsNorm(self.head_dim, eps) for _ in range(2))
        normed = c.get("use_und_k_norm_for_gen", False) and not c.get("qk_norm_for_text", True)
        self.k_norm_und_for_gen = RmsNorm(self.head_dim, eps) if normed else None

    def heads(self, part: str, x: Tensor) -> Tensor:
        """(b, n, w) -> (b, heads, n, d), normed but for the values."""
        found = getattr(self, f"add_{part}_proj")(x).unflatten(-1, (-1, self.head_dim))
        return (found if part == "v" else rms(getattr(self, f"norm_added_{part}"), found)).transpose(1, 2)


class GeneratorLayer(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        width, eps = c["hidden_size"], c["rms_norm_eps"]
        self.self_attn = GeneratorAttention(c)
        self.mlp_moe_gen = Feed(width, c["intermediate_size"], c.get("hidden_act", "silu"))
        self.input_layernorm_moe_gen, self.post_attention_layernorm_moe_gen = (RmsNorm(width, eps) for _ in range(2))


class TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(FREQUENCIES, width), nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        angles = time[:, None] * torch.exp(torch.arange(half).float() * (-math.log(SLOWEST) / half))
        return self.linear_2(nn.functional.silu(self.linear_1(torch.cat([angles.cos(), angles.sin()], dim=-1))))


class Generator(nn.Module):
    """Names are those of transformer/, less what the language tower reads there."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.patch, self.channels = config["latent_patch_size"], config["latent_channel"]
        self.time_scale = float(config.get("timestep_scale", 0.001))
        self.margin = int(config["unified_3d_mrope_temporal_modality_margin"])
        usual = (config.get("rope_scaling") or {}).get("mrope_section", USUAL_SECTIONS)
        self.theta, self.sections = float(config["rope_theta"]), list(config.get("rope_axes_dim") or usual)
        numbers = self.patch**2 * self.channels
        self.proj_in, self.proj_out = nn.Linear(numbers, width), nn.Linear(width, numbers)
        self.time_embedder = TimeEmbedding(width)
        self.layers = nn.ModuleList([GeneratorLayer(config) for _ in range(config["num_hidden_layers"])])
        self.norm_moe_gen = RmsNorm(width, config["rms_norm_eps"])

    def rows(self, latents: Tensor) -> Tensor:
        """Latents (b, z, h, v) -> (b, rows of patches, columns, p p z); zeros fill up the last patches."""
        p = self.patch
        filled = latents
        for axis in (2, 3):
            nothing = filled.narrow(axis, 0, 1) * 0
            filled = torch.cat([filled] + [nothing] * (p - 1), axis)  # a size that were compared would leave the GPU
            filled = filled.index_select(axis, torch.arange((latents.shape[axis] + p - 1) // p * p))
        x = filled.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (b, z, rows, p, columns, p)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3)

    def latents(self, rows: Tensor, like: Tensor) -> Tensor:
        """`rows`, undone; what was filled up is left out."""
        x = rows.unflatten(3, (self.patch, self.patch, -1)).permute(0, 5, 1, 3, 2, 4)  # (b, z, rows, p, columns, p)
        x = x.flatten(4).flatten(2, 3)
        return x.index_select(2, torch.arange(like.shape[2])).index_select(3, torch.arange(like.shape[3]))


def rates_of(text: Any) -> Tensor:
    """Of the language tower's rotary embedding: what each axis (time, row, column) turns (3, d/2)."""
    inv_freq = text.rotary_emb.inv_freq.float()
    axes = torch.zeros(3, len(inv_freq))
    axes[0] = 1
    for axis, section in enumerate(text.rotary_emb.mrope_section[1:], start=1):
        axes[:, axis : section * 3 : 3] = 0
        axes[axis, axis : section * 3 : 3] = 1
    return axes * inv_freq


class Conditioner(nn.Module):
    """The first `prefix_length` slots of a prompt's cache, turned back to where the picture's time is 0.

    Where the generator norms the tower's keys by weights of its own, their positions are taken away for it first.
    """

    def __init__(self, generator: Generator, text: Any) -> None:
        super().__init__()
        layers: Any = generator.layers
        self.norms = nn.ModuleList([x for x in (layer.self_attn.k_norm_und_for_gen for layer in layers) if x])
        self.margin = generator.margin
        self.rates = nn.Buffer(rates_of(text), persistent=False)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        *past, prefix_length = tensors
        b, slots = past[0].shape[0], torch.arange(past[0].shape[2])
        mask = slots < prefix_length[:, None]  # (b, T)
        own = (slots.float()[:, None] * self.rates.sum(0)).expand(b, -1, -1)  # (b, T, d/2): a word's axes are alike
        back = -(prefix_length + self.margin).float()[:, None, None] * self.rates[0]
        back = back.expand(-1, mask.shape[1], -1)
        pairs: list[Tensor] = []
        for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
            if len(self.norms):
                keys = torch.onnx.ops.rotary_embedding(keys, own.cos(), -own.sin())
                keys = torch.onnx.ops.rotary_embedding(rms(self.norms[layer], keys), own.cos(), own.sin())
            pairs += [torch.onnx.ops.rotary_embedding(keys, back.cos(), back.sin()), values]
        return mask, *pairs


class Denoiser(nn.Module):
    """Latents (b, z, h, v) at a time (b) to their velocity, over a prefix."""

    def __init__(self, generator: Generator, text: Any) -> None:
        super().__init__()
        self.generator = generator
        self.rates = nn.Buffer(rates_of(text), persistent=False)

    def forward(self, latents: Tensor, time: Tensor, prefix_mask: Tensor, *pairs: Tensor) -> Tensor:
        generator = self.generator
        rows = generator.rows(latents)
        down, across = rows.shape[1:3]
        x = generator.proj_in(rows.flatten(1, 2))  # (b, n, w)
        x = x + generator.time_embedder(time * generator.time_scale)[:, None]
        turned = torch.arange(down).float()[:, None, None] * self.rates[1]
        turned = turned + torch.arange(across).float()[:, None] * self.rates[2]  # (rows, columns, d/2)
        angles = turned.flatten(0, 1).expand(x.shape[0], -1, -1)
        cos, sin = angles.cos(), angles.sin()
        seen = prefix_mask[:, None, None].expand(-1, -1, x.shape[1], -1)
        own = torch.ones(x.shape[1], dtype=torch.bool).expand(x.shape[0], 1, x.shape[1], -1)
        mask = torch.cat([seen, own], dim=3)  # (b, 1, n, t + n)
        layers: Any = generator.layers
        for layer, keys, values in zip(layers, pairs[::2], pairs[1::2], strict=True):
            attention, normed = layer.self_attn, rms(layer.input_layernorm_moe_gen, x)
            queries, own_keys, own_values = (attention.heads(part, normed) for part in "qkv")
            queries, own_keys = (torch.onnx.ops.rotary_embedding(part, cos, sin) for part in (queries, own_keys))
            every = torch.cat([keys, own_keys], dim=2), torch.cat([values, own_values], dim=2)
            attended = torch.onnx.ops.attention(queries, *every, mask)[0]
            x = x + attention.to_add_out(attended.transpose(1, 2).flatten(2))
            x = x + layer.mlp_moe_gen(rms(layer.post_attention_layernorm_moe_gen, x))
        x = generator.proj_out(rms(generator.norm_moe_gen, x))
        return generator.latents(x.unflatten(1, (down, across)), latents)


class DecoderResidual(nn.Module):
    def __init__(self, shapes: Shapes, name: str) -> None:
        super().__init__()
        self.conv1, self.conv2 = (convolution(shapes, f"{name}.conv{n}") for n in (1, 2))
        self.norm1, self.norm2 = Norm(self.conv1.in_channels), Norm(self.conv2.in_channels)
        short = f"{name}.conv_shortcut"
        self.conv_shortcut = convolution(shapes, short) if f"{short}.weight" in shapes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(nn.functional.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(nn.functional.silu(self.norm2(y)))


class Up(nn.Module):
    """Residual layers, doubling, and beside both the channels themselves, dealt out over the places."""

    def __init__(self, shapes: Shapes, name: str) -> None:
        super().__init__()
        count = sum(f"{name}.resnets.{n}.conv1.weight" in shapes for n in range(64))
        made = [DecoderResidual(shapes, f"{name}.resnets.{n}") for n in range(count)]
        self.resnets = nn.Sequential(*made)
        self.upsampler = (
            Doubled(shapes, f"{name}.upsampler") if f"{name}.upsampler.resample.1.weight" in shapes else None
        )
        if self.upsampler is not None:
            into, out = made[0].conv1.in_channels, made[-1].conv2.out_channels
            frames = 2 if f"{name}.upsampler.time_conv.weight" in shapes else 1
            dealt = torch.arange(out * frames * 4, device="cpu") // (out * frames * 4 // into)
            last = dealt.unflatten(0, (out, frames, 4))[:, -1].flatten()  # of the one frame that there is
            self.dealt = tuple(last.tolist())

    def forward(self, x: Tensor) -> Tensor:
        y = self.resnets(x)
        if self.upsampler is None:
            return y
        return self.upsampler(y) + nn.functional.pixel_shuffle(x.index_select(1, torch.tensor(self.dealt)), 2)


class PictureDecoder(nn.Module):
    """Latents (b, z, h, v) to pixels (b, 3, H, W), around [0, 1].  Names are those of vae/."""

    def __init__(self, shapes: Shapes, config: dict[str, Any], path: Path) -> None:
        super().__init__()
        self.patch = config.get("patch_size") or 1
        decoder, self.decoder = "decoder", nn.Module()
        self.post_quant_conv = convolution(shapes, "post_quant_conv")
        self.decoder.conv_in = convolution(shapes, f"{decoder}.conv_in")
        middle = f"{decoder}.mid_block"
        self.decoder.mid_block = nn.Module()
        self.decoder.mid_block.resnets = nn.ModuleList(
            [DecoderResidual(shapes, f"{middle}.resnets.{n}") for n in range(2)]
        )
        self.decoder.mid_block.attentions = nn.ModuleList([Attention(shapes, f"{middle}.attentions.0")])
        count = sum(f"{decoder}.up_blocks.{n}.resnets.0.conv1.weight" in shapes for n in range(64))
        self.decoder.up_blocks = nn.Sequential(*(Up(shapes, f"{decoder}.up_blocks.{n}") for n in range(count)))
        self.decoder.conv_out = convolution(shapes, f"{decoder}.conv_out")
        self.decoder.norm_out = Norm(self.decoder.conv_out.in_channels)
        self.channels = self.post_quant_conv.in_channels
        self.cell = self.patch * 2 ** sum(isinstance(module, Doubled) for module in self.modules())
        self.mean, self.deviation = (
            numbers_of(config, f"latents_{name}", path, count=self.channels) for name in ("mean", "std")
        )

        self._check(config, path)

    def _check(self, config: dict[str, Any], path: Path) -> None:
        """What vae/config.json says of these weights, against their shapes."""
        decoder: Any = self.decoder
        colours, blocks = decoder.conv_out.out_channels, decoder.up_blocks
        base = config.get("decoder_base_dim") or config.get("base_dim")
        widths = [block.resnets[0].conv2.out_channels for block in reversed(blocks)]
        shown = {
            "z_dim": self.channels,
            "out_channels": colours,
            "patch_size": math.isqrt(colours // COLOURS),
            "scale_factor_spatial": self.cell,
            "num_res_blocks": len(blocks[0].resnets) - 1,
        }
        if base is not None:
            shown["dim_mult"] = [width / base for width in widths]
        check_settings({**config, "patch_size": self.patch}, shown, path, "its weights have")

    def forward(self, latents: Tensor) -> Tensor:
        decoder: Any = self.decoder
        mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in (self.mean, self.deviation))
        x = decoder.conv_in(self.post_quant_conv(latents * deviation + mean))
        first, second = decoder.mid_block.resnets
        x = decoder.up_blocks(second(decoder.mid_block.attentions[0](first(x))))
        x = decoder.conv_out(nn.functional.silu(decoder.norm_out(x)))
        if self.patch > 1:  # a patch's numbers are channel, column, row
            x = x.unflatten(1, (-1, self.patch, self.patch)).transpose(2, 3).flatten(1, 3)
            x = nn.functional.pixel_shuffle(x, self.patch)
        return x / 2 + 0.5
