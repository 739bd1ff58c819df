"""Pictures as the transformer reads them: squares of pixels, then image tokens beside the prompt, or token ids in it.

It knows pixels and the components that encode them, never messages or replies.
Axes: S side of the square, m image tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from edgemm.bundle.manifest import MovedFrame, TextLoop
from edgemm.bundle.picture import PictureSource, load_picture
from edgemm.bundle.prompt import Prompt, with_picture_ids
from edgemm.errors import InputError
from edgemm.runtimes.backend.engine import Engine, check_finite
from edgemm.runtimes.engines import Engines
from edgemm.runtimes.text_loop import Clock

__all__ = ["ImageReader"]

ENCODERS = ("image_encoder", "vq_encoder")


class ImageReader:
    """How one model reads pictures."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    def check(self) -> None:
        """InputError of a bundle that reads no pictures."""
        if not any(name in self._engines for name in ENCODERS):
            name = self._engines.bundle.manifest.name
            raise InputError(f"bundle {name} does not read pictures: it has no image_encoder; leave images out")

    def picture(self, image: PictureSource | MovedFrame, loop: TextLoop) -> np.ndarray:
        """(3, S, S), as the encoder wants it; of a moved frame (2, 3, S, S), with the one before."""
        self.check()
        if isinstance(image, MovedFrame):
            return np.stack([self.picture(one, loop) for one in (image.frame, image.previous)])
        most = self._engines.bundle.manifest.limits.max_image_pixels
        rule = (loop.image_fit, loop.image_resample, loop.image_least)
        return load_picture(image, loop.image_size, loop.background, most, *rule)

    def read(self, prompt: Prompt, pictures: Sequence[np.ndarray], loop: TextLoop) -> tuple[Prompt, np.ndarray | None]:
        """Pictures (3, S, S) and moved frames (2, 3, S, S) as what the transformer reads: token ids in the prompt, or
        tokens (1, m, width) beside."""
        if pictures and "vq_encoder" in self._engines:
            return with_picture_ids(prompt, _as_ids(self._engines.get("vq_encoder"), pictures, loop)), None
        tokens = [self.encode(pictures, loop)] if pictures else []
        if prompt.graph is not None and prompt.nodes is not None:
            rows = self._graph_rows(prompt.graph)
            if tokens:  # a node's picture says whose it is
                named = prompt.nodes >= 0
                tokens[0][:, named] += rows[:, prompt.nodes[named]]
            tokens.append(rows)
        return prompt, np.concatenate(tokens, axis=1) if tokens else None

    def _graph_rows(self, graph: np.ndarray) -> np.ndarray:
        """kind, head and tail (3, r) -> rows (1, r, width)."""
        encoder = self._engines.get("graph_encoder")
        rows = np.zeros((1, graph.shape[1], encoder.outputs["rows"].fixed(2, "width")), dtype=np.float32)
        inputs = {name: np.ascontiguousarray(row[None]) for name, row in zip(("kind", "head", "tail"), graph)}
        encoder.bind(inputs, {"rows": rows}).run()
        check_finite(rows, "graph_encoder, rows")
        return rows

    def timed_read(
        self, prompt: Prompt, pictures: Sequence[np.ndarray], loop: TextLoop, clock: Clock
    ) -> tuple[Prompt, np.ndarray | None]:
        """The same; what its engines take to load is told apart."""
        needed = [name for name in ENCODERS if pictures and name in self._engines]
        needed += ["motion_encoder"] if any(picture.ndim == 4 for picture in pictures) else []
        needed += [] if prompt.graph is None else ["graph_encoder"]
        clock.load_s += self._engines.timed(needed)[1]
        start = time.perf_counter()
        seen = self.read(prompt, pictures, loop)
        clock.image_encode_s += time.perf_counter() - start
        return seen

    def encode(self, pictures: Sequence[np.ndarray], loop: TextLoop) -> np.ndarray:
        """Pictures (3, S, S) and moved frames (2, 3, S, S) -> tokens (1, m, width), one after the other."""
        return np.concatenate([self._encoded(picture, loop) for picture in pictures], axis=1)

    def _encoded(self, picture: np.ndarray, loop: TextLoop) -> np.ndarray:
        name, count, given = "image_encoder", loop.image_token_count, {"pixels": picture[None]}
        if loop.motion and picture.ndim == 4:
            name, count = "motion_encoder", loop.motion.token_count
            given = {"pixels": picture[:1], "previous": picture[1:]}
        encoder = self._engines.get(name)
        tokens = np.zeros((1, count, encoder.outputs["image_tokens"].fixed(2, "width")), dtype=np.float32)
        encoder.bind(given, {"image_tokens": tokens}).run()
        check_finite(tokens, f"{name}, image tokens")
        return tokens


def _as_ids(encoder: Engine, pictures: Sequence[np.ndarray], loop: TextLoop) -> np.ndarray:
    """Pictures (3, S, S) -> token ids (m), one picture after the other."""
    ids = np.zeros((len(pictures), loop.image_token_count), dtype=np.int64)
    for index, picture in enumerate(pictures):
        encoder.bind({"pixels": picture[None]}, {"token_ids": ids[index : index + 1]}).run()
    return ids.reshape(-1)
