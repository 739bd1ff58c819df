"""transformers + torch: model.generate, float32 or bfloat16 (folder name ends in it), with its cache."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
from job import main
from transformers import AutoModelForCausalLM


class Torch:
    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        kind = torch.bfloat16 if os.environ.get("PEER_DTYPE") == "bfloat16" else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=kind).eval()

    def reply(self, ids: list[int], new_tokens: int) -> tuple[float, float, list[int]]:
        given = torch.tensor([ids])
        times = []
        tokens: list[int] = []
        for count in (1, new_tokens):
            start = time.perf_counter()
            with torch.inference_mode():
                out = self.model.generate(
                    given,
                    attention_mask=torch.ones_like(given),
                    max_new_tokens=count,
                    min_new_tokens=count,
                    do_sample=False,
                    pad_token_id=0,
                )
            times.append(time.perf_counter() - start)
            tokens = out[0, len(ids) :].tolist()
        return times[0], times[1] - times[0], tokens

    def logits(self, ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0].float().numpy()


if __name__ == "__main__":
    main(Torch)
