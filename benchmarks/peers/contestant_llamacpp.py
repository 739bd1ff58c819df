"""llama.cpp by llama-cpp-python: the GGUF file as it is; greedy by argmax over its logits."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from job import main
from llama_cpp import Llama


class LlamaCpp:
    def __init__(self, folder: Path, threads: int) -> None:
        self.path, self.threads = str(next(folder.glob("*.gguf"))), threads
        self.model = self._open(logits_all=False)

    def reply(self, ids: list[int], new_tokens: int) -> tuple[float, float, list[int]]:
        model = self.model
        model.reset()
        start = time.perf_counter()
        model.eval(ids)
        tokens = [self._likeliest()]
        first = time.perf_counter()
        while len(tokens) < new_tokens:
            model.eval(tokens[-1:])
            tokens.append(self._likeliest())
        return first - start, time.perf_counter() - first, tokens

    def logits(self, ids: list[int]) -> np.ndarray:
        model = self._open(logits_all=True)
        model.eval(ids)
        return np.array(model.scores[: len(ids)])

    def _likeliest(self) -> int:
        return int(np.argmax(np.ctypeslib.as_array(self.model._ctx.get_logits(), (self.model.n_vocab(),))))

    def _open(self, logits_all: bool) -> Llama:
        return Llama(
            self.path,
            n_ctx=1024,
            n_batch=512,
            n_threads=self.threads,
            n_threads_batch=self.threads,
            logits_all=logits_all,
            verbose=False,
        )


if __name__ == "__main__":
    main(LlamaCpp)
