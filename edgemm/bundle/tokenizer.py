"""Text to token ids and back, one piece at a time, over a tokenizer.json.

It knows strings and ids, never templates or pictures: see bundle/prompt.py.  What a user wrote is encoded with
special tokens switched off, so that a prompt that spells one out stays plain text.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from edgemm.bundle.reading import read_text, reading
from edgemm.bundle.tokenizer_limits import check_growth
from edgemm.errors import InputError, MissingError

__all__ = ["StreamDecoder", "Tokenizer"]

INCOMPLETE = "\ufffd"  # what a decoder shows for bytes that are not yet, or never, a character


class Tokenizer:
    """A tokenizer.json in Hugging Face's format; safe to share between threads."""

    def __init__(self, path: str | os.PathLike[str], text: str | None = None) -> None:
        """`text` is what stands in the file, where that was read already."""
        try:
            import tokenizers
        except ImportError as error:
            raise MissingError("text needs the package tokenizers: pip install 'edgemm[ort]'") from error
        with reading(path, "not a tokenizer.json"):
            self._inner = tokenizers.Tokenizer.from_str(read_text(path) if text is None else text)
            self._inner.no_padding()
            self._inner.no_truncation()
            check_growth(self._inner)
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
        with reading(self._path, "cannot tokenize this text"), self._lock:
            self._inner.encode_special_tokens = not special
            return self._inner.encode(text, add_special_tokens=False).ids

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
        with reading(self._path, "cannot tokenize this text"), self._lock:
            self._inner.encode_special_tokens = not special
            return self._inner.encode(text, add_special_tokens=False)

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


class StreamDecoder:
    """Ids in one by one, text out as soon as it is whole; the pieces joined are the whole decoded at once.

    A character may be several tokens of bytes: they are held back until it is complete.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # ids before this are only history
        self._shown = 0  # ids before this have been given out

    def push(self, token: int) -> str:
        """The text that this token completes, perhaps empty."""
        self._ids.append(token)
        fresh = self._fresh()
        if not fresh or fresh.endswith(INCOMPLETE):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return fresh

    def flush(self) -> str:
        """What was held back, at the end of a reply."""
        fresh = self._fresh()
        self._start = self._shown = len(self._ids)
        return fresh

    def _fresh(self) -> str:
        history = self._tokenizer.decode(self._ids[self._start : self._shown])
        return self._tokenizer.decode(self._ids[self._start :])[len(history) :]
