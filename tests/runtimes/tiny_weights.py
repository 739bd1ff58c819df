"""Sizes and random weights of the tiny model that the tests run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tiny:
    vocab: int = 259  # 256 bytes and three special tokens
    width: int = 16
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1
    head_width: int = 8
    read_size: int = 8  # side of a picture to read
    read_patch: int = 4
    prefix_layers: tuple[int, ...] = (1, 0)
    draw_size: int = 4  # side of a picture to draw
    draw_patch: int = 2
    draw_width: int = 8
    draw_heads: int = 2
    vector_width: int = 6
    layout_width: int = 3
    positions: int = 1024

    @property
    def image_tokens(self) -> int:
        return (self.read_size // self.read_patch) ** 2

    @property
    def token_count(self) -> int:
        return (self.draw_size // self.draw_patch) ** 2

    @property
    def token_width(self) -> int:
        return 3 * self.draw_patch**2

    @property
    def draw_layers(self) -> int:
        return len(self.prefix_layers)

    @property
    def draw_head_width(self) -> int:
        return self.draw_width // self.draw_heads


TINY = Tiny()


class Weights:
    """name -> float32 array; the same seed, the same numbers."""

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        raw = TINY.kv_heads * TINY.head_width
        shapes: dict[str, tuple[int, ...]] = {
            "embed": (TINY.vocab, TINY.width),
            "patch": (3 * TINY.read_patch**2, TINY.width),
            "prompt_vector": (raw, TINY.vector_width),
            "layout": (raw, TINY.token_count * TINY.layout_width),
            "draw_in": (TINY.token_width, TINY.draw_width),
            "time": (TINY.draw_width,),
            "vector_in": (TINY.vector_width, TINY.draw_width),
            "layout_in": (TINY.layout_width, TINY.draw_width),
            "draw_out": (TINY.draw_width, TINY.token_width),
        }
        for layer in range(TINY.layers):
            shapes |= {
                f"q.{layer}": (TINY.width, TINY.heads * TINY.head_width),
                f"k.{layer}": (TINY.width, raw),
                f"v.{layer}": (TINY.width, raw),
                f"o.{layer}": (TINY.heads * TINY.head_width, TINY.width),
                f"up.{layer}": (TINY.width, 2 * TINY.width),
                f"down.{layer}": (2 * TINY.width, TINY.width),
            }
        for layer in range(TINY.draw_layers):
            shapes |= {f"prefix_{part}.{layer}": (raw, TINY.draw_width) for part in ("key", "value")}
            shapes |= {f"draw_{part}.{layer}": (TINY.draw_width, TINY.draw_width) for part in "qkvo"}
        # Small embeddings and large layers, or every reply would be one token again and again.
        self.arrays = {name: random.normal(0, 1.8 / shape[0] ** 0.5, shape) for name, shape in shapes.items()}
        self.arrays["embed"] = random.normal(0, 0.2, shapes["embed"])
        for layer in range(TINY.layers):
            self.arrays[f"norm.{layer}"] = random.uniform(0.5, 1.5, TINY.width)
            self.arrays[f"ffn_norm.{layer}"] = random.uniform(0.5, 1.5, TINY.width)
        self.arrays["final_norm"] = random.uniform(0.5, 1.5, TINY.width)
        self.arrays = {name: array.astype(np.float32) for name, array in self.arrays.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def layer(self, number: int) -> dict[str, np.ndarray]:
        names = ("norm", "q", "k", "v", "o", "ffn_norm", "up", "down")
        return {name: self.arrays[f"{name}.{number}"] for name in names}
