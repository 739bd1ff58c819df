"""transformers + torch: model.generate with its cache, float32 or what PEER_DTYPE says; diffusers for drawing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from job import clock, main
from transformers import AutoModelForCausalLM, AutoProcessor, LlavaForConditionalGeneration


class Torch:
    def __init__(self, folder: Path, threads: int) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=_kind(threads)).eval()

    def reply(self, ids: list[int], new_tokens: int) -> tuple[float, float, list[int]]:
        given = torch.tensor([ids])
        times = []
        tokens: list[int] = []
        for count in sorted({1, new_tokens}):
            start = clock()
            with torch.inference_mode():
                out = self.model.generate(
                    given,
                    attention_mask=torch.ones_like(given),
                    max_new_tokens=count,
                    min_new_tokens=count,
                    do_sample=False,
                    pad_token_id=0,
                )
            times.append(clock() - start)
            tokens = out[0, len(ids) :].tolist()
        return times[0], times[-1] - times[0], tokens

    def logits(self, ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0].float().numpy()


class TorchReader:
    def __init__(self, folder: Path, threads: int) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(str(folder), dtype=_kind(threads)).eval()
        self.processor = AutoProcessor.from_pretrained(str(folder))

    def first_token(self, picture: np.ndarray, words: str) -> tuple[float, int]:
        start = clock()
        parts = [{"type": "image"}, {"type": "text", "text": words}]
        text = self.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        inputs = self.processor(images=picture, text=text, return_tensors="pt").to(self.model.dtype)
        with torch.inference_mode():
            self.model.generate(**inputs, max_new_tokens=1, do_sample=False, pad_token_id=0)
        return clock() - start, inputs["input_ids"].shape[1]


class TorchDrawer:
    def __init__(self, folder: Path, threads: int) -> None:
        from diffusers import StableDiffusion3Pipeline

        self.pipeline = StableDiffusion3Pipeline.from_pretrained(
            str(folder), text_encoder_3=None, tokenizer_3=None, torch_dtype=_kind(threads)
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self.side = self.pipeline.transformer.config.sample_size * self.pipeline.vae_scale_factor

    def draw(self, words: str, steps: int, seed: int) -> np.ndarray:
        drawn = self.pipeline(
            words,
            num_inference_steps=steps,
            guidance_scale=1.0,
            height=self.side,
            width=self.side,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        )
        return (drawn.images[0] * 255).astype(np.uint8)


def _kind(threads: int) -> torch.dtype:
    torch.set_num_threads(threads)
    return torch.bfloat16 if os.environ.get("PEER_DTYPE") == "bfloat16" else torch.float32


if __name__ == "__main__":
    main(text=Torch, picture=TorchReader, drawing=TorchDrawer)
