"""Messages that are read together are answered as each alone, whatever stands beside them and whoever ends first."""

from __future__ import annotations

import pytest
import torch

from edgemm.bundle.node_link import Graph
from edgemm.model import unified
from edgemm.model.config import PRESETS
from edgemm.model.designs import variant
from edgemm.model.unified import Asked, Unified
from tests.model.tiny import varied_micro
from tests.model.tiny_codes import random_codes

NEW_TOKENS = 12
NODES = [{"id": "a", "text": "a red circle"}, {"id": "b"}, {"id": "c", "text": "a blue square"}]
GRAPHS = [Graph(NODES, [("a", "left of", "b"), ("b", "above", "c")]), Graph(NODES[:1], [])]


def pictures(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def answered_alike(model: Unified, asked: list[Asked], monkeypatch) -> None:
    """Compared token by token, and the logits behind them up to the rounding of sums."""
    alone = [model.generate(one.text, one.pixels, NEW_TOKENS, False, one.graph, one.clip) for one in asked]
    said = [token for ids, _ in alone for token in ids[1:]]
    stop = max(set(said), key=said.count)  # so that some end early, and not all
    ends = [ids.index(stop) if stop in ids else NEW_TOKENS for ids, _ in alone]
    assert len(set(ends)) > 1
    monkeypatch.setattr(unified, "stop_ids", lambda config, tokenizer: [stop])
    assert model.replies(asked, NEW_TOKENS) == [ids[:end] for (ids, _), end in zip(alone, ends, strict=True)]
    steps = list(model._say(asked, NEW_TOKENS, {stop}))
    assert len(steps) == min(max(ends) + 1, NEW_TOKENS) and len(steps[-1][0]) < len(asked)
    for place, (rows, _, logits) in enumerate(steps):
        expected = torch.stack([alone[row][1][place] for row in rows])
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)  # logits of a size of tens


def test_words_alone_and_beside_none_one_or_two_pictures(monkeypatch):
    asked = [
        Asked("What is this?", pictures(1)),
        Asked("a"),
        Asked("Which of the two has more blue in it, the first or the second?", pictures(2, seed=1)),
        Asked("Is it?", pictures(1, seed=2)),
        Asked("Say something about the sea."),
    ]
    answered_alike(varied_micro(), asked, monkeypatch)


@pytest.mark.parametrize("motion", ["none", "4"])
def test_clips_of_unlike_lengths(motion, monkeypatch):
    model = varied_micro(variant(PRESETS["micro"](), vision="conv", motion=motion))
    asked = [
        Asked("Where does it go?", pictures(8), clip=True),
        Asked("Which of them goes faster?", pictures(8, seed=1), clip=True),
        Asked("Is it red?", pictures(3, seed=2), clip=True),
        Asked("And this?", pictures(1, seed=3)),
    ]
    answered_alike(model, asked, monkeypatch)


@pytest.mark.parametrize("graphs", ["rows", "text"])
def test_graphs(graphs, monkeypatch):
    model = varied_micro(variant(PRESETS["micro"](), graphs=graphs))
    asked = [Asked("What is b?", graph=graph) for graph in GRAPHS] + [Asked("What is the third?"), Asked("?")]
    answered_alike(model, asked, monkeypatch)


def test_pictures_that_are_read_as_codes(monkeypatch):
    model = random_codes()
    shown = [pictures(1, 16, seed) for seed in range(3)]
    asked = [Asked(text, pixels) for text, pixels in zip(("What?", "What is this?", "Is it red or blue?"), shown)]
    answered_alike(model, [*asked, Asked("Hello")], monkeypatch)


def test_learned_experts(monkeypatch):
    model = varied_micro(variant(PRESETS["micro"](), experts="dense", mixture="8-top-1-by-modality"))
    asked = [Asked("What is this?", pictures(1)), Asked("Hello there"), Asked("Why?", pictures(1, seed=1))]
    answered_alike(model, asked, monkeypatch)
