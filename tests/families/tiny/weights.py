"""Random weights so wide that tokens vary: a model that always says the same would agree with anything."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["SMALL", "spread"]

SMALL = {  # a text model's sizes, where nobody says otherwise
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def spread(model: Any, seed: int, by: float = 6.0) -> Any:
    """Fresh weights that make its answers vary: no layer's answer is small beside the embedding that passes through."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.normal_(0, by / 4 / weight.shape[1] ** 0.5, generator=generator)
            elif weight.dim() == 4:
                weight.normal_(0, 1 / weight[0].numel() ** 0.5, generator=generator)
            elif weight.dim() >= 1 and name.endswith("weight") and weight.dim() == 1:
                weight.normal_(1, 0.1, generator=generator)
            else:
                weight.normal_(0, 0.3, generator=generator)
    return model.eval()
