"""What a stranger's tokenizer may do to a text, said of its rules before they see one: how much longer it gets, and how
many steps its regular expressions may take.

Three rules that replace an "i" by 400 make 64 million letters of one.  Expressions are run by Oniguruma, which tries
every way to match one after another (backtracking) and gives up after ten million steps at one place of the text, not
before: `(a+)+$` takes that many at every place of "aaa...ab".  The bound here is on the number of ways: 1 for what is
never tried again, the length of the text for a repeat that something after it may send back, without end for a repeat
of what has several ways itself.  It is too high where the library is clever, never too low.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
from collections.abc import Iterator
from typing import Any

__all__ = ["TokenizerRules", "check_text", "ways"]

MOST_GROWTH = 1000.0  # all rules of a tokenizer one after another; those that are published stay below 150
LONGEST_PREFIX = 1000
LONGEST_PIECE = 1000  # letters: a tree of pieces is taken apart by a call for each
LONGEST_EXPRESSION = 20_000  # letters; those that are published have 3,000 at most
MOST_RULES = 100  # of a part; those that are published have ten
FIXED = {"NFD": 4.0, "NFKD": 11.0, "NFC": 3.0, "NFKC": 11.0, "Lowercase": 1.5, "ByteLevel": 2.0, "Metaspace": 3.0}


STEPS_AT_ONE_PLACE = 1e7  # Oniguruma's own limit (retry-limit-in-match)
LONG = 1000  # letters that a decoder's expression is judged by: tokens are short
MOST_WAYS = 1e6  # of a decoder's expression


def check_text(text: str) -> None:
    """ValueError of what the library must not even read: it would end the process, which no `except` sees."""
    if '"Unigram"' in text and max(map(len, text.split('"'))) > LONGEST_PIECE and _longest_piece(text) > LONGEST_PIECE:
        raise ValueError(f"a piece of its vocabulary has more than {LONGEST_PIECE} letters")
    if '"Precompiled"' in text:
        for rule in _rules(_part(text, "normalizer")):
            if isinstance(charsmap := rule.get("precompiled_charsmap"), str):
                _longest_of_map(charsmap)


def _longest_piece(text: str) -> int:
    vocabulary = _part(text, "model").get("vocab")
    entries = vocabulary if isinstance(vocabulary, list) else []
    pieces = [entry[0] for entry in entries if isinstance(entry, list) and entry]
    return max((len(piece) for piece in pieces if isinstance(piece, str)), default=0)


def _part(text: str, name: str) -> dict[str, Any]:
    """{} where the library would find none, either."""
    document = json.loads(text)
    found = document.get(name) if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}


class TokenizerRules:
    """Made of a tokenizers.Tokenizer; ValueError says which of its parts takes a text too far."""

    def __init__(self, inner: Any) -> None:
        self._expressions: list[list[list[Item]]] = []
        if dropout := getattr(inner.model, "dropout", None):
            raise ValueError(
                f"its model leaves merges out by chance (dropout {dropout:g}): a text has no ids of its own"
            )
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            found = getattr(inner, part)
            rules = list(_rules(json.loads(found.__getstate__()))) if found is not None else []
            if len(rules) > MOST_RULES:
                raise ValueError(f"its {part} has {len(rules)} rules, expected {MOST_RULES} at most")
            growth = math.prod(min(_growth(rule), 1e9) for rule in rules)
            if growth > MOST_GROWTH:
                raise ValueError(
                    f"its {part} makes a text {growth:.3g} times as long, expected {MOST_GROWTH:g} at most"
                )
            patterns = [pattern for rule in rules if (pattern := (rule.get("pattern") or {}).get("Regex"))]
            if max(map(len, patterns), default=0) > LONGEST_EXPRESSION:
                raise ValueError(f"its {part} has an expression of more than {LONGEST_EXPRESSION} letters")
            if part != "decoder":
                self._expressions += map(_parsed, patterns)
            elif slow := [pattern for pattern in patterns if ways(pattern, LONG) > MOST_WAYS]:
                raise ValueError(f"its decoder's expression {slow[0]!r:.60} may take time without end")

    def most_steps(self, length: int) -> float:
        """Of all expressions over a text of so many letters."""
        return sum(length * min(STEPS_AT_ONE_PLACE, _ways(each, False, length)) for each in self._expressions)


def _rules(document: Any) -> Iterator[dict[str, Any]]:
    """One after another; a Sequence holds others."""
    waiting = [document]
    while waiting:
        rule = waiting.pop()
        if isinstance(rule, dict):
            nested = [rule.get(key) for key in ("normalizers", "pretokenizers", "decoders")]
            waiting += reversed([item for items in nested if isinstance(items, list) for item in items])
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
    size = int.from_bytes(table[:4], "little")
    if size > len(table) - 4 or size % 4:
        raise ValueError(f"its charsmap says {size} bytes of {len(table)} are a trie")
    made = table[4 + size :]
    return max(1.0, float(max(map(len, made.split(b"\0")), default=1)))


# How many ways a regular expression in Oniguruma's syntax may try at one place of a text.

DEEPEST = 100  # groups within groups
MOST_TIMES = 40  # of a counted repeat; above it is as good as without a bound
Item = tuple[Any, int, float]  # what is repeated (None: one letter, or a list of alternatives), least, most times
NOT_UNDERSTOOD: list[list[Item]] = [[([[(None, 0, 1.0)]], 0, math.inf)]]
LOOKS = ("(?=", "(?!", "(?<=", "(?<!")


def ways(pattern: str, length: int) -> float:
    """At one place of a text of so many letters; infinity too for what is not understood: references, conditions."""
    return _ways(_parsed(pattern), False, length)


def _parsed(pattern: str) -> list[list[Item]]:
    with contextlib.suppress(IndexError, ValueError):
        alternatives, end = _alternatives(pattern, 0, 0)
        if end == len(pattern):
            return alternatives
    return NOT_UNDERSTOOD


def _alternatives(pattern: str, at: int, depth: int) -> tuple[list[list[Item]], int]:
    """From `at` to the end or to the bracket that closes the group."""
    if depth > DEEPEST:
        raise ValueError("too deep")
    found: list[list[Item]] = [[]]
    while at < len(pattern) and pattern[at] != ")":
        if pattern[at] == "|":
            found.append([])
            at += 1
            continue
        item, at = _item(pattern, at, depth)
        while at < len(pattern) and (times := _times(pattern, at)):
            least, most, at = times
            if item[1:] == (1, 1):
                item = (item[0], least, most)
            else:  # a repeat of a repeat
                item = ([[item]], least, most)
            if at < len(pattern) and pattern[at] in "?+":  # lazy or possessive; after {} it is one more repeat
                if pattern[at - 1] == "}" and pattern[at] == "+":
                    continue
                at += 1
        found[-1].append(item)
    return found, at


def _item(pattern: str, at: int, depth: int) -> tuple[Item, int]:
    letter = pattern[at]
    if letter == "[":
        return (None, 1, 1), _after_class(pattern, at)
    if letter == "\\":
        return _escape(pattern, at)
    if letter != "(":
        return (None, 1, 1), at + 1
    look = next((opening for opening in LOOKS if pattern.startswith(opening, at)), "")
    at = _inside(pattern, at, look)
    alternatives, at = _alternatives(pattern, at, depth + 1)
    if pattern[at] != ")":
        raise ValueError("a group that does not end")
    return (("look", alternatives) if look else alternatives, 1, 1), at + 1


def _inside(pattern: str, at: int, look: str) -> int:
    """Where what the group holds begins; ValueError for those that are more than a group."""
    if look:
        return at + len(look)
    if not pattern.startswith("(?", at):
        return at + 1
    end = at + 2
    if pattern[end] in ":>":
        return end + 1
    if pattern[end] == "<":
        return pattern.index(">", end) + 1
    while pattern[end] in "imxa-":  # (?i: or (?i)
        end += 1
    if pattern[end] not in ":)":
        raise ValueError("a group of another kind")
    return end + (pattern[end] == ":")


def _escape(pattern: str, at: int) -> tuple[Item, int]:
    letter = pattern[at + 1]
    if letter in "pPx" and pattern[at + 2 : at + 3] == "{":
        return (None, 1, 1), pattern.index("}", at) + 1
    if letter == "R":  # one line's end: two letters or one
        return (None, 1, 2), at + 2
    if letter in "kgX" or letter in "123456789":
        raise ValueError("a reference")
    length = {"x": 4, "u": 6}.get(letter, 2)
    return (None, 1, 1), min(len(pattern), at + length)


def _after_class(pattern: str, at: int) -> int:
    """Classes hold classes."""
    at += 2 if pattern[at + 1] == "^" else 1
    at += pattern[at] == "]"  # as the first it is a letter
    while pattern[at] != "]":
        if pattern[at] == "[":
            at = _after_class(pattern, at) if not pattern.startswith("[:", at) else pattern.index(":]", at) + 2
        else:
            at += 2 if pattern[at] == "\\" else 1
    return at + 1


def _times(pattern: str, at: int) -> tuple[int, float, int] | None:
    """Least, most, and where it ends; None where there is no repeat."""
    simple = {"?": (0, 1.0), "*": (0, math.inf), "+": (1, math.inf)}.get(pattern[at])
    if simple:
        return *simple, at + 1
    end = pattern.find("}", at)
    if pattern[at] != "{" or end < 0:
        return None
    least, comma, most = pattern[at + 1 : end].partition(",")
    if not (least + most).isdigit():  # a bracket like any other letter
        return None
    low = int(least or 0)
    return low, (float(most) if most else math.inf) if comma else float(low), end + 1


def _ways(alternatives: list[list[Item]], fails: bool, length: int) -> float:
    """`fails` is whether what comes after may send it back."""
    return sum(_ways_of_sequence(items, fails, length) for items in alternatives)


def _ways_of_sequence(items: list[Item], fails: bool, length: int) -> float:
    tried, once = 1.0, 0.0  # those that are sent back make all that follow begin again; the rest is reached once
    for item in reversed(items):
        found = _ways_of_item(item, fails, length)
        tried, once = (tried * found, once) if fails else (tried, once + found)
        fails = fails or _can_fail(item)
    return tried + once


def _ways_of_item(item: Item, fails: bool, length: int) -> float:
    what, least, most = item
    if isinstance(what, tuple):  # a look ahead or behind is tried once
        return _ways(what[1], False, length)
    if most == 1:
        return (1.0 if what is None else _ways(what, fails, length)) + (1 - least) * fails
    each = 1.0 if what is None else _ways(what, True, length)
    if each > 1:
        return math.inf if most > MOST_TIMES else min(each, 1e6) ** most
    return max(1.0, min(most, length) - least + 1) if fails else 1.0


def _can_fail(item: Item) -> bool:
    what, least, _ = item
    if isinstance(what, tuple):
        return True
    if not least:
        return False
    return what is None or all(any(map(_can_fail, items)) for items in what)
