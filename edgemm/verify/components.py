"""Run one exported graph as the thin runtime does, and compare it with the module that it was traced from.

Axes: b batch, s new tokens, T cache slots, m image tokens, n drawing tokens, p numbers in one.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from edgemm.bundle.components import ADAPTER_PREFIX, TensorSpec, Variant
from edgemm.bundle.picture import seeded_picture
from edgemm.bundle.prompt import with_picture_ids
from edgemm.errors import BundleError, CheckFailedError, EdgemmError
from edgemm.export.component_graphs import ComponentGraph
from edgemm.export.dialects import DIALECTS
from edgemm.model.config import GraphConfig
from edgemm.model.prompts import read_prompt
from edgemm.model.transformer import KeyValues
from edgemm.model.unified import Unified
from edgemm.runtimes.adapters import zero_factors
from edgemm.runtimes.backend.engine import GraphFiles, plan_threads
from edgemm.verify.parity import Comparison, compare_arrays
from edgemm.verify.reference_backend import open_engine

__all__ = ["compare_component", "example_inputs"]

NO_STEPS: Mapping[str, np.ndarray] = MappingProxyType({})


@torch.no_grad()
def compare_component(
    folder: Path,
    graph: ComponentGraph,
    variant: Variant,
    inputs: dict[str, Tensor],
    steps: Mapping[str, np.ndarray] = NO_STEPS,  # (g, d) of an int8 cache, by `key.LAYER` and `value.LAYER`
) -> Comparison:
    """The files of `variant` below `folder` against the module.

    Raises CheckFailedError when they cannot be run, or take and give other tensors than the variant says.
    """
    wanted = _asked(graph, inputs)
    found = [np.zeros_like(_fitted(array, spec, steps)) for array, spec in zip(wanted, variant.outputs, strict=True)]
    files = GraphFiles(graph.name, folder / variant.graph, folder / variant.data if variant.data else None, variant)
    try:
        engine = open_engine(files, "CPUExecutionProvider", plan_threads(), threading.Lock())
        given = {
            spec.name: _fitted(inputs[spec.name].numpy(), spec, steps) for spec in variant.inputs if spec.name in inputs
        }
        factors = {spec.name: spec for spec in variant.inputs if spec.name.startswith(ADAPTER_PREFIX)}
        given |= zero_factors(factors)  # without an adapter the graph is the module
        results = {spec.name: array for spec, array in zip(variant.outputs, found, strict=True)}
        for rows in _rows(graph.name, len(wanted[0])):
            engine.bind(
                {name: array if name in factors else array[rows] for name, array in given.items()},
                {name: array[rows] for name, array in results.items()},
            ).run()
    except EdgemmError as error:
        if isinstance(error, BundleError) or type(error) is EdgemmError:
            raise CheckFailedError(f"{_named(graph, variant)} does not run: {error}") from error
        raise
    found = [_real(array, spec, steps) for array, spec in zip(found, variant.outputs, strict=True)]
    same_part = [array[tuple(map(slice, other.shape))] for array, other in zip(found, wanted, strict=True)]
    names = [spec.name for spec in graph.outputs]
    found, wanted = (_logits_in_one(names, arrays) for arrays in (same_part, wanted))
    return compare_arrays(_named(graph, variant), variant.precision, found, wanted)


def _logits_in_one(names: list[str], arrays: list[np.ndarray]) -> list[np.ndarray]:
    """One head says all of a transformer's logits: of one token a row alone, a verdict would be half luck."""
    by_name = dict(zip(names, arrays, strict=True))
    if (more := by_name.pop("draft_logits", None)) is not None:
        by_name["logits"] = np.concatenate((by_name["logits"][:, None], more), axis=1)  # (b, 1 + k, v)
    return list(by_name.values())


ONE_ROW = ("transformer", "image_decoder")  # as the runtime runs them: a prompt, a picture (docs/bundle.md)


def _rows(component: str, count: int) -> list[slice]:
    return [slice(row, row + 1) for row in range(count)] if component in ONE_ROW else [slice(None)]


def _asked(graph: ComponentGraph, inputs: dict[str, Tensor]) -> list[np.ndarray]:
    """What the module says; a picture's layers would take gigabytes for several at once."""
    given = [inputs[spec.name] for spec in graph.inputs]
    parts = [slice(None)] if graph.name != "image_decoder" else _rows(graph.name, len(given[0]))
    answers = [graph.module(*(tensor[rows] for tensor in given)) for rows in parts]
    rows = [(answer,) if isinstance(answer, Tensor) else answer for answer in answers]
    return [torch.cat(tensors).contiguous().numpy() for tensors in zip(*rows, strict=True)]


def _named(graph: ComponentGraph, variant: Variant) -> str:
    dialect = variant.dialect.partition("+")[0]
    own = f"{dialect}, " if dialect in DIALECTS else ""
    return f"{graph.name} ({own}{variant.precision})"


def _fitted(array: np.ndarray, spec: TensorSpec, steps: Mapping[str, np.ndarray]) -> np.ndarray:
    """In the variant's type, with empty slots up to the size that it fixes."""
    if spec.dtype == "int8":
        array = np.rint(array / _step(spec, steps)).clip(-128, 127)
    sizes = [entry if isinstance(entry, int) else size for entry, size in zip(spec.shape, array.shape, strict=True)]
    fitted = np.zeros(sizes, dtype=spec.dtype)
    fitted[tuple(map(slice, array.shape))] = array
    return fitted


def _real(array: np.ndarray, spec: TensorSpec, steps: Mapping[str, np.ndarray]) -> np.ndarray:
    return array * _step(spec, steps) if spec.dtype == "int8" else array


def _step(spec: TensorSpec, steps: Mapping[str, np.ndarray]) -> np.ndarray:
    """past_key.3 -> (g, 1, d)"""
    return steps[spec.name.partition("_")[2]][:, None]


QUESTION = "What do you see, and which colours does it have?"
DRAWINGS = ("red heart", "dog face, noto style", "three small boats on a lake")
TIMES = (0.1, 0.5, 0.9)
SPARE_SLOTS = 5  # of the cache, never written: they must not matter

Named = dict[str, Tensor]


@torch.no_grad()
def example_inputs(model: Unified, prompt_lookup: bool = False) -> dict[str, Named]:
    """component -> its inputs by name, b = 3 everywhere; with `prompt_lookup` the transformer takes candidates.

    Numbers that it really meets, in other shapes than it was traced with: random ones would judge a quantized graph by
    inputs that no transformer has ever seen.  So prompts and pictures are read by torch, and every component gets what
    the ones before it made of them.
    """
    more = {"draft_index": torch.tensor([[0, 2]] * len(DRAWINGS))} if prompt_lookup else {}
    if model.vq is not None:
        pictures = _pictures(model.config.image_tokens.image_size)
        codes = model.vq.encode(pictures)
        return {
            "vq_encoder": {"pixels": pictures},
            "transformer": _transformer(model) | more,
            "vq_decoder": {"codes": (codes + torch.arange(len(codes))[:, None]) % model.config.image_tokens.codes},
        }
    tokens = model.config.image_tokens
    noise = torch.randn(
        len(DRAWINGS), tokens.token_count, tokens.token_width, generator=torch.Generator().manual_seed(0)
    )
    clean = model.to_tokens(_pictures(tokens.image_size)).repeat(1, tokens.frames, 1)
    time = torch.tensor(TIMES)
    noisy = time[:, None, None] * clean + (1 - time)[:, None, None] * noise
    steps = {"step_size": (1 - time) / 2} if model.config.denoiser.step_size else {}
    return {
        "image_encoder": {"pixels": _pictures(model.config.vision.image_size)},
        "transformer": _transformer(model) | more,
        "conditioner": _conditioner(model),
        "denoiser": {"noisy_tokens": noisy, "time": time, **steps, **_prefix(model)},
        "image_decoder": {"tokens": noisy[:, : tokens.cell_count]},
        **({} if model.config.graph is None else {"graph_encoder": _graph_rows(model.config.graph)}),
        **({} if model.config.motion is None else {"motion_encoder": _moved(model.config.motion.image_size)}),
    }


def _graph_rows(config: GraphConfig) -> Named:
    """Every kind, from and to every node in turn."""
    count, kinds = max(config.nodes, 1 + len(config.kinds)), 1 + len(config.kinds)
    rows = torch.arange(len(DRAWINGS))[:, None] + torch.arange(count)
    return {"kind": rows % kinds, "head": rows % config.nodes, "tail": 2 * rows % config.nodes}


def _moved(size: int) -> Named:
    """Each picture after the one before; the first one after itself, so that nothing moved."""
    pictures = _pictures(size)
    return {"pixels": pictures, "previous": torch.cat((pictures[:1], pictures[:-1]))}


def _pictures(size: int) -> Tensor:
    """(3, 3, size, size) in [0, 1]."""
    pictures = np.stack([seeded_picture(seed, size) for seed in range(len(DRAWINGS))])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def _transformer(model: Unified) -> Named:
    """The rest of a prompt, each row with a picture of its own, after the tokens before the picture were read."""
    config, pictures = model.config.transformer, _pictures(model.config.vision.image_size)
    b = len(pictures)
    prompt = read_prompt(model.config, model.tokenizer, QUESTION, pictures=1)
    before, length = int(np.flatnonzero(prompt.image_index == 0)[0]), len(prompt)
    if model.vq is None:
        prompts, image_tokens = [prompt] * b, model.image_encoder(pictures)
    else:
        codes = model.vq.encode(pictures) + model.config.first_code
        prompts = [with_picture_ids(prompt, row) for row in codes.numpy()]
        image_tokens = torch.zeros(b, 1, config.width)
    ids, index, limit = (
        torch.from_numpy(np.stack([getattr(one, name) for one in prompts]))
        for name in ("input_ids", "image_index", "attention_limit")
    )
    start = torch.zeros(b, dtype=torch.long)
    empty = torch.zeros(b, config.kv_heads, length + SPARE_SLOTS, config.head_width)
    past: KeyValues = [(empty, empty)] * config.depth
    if before:
        _, past = model.transformer(model.transformer.embed_tokens(ids[:, :before]), limit[:, :before], past, start)
    inputs = {
        "input_ids": ids[:, before:],
        "image_tokens": image_tokens,
        "image_index": index[:, before:],
        "write_index": start + before,
        "attention_limit": limit[:, before:],
        "logits_index": length - before - 1 - 2 * torch.arange(b),
    }
    for layer, pair in enumerate(past):
        inputs |= {f"past_{part}.{layer}": tensor for part, tensor in zip(("key", "value"), pair, strict=True)}
    return inputs


def _conditioner(model: Unified) -> Named:
    cached, prompt_mask, prefix_length = model.prompt_cache(DRAWINGS)
    inputs: Named = {}
    for layer, pair in zip(model.config.denoiser.prefix_layers, cached, strict=True):
        for part, tensor in zip(("key", "value"), pair, strict=True):
            inputs[f"past_{part}.{layer}"] = pad(tensor, (0, 0, 0, SPARE_SLOTS))
    inputs |= {"prompt_mask": pad(prompt_mask, (0, SPARE_SLOTS)), "prefix_length": prefix_length}
    return inputs


def _prefix(model: Unified) -> Named:
    prefix = model.prefix(DRAWINGS)
    inputs = {"prompt_vector": prefix.prompt_vector, "prefix_mask": prefix.mask}
    if prefix.layout.shape[-1]:
        inputs["layout"] = prefix.layout
    for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        inputs |= {f"prefix_key.{layer}": keys, f"prefix_value.{layer}": values}
    return inputs
