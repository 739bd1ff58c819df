"""A unified model smaller than `micro`, every weight random, and what the tests of export need to handle bundles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from packaging.version import Version

from edgemm.bundle.components import Variant
from edgemm.export.schemes import SCHEMES
from edgemm.export.variants import lower
from edgemm.model.config import (
    DenoiserConfig,
    ImageTokensConfig,
    ModelConfig,
    SamplerConfig,
    TransformerConfig,
    VisionConfig,
)
from edgemm.model.unified import Unified
from edgemm.quantize.spec import Spec
from edgemm.quantize.without_data import quantize_without_data
from tests.model.tiny import micro, random_micro

__all__ = [
    "PRECISIONS",
    "left_behind",
    "lower_on_cpu",
    "nano",
    "needs_opset_24",
    "open_graph",
    "random_nano",
    "rehash",
    "run_graph",
    "spec_without_data",
]

PRECISIONS = ("fp32", "int8", "int4")

needs_opset_24 = pytest.mark.skipif(
    Version(onnxruntime.__version__) < Version("1.24"), reason="older ONNX Runtime reads no opset 24 (Python 3.10)"
)


def nano(**changes: Any) -> ModelConfig:
    """Widths are multiples of 64, so that int4 takes the same path as in `small`; layers are read out of order."""
    parts: dict[str, Any] = {
        "name": "nano",
        "transformer": TransformerConfig(
            vocab_size=264, width=64, depth=2, heads=4, kv_heads=2, head_width=16, ffn_width=128, max_context=512
        ),
        "vision": VisionConfig(encoder="patch", image_size=16, stride=8, feature_width=192, hidden_width=64),
        "image_tokens": ImageTokensConfig(kind="patch", image_size=16, patch=4),
        "denoiser": DenoiserConfig(
            width=64, depth=2, heads=2, ffn_width=128, prefix_layers=(1, 0), prompt_width=32, layout_width=16
        ),
        "sampler": SamplerConfig(num_inference_steps=6, guidance_scale=2.0, shift=1.5),
    }
    return micro(**(parts | changes))


def random_nano(config: ModelConfig | None = None) -> Unified:
    """Its layers weigh more than its embeddings: a tied head would else say the last token over and over.

    What another config leaves as it is has the plain model's numbers, so that a run traces it once (tests/traced.py).
    """
    model = random_micro(config or nano())
    with torch.no_grad():
        model.transformer.embed_tokens.weight.mul_(0.3)
        for weight in model.transformer.layers.parameters():
            weight.mul_(3 if weight.dim() == 2 else 1)
        if config is not None and config != nano():
            plain, own = random_nano().state_dict(), model.state_dict()
            for name in plain.keys() & own.keys():
                if plain[name].shape == own[name].shape:
                    own[name].copy_(plain[name])
    return model


def spec_without_data(
    weights: Mapping[str, torch.Tensor], precision: str, drawing_depth: int = 0, target: str = "cpu"
) -> Spec:
    """As the target's `--precision` has it, where nothing is calibrated."""
    options = SCHEMES[target, precision].quantize
    assert options
    return quantize_without_data(weights, options, drawing_depth)


def lower_on_cpu(component: str, reference: ir.Model, spec: Spec | None, target: str = "cpu") -> tuple[ir.Model, str]:
    return lower(component, reference, SCHEMES[target, "fp32"], spec, {})


def open_graph(bundle: Path, variant: Variant) -> onnxruntime.InferenceSession:
    return opened(str(bundle / variant.graph))


def opened(model: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # else it tells every copy of a cache that is not bound in place
    graph = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run_graph(session: onnxruntime.InferenceSession, inputs: dict[str, Any]) -> list[np.ndarray]:
    """Outputs in the graph's order; tensors of torch are taken too."""
    return [np.asarray(out) for out in session.run(None, {name: np.asarray(value) for name, value in inputs.items()})]


def rehash(bundle: Path, *names: str) -> None:
    """Make the manifest say that these files are as they should be."""
    document = json.loads((bundle / "manifest.json").read_text())
    for name in names:
        content = (bundle / name).read_bytes()
        document["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(document))


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
