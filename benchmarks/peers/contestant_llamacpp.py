"""llama.cpp by llama-cpp-python: a GGUF file, and another with the eye; greedy by argmax over its logits."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from job import clock, main
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Llava15ChatHandler
from PIL import Image


class LlamaCpp:
    def __init__(self, folder: Path, threads: int) -> None:
        self.path, self.threads = str(next(folder.glob("*.gguf"))), threads
        self.model = self._open(logits_all=False)

    def reply(self, ids: list[int], new_tokens: int) -> tuple[float, float, list[int]]:
        model = self.model
        model.reset()
        start = clock()
        model.eval(ids)
        tokens = [self._likeliest()]
        first = clock()
        while len(tokens) < new_tokens:
            model.eval(tokens[-1:])
            tokens.append(self._likeliest())
        return first - start, clock() - first, tokens

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


class LlamaCppReader:
    """By the chat handler for LLaVA-1.5; the picture goes in as BMP, which costs it little to read."""

    def __init__(self, folder: Path, threads: int) -> None:
        handler = Llava15ChatHandler(str(folder / "mmproj.gguf"), verbose=False)
        self.model = Llama(
            str(folder / "model.gguf"),
            chat_handler=handler,
            n_ctx=1024,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def first_token(self, picture: np.ndarray, words: str) -> tuple[float, int]:
        start = clock()
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "BMP")
        url = "data:image/bmp;base64," + base64.b64encode(file.getvalue()).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": words}]
        said = self.model.create_chat_completion(
            [{"role": "user", "content": content}], max_tokens=1, temperature=0, repeat_penalty=1.0
        )
        return clock() - start, said["usage"]["prompt_tokens"]


if __name__ == "__main__":
    main(text=LlamaCpp, picture=LlamaCppReader)
