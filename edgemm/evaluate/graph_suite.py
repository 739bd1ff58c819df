"""Graphs that a model in torch is asked about and draws, judged exactly (data/graphs.py).

A reply is right where every token of the answer is the likeliest after those before it, its end too: what greedy
decoding says.  Edges may be left out, or lead elsewhere, to see whether they matter.
Axes: b batch, s tokens, w width.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgemm.bundle.node_link import Edge, Graph, Node, read_graph
from edgemm.bundle.prompt import Prompt
from edgemm.data.format import Dataset, Sample, read_dataset
from edgemm.data.labels import with_article
from edgemm.data.shapes import COLOURS, WITHHELD
from edgemm.errors import InputError
from edgemm.evaluate.shapes_checker import check_sample
from edgemm.evaluate.shapes_suite import task_of
from edgemm.model.padding import by_length, in_row_order
from edgemm.model.prompts import read_prompt, reply_ids
from edgemm.model.unified import Unified
from edgemm.runtimes import schedule

__all__ = [
    "EDGES",
    "AskedGraph",
    "Graphs",
    "ask_graphs",
    "draw_graphs",
    "in_pictures",
    "in_words",
    "recoloured",
    "replies_to",
    "told_whole",
]

EDGES = ("told", "shuffled", "none")
TELL = "Which edges are there?"
TRIES = 32  # at other colours: of five things about one in three has no withheld pair
COLOUR = re.compile(rf"\b({'|'.join(COLOURS)})\b")
BATCH = 32

Shows = tuple[str | None, str | None]  # a node's text, and the sample that is its picture


@dataclass(frozen=True)
class AskedGraph:
    kind: str
    graph: Graph
    question: str
    answer: str
    choices: int
    names: Mapping[str, str] = field(default_factory=dict)  # of its nodes, as its edges are told by


class Graphs:
    """A dataset's graphs of some splits: those that are asked about, those that are drawn, and nodes' pictures."""

    def __init__(self, data: str | Path, splits: Sequence[str], size: int) -> None:
        self.dataset: Dataset = read_dataset(data)
        if self.dataset.kind != "graphs":
            raise InputError(f"{data}: a dataset of kind {self.dataset.kind}; make one of graphs: edgemm data graphs")
        self.size = size
        self._rows: dict[str, Tensor] = {}
        samples = {sample.id: sample for sample in self.dataset.split(*splits)}
        self.drawn: list[Sample] = [sample for sample in samples.values() if sample.group == "drawn"]
        self.asked = [
            AskedGraph(q.kind, graph, q.question, q.answer, len(q.choices or ()), _names(graph, samples[q.sample]))
            for q in self.dataset.questions
            if q.sample in samples
            for graph in (graph_of(samples[q.sample]),)
        ]
        self.shown: defaultdict[str, list[str]] = defaultdict(list)  # colour and shape -> pictures of such a node
        for sample in samples.values():
            if sample.group == "nodes":
                (thing,) = (sample.scene or {})["objects"]
                self.shown[f"{thing['colour']} {thing['name']}"].append(sample.id)

    def picture(self, name: str) -> Tensor:
        """(3, S, S) in [0, 1] of a sample."""
        if name not in self._rows:
            from PIL import Image

            with Image.open(self.dataset.image_path(self.dataset.by_id[name])) as image:
                square = image.convert("RGB").resize((self.size,) * 2, Image.Resampling.BICUBIC)
            self._rows[name] = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)
        return self._rows[name].float() / 255


def graph_of(sample: Sample) -> Graph:
    """The graph of a sample; a picture in it goes by its sample's name."""
    return read_graph((sample.scene or {})["graph"])


def _names(graph: Graph, sample: Sample) -> dict[str, str]:
    """Node -> its colour and shape; what shows nothing is a hidden one."""
    told = {f"n{thing['id']}": f"{thing['colour']} {thing['name']}" for thing in (sample.scene or {})["objects"]}
    seen = {node.id for node in graph.nodes if node.text is not None or node.image is not None}
    return {node.id: told[node.id] if node.id in seen else "hidden one" for node in graph.nodes}


def recoloured(asked: AskedGraph, graphs: Graphs, random: np.random.Generator) -> AskedGraph:
    """The same graph and question in other colours, none of whose pairs with a shape is withheld; where none are found,
    as it was."""
    for _ in range(TRIES):
        other = dict(zip(COLOURS, random.permutation(list(COLOURS)).tolist()))
        names = {node: _in_colours(name, other) for node, name in asked.names.items()}
        pairs = [name for node, name in names.items() if name != asked.names[node]]
        if not any(tuple(pair.split()) in WITHHELD or not graphs.shown[pair] for pair in pairs):
            break
    else:
        return asked

    def shown(node: Node) -> Shows:
        text = None if node.text is None else with_article(names[node.id])
        return text, None if node.image is None else str(random.choice(graphs.shown[names[node.id]]))

    question, answer = (_in_colours(text, other) for text in (asked.question, asked.answer))
    return dataclasses.replace(_showing(asked, shown), question=question, answer=answer, names=names)


def in_words(asked: AskedGraph) -> AskedGraph:
    """The same graph, whose nodes' pictures are told in words."""

    def shown(node: Node) -> Shows:
        shows = node.text is not None or node.image is not None
        return with_article(asked.names[node.id]) if shows else None, None

    return _showing(asked, shown)


def in_pictures(asked: AskedGraph, graphs: Graphs) -> AskedGraph:
    """The same graph, whose nodes show pictures and no words; those that showed none, another's of the same kind."""

    def shown(node: Node) -> Shows:
        like = [] if node.text is None else graphs.shown[asked.names[node.id]]
        image = next(iter(like), None) if node.image is None else str(node.image)
        return (node.text if image is None else None), image

    return _showing(asked, shown)


def _showing(asked: AskedGraph, shown: Callable[[Node], Shows]) -> AskedGraph:
    nodes = [Node(node.id, *shown(node)) for node in asked.graph.nodes]
    return dataclasses.replace(asked, graph=Graph(nodes, asked.graph.edges, asked.graph.directed))


def _in_colours(text: str, other: Mapping[str, str]) -> str:
    return COLOUR.sub(lambda found: other[found[0]], text)


def told_whole(asked: AskedGraph, graph: Graph) -> AskedGraph:
    """All edges of `graph`, whose nodes are those of `asked`, in words: node by node, as an incident list has them."""
    names, edges = asked.names, graph.incident()
    told = [f"{names[a]} {kind} {names[b]}" for a, kinds in edges.items() for kind, ends in kinds.items() for b in ends]
    return AskedGraph("tell", graph, TELL, "; ".join(told) or "none", 0, names)


def with_edges(graph: Graph, how: str, random: np.random.Generator) -> Graph:
    """The graph as told, with edges whose ends were dealt anew, or without any."""
    if how == "told":
        return graph
    if how == "none":
        return Graph(graph.nodes, (), graph.directed)
    names = [node.id for node in graph.nodes]
    ends = [random.choice(len(names), 2, replace=False) for _ in graph.edges]
    edges = [Edge(names[a], edge.type, names[b]) for edge, (a, b) in zip(graph.edges, ends, strict=True)]
    return Graph(graph.nodes, edges, graph.directed)


def replies_to(
    model: Unified, asked: Sequence[AskedGraph], graphs: Graphs, random: np.random.Generator, edges: str = "told"
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (tokens, vocab) before each token of the answers, those tokens, and whose they are (tokens)."""
    config, prompts, answers = model.config, [], []
    for one in asked:
        graph = with_edges(one.graph, edges, random)
        prompt, answer = (
            read_prompt(config, model.tokenizer, one.question, 0, graph),
            reply_ids(config, model.tokenizer, one.answer),
        )
        if prompt.graph is not None and config.graph is not None:  # which node has which id says nothing
            dealt = random.permutation(config.graph.nodes)
            told = np.concatenate([prompt.graph[:1], dealt[prompt.graph[1:]]])
            prompt = dataclasses.replace(prompt, graph=told)
        prompts.append(_followed_by(prompt, answer[:-1]))
        answers.append(answer)
    pictures = [[graphs.picture(str(name)) for name in one.graph.pictures] for one in asked]
    groups, found = by_length([len(prompt) for prompt in prompts]), []
    for rows in groups:
        x, limit, index = model.embedded([prompts[row] for row in rows], [pictures[row] for row in rows])
        hidden, _ = model.transformer(x, limit, pictured=index >= 0)
        scored = torch.zeros(hidden.shape[:2], dtype=torch.bool)
        for place, row in enumerate(rows):
            scored[place, len(prompts[row]) - len(answers[row]) : len(prompts[row])] = True
        found.append(hidden[scored.to(hidden.device)])
    counts = [len(answer) for answer in answers]
    logits = model.transformer.logits(in_row_order(found, groups, counts))
    wanted = torch.tensor([token for answer in answers for token in answer], device=logits.device)
    return logits, wanted, torch.arange(len(asked)).repeat_interleave(torch.tensor(counts)).to(logits.device)


def _followed_by(prompt: Prompt, ids: Sequence[int]) -> Prompt:
    """The prompt and what is said behind it."""
    more = np.array(ids, dtype=np.int64)
    return dataclasses.replace(
        prompt,
        input_ids=np.concatenate([prompt.input_ids, more]),
        image_index=np.concatenate([prompt.image_index, np.full_like(more, -1)]),
        attention_limit=np.concatenate([prompt.attention_limit, len(prompt) + np.arange(len(more))]),
        users_own=np.concatenate([prompt.users_own, np.zeros(len(more), dtype=np.float32)]),
    )


@torch.no_grad()
def ask_graphs(
    model: Unified, graphs: Graphs, edges: str = "told", limit: int = 0, nodes: str = "as they are"
) -> dict[str, dict[str, float]]:
    """kind -> accuracy, how often a blind choice is right, and how many were asked; `limit` a kind, 0 for all.  `nodes`
    in "words" or in "pictures" alone tells whether a model reads the one as well as the other."""
    by_kind: defaultdict[str, list[AskedGraph]] = defaultdict(list)
    for one in graphs.asked:
        by_kind[one.kind].append(one)
    random, found = np.random.default_rng(0), {}
    for kind, asked in sorted(by_kind.items()):
        some = asked[: limit or len(asked)]
        if nodes != "as they are":
            some = [in_words(one) if nodes == "words" else in_pictures(one, graphs) for one in some]
        right = torch.cat([_right(model, batch, graphs, random, edges) for batch in _batches(some)])
        chance = float(np.mean([1 / one.choices for one in some]))
        found[kind] = {"accuracy": right.float().mean().item(), "chance": chance, "questions": float(len(some))}
    return found


def _right(model: Unified, asked: Sequence[AskedGraph], graphs: Graphs, random: Any, edges: str) -> Tensor:
    logits, wanted, whose = replies_to(model, asked, graphs, random, edges)
    wrong = logits.argmax(-1) != wanted
    return torch.zeros(len(asked), device=wrong.device).index_add(0, whose, wrong.float()) == 0


@torch.no_grad()
def draw_graphs(model: Unified, graphs: Graphs, limit: int = 0, other: bool = False) -> dict[str, float]:
    """Share of pictures in which every thing and every edge is right, by how many things there are; `other` holds each
    against the next one's graph: chance."""
    drawn, tokens = graphs.drawn[: limit or len(graphs.drawn)], model.config.image_tokens
    passed: defaultdict[str, list[bool]] = defaultdict(list)
    for batch in _batches(drawn):
        seeds = range(len(batch))
        noise = np.stack([schedule.initial_noise(seed, tokens.token_count, tokens.token_width) for seed in seeds])
        told = [graph_of(sample) for sample in batch]
        pictures = model.draw([""] * len(batch), torch.from_numpy(noise).to(model.device), graphs=told).cpu()
        for place, picture in enumerate(pictures):
            sample = batch[(place + other) % len(batch)]
            pixels = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
            passed[task_of(sample)].append(check_sample(pixels, sample).passed)
    return {name: float(np.mean(verdicts)) for name, verdicts in sorted(passed.items())}


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
