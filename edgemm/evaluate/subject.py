"""What is evaluated: something that draws prompts and reads pictures, whatever runs it.

A folder with config.json is a torch checkpoint, one with manifest.json a bundle.  Both draw from the same noise and
answer greedily, so their scores may be compared sample by sample.  torch is imported for a checkpoint only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

import edgemm
from edgemm import progress
from edgemm.bundle.node_link import Graph, read_graph
from edgemm.bundle.picture import fit_square, open_picture
from edgemm.data.format import Dataset, Sample
from edgemm.data.writer import stable_fraction
from edgemm.errors import InputError
from edgemm.runtimes.image_call import Picture

__all__ = [
    "BundleSubject",
    "DRAWN_SPLITS",
    "DrawSettings",
    "Drawings",
    "MAX_NEW_TOKENS",
    "Shown",
    "Subject",
    "draw_samples",
    "real_pictures",
    "resized",
    "shown",
    "shown_graph",
    "some",
]

NO_CLIPS = "which no suite judges; ask for --suite read"
MAX_NEW_TOKENS = 32  # the longest label is about 20 tokens


Shown = np.ndarray | Graph


@dataclass(frozen=True)
class DrawSettings:
    """Where None, the model's own default."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None


class Subject(Protocol):
    """A model under test."""

    name: str
    kind: str  # "checkpoint" or "bundle"
    sha256: str  # of the checkpoint's weights, or of the bundle's manifest, which holds the hash of all else

    @property
    def drawing_size(self) -> int:
        """Pixels a side of what it draws. Raises InputError of one that draws no pictures."""
        ...

    def draw(self, prompts: Sequence[str | Graph], seeds: Sequence[int]) -> np.ndarray:
        """uint8 (b, H, W, 3), one picture a prompt, each a function of its prompt and seed alone; a clip's frames stand
        below one another.  All prompts are words, or all are graphs."""
        ...

    def read(self, asked: Iterable[tuple[Shown, str]]) -> Iterator[str]:
        """The greedy reply to each question about a picture, uint8 (H, W, 3), a clip's frames (f, H, W, 3), or a graph,
        in their order; some may be taken before the first is answered."""
        ...


# A bundle under test, through the runtime a user has: no torch.


class BundleSubject:
    kind = "bundle"

    def __init__(self, path: Path, settings: DrawSettings, device: str, threads: int | None) -> None:
        self.model = edgemm.load(path, device=device, threads=threads)
        self.settings = settings
        self.name = self.model.manifest.name
        self.sha256 = hashlib.sha256(self.model.bundle.file("manifest.json").read_bytes()).hexdigest()

    @property
    def drawing_size(self) -> int:
        loops, settings = self.model.manifest.loops, vars(self.settings)
        if loops.denoise is not None or loops.image_tokens is not None:
            self.model.stream_image("settings are checked before anything is drawn", **settings)
        if loops.denoise is not None and loops.denoise.frames > 1:
            raise InputError(f"bundle {self.name} draws clips, {NO_CLIPS}")
        if loops.denoise is not None:
            return loops.denoise.height
        if loops.image_tokens is not None:
            return loops.image_tokens.image_height
        raise InputError(f"bundle {self.name} does not draw; ask for --suite read")

    def draw(self, prompts: Sequence[str | Graph], seeds: Sequence[int]) -> np.ndarray:
        steps, scale = self.settings.num_inference_steps, self.settings.guidance_scale
        told = [("", prompt) if isinstance(prompt, Graph) else (prompt, None) for prompt in prompts]
        drawn = [
            self.model.generate_image(words, graph=graph, num_inference_steps=steps, guidance_scale=scale, seed=seed)
            for (words, graph), seed in zip(told, seeds)
        ]
        return np.stack([_tall(result.image) for result in drawn])

    def read(self, asked: Iterable[tuple[Shown, str]]) -> Iterator[str]:
        return (self._reply(*one) for one in asked)

    def _reply(self, picture: Shown, question: str) -> str:
        if isinstance(picture, Graph):
            return self.model.generate_text(question, graph=picture, max_new_tokens=MAX_NEW_TOKENS).text
        if picture.ndim == 3:
            return self.model.generate_text(question, images=picture, max_new_tokens=MAX_NEW_TOKENS).text
        most = len(picture)
        return self.model.generate_text(question, video=picture, max_frames=most, max_new_tokens=MAX_NEW_TOKENS).text


def _tall(picture: Picture) -> np.ndarray:
    frames = picture.clip.frames() if picture.clip else [picture.to_pil()]
    return np.concatenate([np.asarray(frame) for frame in frames])


# The samples that a suite takes, and their real pictures at the size of a drawing.
#
# Axes: b pictures, S side.

Item = TypeVar("Item")


def some(items: Iterable[Item], limit: int | None, *names: str) -> list[Item]:
    """The first `limit` of a random order that is the same everywhere and always: a smaller limit takes a part of what
    a larger one takes.  `names` are the attributes that tell one item from another."""

    def place(item: Any) -> float:
        return stable_fraction("evaluate", *(getattr(item, name) for name in names))

    return sorted(items, key=place)[:limit]


def real_pictures(dataset: Dataset, samples: Sequence[Sample], size: int) -> np.ndarray:
    """uint8 (b, S, S, 3)."""
    squares = [fit_square(open_picture(dataset.image_path(sample)), size) for sample in samples]
    return np.stack([np.asarray(square, dtype=np.uint8) for square in squares])


def shown_graph(dataset: Dataset, sample: Sample) -> Graph:
    """The graph of a sample, with the pictures of its nodes, uint8 (S, S, 3)."""
    graph = read_graph((sample.scene or {})["graph"])
    nodes = []
    for node in graph.nodes:
        shows = [] if node.image is None else real_pictures(dataset, [dataset.by_id[str(node.image)]], dataset.size)
        nodes.append(replace(node, image=next(iter(shows), None)))
    return Graph(nodes, graph.edges, graph.directed)


def shown(dataset: Dataset, sample: Sample) -> Shown:
    """What a question is about: uint8 (S, S, 3), a clip's frames (f, S, S, 3), or a graph."""
    if dataset.kind == "graphs":
        return shown_graph(dataset, sample)
    frames, size = sample.frames, dataset.size
    if frames == 1:
        return real_pictures(dataset, [sample], size)[0]
    return np.asarray(open_picture(dataset.image_path(sample)), dtype=np.uint8).reshape(frames, size, size, 3)


def resized(pictures: np.ndarray, size: int) -> np.ndarray:
    """uint8 (b, H, W, 3) -> uint8 (b, S, S, 3)."""
    return np.stack([np.asarray(fit_square(open_picture(picture), size)) for picture in pictures])


# Lets a model draw the captions of samples, some at a time; every suite that judges drawings starts here.
#
# Axes: b pictures, S side of a drawing.

BATCH = 16
APART = 100_000  # between the seeds of one prompt's drawings
DRAWN_SPLITS = {  # split -> what a person calls it
    "train": "seen pairs",
    "held-out-pair": "held-out pairs",
    "held-out-colour": "held-out colors",
}


@dataclass(frozen=True, eq=False)
class Drawings:
    samples: tuple[Sample, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    drawn: np.ndarray  # uint8 (b, S, S, 3)
    real: np.ndarray  # uint8 (b, S, S, 3): the pictures that the prompts are the captions of
    tries: int = 1  # drawings a prompt: all prompts, then all once more


def draw_samples(
    subject: Subject, dataset: Dataset, samples: Sequence[Sample], caption: int, what: str, tries: int = 1
) -> Drawings:
    """Draw caption number `caption` of each sample, or its graph, `tries` times; picture k has the seed k, and APART
    more at every further try, so that a rerun draws the same."""
    prompts = [sample.captions[caption] for sample in samples] * tries
    seeds = [k + APART * again for again in range(tries) for k in range(len(samples))]
    starts = range(0, len(prompts), BATCH)
    told: Sequence[str | Graph] = prompts
    if dataset.kind == "graphs":
        told = [shown_graph(dataset, sample) for sample in samples] * tries
    drawn = [
        subject.draw(told[start : start + BATCH], seeds[start : start + BATCH])
        for start in progress.track(starts, len(starts), f"drawing {what}", "batches")
    ]
    real = np.tile(real_pictures(dataset, samples, subject.drawing_size), (tries, 1, 1, 1))
    return Drawings(tuple(samples) * tries, tuple(prompts), tuple(seeds), np.concatenate(drawn), real, tries)
