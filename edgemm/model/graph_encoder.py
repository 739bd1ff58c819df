"""A graph as rows that the transformer reads: one row a node, which its words or picture follow, and one row an edge.

    row = norm(type + H id_head + Q id_tail)          (TokenGT, arXiv:2207.02505)

Ids are orthonormal: H and Q of them are tables with a row an id.  Which node has which id says nothing, so training
deals them anew for every sample.  A node's own row has its id as head and tail; where nodes are `named` it is added to
the node's words and picture, too: where it only stood before them, training did not find out which edge is whose
(docs/notes/training.md).
Rows of a graph see one another by their attention_limit (bundle/prompt.py); caches and denoiser know of no graph.
Axes: b batch, r rows, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemm.model.config import GraphConfig
from edgemm.model.transformer import SelfAttention

__all__ = ["GraphEncoder"]


class GraphEncoder(nn.Module):
    def __init__(self, width: int, config: GraphConfig) -> None:
        super().__init__()
        self.kinds = nn.Embedding(1 + len(config.kinds), width)  # a node, then every type of edge
        self.heads, self.tails = nn.Embedding(config.nodes, width), nn.Embedding(config.nodes, width)
        for table in (self.heads, self.tails):
            nn.init.orthogonal_(table.weight)
            with torch.no_grad():
                table.weight.mul_(width**0.5)  # a spread of about 1, as types have
        self.norm = nn.LayerNorm(width)

    def match_embeddings(self, embeddings: Tensor) -> None:
        """Rows as large as the tokens' embeddings (vocab, w)."""
        with torch.no_grad():
            self.norm.weight.fill_(embeddings.std())

    def attend_by_ids(self, attention: SelfAttention) -> None:
        """A layer that is still to learn begins by looking up who an edge joins: its first query head finds what has
        the id that the edge leads from, its second what has the one it leads to.  From heads that look anywhere
        training found out neither in a thousand steps (docs/notes/training.md).

        Ids stand in the dimensions of a head that rotary embedding turns least; where they are too few for all ids,
        ids share them.  The head's other dimensions stay as they are.
        """
        shape, width = attention.config, self.heads.embedding_dim
        half = shape.head_width // 2
        slow = [place for pair in range(half - 1, half // 2 - 1, -1) for place in (pair, pair + half)]
        slow = slow[: self.heads.num_embeddings]
        turn = nn.init.orthogonal_(torch.empty(len(slow), self.heads.num_embeddings))
        with torch.no_grad():
            source, target = (turn @ table.weight / width**0.5 for table in (self.heads, self.tails))
            queries = attention.q_proj.weight.view(shape.heads, shape.head_width, width)
            keys = attention.k_proj.weight.view(shape.kv_heads, shape.head_width, width)
            for head, wanted in zip(range(shape.heads), (source, target)):
                queries[head, slow] = wanted
                keys[head * shape.kv_heads // shape.heads, slow] = source

    def forward(self, kind: Tensor, head: Tensor, tail: Tensor) -> Tensor:
        """kind, head, tail (b, r) -> (b, r, w)"""
        return self.norm(self.kinds(kind) + self.heads(head) + self.tails(tail))
