"""A bundle whose manifest is sound and whose graphs are blank, and a model whose metrics are made up beforehand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from edgemm.bundle.bundle import (
    UNCONDITIONAL,
    Component,
    DenoiseLoop,
    DenoiseTemplate,
    Limits,
    Loops,
    Manifest,
    Source,
    TensorSpec,
    TextLoop,
    TextTemplate,
    Variant,
)
from edgemm.bundle.components import COMPONENTS
from edgemm.bundle.writer import BundleWriter
from edgemm.runtimes.backend.engine import ThreadPlan
from edgemm.runtimes.engines import Choice
from edgemm.runtimes.image_call import DenoiseProgress, ImageMetrics, ImageResult
from edgemm.runtimes.text_call import TextChunk, TextMetrics, TextResult

WEIGHTS_BYTES = 1000  # of each component
DRAWS = ("image_encoder", "transformer", "conditioner", "denoiser", "image_decoder")
LEFT_OUT = ("layout", "hidden", "draft_index", "draft_logits", "latents", "past_hidden.*", "present_hidden.*")
SIZES = {1: (1,), 2: (1, 2), 3: (1, 2, 3), 4: (1, 2, 3, 4)}
TEXT = TextLoop(TextTemplate("<u>", "</u>", "<a>", "</a>", "<s>", "</s>", ""), "\n", 32, 16, (255, 255, 255), (0,))
DENOISE = DenoiseLoop(
    DenoiseTemplate("Draw", "."), (0,), 1, "x", 10, 2.0, (0.0, 1.0), 1.0, token_count=2, token_width=3, image_size=32
)


def write_paper_bundle(path: Path, target: str = "cpu", draws: bool = True, dialect: str = "opset21") -> Path:
    names = DRAWS if draws else ("image_encoder", "transformer")
    with BundleWriter(path) as writer:
        for name in names:
            writer.add_bytes(f"components/{name}/fp32.onnx", b"graph")
            writer.add_bytes(f"components/{name}/fp32.onnx.data", b"\0" * (WEIGHTS_BYTES - len(b"graph")))
        for name in ("tokenizer.json", UNCONDITIONAL):
            writer.add_bytes(name, b"{}")
        writer.finish(
            Manifest(
                name="paper",
                family="mot",
                edgemm_version="0.1.0",
                source=Source("nowhere", "0" * 64),
                components={name: Component({"fp32": _variant(name, dialect)}) for name in names},
                targets={target: dict.fromkeys(names, "fp32")},
                loops=Loops(TEXT, DENOISE if draws else None),
                limits=Limits(512, 1_000_000, 100),
                tokenizer="tokenizer.json",
                quantization=None,
                licences=(),
                files={},
            )
        )
    return path


def _variant(component: str, dialect: str) -> Variant:
    inputs, outputs = (
        tuple(
            TensorSpec(name.replace("*", "0"), dtype, SIZES[rank or 3])
            for name, (dtype, rank) in side.items()
            if name not in LEFT_OUT
        )
        for side in COMPONENTS[component]
    )
    graph = f"components/{component}/fp32.onnx"
    return Variant(graph, f"{graph}.data", dialect, "fp32", inputs, outputs)


class PaperModel:
    """Counts a token a word; every reply has `reply_tokens`, every time is a round number."""

    choice = Choice("cpu", "onnxruntime", "cpu", "CPUExecutionProvider", "it was asked for")
    threads = ThreadPlan(2, False, "no other work in sight")
    _engines = SimpleNamespace(watch=lambda watch: None)  # paper has none

    def __init__(self, reply_tokens: int = 64, cache_tokens: int = 10_000) -> None:
        self.reply_tokens = reply_tokens  # before it would stop by itself
        self.cache_tokens = cache_tokens  # that there is room for
        self.drawn: list[dict] = []
        self.read: list[dict] = []

    def generate_text(self, prompt, **options):
        return list(self.stream_text(prompt, **options))[-1].result

    def generate_image(self, prompt, **options):
        return list(self.stream_image(prompt, **options))[-1]

    def stream_text(self, prompt, images=(), max_new_tokens=128, ignore_eos=False, prompt_lookup_num_tokens=None):
        self.read.append({"prompt": prompt, "images": images, "max_new_tokens": max_new_tokens, "ignored": ignore_eos})
        tokens = max_new_tokens if ignore_eos else min(self.reply_tokens, max_new_tokens)
        tokens = min(tokens, self.cache_tokens)
        for token in range(tokens):
            yield TextChunk((token,), "x")
        metrics = TextMetrics(
            prompt_tokens=31 + len(prompt.split()),
            new_tokens=tokens,
            image_encode_ms=3.0 if images else 0.0,
            prefill_ms=64.0,
            time_to_first_token_ms=65.0,
            decode_tokens_per_s=50.0 if tokens > 1 else 0.0,
            load_ms=0.0,
            total_ms=65.0 + 20.0 * (tokens - 1),
        )
        yield TextChunk((), "", True, "length", TextResult("x", tuple(range(tokens)), "length", None, metrics))

    def stream_image(self, prompt, num_inference_steps=None, seed=0):
        self.drawn.append({"prompt": prompt, "steps": num_inference_steps, "seed": seed})
        steps = num_inference_steps or DENOISE.num_inference_steps
        for step in range(steps):
            yield DenoiseProgress(step + 1, steps, (step + 1) / steps, 0)
        metrics = ImageMetrics(20, 5.0, 1.0, steps, 2.0, 4.0, 0.0, 10.0 + 2.0 * steps)
        yield ImageResult((), "stop", metrics)
