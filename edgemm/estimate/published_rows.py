"""What NVIDIA published for TensorRT Edge-LLM 0.9.0 on Jetson: estimates are calibrated with it and judged by it.

Batch 1, vanilla decoding, dense Qwen3 language models; Qwen3-VL has the same decoders behind a picture.  The page names
no power mode: the default mode of devices.py is our reading (on Orin Nano, 68 GB/s: at 102 the rows would mean a bus
two thirds used, where the others reach more than eight tenths).  Rows left out: mixtures of experts, speculative
decoding, batch 8, release 0.8.0 (the page itself calls it slow), Qwen3.5 (its linear attention is none of our shapes).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ROWS", "SHAPES", "SOURCE", "DecoderShape", "PublishedRow"]

SOURCE = "https://nvidia.github.io/TensorRT-Edge-LLM/0.9.1/user_guide/performance/performance-benchmarks.html"

# Bytes a weight, scales included: INT4 AWQ has a float16 a group of 128, NVFP4 a float8 a block of 16.
WEIGHT_BYTES = {"int4": 0.5 + 2 / 128, "nvfp4": 0.5 + 1 / 16}
FP16_BYTES = 2  # the output head and the K/V cache, in all of these rows


@dataclass(frozen=True)
class DecoderShape:
    """A Qwen3 decoder, from its config.json."""

    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_width: int
    vocab: int = 151_936

    @property
    def body(self) -> int:
        """Weights of all layers' products."""
        attention = self.head_width * self.width * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.ffn)

    @property
    def head(self) -> int:
        return self.vocab * self.width


SHAPES = {
    "Qwen3-0.6B": DecoderShape(layers=28, width=1024, ffn=3072, heads=16, kv_heads=8, head_width=128),
    "Qwen3-1.7B": DecoderShape(layers=28, width=2048, ffn=6144, heads=16, kv_heads=8, head_width=128),
    "Qwen3-4B": DecoderShape(layers=36, width=2560, ffn=9728, heads=32, kv_heads=8, head_width=128),
    "Qwen3-8B": DecoderShape(layers=36, width=4096, ffn=12_288, heads=32, kv_heads=8, head_width=128),
}


@dataclass(frozen=True)
class PublishedRow:
    device: str  # in its default mode
    decoder: str  # of SHAPES
    model: str  # as published
    precision: str
    context: int  # tokens in the cache: the prompt alone, because the length of the replies is not published
    decode_tokens_per_s: float
    prefill_ms: float | None  # of `context` tokens

    @property
    def shape(self) -> DecoderShape:
        return SHAPES[self.decoder]

    @property
    def token_bytes(self) -> float:
        shape = self.shape
        cache = 2 * shape.layers * shape.kv_heads * shape.head_width * self.context
        return shape.body * WEIGHT_BYTES[self.precision] + (shape.head + cache) * FP16_BYTES

    @property
    def token_s(self) -> float:
        return 1 / self.decode_tokens_per_s

    @property
    def prefill_operations(self) -> float:
        return 2 * (self.shape.body * self.context + self.shape.head)


def _rows(
    device: str, precision: str, rows: tuple[tuple[str, int, float, float | None], ...]
) -> tuple[PublishedRow, ...]:
    decoders = {"Qwen3-VL-2B": "Qwen3-1.7B", "Qwen3-VL-4B": "Qwen3-4B", "Qwen3-VL-8B": "Qwen3-8B"}
    return tuple(
        PublishedRow(
            device,
            decoders.get(model, model),
            model,
            precision,
            context=context,
            decode_tokens_per_s=rate,
            prefill_ms=prefill,
        )
        for model, context, rate, prefill in rows
    )


ROWS = (
    *_rows(
        "orin-nano-8gb",
        "int4",
        (
            ("Qwen3-0.6B", 61, 72.8, 28.7),
            ("Qwen3-1.7B", 61, 37.4, 63.1),
            ("Qwen3-VL-2B", 292, 36.9, 190.9),
        ),
    ),
    *_rows(
        "orin-nx-16gb",
        "int4",
        (
            ("Qwen3-0.6B", 61, 117.4, 18.9),
            ("Qwen3-1.7B", 61, 60.4, 35.4),
            ("Qwen3-4B", 57, 31.6, 74.9),
            ("Qwen3-8B", 61, 19.0, 127.2),
            ("Qwen3-VL-2B", 292, 60.1, 103.1),
            ("Qwen3-VL-4B", 292, 31.2, 244.6),
            ("Qwen3-VL-8B", 292, 18.9, 462.1),
        ),
    ),
    *_rows(
        "agx-orin-64gb",
        "int4",
        (
            ("Qwen3-0.6B", 61, 186.4, 14.8),
            ("Qwen3-1.7B", 61, 98.6, 20.4),
            ("Qwen3-4B", 57, 53.1, 42.6),
            ("Qwen3-8B", 61, 32.5, 65.7),
            ("Qwen3-VL-2B", 292, 98.4, 50.0),
            ("Qwen3-VL-4B", 292, 52.4, 123.7),
            ("Qwen3-VL-8B", 292, 32.3, 225.1),
        ),
    ),
    *_rows(
        "thor-t5000",
        "int4",
        (
            ("Qwen3-4B", 57, 79.6, 33.5),
            ("Qwen3-8B", 61, 49.3, 56.0),
            ("Qwen3-VL-4B", 292, 79.0, 85.2),
            ("Qwen3-VL-8B", 292, 48.9, 156.5),
        ),
    ),
    *_rows(
        "thor-t5000",
        "nvfp4",
        (
            ("Qwen3-0.6B", 61, 303.1, 8.0),
            ("Qwen3-1.7B", 61, 154.2, 12.0),
            ("Qwen3-4B", 57, 80.5, 20.5),
            ("Qwen3-8B", 61, 46.8, 30.4),
            ("Qwen3-VL-2B", 292, 151.9, 10.7),
            ("Qwen3-VL-4B", 292, 79.4, 20.4),
            ("Qwen3-VL-8B", 292, 47.1, 30.2),
            ("Qwen3-0.6B", 2048, 245.4, 20.3),
            ("Qwen3-1.7B", 2048, 135.5, 29.9),
            ("Qwen3-4B", 2048, 73.7, 64.7),
            ("Qwen3-8B", 2048, 44.4, 108.4),
            ("Qwen3-VL-2B", 2048, 135.7, 30.5),
            ("Qwen3-VL-4B", 2048, 73.4, 64.3),
            ("Qwen3-VL-8B", 2048, 44.8, 108.4),
        ),
    ),
)
