"""Learned routing against other people's: transformers' own blocks, and a loop over tokens."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgemm.errors import UsageError
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS, MixtureConfig, ModelConfig
from edgemm.model.designs import MIXTURES, variant
from edgemm.model.feed_forward import BALANCE, ROWS, ExpertChoice, Mixture, Z, watching
from tests.model.tiny import random_micro

W, H, E = 24, 16, 8
X = torch.randn(3, 7, W, generator=torch.Generator().manual_seed(0))
SEEN = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.5


def mixture(top, seed=0, **more) -> Mixture:
    torch.manual_seed(seed)
    made = Mixture(W, MixtureConfig(E, top, H, **more))
    with torch.no_grad():
        made.router.mul_(4)  # sure enough that weights differ
    return made


@pytest.mark.parametrize("top", [1, 2, 4])
@torch.no_grad()
def test_token_choice_is_mixtrals_with_the_same_weights(top):
    """Mixtral divides by the sum of the chosen; Qwen2-MoE may leave them, as one expert's weight has to be left."""
    from transformers import Qwen2MoeConfig
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

    ours = mixture(top, shared=H)
    config = Qwen2MoeConfig(
        hidden_size=W, moe_intermediate_size=H, shared_expert_intermediate_size=H, num_experts=E,
        num_experts_per_tok=top, norm_topk_prob=top > 1,
    )  # fmt: skip
    theirs = Qwen2MoeSparseMoeBlock(config).eval()
    theirs.gate.weight.copy_(ours.router.T)
    theirs.experts.gate_up_proj.copy_(ours.gate_up_proj.transpose(1, 2))
    theirs.experts.down_proj.copy_(ours.down_proj.transpose(1, 2))
    theirs.shared_expert.load_state_dict(ours.shared.state_dict())
    theirs.shared_expert_gate.weight.zero_()  # a gate of one half, which ours has none of
    wanted = theirs(X) + ours.shared(X) / 2
    torch.testing.assert_close(ours(X), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("top", [1, 2])
def test_the_static_form_is_each_expert_on_its_own_tokens(top):
    """What it learns is the same, too."""
    ours, found = mixture(top), []
    for form in (ours._static, ours._each_alone):
        flat = X.flatten(0, 1).requires_grad_()
        y = form(flat, *ours.route(ours._logits(flat[None], None)))
        found.append((y, *torch.autograd.grad(y.square().sum(), [flat, *ours.parameters()])))
    torch.testing.assert_close(*found)


def test_products_have_few_shapes_whatever_goes_where():
    """A processor makes a program for each new shape of a bfloat16 product, which takes longer than the product."""
    ours, shapes = mixture(2), set()

    class Noted(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.mm.default:
                shapes.add((*args[0].shape, *args[1].shape))
            return function(*args, **kwargs or {})

    for seed in range(12):
        x = torch.randn(1, 300, W, generator=torch.Generator().manual_seed(seed))
        with Noted():
            ours(x).sum().backward()
    counts = {count for count, width, *_ in shapes if width == W}
    assert counts and counts <= {300, *range(ROWS, 601 + ROWS, ROWS)}  # the router's own, and experts'


@torch.no_grad()
def test_halves_are_for_words_and_for_pictures():
    ours = mixture(1, by_modality=True)
    chosen, _ = ours.route(ours._logits(X, SEEN))
    assert torch.equal(chosen[:, 0] >= E // 2, SEEN.flatten())
    with watching(ours) as routed:
        ours(X, SEEN)
    assert routed.measures()["modality_bits"] == pytest.approx(entropy(SEEN.float().mean()))


def entropy(share):
    return float(-(share * share.log2() + (1 - share) * (1 - share).log2()))


@pytest.mark.parametrize("top", [1, 2, 3])
@torch.no_grad()
def test_an_experts_choice_is_a_loop_over_experts_and_their_tokens(top):
    torch.manual_seed(0)
    ours = ExpertChoice(W, MixtureConfig(E, top, H))
    wanted = torch.zeros_like(X)
    for b, picture in enumerate(X):
        shares = (picture @ ours.router).softmax(-1)  # (n, e)
        for expert in range(E):
            for token in shares[:, expert].argsort(descending=True)[: max(1, X.shape[1] * top // E)].tolist():
                hidden = nn.functional.gelu(picture[token] @ ours.up_proj[expert], approximate="tanh")
                wanted[b, token] += shares[token, expert] * (hidden @ ours.down_proj[expert])
    torch.testing.assert_close(ours(X), wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours(X[:1]), ours(X)[:1])  # whatever else is in the batch


def test_losses_are_switch_transformers_and_st_moes():
    from transformers.models.switch_transformers.modeling_switch_transformers import (
        load_balancing_loss_func,
        router_z_loss_func,
    )

    ours = mixture(1)
    with watching(ours) as routed:
        ours(X)
    logits = ours._logits(X, None)[None]  # one group of all tokens
    probabilities = logits.softmax(-1)
    chosen = probabilities.argmax(-1)
    wanted = BALANCE * load_balancing_loss_func(probabilities, chosen) + Z * router_z_loss_func(logits)
    torch.testing.assert_close(routed.loss(), wanted)
    routed.loss().backward()
    assert ours.router.grad.any()


def test_a_router_that_is_called_twice_is_weighed_by_its_tokens():
    ours = mixture(1)
    with watching(ours) as both:
        ours(X)
        ours(X[:1])
    alone = []
    for x in (X, X[:1]):
        with watching(ours) as one:
            ours(x)
        alone.append(one.loss())
    wanted = (len(X) * alone[0] + alone[1]) / (len(X) + 1)
    torch.testing.assert_close(both.loss(), wanted)


def test_load_and_dead_experts_are_counted():
    ours = mixture(1)
    with torch.no_grad():
        ours.router.zero_()
        ours.router[:, 0] = X.mean((0, 1))
        ours.router[:, 1] = -ours.router[:, 0]
    with watching(ours) as routed:
        ours(X)
    counts = torch.bincount(ours.route(ours._logits(X, None))[0].flatten(), minlength=E)
    measured = routed.measures()
    assert measured["expert_load"] == pytest.approx((counts.max() * E / counts.sum()).item())
    assert measured["dead_experts"] == (counts == 0).sum() > 0
    assert ours.watched is None


@pytest.mark.parametrize("name", [*MIXTURES, "choice-8", "wide"])
def test_every_mixture_is_as_wide_for_a_token_and_survives_saving(name, tmp_path):
    base = PRESETS["micro"]()
    config = variant(base, mixture=name)
    part = config.denoiser if name == "choice-8" else config.transformer
    if name == "wide":
        assert part.ffn_width == 4 * base.transformer.ffn_width
    else:
        assert 348 <= part.mixture.active_width <= 352 == base.transformer.ffn_width
    assert ModelConfig.from_json(config.to_json()) == config
    model = random_micro(config)
    checkpoint.save(model, tmp_path / "made", torch.float32)
    again = checkpoint.load(tmp_path / "made")
    with torch.no_grad():
        seen = torch.rand(1, 3, 32, 32)
        torch.testing.assert_close(model.generate("x", seen, 3)[1], again.generate("x", seen, 3)[1])
        noise = torch.randn(1, 16, 192)
        torch.testing.assert_close(model.draw(["a heart"], noise), again.draw(["a heart"], noise))


@pytest.mark.parametrize(
    "wrong",
    [(1, 1, 4), (4, 5, 4), (4, 0, 4), (4, 1, 0), (5, 1, 4, 0, True), (4, 3, 4, 0, True), (4, 1, 4, -1)],
)
def test_what_cannot_be_routed_is_refused(wrong):
    with pytest.raises(ValueError, match="mixture"):
        MixtureConfig(*wrong)


def test_designs_that_do_not_go_together_are_refused():
    with pytest.raises(UsageError, match="only a denoiser of its own can choose"):
        variant(PRESETS["micro"](), experts="dense", mixture="choice-8")
    with pytest.raises(UsageError, match="is none of"):
        variant(PRESETS["micro"](), mixture="3-top-9")
    with pytest.raises(UsageError, match="feed-forward networks of its own"):
        variant(PRESETS["small"](), mixture="4-top-1")
    with pytest.raises(ValueError, match="no halves"):
        denoiser = PRESETS["micro"]().denoiser
        dataclasses.replace(denoiser, mixture=MixtureConfig(4, 1, 8, by_modality=True))
