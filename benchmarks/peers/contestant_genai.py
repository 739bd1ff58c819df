"""onnxruntime-genai: the folder that its own model builder made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
from job import clock, main


class GenAI:
    def __init__(self, folder: Path, threads: int) -> None:
        self._set_threads(folder / "genai_config.json", threads)
        self.model = og.Model(str(folder))

    def reply(self, ids: list[int], new_tokens: int) -> tuple[float, float, list[int]]:
        length = len(ids) + new_tokens
        parameters = og.GeneratorParams(self.model)
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False, batch_size=1)
        start = clock()
        generator = og.Generator(self.model, parameters)
        generator.append_tokens(np.array([ids], dtype=np.int32))
        generator.generate_next_token()
        first = clock()
        for _ in range(new_tokens - 1):
            generator.generate_next_token()
        end = clock()
        return first - start, end - first, [int(token) for token in generator.get_sequence(0)[len(ids) :]]

    def logits(self, ids: list[int]) -> np.ndarray:
        parameters = og.GeneratorParams(self.model)
        parameters.set_search_options(max_length=len(ids) + 1, do_sample=False, batch_size=1)
        generator = og.Generator(self.model, parameters)
        rows = []
        for token in ids:
            generator.append_tokens(np.array([[token]], dtype=np.int32))
            rows.append(np.asarray(generator.get_logits(), dtype=np.float32).reshape(-1))
        return np.stack(rows)

    @staticmethod
    def _set_threads(path: Path, threads: int) -> None:
        config = json.loads(path.read_text())
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        path.write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main(text=GenAI)
