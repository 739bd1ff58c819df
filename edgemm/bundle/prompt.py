"""Text to ids and back, and the token rows that the transformer reads: ids, picture rows, and who may see whom.

Training, the torch reference and the runtime all build their rows here; a conversation's are in chat.py.  It knows
strings, templates and token counts, never cache slots, engines or pixels.  Each piece (a template's string, a user's
text) is tokenized alone, or all of them as one string, where the model was trained so (`joined`).  Only the template's
own strings may hold special tokens: what a user wrote is encoded with them switched off.
Axes: s tokens.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edgemm.bundle.drawing import DenoiseTemplate
from edgemm.bundle.files import library, read_text, reading
from edgemm.bundle.forked import forked
from edgemm.bundle.manifest import GraphRows, Limits, TextLoop
from edgemm.bundle.tokenizer_rules import TokenizerRules, check_text
from edgemm.errors import InputError, UsageError

if TYPE_CHECKING:
    from edgemm.bundle.node_link import Graph

__all__ = [
    "ALONE",
    "GraphBlock",
    "PictureTokens",
    "Pieces",
    "Prompt",
    "PromptBuilder",
    "Tokenizer",
    "causal_prompt",
    "check_length",
    "drawing_prompt",
    "joined_ids",
    "negative_drawing_prompt",
    "picture_prompt",
    "prompt_between",
    "with_picture_ids",
]

GRAPH = -2  # and below: a graph's rows, until it is known how many the pictures have
PICTURE_ID = 0  # stands where a picture's row does; the transformer never looks at it
ALONE = ("", "")  # nothing around a picture belongs to its block
MOST_STEPS = 5e7  # of a stranger's expressions in this process: a second or three
MOST_BYTES, MOST_S = 1 << 30, 10.0  # of a copy of it
T = TypeVar("T")


class Tokenizer:
    """A tokenizer.json in Hugging Face's format; safe to share between threads."""

    def __init__(self, path: str | os.PathLike[str], text: str | None = None) -> None:
        """`text` is what stands in the file, where that was read already."""
        tokenizers = library("tokenizers", "text needs the package tokenizers: pip install 'edgemm[ort]'")
        with reading(path, "not a tokenizer.json"):
            text = read_text(path) if text is None else text
            check_text(text)
            self._inner = tokenizers.Tokenizer.from_str(text)
            self._inner.no_padding()
            self._inner.no_truncation()
            self._rules = TokenizerRules(self._inner)
        self._path = path
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[str | os.PathLike[str], str]]:
        """How it is copied: a lock cannot be."""
        return Tokenizer, (self._path, self._inner.to_str())

    def __len__(self) -> int:
        return self._inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of one piece, with nothing put around it; `special` lets <|im_end|> and its like be one token."""
        if not text:
            return []
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"text that is not valid Unicode: {error}") from error
        return self._encoded(text, special, lambda encoding: encoding.ids)

    def encode_whole(self, pieces: Sequence[tuple[str, bool]], add_special: bool = False) -> list[int]:
        """Ids of pieces as one string, each with whether it is a user's own; where such a one spells a special token
        each piece is tokenized alone.  `add_special` lets the tokenizer put its special tokens around the whole."""
        if any(own and self.spells_special(piece) for piece, own in pieces):
            if not add_special:
                return [token for piece, own in pieces for token in self.encode(piece, special=not own)]
            return self._around([self._encoding(piece, not own) for piece, own in pieces if piece])
        whole = "".join(piece for piece, _ in pieces)
        return self._around([self._encoding(whole, True)]) if add_special else self.encode(whole, special=True)

    def _encoding(self, text: str, special: bool) -> Any:
        return self._encoded(text, special, lambda encoding: encoding)

    def _encoded(self, text: str, special: bool, of: Callable[[Any], T]) -> T:
        """In a copy of this process where the tokenizer's own expressions might not end in time: the library can
        neither be interrupted nor does it give Python's lock away."""

        def encode() -> T:
            self._inner.encode_special_tokens = not special
            return of(self._inner.encode(text, add_special_tokens=False))

        with reading(self._path, "cannot tokenize this text"), self._lock:
            if self._rules.most_steps(len(text)) <= MOST_STEPS or sys.platform != "linux":
                return encode()
            return forked(encode, f"{self._path}: to tokenize {len(text)} letters", MOST_BYTES, MOST_S)

    def _around(self, encodings: list[Any]) -> list[int]:
        import tokenizers

        with reading(self._path, "cannot put its special tokens around a text"):
            merged = tokenizers.Encoding.merge(encodings, growing_offsets=False)
            return self._inner.post_process(merged, None, True).ids

    def spells_special(self, text: str) -> bool:
        """Whether a special token's own spelling stands somewhere in a user's text."""
        return self.encode(text) != self.encode(text, special=True)

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens are left out; always valid UTF-8."""
        with reading(self._path, "cannot decode these tokens"):
            return self._inner.decode(list(ids), skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self._inner.token_to_id(token)


@dataclass(frozen=True, eq=False)
class Prompt:
    """One row of tokens, as the transformer wants it; positions count from 0."""

    input_ids: np.ndarray  # (s) int64
    image_index: np.ndarray  # (s) int64: row of the pictures' tokens, -1 for text, -2 - row for text with it added
    attention_limit: np.ndarray  # (s) int64: last position each one may see
    users_own: np.ndarray  # (s) float32: 1 on the user's own text
    graph: np.ndarray | None = None  # (3, r) int64: kind, head and tail of a graph's rows, behind those of the pictures
    nodes: np.ndarray | None = None  # (m) int64: which of these is added to a row of the pictures, -1 for none

    def __len__(self) -> int:
        return len(self.input_ids)

    def opens(self, other: Prompt) -> bool:
        """Whether another begins with this one, so that who has read that has read this."""
        size = len(self)
        return all(
            np.array_equal(mine, theirs[:size])
            for mine, theirs in (
                (self.input_ids, other.input_ids),
                (self.image_index, other.image_index),
                (self.attention_limit, other.attention_limit),
            )
        )

    @property
    def is_pictured(self) -> bool:
        """Whether any of its tokens is a picture's."""
        return bool((self.image_index >= 0).any())

    @property
    def text_ids(self) -> list[int]:
        return self.input_ids[self.image_index < 0].tolist()


Pieces = list[tuple[str, bool]]  # a string, and whether it is the user's own


@dataclass(frozen=True)
class PictureTokens:
    """How a picture is read: so many image tokens, in one block with the words around them."""

    count: int
    causal: bool = False  # its tokens see only those before them; else they see one another
    around: tuple[str, str] = ALONE  # words that belong to the block
    lead: int = 0  # so many of the first tokens, and the word before them, see only those before them

    @classmethod
    def of(cls, loop: TextLoop, picture: object = None) -> PictureTokens:
        """In a conversation whose pieces are tokenized alone."""
        return cls(loop.rows_of(picture), around=loop.around, lead=loop.image_lead)


@dataclass
class PromptBuilder:
    """A row in the making."""

    tokenizer: Tokenizer
    ids: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    picture_rows: int = 0
    graph_rows: list[tuple[int, int, int]] = field(default_factory=list)
    words_of: dict[int, int] = field(default_factory=dict)  # position of a node's word -> the node's own row
    nodes: list[int] = field(default_factory=list)  # the same for each row of the pictures, -1 outside graphs

    def text(self, piece: str, own: bool = False) -> None:
        ids = self.tokenizer.encode(piece, special=not own)
        self.limits += range(len(self.ids), len(self.ids) + len(ids))
        self.ids += ids
        self.rows += [-1] * len(ids)
        self.own += [float(own)] * len(ids)

    def tokens(self, ids: Sequence[int]) -> None:
        """Ids that the model wrote itself."""
        self.limits += range(len(self.ids), len(self.ids) + len(ids))
        self.ids += ids
        self.rows += [-1] * len(ids)
        self.own += [0.0] * len(ids)

    def picture(self, read: PictureTokens) -> None:
        """A picture's tokens, and those of the words around them."""
        start, end = (self.tokenizer.encode(word, special=True) if word else [] for word in read.around)
        ids = [*start, *[PICTURE_ID] * read.count, *end]
        first, last = len(self.ids), len(self.ids) + len(ids) - 1
        lead = len(start) + read.lead if read.lead else 0
        block = len(ids) if read.causal else lead  # where those begin that see one another
        self.limits += [*range(first, first + block), *[last] * (len(ids) - block)]
        self.ids += ids
        rows = range(self.picture_rows, self.picture_rows + read.count)
        self.rows += [*[-1] * len(start), *rows, *[-1] * len(end)]
        self.own += [0.0] * len(ids)
        self.picture_rows += read.count
        self.nodes += [-1] * read.count

    def graph(self, graph: Graph, known: GraphRows, picture: PictureTokens, ids: Sequence[int] | None = None) -> None:
        """A block whose tokens all see one another: a row a node, its words, its picture; then a row an edge.

        Where the model has nodes `named`, a node's row is added to its words and its picture: each says whose it is.
        `ids` are the nodes' own; without them they count from 0.  Raises InputError of what the model does not know.
        """
        if len(graph.nodes) > known.max_nodes:
            raise InputError(f"the graph has {len(graph.nodes)} nodes, this bundle reads at most {known.max_nodes}")
        kinds = {kind: number for number, kind in enumerate(known.kinds, start=1)}
        unknown = [edge.type for edge in graph.edges if edge.type not in kinds]
        if unknown:
            raise InputError(
                f"edges of type {unknown[0]!r}: this bundle knows {', '.join(kinds)}; or put g.to_text() in"
            )
        first, own = len(self.ids), range(len(graph.nodes)) if ids is None else ids
        number = {node.id: own[place] for place, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            row, seen = len(self.graph_rows), self.picture_rows
            self._graph_row(0, number[node.id], number[node.id])
            start = len(self.ids)
            self.text(node.text or "", own=True)
            if node.image is not None:
                self.picture(picture)
            if known.named:
                self.words_of |= {place: row for place in range(start, len(self.ids)) if self.rows[place] == -1}
                self.nodes[seen:] = [row] * (self.picture_rows - seen)
        for edge in graph.edges:
            self._graph_row(kinds[edge.type], number[edge.source], number[edge.target])
            if not graph.directed and edge.source != edge.target:
                self._graph_row(kinds[edge.type], number[edge.target], number[edge.source])
        size = len(self.ids) - first
        self.limits[first:], self.own[first:] = [len(self.ids) - 1] * size, [1.0] * size

    def _graph_row(self, kind: int, head: int, tail: int) -> None:
        self.rows.append(GRAPH - len(self.graph_rows))
        self.graph_rows.append((kind, head, tail))
        self.ids.append(PICTURE_ID)
        self.limits.append(0)  # and own: graph() sets them
        self.own.append(1.0)

    def build(self) -> Prompt:
        rows = [self.picture_rows + GRAPH - row if row <= GRAPH else row for row in self.rows]
        for place, row in self.words_of.items():
            rows[place] = -2 - (self.picture_rows + row)
        return Prompt(
            np.array(self.ids, dtype=np.int64),
            np.array(rows, dtype=np.int64),
            np.array(self.limits, dtype=np.int64),
            np.array(self.own, dtype=np.float32),
            np.array(self.graph_rows, dtype=np.int64).T if self.graph_rows else None,
            np.array(self.nodes, dtype=np.int64) if self.graph_rows else None,
        )


def check_length(tokens: int, limits: Limits) -> None:
    """Refuses what no empty cache of this bundle has room for."""
    if tokens > limits.max_context:
        raise InputError(
            f"the prompt takes {tokens} tokens, this bundle holds at most {limits.max_context}; shorten it"
        )


GraphBlock = tuple["Graph", GraphRows, PictureTokens]  # a graph, and how it and pictures in it are read
Size = tuple[int, int]  # height and width of the picture that is drawn, in pixels


def drawing_prompt(
    prompt: str,
    template: DenoiseTemplate,
    tokenizer: Tokenizer,
    picture: PictureTokens | None = None,
    size: Size = (0, 0),
    graph: GraphBlock | None = None,
) -> Prompt:
    """What the denoiser's prefix is made of; `picture` is how one to edit is read, `graph` one to draw."""
    if not isinstance(prompt, str) or not (graph or prompt.strip()):
        raise UsageError("prompt is empty, expected some text")
    return negative_drawing_prompt(prompt, template, tokenizer, picture, size, graph)


def picture_prompt(tokenizer: Tokenizer, picture: PictureTokens) -> Prompt:
    """The block of a picture to edit, and no word."""
    builder = PromptBuilder(tokenizer)
    builder.picture(picture)
    return builder.build()


def negative_drawing_prompt(
    prompt: str,
    template: DenoiseTemplate,
    tokenizer: Tokenizer,
    picture: PictureTokens | None = None,
    size: Size = (0, 0),
    graph: GraphBlock | None = None,
) -> Prompt:
    """What guidance leads away from: the same around another prompt, which may be empty."""
    builder, said = PromptBuilder(tokenizer), prompt.strip() if template.strip else prompt
    if picture and picture.around != ALONE:  # a block of its own, before the template's strings
        builder.picture(picture)
        picture = None
    sentence = template.size_sentence.format(height=size[0], width=size[1])
    if sentence:
        said = said.rstrip(".")
        sentence = f". {sentence}" if said else sentence
    if not template.joined:
        builder.text(template.open)
        if picture:
            builder.picture(picture)
            builder.text(template.image_close)
        if graph:
            builder.graph(*graph)
        if said:
            builder.text(" " + said, own=True)
        builder.text(sentence)
        builder.text(template.close)
        return builder.build()
    before: Pieces = [(template.open, False)]
    after: Pieces = [(said, True), (sentence, False), (template.close, False)]
    if not picture:
        builder.tokens(joined_ids([*before, *after], tokenizer).tolist())
        return builder.build()
    builder.tokens(joined_ids(before, tokenizer).tolist())
    builder.picture(picture)
    builder.tokens(joined_ids([(template.image_close, False), *after], tokenizer).tolist())
    return builder.build()


def prompt_between(open: str, prompt: str, close: str, tokenizer: Tokenizer) -> Prompt:
    """The three as one string; a prompt that spells a special token is tokenized alone."""
    return causal_prompt(joined_ids([(open, False), (prompt, True), (close, False)], tokenizer))


def with_picture_ids(prompt: Prompt, token_ids: np.ndarray) -> Prompt:
    """The prompt with token ids (m) where its pictures stand, for models that read pictures as tokens."""
    pictured = prompt.image_index >= 0
    ids = prompt.input_ids.copy()
    ids[pictured] = token_ids[prompt.image_index[pictured]]
    return replace(prompt, input_ids=ids, image_index=np.full_like(prompt.image_index, -1))


def joined_ids(pieces: Pieces, tokenizer: Tokenizer, add_special: bool = False) -> np.ndarray:
    """Ids of all pieces as one string: Tokenizer.encode_whole's."""
    return np.array(tokenizer.encode_whole(pieces, add_special), dtype=np.int64)


def causal_prompt(ids: np.ndarray, image_index: np.ndarray | None = None) -> Prompt:
    """Every token sees those before it, a picture's too."""
    rows = np.full_like(ids, -1) if image_index is None else image_index.astype(np.int64)
    return Prompt(ids, rows, np.arange(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.float32))
