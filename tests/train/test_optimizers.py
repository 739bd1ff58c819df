"""Rates, optimizers and averages, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgemm.model import checkpoint
from edgemm.train.optimizers import Average, Muon, make_optimizers, rate
from edgemm.train.recipe import DrawRecipe


def settings(**changes) -> DrawRecipe:
    return DrawRecipe(**{"data": "data", "output": "run", **changes})


def test_the_rate_rises_stays_and_falls_to_a_hundredth():
    recipe = settings(steps=100, warmup=10, decay=0.4)
    assert [rate(step, recipe) for step in (0, 4, 9, 10, 59)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    # Half way down the cosine is at 1/2: 0.01 + 0.99 / 2.
    assert [rate(step, recipe) for step in (60, 80)] == pytest.approx([1.0, 0.505])
    assert rate(99, recipe) == pytest.approx(0.01, abs=0.002)
    falling = [rate(step, recipe) for step in range(60, 100)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize(
    ("changes", "expected"), [({"decay": 0.0}, [1.0] * 10), ({"warmup": 0, "decay": 0.1}, [1.0] * 10)]
)
def test_a_rate_without_decay_or_warmup_is_constant(changes, expected):
    recipe = settings(**{"steps": 10, "warmup": 1, **changes})
    assert [rate(step, recipe) for step in range(10)] == pytest.approx(expected)


def test_adamw_decays_matrices_only_and_every_group_keeps_its_full_rate():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    (optimizer,) = make_optimizers(model.named_parameters(), settings(learning_rate=0.3, weight_decay=0.2))
    found = [([p.ndim for p in g["params"]], g["weight_decay"], g["peak"]) for g in optimizer.param_groups]
    assert found == [([2], 0.2, 0.3), ([1, 1, 1], 0.0, 0.3)]


def test_muon_takes_the_matrices_of_blocks_and_adamw_all_the_rest():
    denoiser = nn.ModuleDict({"denoiser": checkpoint.build("micro").denoiser})
    adamw, muon = make_optimizers(denoiser.named_parameters(), settings(optimizer="muon", matrix_learning_rate=0.07))
    names = {id(p): name for name, p in denoiser.named_parameters()}
    matrices = {names[id(p)].split(".", 3)[3] for p in muon.param_groups[0]["params"]}
    assert matrices == {"qkv_proj.weight", "o_proj.weight", "up_proj.weight", "down_proj.weight"}
    held = [id(p) for optimizer in (adamw, muon) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(names)
    assert muon.param_groups[0]["peak"] == 0.07


def matrices() -> list[nn.Parameter]:
    """Wide, tall and square ones, several of a shape, one alone in its own, and some too large to go together."""
    random = torch.Generator().manual_seed(0)
    shapes = [(16, 8)] * 3 + [(8, 16)] * 2 + [(12, 12)] * 4 + [(5, 7)] + [(1024, 768)] * 2
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]


def follow(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        random = torch.Generator().manual_seed(step)
        for place, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=random) if (place + step) % 5 else None
        optimizer.step()


@pytest.mark.parametrize("changes", [{}, {"nesterov": False, "momentum": 0.5}], ids=["nesterov", "heavy ball"])
def test_muon_moves_as_torchs_does_and_either_goes_on_from_the_others_state(changes):
    lines = {"lr": 0.1, "weight_decay": 0.3, **changes}
    ours, theirs = matrices(), matrices()
    own, reference = Muon(ours, **lines), torch.optim.Muon(theirs, **lines)
    for start in (0, 3):  # then each goes on with the other's state
        follow(own, ours, range(start, start + 3))
        follow(reference, theirs, range(start, start + 3))
        for mine, wanted, before in zip(ours, theirs, matrices(), strict=True):
            assert (wanted - before).abs().max() > 0.1
            # Updates are of size 1 and rounded to 8 bits of bfloat16 five times over, in sums of another order.
            torch.testing.assert_close(mine, wanted, atol=6 * 0.1 * 2**-6, rtol=0)
        kept = own.state_dict()
        own.load_state_dict(reference.state_dict())
        reference.load_state_dict(kept)


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    (optimizer,) = make_optimizers(model.named_parameters(), settings())
    assert [p is model.weight for group in optimizer.param_groups for p in group["params"]] == [True]


def test_the_average_follows_its_formula():
    parameter = nn.Parameter(torch.tensor([0.0]))
    named = [("p", parameter)]
    average, expected = Average(named, decay=0.5), 0.0
    for step, value in enumerate([10.0, 20.0, -5.0, 7.0]):
        parameter.data.fill_(value)
        average.update(named, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert average.tensors["p"].item() == pytest.approx(expected, rel=1e-6)


def test_no_average_is_the_parameters_themselves():
    parameter = nn.Parameter(torch.tensor([3.0]))
    average = Average([("p", parameter)], decay=0.0)
    parameter.data.fill_(8.0)
    average.update([("p", parameter)], 1000)
    assert average.tensors["p"].item() == 8.0


def test_swapping_twice_gives_back_every_bit_in_the_same_memory():
    parameter = nn.Parameter(torch.randn(5, generator=torch.Generator().manual_seed(0)))
    average = Average([("p", parameter)], 0.9)
    average.tensors["p"] += 1 / 3
    before, mean, place = parameter.clone(), average.tensors["p"].clone(), parameter.data_ptr()
    average.swap([("p", parameter)])
    assert torch.equal(parameter, mean)
    average.swap([("p", parameter)])
    assert torch.equal(parameter, before)
    assert torch.equal(average.tensors["p"], mean)
    assert parameter.data_ptr() == place
