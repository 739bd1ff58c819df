"""How much longer a tokenizer of a stranger may make a text: said of its rules, before they see one.

Three rules that replace an "i" by 400 make 64 million letters of one.  Sizes are in bytes of UTF-8.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

__all__ = ["MOST_GROWTH", "check_growth"]

MOST_GROWTH = 1000.0  # all rules of a tokenizer one after another; those that are published stay below 150
LONGEST_PREFIX = 1000
FIXED = {"NFD": 4.0, "NFKD": 11.0, "NFC": 3.0, "NFKC": 11.0, "Lowercase": 1.5, "ByteLevel": 2.0, "Metaspace": 3.0}


def check_growth(inner: Any) -> None:
    """`inner` is a tokenizers.Tokenizer; ValueError says which of its parts would make a text too long."""
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        found = getattr(inner, part)
        rules = list(_rules(json.loads(found.__getstate__()))) if found is not None else []
        growth = 1.0
        for rule in rules:
            growth *= _growth(rule)
            if growth > MOST_GROWTH:
                raise ValueError(
                    f"its {part} makes a text {growth:.3g} times as long, expected {MOST_GROWTH:g} at most"
                )


def _rules(document: Any) -> Iterator[dict[str, Any]]:
    """One after another; a Sequence holds others."""
    waiting = [document]
    while waiting:
        rule = waiting.pop(0)
        if isinstance(rule, dict):
            nested = [rule.get(key) for key in ("normalizers", "pretokenizers", "decoders")]
            waiting = [item for items in nested if isinstance(items, list) for item in items] + waiting
            yield rule


def _growth(rule: dict[str, Any]) -> float:
    kind = rule.get("type")
    if kind == "Replace":
        if not any((rule.get("pattern") or {}).values()):
            raise ValueError("it replaces an empty text")
        made, pattern = len(str(rule.get("content", "")).encode()), rule.get("pattern") or {}
        taken = len(str(pattern["String"]).encode()) if "String" in pattern else 0  # what a regex takes is not known
        return max(1.0, made / taken) if taken else 1.0 + made
    if kind == "Prepend":
        return 1.0 if len(str(rule.get("prepend", ""))) <= LONGEST_PREFIX else float("inf")
    if kind == "Precompiled":
        return _longest_of_map(rule.get("precompiled_charsmap") or "")
    return FIXED.get(str(kind), 1.0)


def _longest_of_map(charsmap: str) -> float:
    """Of sentencepiece's table: the size of a trie, the trie, then what is put in, ended by NUL."""
    table = base64.b64decode(charsmap)
    made = table[4 + int.from_bytes(table[:4], "little") :]
    return max(1.0, float(max(map(len, made.split(b"\0")), default=1)))
