"""A tokenizer.json that opens a third faster and says the same: merges as strings, in place of pairs of strings.

The tokenizers library reads both.  A piece with a blank in it can only be said by a pair; such a file stays as it is.
"""

from __future__ import annotations

import json

__all__ = ["quick_to_open"]

COMMENT = "#version"  # what begins so is no merge where merges are strings


def quick_to_open(tokenizer_json: str | bytes) -> bytes:
    """The file's text, with its merges as strings where they can be."""
    whole = tokenizer_json if isinstance(tokenizer_json, bytes) else tokenizer_json.encode()
    document = json.loads(whole)
    merges = document["model"].get("merges") or []
    if not merges or not all(isinstance(merge, list) for merge in merges):
        return whole
    if any(" " in piece for merge in merges for piece in merge) or any(pair[0].startswith(COMMENT) for pair in merges):
        return whole
    document["model"]["merges"] = [" ".join(merge) for merge in merges]
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
