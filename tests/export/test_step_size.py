"""A denoiser that is told how far the next step goes: its graph has one more input, and the runtime fills it."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

import edgemm
from edgemm.model import checkpoint
from edgemm.runtimes.schedule import initial_noise
from edgemm.verify.export_native import export_bundle
from tests.export.nano import nano, needs_opset_24, random_nano


@needs_opset_24
def test_a_bundle_draws_as_torch_does_and_differently_in_other_steps(tmp_path):
    model = random_nano(nano(denoiser=dataclasses.replace(nano().denoiser, step_size=True)))
    with torch.no_grad():
        model.denoiser.step_mlp[2].weight.mul_(10)
    checkpoint.save(model, tmp_path / "told")
    export_bundle(tmp_path / "told", tmp_path / "told.bundle", precision="fp32")
    tokens = model.config.image_tokens
    noise = torch.from_numpy(initial_noise(5, tokens.token_count, tokens.token_width))[None]
    with edgemm.load(tmp_path / "told.bundle", device="cpu", threads=1) as bundle:
        assert [s.name for s in bundle._engines.get("denoiser").inputs.values()][:3] == [
            "noisy_tokens",
            "time",
            "step_size",
        ]
        for steps, guidance in ((1, 1.0), (4, 2.0)):
            sampler = model.with_sampler(num_inference_steps=steps, guidance_scale=guidance)
            drawn = bundle.generate_image("a dog", num_inference_steps=steps, guidance_scale=guidance, seed=5)
            np.testing.assert_allclose(drawn.pixels, model.draw(["a dog"], noise, sampler)[0], atol=1e-4)
    deaf = dataclasses.replace(model.config.sampler, num_inference_steps=4)
    heard = model.draw(["a dog"], noise, deaf)
    with torch.no_grad():
        model.denoiser.step_mlp[2].weight.zero_()
        model.denoiser.step_mlp[2].bias.zero_()
    assert (model.draw(["a dog"], noise, deaf) - heard).abs().max() > 1e-2
