"""edgemm: the bundle that `edgemm export` made of the same folder, by the runtime's own conversation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime  # noqa: F401  every contestant has its libraries imported before the clock runs
import tokenizers  # noqa: F401
from job import clock, main

import edgemm
from edgemm.bundle.prompt import Prompt


class Edgemm:
    def __init__(self, folder: Path, threads: int) -> None:
        self.model = edgemm.load(folder, device="cpu", threads=threads)
        self.model.prepare()

    def reply(self, ids: list[int], new_tokens: int) -> tuple[float, float, list[int]]:
        start = clock()
        talk = self.model._text.conversation()
        tokens = [int(np.argmax(talk.prefill(_prompt(ids))))]
        first = clock()
        while len(tokens) < new_tokens:
            tokens.append(int(np.argmax(talk.step(tokens[-1]))))
        return first - start, clock() - first, tokens

    def logits(self, ids: list[int]) -> np.ndarray:
        talk = self.model._text.conversation()
        rows = [np.array(talk.prefill(_prompt(ids[:1])))]
        rows += [np.array(talk.step(token)).reshape(-1) for token in ids[1:]]
        return np.stack(rows)

    def first_token(self, picture: np.ndarray, words: str) -> tuple[float, int]:
        start = clock()
        done = self.model.generate_text(words, images=[picture], max_new_tokens=1, temperature=0)
        return clock() - start, done.metrics.prompt_tokens

    def draw(self, words: str, steps: int, seed: int) -> np.ndarray:
        drawn = self.model.generate_image(words, num_inference_steps=steps, guidance_scale=1.0, seed=seed)
        return np.moveaxis(drawn.pixels, 0, -1)


def _prompt(ids: list[int]) -> Prompt:
    count = len(ids)
    return Prompt(
        input_ids=np.array(ids, dtype=np.int64),
        image_index=np.full(count, -1, dtype=np.int64),
        attention_limit=np.arange(count, dtype=np.int64),
        users_own=np.ones(count, dtype=np.float32),
    )


if __name__ == "__main__":
    main(text=Edgemm, picture=Edgemm, drawing=Edgemm)
