"""JanusFlow's modules around its published tensors, and its loops as they were published.

One Llama reads and draws.  For reading, SigLIP sees (arXiv:2303.15343) and an aligner makes tokens of it.  For drawing,
two small ConvNeXts (arXiv:2301.00808) stand before and behind the Llama: noisy latents become tokens, and its hidden
states a velocity, with what the first one saw beside them.
Axes: b batch, n image tokens, c channels, s side of the latents, h rows, w columns.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["JanusFlow"]

SIGLIP = {"siglip_large_patch16_384": (1024, 24, 16, 16, 4.0)}  # width, layers, heads, patch, mlp: as published
SIGLIP_EPSILON = 1e-6
RESPONSE_EPSILON = 1e-6  # of the global response norm
FULL_RATE = 1000.0  # what the model calls the end of time


class ChannelNorm(nn.Module):
    """RMSNorm over the channels of (b, c, h, w), or over the last axis of rows."""

    def __init__(self, width: int, eps: float, axis: int) -> None:
        super().__init__()
        self.weight, self.eps, self.axis = nn.Parameter(torch.ones(width)), eps, axis

    def forward(self, x: Tensor) -> Tensor:
        if self.axis == -1:
            return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self.forward_last(x.movedim(1, -1)).movedim(-1, 1)

    def forward_last(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class ResponseNorm(nn.Module):
    """Each channel by its share of what all answer (arXiv:2301.00808, section 3.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.zeros(1, 1, 1, width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:  # (b, h, w, c)
        response = x.square().sum(dim=(1, 2), keepdim=True).sqrt()  # (b, 1, 1, c)
        share = response / (response.mean(dim=-1, keepdim=True) + RESPONSE_EPSILON)
        return self.weight * (x * share) + self.bias + x


class ConvNeXt(nn.Module):
    def __init__(self, width: int, told: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width, bias=bias)
        self.norm = ChannelNorm(width, eps, axis=-1)
        self.channelwise_linear_1 = nn.Linear(width, 4 * width, bias=bias)
        self.channelwise_norm = ResponseNorm(4 * width)
        self.channelwise_linear_2 = nn.Linear(4 * width, width, bias=bias)
        self.cond_embeds_mapper = nn.Linear(told, 2 * width, bias=bias)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).movedim(1, -1))  # (b, h, w, c)
        y = self.channelwise_norm(nn.functional.gelu(self.channelwise_linear_1(y)))
        x = x + self.channelwise_linear_2(y).movedim(-1, 1)
        scale, shift = self.cond_embeds_mapper(nn.functional.silu(e))[:, :, None, None].chunk(2, dim=1)
        return shift + x * (1 + scale)


class Blocks(nn.Module):
    def __init__(self, count: int, *sizes: Any) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList([ConvNeXt(*sizes) for _ in range(count)])

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        for block in self.res_blocks:
            x = block(x, e)
        return x


class TimeEmbedding(nn.Module):
    def __init__(self, width: int, told: int, bias: bool) -> None:
        super().__init__()
        self.rates = width // 2
        self.linear_1, self.linear_2 = nn.Linear(width, told, bias=bias), nn.Linear(told, told, bias=bias)

    def forward(self, time: Tensor) -> Tensor:
        """Of tau (b), 0 to 1000 -> (b, told)."""
        rates = torch.exp(torch.arange(self.rates).float() * (-math.log(10_000.0) / self.rates))
        angles = time.float()[:, None] * rates
        return self.linear_2(nn.functional.silu(self.linear_1(torch.cat([angles.cos(), angles.sin()], dim=-1))))


class LatentReader(nn.Module):
    """Latents (b, 4, s, s) and time (b) -> x (b, c, s/2, s/2) and the time's embedding (b, width of the Llama)."""

    def __init__(self, p: dict[str, Any]) -> None:
        super().__init__()
        (width,), told, bias = p["block_out_channels"], p["hidden_size"], p.get("use_bias", True)
        size, stride, padding = p["kernel_size"], p["stride"], p["padding"]
        self.in_conv = nn.Conv2d(p["input_channels"], width, size, stride, padding)
        self.time_embed = TimeEmbedding(width, told, bias)
        self.mid_block = Blocks(p["layers_in_middle"], width, told, p["norm_eps"], bias)

    def forward(self, latents: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        e = self.time_embed(time)
        return self.mid_block(self.in_conv(latents), e), e


class Unpatched(nn.Module):
    def __init__(self, width: int, out: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.norm = ChannelNorm(width, eps, axis=1)
        self.unpatch_conv = nn.Conv2d(width, 4 * out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.unpatch_conv(self.norm(x)).unflatten(1, (-1, 2, 2))  # (b, out, row, column, h, w)
        return y.permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)


class VelocityWriter(nn.Module):
    """What the Llama made of the tokens (b, c, s/2, s/2), beside what the reader saw -> velocity (b, 4, s, s)."""

    def __init__(self, p: dict[str, Any]) -> None:
        super().__init__()
        (width,), eps, bias = p["block_out_channels"], p["norm_eps"], p.get("use_bias", True)
        both = width + p["in_channels"]
        self.input_norm = ChannelNorm(p["in_channels"], eps, axis=1)
        self.mid_block = Blocks(p["layers_in_middle"], both, p["hidden_size"], eps, bias)
        self.out_convs = nn.ModuleList([Unpatched(both, p["out_channels"], eps, bias)])

    def forward(self, made: Tensor, seen: Tensor, e: Tensor) -> Tensor:
        x = self.mid_block(torch.cat([self.input_norm(made), seen], dim=1), e)
        return self.out_convs[0](x)


class SigLipBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, SIGLIP_EPSILON) for _ in range(2))
        self.attn, self.mlp, self.heads = nn.Module(), nn.Module(), heads
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        attn: Any = self.attn
        mlp: Any = self.mlp
        qkv = attn.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, b, h, n, d)
        attended = nn.functional.scaled_dot_product_attention(*qkv.unbind(0))
        x = x + attn.proj(attended.transpose(1, 2).flatten(2))
        return x + mlp.fc2(nn.functional.gelu(mlp.fc1(self.norm2(x))))


class SigLip(nn.Module):
    """Pixels (b, 3, S, S), mean and deviation taken away -> features (b, n, width)."""

    def __init__(self, p: dict[str, Any]) -> None:
        super().__init__()
        usual = SIGLIP.get(p.get("model_name", ""), (None,) * 5)
        names = ("width", "layers", "heads", "patch_size", "mlp_ratio")
        width, layers, heads, patch, ratio = (p.get(name, own) for name, own in zip(names, usual, strict=True))
        if None in (width, layers, heads, patch, ratio):
            raise ValueError(f"sizes of the vision tower {p.get('model_name')!r} are not known")
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, (p["image_size"] // patch) ** 2, width))
        self.blocks = nn.ModuleList([SigLipBlock(width, heads, int(width * ratio)) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, SIGLIP_EPSILON)

    def forward(self, pixels: Tensor) -> Tensor:
        embed: Any = self.patch_embed
        x = embed.proj(pixels).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Tower(nn.Module):
    def __init__(self, p: dict[str, Any]) -> None:
        super().__init__()
        self.vision_tower = SigLip(p)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vision_tower(pixels)


class JanusFlow(nn.Module):
    """The whole model; `vae` is None where nobody has named its folder."""

    def __init__(self, language_model: Any, parts: dict[str, dict[str, Any]], vae: Any) -> None:
        super().__init__()
        see, read, write = (parts[name] for name in ("und_enc", "gen_enc", "gen_dec"))
        config = language_model.config
        width, narrow = config.hidden_size, read["block_out_channels"][0]
        self.config, self.image_size = config, see["image_size"]
        self.language_model, self.vae = language_model, vae
        self.vision_und_enc_model = Tower(see)
        self.vision_und_enc_aligner = nn.Linear(self.vision_und_enc_model.vision_tower.norm.normalized_shape[0], width)
        self.beg_of_und_embed = nn.Parameter(torch.zeros(1, width))
        self.vision_gen_enc_model, self.vision_gen_dec_model = LatentReader(read), VelocityWriter(write)
        self.vision_gen_enc_aligner = nn.Linear(narrow, width)
        self.vision_gen_dec_aligner_norm = ChannelNorm(width, config.rms_norm_eps, axis=-1)
        self.vision_gen_dec_aligner = nn.Linear(width, write["in_channels"])

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Pixels (b, 3, S, S) -> (b, 1 + n, w): a learned row begins each picture."""
        seen = self.vision_und_enc_aligner(self.vision_und_enc_model(pixels))
        return torch.cat([self.beg_of_und_embed.expand(seen.shape[0], 1, -1), seen], dim=1)

    def drawing_rows(self, latents: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (b, 1 + n, w) for the Llama, x (b, c, s/2, s/2) and e (b, w)."""
        x, e = self.vision_gen_enc_model(latents, time)
        tokens = self.vision_gen_enc_aligner(x.flatten(2).transpose(1, 2))
        return torch.cat([e[:, None], tokens], dim=1), x, e

    def velocity(self, hidden: Tensor, x: Tensor, e: Tensor) -> Tensor:
        """Of the Llama's hidden states (b, n, w) of the image rows."""
        made = self.vision_gen_dec_aligner(self.vision_gen_dec_aligner_norm(hidden))
        return self.vision_gen_dec_model(made.transpose(1, 2).unflatten(2, x.shape[2:]), x, e)

    @torch.no_grad()
    def draw(self, ids: Tensor, noise: Tensor, steps: int, guidance: float) -> Tensor:
        """Latents (4, s, s) of prompt ids (L), all of it read again at every step, as the published code does.

        The second row does not see the prompt behind its first token.
        """
        rows, length = (1 if guidance == 1 else 2), len(ids)
        prompt = self.language_model.get_input_embeddings()(ids.expand(rows, -1))
        z = noise
        for k in range(steps):
            time = torch.full((rows,), FULL_RATE * k / steps)
            own, x, e = self.drawing_rows(z.expand(rows, -1, -1, -1), time)
            seen = torch.ones(rows, length + own.shape[1], dtype=torch.long)
            seen[1:, 1:length] = 0
            whole = torch.cat([prompt, own], dim=1)
            places = torch.arange(whole.shape[1]).expand(rows, -1)
            hidden = self.language_model.model(
                inputs_embeds=whole, attention_mask=seen, position_ids=places, use_cache=False
            )
            v = self.velocity(hidden.last_hidden_state[:, length + 1 :], x, e)
            z = z + (v[0] if rows == 1 else guidance * v[0] - (guidance - 1) * v[1]) / steps
        return z
