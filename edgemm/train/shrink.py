"""A smaller student cut from its teacher: which layers stay, and what the new conditioner starts from.

Transformer layers that change the residual stream least go first (block influence, ShortGPT, arXiv:2403.03853).  Layers
whose keys and values the student's denoiser reads always stay: its blocks are some of the teacher's, and each goes on
reading the layer it was trained on, now under another number.  Reading still adapts only what lies above the deepest of
them, so the two halves can be distilled side by side and joined.
Axes: c captions, f pooled features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.errors import UsageError
from edgemm.model.config import DenoiserConfig, ModelConfig
from edgemm.model.prompts import read_prompt
from edgemm.model.transformer import Layer
from edgemm.model.unified import Unified
from edgemm.train.stores import PromptStore

__all__ = ["block_influence", "kept_layers", "nano_depths", "shrink", "spread_over"]


def nano_depths(teacher: Unified) -> tuple[int, int]:
    """Layers of transformer and denoiser of a `nano`: half of the blocks that draw, and as many layers of the
    transformer as keep both together within half of the teacher's weights, the embedding included."""
    transformer, denoiser = (_count(part) for part in (teacher.transformer, teacher.denoiser))
    layer, block = (_count(next(iter(layers.children()))) for layers in (teacher.transformer.layers, _blocks(teacher)))
    depth, blocks = teacher.config.transformer.depth, max(1, teacher.config.denoiser.depth // 2)
    fixed = transformer - depth * layer + denoiser - (teacher.config.denoiser.depth - blocks) * block
    return max(2, ((transformer + denoiser) // 2 - fixed) // layer), blocks


def _blocks(model: Unified) -> nn.Module:
    return model.denoiser.get_submodule("blocks")


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def block_influence(model: Unified, questions: Sequence[str], answers: Sequence[str], pixels: Tensor) -> list[float]:
    """1 - the mean cosine of what enters a layer and what leaves it, over questions about pictures (b, 3, S, S)."""
    entering: list[Tensor] = []
    layers = cast("list[Layer]", list(model.transformer.layers))
    watched = [layer.input_layernorm for layer in layers] + [model.transformer.norm]
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0][0])) for norm in watched]
    changes = torch.zeros(len(model.transformer.layers))
    tokens = 0
    try:
        for question, answer, picture in zip(questions, answers, pixels, strict=True):
            prompt, reply = read_prompt(model.config, model.tokenizer, question, 1), model.tokenizer.encode(answer)
            length = len(prompt) + len(reply)
            ids = torch.tensor([[*prompt.input_ids, *reply]])
            index = torch.tensor([[*prompt.image_index, *[-1] * len(reply)]])
            limit = torch.tensor([[*prompt.attention_limit, *range(len(prompt), length)]])
            entering.clear()
            model.transformer(
                model.transformer.embed(ids, model.image_encoder(picture[None]), index), limit, pictured=index >= 0
            )
            for layer in range(len(changes)):
                cosine = nn.functional.cosine_similarity(entering[layer], entering[layer + 1], dim=-1)  # (s,)
                changes[layer] += (1 - cosine).sum()
            tokens += length
    finally:
        for hook in hooks:
            hook.remove()
    return (changes / tokens).tolist()


def spread_over(count: int, total: int) -> list[int]:
    """`count` rows of `total`, evenly, first and last among them."""
    return np.linspace(0, total - 1, count).round().astype(int).tolist()


def kept_layers(influence: Sequence[float], read: Sequence[int], deepest: int, count: int) -> list[int]:
    """Layers that stay, in order: those in `read`, one above `deepest` for reading to adapt, then the most influential.

    Where `count` is too small for all of `read`, so many of them as fit, the deepest first.
    """
    if not 2 <= count <= len(influence):
        raise UsageError(f"a student of {count} transformer layers: expected 2 to {len(influence)}, as its teacher has")
    by_influence = sorted(range(len(influence)), key=lambda layer: -influence[layer])
    wanted = sorted(set(read), reverse=True)
    forced = [wanted[row] for row in spread_over(min(len(wanted), count - 1), len(wanted))]
    forced.append(next(layer for layer in by_influence if layer > deepest))
    rest = [layer for layer in by_influence if layer not in forced]
    return sorted(forced + rest[: count - len(forced)])


def shrink(
    teacher: Unified, depth: int, expert: DenoiserConfig, influence: Sequence[float], captions: Sequence[str], name: str
) -> tuple[Unified, list[int]]:
    """The student at its start, and the teacher's layers that it keeps. `expert` says the denoiser's shape; which
    layers it reads is settled here."""
    old = teacher.config.denoiser
    if expert.depth > old.depth:
        raise UsageError(f"a student of {expert.depth} denoiser layers: expected 1 to {old.depth}, as its teacher has")
    blocks = spread_over(expert.depth, old.depth)
    read, deepest = [old.prefix_layers[block] for block in blocks], max(old.prefix_layers)
    kept = kept_layers(influence, read, deepest, depth)
    lower = [layer for layer in kept if layer <= deepest]
    nearest = [min(lower, key=lambda layer: abs(layer - wanted)) for wanted in read]
    whole = teacher.config.base_layers or tuple(range(teacher.config.transformer.depth))
    config = dataclasses.replace(
        teacher.config,
        name=name,
        transformer=dataclasses.replace(teacher.config.transformer, depth=depth),
        denoiser=dataclasses.replace(expert, prefix_layers=tuple(kept.index(layer) for layer in nearest)),
        base_layers=tuple(whole[layer] for layer in kept) if teacher.config.base else (),
        edits=False,  # nothing that follows teaches it to draw from a picture
    )
    student = Unified(config, teacher.tokenizer_json)
    _copy(student.transformer, _renumbered(teacher.transformer.state_dict(), "layers", kept))
    student.image_encoder.load_state_dict(teacher.image_encoder.state_dict())
    if student.autoencoder is not None and teacher.autoencoder is not None:
        student.autoencoder.load_state_dict(teacher.autoencoder.state_dict())
    _copy(student.denoiser, _renumbered(teacher.denoiser.state_dict(), "blocks", blocks))
    state = teacher.conditioner.state_dict()
    for part in ("key_norms", "value_norms", "key_projs", "value_projs"):
        state = _renumbered(state, part, blocks)
    _copy(student.conditioner, {key: tensor for key, tensor in state.items() if not key.startswith("whiten")})
    _map_whitening(student, teacher, captions)
    return student.eval(), kept


def _renumbered(state: dict[str, Tensor], part: str, kept: Sequence[int]) -> dict[str, Tensor]:
    """The state with part.kept[i] as part.i, and the part's others left out."""
    numbers = {str(old): str(new) for new, old in reversed(list(enumerate(kept)))}
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        head, _, tail = key.partition(f"{part}.")
        number, _, rest = tail.partition(".")
        if not (head == "" and tail):
            found[key] = tensor
        elif number in numbers:
            found[f"{part}.{numbers[number]}.{rest}"] = tensor
    return found


def _copy(module: nn.Module, state: dict[str, Tensor]) -> None:
    """What has the same name and shape; the rest stays as it was initialised."""
    own = module.state_dict()
    module.load_state_dict({k: v for k, v in state.items() if k in own and own[k].shape == v.shape}, strict=False)


@torch.no_grad()
def _map_whitening(student: Unified, teacher: Unified, captions: Sequence[str]) -> None:
    """Least squares from the student's pooled prompts to the teacher's whitened ones: what reads them may stay.

    Both are centred on the captions, as the teacher's were on those that it was fitted on.
    """
    ours, theirs = (PromptStore(model, captions).pooled().double() for model in (student, teacher))  # (c, f)
    conditioner = teacher.conditioner
    wanted = (theirs - conditioner.whiten_mean) @ conditioner.whiten_matrix.double()
    if student.conditioner.whiten_matrix.shape[1] != wanted.shape[1]:
        student.conditioner.fit_whitening(ours.float())
        return
    mean, spread = ours.mean(0), ours.std(0, correction=0)
    scale = torch.where(spread > 1e-6, 1 / spread, 0.0)
    features = (ours - mean) * scale
    gram = features.T @ features
    gram += 1e-3 * gram.diagonal().mean().clamp(min=1e-9) * torch.eye(len(gram), dtype=gram.dtype)
    matrix = torch.linalg.solve(gram, features.T @ (wanted - wanted.mean(0)))
    student.conditioner.whiten_mean.copy_(mean)
    student.conditioner.whiten_matrix.copy_(matrix * scale[:, None])


def student_expert(config: ModelConfig, depth: int) -> DenoiserConfig:
    """The teacher's denoiser with fewer layers."""
    layers = [config.denoiser.prefix_layers[row] for row in spread_over(depth, config.denoiser.depth)]
    return dataclasses.replace(config.denoiser, depth=depth, prefix_layers=tuple(layers))
