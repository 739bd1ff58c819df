"""Time tables and trajectories, held against the schedulers of those names in diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgemm.bundle.drawing import DenoiseLoop, DenoiseTemplate, LatentGrid
from edgemm.runtimes import schedule
from edgemm.runtimes.schedule import Trajectory

diffusers = pytest.importorskip("diffusers", reason="Python 3.10 has no diffusers")

STEPS = (1, 2, 4, 20, 35, 50)
ALIKE = 1e-6  # of the largest number: both sides round to float32 at every step, and the model hands it on
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def loop(**fields) -> DenoiseLoop:
    usual = {"template": DenoiseTemplate("", ""), "prefix_layers": (0,), "skip": 0, "prediction": "velocity"}
    usual |= {"num_inference_steps": 4, "guidance_scale": 1.0, "guidance_interval": (0.0, 1.0), "shift": 1.0}
    usual |= {"latents": LatentGrid(4, 8, 48, 80), "time_zero": "picture", "time_scale": 1000.0}
    return DenoiseLoop(**{**usual, **fields})


def native(steps: int) -> np.ndarray:
    """The sigmas that diffusers' Cosmos3 pipeline hands to UniPC, before the shift."""
    return np.linspace(1 - 1 / 1000, 0, steps + 1)[:-1]


def cases(steps: int) -> dict[str, tuple]:
    """name -> scheduler with its times set, and the loop that says the same"""
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    euler.set_timesteps(steps)
    evenly = diffusers.DPMSolverMultistepScheduler(**FLOW, flow_shift=3.0)
    evenly.set_timesteps(steps)
    handed = diffusers.UniPCMultistepScheduler(**FLOW, flow_shift=3.0)
    handed.set_timesteps(steps, sigmas=native(steps))
    own = diffusers.UniPCMultistepScheduler(**FLOW, flow_shift=5.0)
    own.set_timesteps(steps)
    karras = diffusers.UniPCMultistepScheduler(**FLOW, use_karras_sigmas=True, sigma_max=200.0, sigma_min=0.01)
    karras.set_timesteps(steps)
    unipc = {"solver": "unipc_2", "time_whole": True}
    to_last = loop(spacing="linear_to_last", sigma_last=euler.sigma_min, shift=3.0)
    return {
        "euler": (euler, to_last),
        "dpmsolver++": (evenly, loop(solver="dpmsolver++_2m", time_whole=True, sigma_first=0.999, shift=3.0)),
        "unipc, sigmas handed in": (handed, loop(**unipc, sigma_first=1 - 1 / 1000, shift=3.0)),
        "unipc, its own sigmas": (own, loop(**unipc, sigma_last=1 / 1000, shift=5.0)),
        "unipc, karras": (karras, loop(**unipc, spacing="karras", sigma_first=200.0, sigma_last=0.01)),
    }


NAMES = ("euler", "dpmsolver++", "unipc, sigmas handed in", "unipc, its own sigmas", "unipc, karras")


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_the_time_table_is_the_schedulers(name, steps):
    scheduler, numbers = cases(steps)[name]
    found = Trajectory(steps, numbers)
    np.testing.assert_array_equal(np.float32(found.sigmas), scheduler.sigmas.numpy())
    told = [schedule.told(time, numbers) for time in found.times[:-1]]
    if numbers.time_whole:
        assert told == scheduler.timesteps.tolist()
    else:  # there float32 sigmas are multiplied, here float64 ones
        np.testing.assert_allclose(told, scheduler.timesteps.numpy(), rtol=2e-7)


def velocity(x: torch.Tensor, time: float) -> torch.Tensor:
    """A model that bends its way: of x itself, of its neighbours and of time."""
    mixing = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x.dtype)
    return 1.5 * torch.tanh(0.7 * torch.einsum("cd,dhw->chw", mixing, x)) - 0.3 * x + time / 1000


def walks(scheduler, numbers: DenoiseLoop, steps: int, dtype: torch.dtype):
    """Both at every step, from the same noise."""
    theirs = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, way = theirs.numpy(), Trajectory(steps, numbers)
    for time in scheduler.timesteps:
        theirs = scheduler.step(velocity(theirs, float(time))[None], time, theirs[None], return_dict=False)[0][0]
        predicted = velocity(torch.from_numpy(ours), float(time)).numpy()
        ours = way.step(ours, predicted, way.clean(ours, predicted))
        yield ours, theirs.numpy()


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_the_trajectory_is_the_schedulers(name, steps):
    for ours, theirs in walks(*cases(steps)[name], steps, torch.float32):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=ALIKE * np.abs(theirs).max())


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("unipc")])
def test_in_float64_nothing_is_left_to_differ(name, steps):
    """The other two schedulers round to float32 whatever comes in."""
    scheduler, numbers = cases(steps)[name]
    scheduler.sigmas = torch.tensor(Trajectory(steps, numbers).sigmas, dtype=torch.float64)
    for ours, theirs in walks(scheduler, numbers, steps, torch.float64):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", ["euler", "dpmsolver++_2m", "unipc_2"])
@pytest.mark.parametrize("time_zero", ["noise", "picture"])
@pytest.mark.parametrize("prediction", ["x", "velocity"])
def test_every_way_of_saying_it_walks_the_same_path(solver, time_zero, prediction):
    """Whatever is predicted and however time runs, a model that knows the same draws the same."""
    numbers = loop(solver=solver, time_zero=time_zero, prediction=prediction, shift=2.0, time_scale=1.0)
    noise = np.random.default_rng(0).standard_normal((4, 6, 10))
    x, way = noise, Trajectory(7, numbers)
    picture = np.random.default_rng(1).standard_normal((4, 6, 10))
    for sigma in way.sigmas[:-1]:
        expected = picture + 0.3 * np.tanh(x) * sigma
        velocity = (x - expected) / sigma if time_zero == "picture" else (expected - x) / sigma
        predicted = expected if prediction == "x" else velocity
        np.testing.assert_allclose(way.clean(x, predicted), expected, atol=1e-6)
        x = way.step(x, predicted, way.clean(x, predicted))
    assert way.done == 1
    plain = loop(solver=solver, shift=2.0, time_scale=1.0)
    y, reference = noise, Trajectory(7, plain)
    for sigma in reference.sigmas[:-1]:
        velocity = (y - picture - 0.3 * np.tanh(y) * sigma) / sigma
        y = reference.step(y, velocity, reference.clean(y, velocity))
    np.testing.assert_allclose(x, y, atol=2e-6)


def test_points_and_steps_of_time_are_told_apart_by_the_loop_not_the_table():
    assert schedule.model_times(2, loop(shift=3.0)) == [1.0, 0.75, 0.0]
    assert schedule.model_times(2, loop(shift=3.0, time_zero="noise")) == [0.0, 0.25, 1.0]


def test_a_time_is_cut_and_not_rounded():
    assert [schedule.told(t, loop(time_whole=True)) for t in (0.9996, 0.0004)] == [999.0, 0.0]
    assert schedule.told(0.5, loop(time_scale=2.0)) == 1.0
