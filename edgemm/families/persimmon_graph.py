"""The transformer component of Persimmon (Adept, 2023), Fuyu's decoder, around the library's own weights.

Unlike Llama: layer norms with biases; one product for queries, keys and values; norms on queries and keys; of each head
a part alone is rotated; squared ReLU.
Axes: b batch, s new tokens, T cache slots, m image tokens, h heads, d head width, r its rotated part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgemm.export.component_graphs import scatter
from edgemm.model.attention import visible_up_to

__all__ = ["PersimmonGraph"]


class PersimmonGraph(nn.Module):
    """Inputs and outputs are those of llama_graph.LlamaGraph with a head."""

    def __init__(self, text: Any, head: nn.Module) -> None:
        super().__init__()
        self.embed_tokens, self.layers, self.norm, self.head = (
            text.embed_tokens,
            text.layers,
            text.final_layernorm,
            head,
        )
        self.inv_freq = nn.Buffer(text.rotary_emb.inv_freq.float().clone(), persistent=False)  # (r/2)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        input_ids, image_tokens, image_index, write_index, attention_limit, logits_index, *past = tensors
        rows = image_index.clamp(min=0)[..., None].expand(-1, -1, image_tokens.shape[-1])
        x = torch.where((image_index >= 0)[..., None], image_tokens.gather(1, rows), self.embed_tokens(input_ids))
        places = (write_index[:, None] + torch.arange(input_ids.shape[1])).float()
        angles = places[..., None] * self.inv_freq  # (b, s, r/2)
        rotation = angles.cos(), angles.sin()
        mask = visible_up_to(attention_limit, past[0].shape[2])
        present: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            attention: Any = layer.self_attn
            fused = attention.query_key_value(layer.input_layernorm(x))
            queries, keys, values = fused.unflatten(-1, (attention.num_heads, 3, attention.head_dim)).unbind(3)
            if attention.qk_layernorm:
                queries, keys = attention.q_layernorm(queries), attention.k_layernorm(keys)
            queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))  # (b, h, s, d)
            keys = scatter(past[2 * index], rotated(keys, *rotation), write_index)
            values = scatter(past[2 * index + 1], values, write_index)
            present += [keys, values]
            attended = torch.onnx.ops.attention(rotated(queries, *rotation), keys, values, mask)[0]  # (b, h, s, d)
            x = x + attention.dense(attended.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        wanted = x.gather(1, logits_index[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]  # (b, w)
        return self.head(self.norm(wanted)), *present


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(b, h, s, d), of which the first r are turned."""
    size = 2 * cos.shape[-1]
    turned = torch.onnx.ops.rotary_embedding(heads[..., :size], cos, sin)
    return torch.cat([turned, heads[..., size:]], dim=-1)  # (b, h, s, d)
