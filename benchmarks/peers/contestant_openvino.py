"""openvino-genai: its pipelines, on what it read from the GGUF file once, or on what optimum-intel exported.

For the quality the same model is run by OpenVINO itself, all positions at once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai
from job import clock, main


class Heard(genai.StreamerBase):
    """When tokens came: as ids, for whoever streams words waits for the end of one."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []

    def write(self, _: object) -> genai.StreamingStatus:
        self.at.append(clock())
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


class OpenVino:
    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        if not (folder / "openvino_model.xml").exists():  # made by the first process; medians pass over its load
            genai.LLMPipeline(str(next(folder.glob("*.gguf"))), "CPU", enable_save_ov_model=True)
        self.pipeline = genai.LLMPipeline(str(folder), "CPU", INFERENCE_NUM_THREADS=threads)

    def reply(self, ids: list[int], new_tokens: int) -> tuple[float, float, list[int]]:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new_tokens
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        given = np.array([ids], dtype=np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(given), ov.Tensor(np.ones_like(given)))
        heard = Heard()
        start = clock()
        result = self.pipeline.generate(inputs, config, heard)
        end = clock()
        return heard.at[0] - start, end - heard.at[0], [int(token) for token in result.tokens[0]]

    def logits(self, ids: list[int]) -> np.ndarray:
        model = ov.Core().compile_model(
            str(self.folder / "openvino_model.xml"), "CPU", {"INFERENCE_NUM_THREADS": self.threads}
        )
        given = np.array([ids], dtype=np.int64)
        inputs = {
            "input_ids": given,
            "attention_mask": np.ones_like(given),
            "position_ids": np.arange(len(ids), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        return np.asarray(model(inputs)[0])[0]


class OpenVinoReader:
    def __init__(self, folder: Path, threads: int) -> None:
        self.pipeline = genai.VLMPipeline(str(folder), "CPU", INFERENCE_NUM_THREADS=threads)

    def first_token(self, picture: np.ndarray, words: str) -> tuple[float, int]:
        start = clock()
        said = self.pipeline.generate(words, images=[ov.Tensor(picture[None])], max_new_tokens=1, do_sample=False)
        return clock() - start, said.perf_metrics.get_num_input_tokens()


class OpenVinoDrawer:
    def __init__(self, folder: Path, threads: int) -> None:
        self.pipeline = genai.Text2ImagePipeline(str(folder), "CPU", INFERENCE_NUM_THREADS=threads)

    def draw(self, words: str, steps: int, seed: int) -> np.ndarray:
        drawn = self.pipeline.generate(
            words,
            num_inference_steps=steps,
            guidance_scale=1.0,
            height=64,
            width=64,
            rng_seed=seed,
        )
        return np.array(drawn.data[0])


if __name__ == "__main__":
    main(text=OpenVino, picture=OpenVinoReader, drawing=OpenVinoDrawer)
