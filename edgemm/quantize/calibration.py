"""The data that numbers are chosen on: pieces of text and prompts to draw, and running them through the model.

    nothing named          the text and the prompts that edgemm ships (texts/)
    FILE.txt               your text, and the shipped prompts
    a dataset folder       its training captions as prompts (made by `edgemm data`), and the shipped text

What the judges ask is never calibrated on: texts/evaluation.txt is another book, and what
texts/evaluation_prompts.txt names is left out of every dataset, in all styles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn

from edgemm import progress
from edgemm.bundle.files import read_text
from edgemm.data.format import read_dataset
from edgemm.errors import InputError, UsageError
from edgemm.model import flow
from edgemm.model.prompts import draw_prompt, read_prompt
from edgemm.model.unified import Unified
from edgemm.quantize.spec import HEAD

__all__ = [
    "NOISE_SEED",
    "Calibration",
    "frequent_tokens",
    "observe",
    "read_calibration",
    "shipped_text",
    "thing_of",
    "Inputs",
    "Record",
    "reader_of",
    "order_of",
    "places_of",
]

PIECE = 128  # tokens
BATCH = 8
FEWEST = 2
MOST = 128  # samples when nobody says otherwise
NOISE_SEED = 0  # of drawings; the judge has another


@dataclass(frozen=True)
class Calibration:
    texts: Tensor  # (pieces, PIECE) token ids
    prompts: tuple[str, ...]
    name: str  # for the spec


def shipped_text(name: str) -> str:
    return (resources.files("edgemm.quantize") / "texts" / name).read_text(encoding="utf-8")


def read_calibration(source: Path | None, model: Unified, samples: int | None = None) -> Calibration:
    """`samples` pieces of text and as many prompts, or all there are, up to MOST.  Raises InputError for too few."""
    if samples is not None and samples < FEWEST:
        raise UsageError(f"--samples {samples} is too few to calibrate on, expected {FEWEST} or more")
    text, prompts = shipped_text("calibration.txt"), shipped_text("prompts.txt").splitlines()
    where = "the shipped data" if source is None else str(source)
    if source is not None and source.is_dir():
        prompts = _not_judged(sample.captions[0] for sample in read_dataset(source).split("train"))
        prompts = prompts[:: max(1, len(prompts) // (samples or MOST))]  # of all groups, not the first
    elif source is not None:
        text = _read_text(source)
    ids = model.encode(text, special=False)
    pieces = [ids[start : start + PIECE] for start in range(0, len(ids) - PIECE + 1, PIECE)]
    _require_enough(where, samples, source, len(pieces), len(prompts))
    most = samples or MOST
    pieces, prompts = pieces[:most], prompts[:most]
    name = f"{where}: {len(pieces)} pieces of {PIECE} tokens, {len(prompts)} prompts"
    return Calibration(torch.tensor(pieces), tuple(prompts), name)


def _not_judged(prompts: Iterable[str]) -> list[str]:
    judged = {thing_of(prompt) for prompt in shipped_text("evaluation_prompts.txt").splitlines()}
    return [prompt for prompt in prompts if thing_of(prompt) not in judged]


def thing_of(prompt: str) -> str:
    """Without its style."""
    return prompt.partition(",")[0]


def _require_enough(where: str, samples: int | None, source: Path | None, pieces: int, prompts: int) -> None:
    """Of what the caller brought as many as were asked for; what is shipped fills up the rest as far as it goes."""
    own_prompts = source is not None and source.is_dir()
    for found, what, own in (
        (pieces, f"pieces of {PIECE} tokens", not own_prompts),
        (prompts, "prompts", own_prompts or source is None),
    ):
        wanted = samples if own and samples else FEWEST
        if found < wanted:
            raise InputError(f"{where} holds {found} {what}, expected {wanted} or more")


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file or dataset folder to calibrate on")
    return read_text(path)


@torch.no_grad()
def observe(model: Unified, data: Calibration, inputs: Inputs, text: bool, draw: bool, steps: int) -> Inputs:
    """Run what is needed and let `inputs` see it."""
    with inputs.watching(model):
        if text:
            batches = data.texts.split(BATCH)
            for batch in progress.track(batches, len(batches), "reading to calibrate", "batches"):
                limit = torch.arange(batch.shape[1]).expand(len(batch), -1)
                hidden, _ = model.transformer(model.transformer.embed_tokens(batch), limit)
                inputs.see(HEAD, hidden)
        if draw:
            drawings, total = _drawings(model, data.prompts), -(-len(data.prompts) // BATCH)
            for prompts, noise in progress.track(drawings, total, "drawing to calibrate", "batches"):
                _draw(model, prompts, noise, inputs, steps)
    return inputs


def _drawings(model: Unified, prompts: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    tokens = model.config.image_tokens
    random = torch.Generator().manual_seed(NOISE_SEED)
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        yield part, torch.randn(len(part), tokens.token_count, tokens.token_width, generator=random)


def _draw(model: Unified, prompts: tuple[str, ...], noise: Tensor, inputs: Inputs, steps: int) -> None:
    prefix, numbers = model.prefix(prompts), count()

    def predict(x: Tensor, t: Tensor, size: Tensor) -> Tensor:
        inputs.step = next(numbers)
        return model.denoiser(x, t, prefix, size)

    sampler = model.with_sampler(num_inference_steps=steps, guidance_scale=1.0)
    flow.sample(predict, predict, noise, sampler)
    inputs.step = 0


# What each linear layer gets to see while calibration data runs through the model.
#
# Layers that read the same activation (q, k and v; gate and up) share one record, under the first one's name.
# Axes: k input channels.

FIRST = (
    (r"\.self_attn\.[kv]_proj$", ".self_attn.q_proj"),
    (r"\.mlp\.up_proj$", ".mlp.gate_proj"),
    (r"^transformer\.embed_tokens(\.rest)?$", "transformer.head"),  # no module has that name: calibration.py tells it
)


def reader_of(layer: str) -> str:
    """The layer under whose name the input is recorded."""
    for pattern, first in FIRST:
        layer = re.sub(pattern, first, layer)
    return layer


@dataclass
class Record:
    largest: Tensor  # (k)
    products: Tensor  # (k, k): the sum of x x^T, or (k): of x * x, where nobody asked for more
    rows: int = 0
    by_step: dict[int, float] = field(default_factory=dict)  # denoising step -> the largest input

    def gram(self) -> Tensor:
        return self.products / max(self.rows, 1)

    def squares(self) -> Tensor:
        """Mean square of each channel."""
        return (self.products.diagonal() if self.products.dim() == 2 else self.products) / max(self.rows, 1)


class Inputs:
    """Layer -> Record, filled while `watching`; `step` says which denoising step is running."""

    def __init__(self, layers: Iterable[str], with_gram: Iterable[str] = ()) -> None:
        self.layers = {reader_of(name) for name in layers}
        self.with_gram = {reader_of(name) for name in with_gram}
        self.records: dict[str, Record] = {}
        self.step = 0

    def of(self, layer: str) -> Record:
        """Raises InputError for a layer that the calibration data never reached."""
        if reader_of(layer) not in self.records:
            raise InputError(f"the calibration data never reached {layer}")
        return self.records[reader_of(layer)]

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        hooks = [
            part.register_forward_pre_hook(lambda _, args, name=name: self.see(name, args[0]))
            for name, part in model.named_modules()
            if name in self.layers
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def knows(self, layer: str) -> bool:
        return reader_of(layer) in self.records

    def see(self, name: str, x: Tensor) -> None:
        """x (..., k) goes into the layer; nothing where nobody asked for it."""
        name = reader_of(name)
        if name not in self.layers:
            return
        rows = x.detach().flatten(0, -2).float()
        largest = rows.abs().amax(0)
        if not torch.isfinite(largest).all():
            raise InputError(f"the inputs of {name} are not finite on the calibration data")
        wide = name in self.with_gram
        if name not in self.records:
            k = rows.shape[1]
            self.records[name] = Record(torch.zeros(k), torch.zeros((k, k) if wide else k))
        record = self.records[name]
        record.largest = torch.maximum(record.largest, largest)
        record.products += rows.T @ rows if wide else rows.square().sum(0)
        record.rows += len(rows)
        record.by_step[self.step] = max(record.by_step.get(self.step, 0.0), float(largest.max()))


# Token frequency: which rows of an embedding deserve the finer precision.
#
# Vocabularies begin with what was merged first, so a low number means a frequent token.  But what a model reads and
# draws is told in the tokens that spell its pictures' names (vision.py), that calibration data has, and that stand
# around every prompt ("Draw" is the 21,156th of SmolLM2), however rare they are in books: they stand before all others.
# Axes: v tokens of the vocabulary, u letters, w width.

SAME = 0.999  # cosine of a letter and the row that it was copied from


@torch.no_grad()
def places_of(model: Unified, data: Calibration) -> Tensor:
    """Token -> its row (v)."""
    frequent = frequent_tokens(model, data)
    tokens = torch.arange(len(frequent))
    return torch.argsort(torch.cat([tokens[frequent], tokens[~frequent]])).int()


@torch.no_grad()
def frequent_tokens(model: Unified, data: Calibration) -> Tensor:
    """Which tokens are met in whatever this model is asked and says (v), bool."""
    frequent = torch.zeros(model.config.transformer.vocab_size, dtype=torch.bool)
    frequent[data.texts] = True
    for prompt in data.prompts:
        frequent[model.encode(f" {prompt}", special=False)] = True
    for template in (draw_prompt(model.config, model.tokenizer, ""), read_prompt(model.config, model.tokenizer, "", 0)):
        frequent[template.input_ids] = True  # of every drawing and every reply
    frequent[_spelled(model)] = True
    return frequent


def _spelled(model: Unified) -> Tensor:
    """Tokens that visual words are spelled with: their letters are copies of the embedding's rows."""
    words = getattr(model.image_encoder, "words", None)
    if words is None:
        return torch.zeros(0, dtype=torch.long)
    table = nn.functional.normalize(model.transformer.embed_tokens.weight, dim=-1)  # (v, w)
    alike, tokens = (nn.functional.normalize(words.letters, dim=-1) @ table.T).max(-1)  # (u)
    return tokens[alike > SAME]


def order_of(places: Tensor) -> Tensor:
    """Row -> its token, (v)."""
    return torch.argsort(places)
