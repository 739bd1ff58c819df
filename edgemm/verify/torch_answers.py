"""What torch says and draws for the recorded cases: the other side of loops.py."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgemm.bundle.picture import load_picture, seeded_picture
from edgemm.model.codes import write_codes
from edgemm.model.prompts import codes_prompt, draw_prompt, read_prompt
from edgemm.model.unified import Unified
from edgemm.runtimes import schedule
from edgemm.verify.recorded import CodesCase, DrawCase, Recorded, TextCase

__all__ = ["longest_prompt", "torch_answers"]

TEXTS = (("What is the capital of France?", None), ("Count from one to ten.", None), ("What is this?", 1))
DRAWS = (("red heart", 1, 2.0), ("dog face, noto style", 2, 1.0))  # prompt, seed, guidance
EDIT = ("make it blue", 3, 2.0, 1)  # of models that edit; and the picture's seed
MOST_STEPS = 8
MOST_CODES = 32  # of a picture that is compared code by code


def longest_prompt(model: Unified) -> int:
    """Cache slots that the longest recorded prompt takes."""
    asked = [read_prompt(model.config, model.tokenizer, text, int(seed is not None)) for text, seed in TEXTS]
    if model.config.objective == "ar":
        drawn = [codes_prompt(model.config, model.tokenizer, text) for text, _, _ in DRAWS]
        return max(*map(len, asked), max(map(len, drawn)) + model.config.image_tokens.token_count)
    drawn = [draw_prompt(model.config, model.tokenizer, text) for text, _, _ in DRAWS]
    drawn.append(draw_prompt(model.config, model.tokenizer, EDIT[0], model.config.edits))
    return max(map(len, asked + drawn))


def torch_answers(model: Unified, precision: str, new_tokens: int) -> Recorded:
    texts = []
    for prompt, seed in TEXTS:
        pixels = None if seed is None else _picture(model, seed)
        tokens, _ = model.generate(prompt, pixels, new_tokens, stop=False)
        texts.append(TextCase(prompt, seed, tuple(tokens)))
    if model.config.objective == "ar":
        return Recorded(precision, tuple(texts), (), (), tuple(_codes(model, text, scale) for text, _, scale in DRAWS))
    steps = min(MOST_STEPS, model.config.sampler.num_inference_steps)
    draws = tuple(DrawCase(prompt, seed, steps, guidance) for prompt, seed, guidance in DRAWS)
    if model.config.edits:
        prompt, seed, guidance, picture_seed = EDIT
        draws += (DrawCase(prompt, seed, steps, guidance, picture_seed),)
    return Recorded(precision, tuple(texts), draws, tuple(_drawing(model, case) for case in draws))


def _picture(model: Unified, seed: int) -> Tensor:
    """(1, 3, S, S)"""
    picture, size = seeded_picture(seed, model.config.vision.image_size), model.config.vision.image_size
    return torch.from_numpy(load_picture(picture, size, model.config.background, picture.size))[None]


def _drawing(model: Unified, case: DrawCase) -> np.ndarray:
    tokens = model.config.image_tokens
    noise = schedule.initial_noise(case.seed, tokens.token_count, tokens.token_width)
    sampler = model.with_sampler(num_inference_steps=case.steps, guidance_scale=case.guidance)
    picture = None if case.picture_seed is None else _picture(model, case.picture_seed)[0]
    return model.draw([case.prompt], torch.from_numpy(noise)[None], sampler, [picture])[0].numpy()


def _codes(model: Unified, prompt: str, guidance: float) -> CodesCase:
    count = min(MOST_CODES, model.config.image_tokens.token_count)
    return CodesCase(prompt, guidance, tuple(write_codes(model, [prompt], guidance, count=count)[0].tolist()))
