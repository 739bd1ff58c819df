"""A smaller vocabulary: the tokens that texts need, and the commonest others.

What is cut are an embedding's rows, which are the output head's, and entries of tokenizer.json: who says the names of
pictures does not need 49,152 words.

Byte-pair encoding makes every token but its letters from two earlier ones (arXiv:1508.07909).  With a token stay all
that it is made of, so a text whose tokens all stay is cut into the same tokens as before: of the merges that are left
the first is still the one that came first.  Any other text is spelled in shorter tokens, and none is lost.
Axes: v tokens kept, w width.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgemm.errors import CheckpointError, InputError, UsageError
from edgemm.model.pretrained import token_ids
from edgemm.model.unified import Unified

__all__ = ["cut_tokenizer", "cut_vocabulary", "with_tokens_of"]


def cut_vocabulary(model: Unified, needed: Iterable[int], size: int) -> Unified:
    """The model with a vocabulary of `size` tokens, the `needed` ones among them; else as it was, bit for bit.

    UsageError where `size` is too small for them or nothing is left to cut, InputError for a tokenizer of another kind
    than byte pairs, and for models whose codes of pictures or queries stand behind the vocabulary.
    """
    config = model.config
    if config.objective == "ar" or config.transformer.queries:
        behind = "codes of pictures" if config.objective == "ar" else "a connector's queries"
        raise InputError(f"{config.name}: {behind} stand behind its vocabulary, which cannot be cut")
    document, kept = cut_tokenizer(json.loads(model.tokenizer_json), needed, size)
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    smaller = Unified(
        dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, vocab_size=len(kept))), text
    )
    state = model.state_dict()
    state["transformer.embed_tokens.weight"] = state["transformer.embed_tokens.weight"][kept]
    smaller.load_state_dict(state)
    smaller.adapter = model.adapter
    return smaller.eval()


def with_tokens_of(model: Unified, other: Unified) -> Unified:
    """The model with the vocabulary of `other`, which was cut from one like its own; itself where they are the same.

    CheckpointError where `other` has a token that the model does not know.
    """
    if model.tokenizer_json == other.tokenizer_json:
        return model
    known = token_ids(json.loads(model.tokenizer_json))
    wanted = token_ids(json.loads(other.tokenizer_json))
    if unknown := next((token for token in wanted if token not in known), None):
        raise CheckpointError(f"{model.config.name} has no token {unknown!r}, which {other.config.name} has")
    return cut_vocabulary(model, [known[token] for token in wanted], len(wanted)) if len(wanted) < len(known) else model


def cut_tokenizer(document: Mapping[str, Any], needed: Iterable[int], size: int) -> tuple[dict[str, Any], list[int]]:
    """A tokenizer.json's document with `size` of its tokens, numbered anew in their order; and the ids they had.

    Kept are letters and added tokens, then what is `needed`, then what was merged first.
    """
    model = document.get("model") or {}
    if model.get("type") != "BPE":
        raise InputError(f"tokenizer.json: its model is {model.get('type')}, and only byte pairs (BPE) can be cut")
    if model.get("continuing_subword_prefix"):  # then a token is not its parts one after the other
        raise InputError(f"tokenizer.json: tokens inside of words begin with {model['continuing_subword_prefix']!r}")
    vocabulary: Mapping[str, int] = model["vocab"]
    pairs = [tuple(pair if isinstance(pair, list) else pair.split(" ")) for pair in model["merges"]]
    made_of: dict[str, set[str]] = {}  # token -> what it is merged from, in every way that there is
    for pair in pairs:
        made_of.setdefault("".join(pair), set()).update(pair)
    added = {token["content"]: token["id"] for token in document.get("added_tokens", ())}
    words = {number: word for word, number in vocabulary.items()}
    kept = {word for word in vocabulary if word not in made_of} | (added.keys() & vocabulary.keys())
    waiting = [words[number] for number in needed if number in words]
    while waiting:
        word = waiting.pop()
        if word not in kept:
            kept.add(word)
            waiting += made_of[word]
    total = len(token_ids(document))
    outside = len(added.keys() - vocabulary.keys())
    least = len(kept) + outside
    if least >= total:
        raise UsageError(
            f"texts, letters and special tokens need all {total} tokens that there are: nothing can be cut"
        )
    if not least <= size < total:
        raise UsageError(
            f"a vocabulary of {size} tokens: expected {least}, which texts, letters and special tokens need, to "
            f"{total - 1}"
        )
    for word in made_of:  # in the order of their first merges
        if len(kept) + outside < size and made_of[word] <= kept:
            kept.add(word)
    return _renumbered(document, kept, pairs, added)


def _renumbered(
    document: Mapping[str, Any], kept: set[str], pairs: Sequence[tuple[str, ...]], added: Mapping[str, int]
) -> tuple[dict[str, Any], list[int]]:
    vocabulary = document["model"]["vocab"]
    ids = sorted({*(vocabulary[word] for word in kept), *added.values()})
    number = {old: new for new, old in enumerate(ids)}
    by_id = sorted(kept, key=lambda word: vocabulary[word])
    left = [pair for pair in pairs if {*pair, "".join(pair)} <= kept]
    listed = isinstance(document["model"]["merges"][0], list) if pairs else True
    model = document["model"] | {
        "vocab": {word: number[vocabulary[word]] for word in by_id},
        "merges": [list(pair) if listed else " ".join(pair) for pair in left],
    }
    tokens = [token | {"id": number[token["id"]]} for token in document.get("added_tokens", ())]
    around = _template(document.get("post_processor"), number)
    return dict(document) | {"model": model, "added_tokens": tokens, "post_processor": around}, ids


def _template(part: Any, number: Mapping[int, int]) -> Any:
    """A post-processor with the new numbers of the tokens that it puts around a text."""
    if not isinstance(part, Mapping):
        return part
    found = dict(part)
    if "processors" in found:
        found["processors"] = [_template(inner, number) for inner in found["processors"]]
    for name, told in found.get("special_tokens", {}).items():
        told = dict(told) | {"ids": [number[old] for old in told["ids"]]}
        found["special_tokens"] = dict(found["special_tokens"]) | {name: told}
    for name in ("sep", "cls"):
        if name in found:
            found[name] = [found[name][0], number[found[name][1]]]
    return found
