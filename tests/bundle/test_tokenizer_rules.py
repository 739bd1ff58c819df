"""How long a stranger's regular expression may take: never said to be less than Oniguruma takes."""

from __future__ import annotations

import random
import time

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from edgemm.bundle import prompt
from edgemm.bundle.tokenizer_rules import TokenizerRules, ways
from edgemm.errors import InputError

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT_4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
)
DIGITS_FROM_THE_RIGHT = r"(?=(\d{3})+(?!\d))"


def splits(pattern: str) -> Tokenizer:
    made = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return made


def opened(inner: Tokenizer) -> prompt.Tokenizer:
    return prompt.Tokenizer("tokenizer.json", inner.to_str())


@pytest.mark.parametrize("pattern", [GPT_2, GPT_4, O200K, DEEPSEEK, DIGITS_FROM_THE_RIGHT, r" ?[^(\s|[.,!?…])]+"])
def test_published_expressions_are_run_here_for_texts_of_thousands_of_letters(pattern):
    assert TokenizerRules(splits(pattern)).most_steps(3000) <= prompt.MOST_STEPS


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*$", "(|a)+$", r"(a)\1", "x{1,3}+b", "(?(1)a|b)", "((a{1,9}){1,30})*b"]
)
def test_a_repeat_of_a_repeat_and_what_is_not_understood_has_no_bound(pattern):
    assert ways(pattern, 1000) > 1e9


def random_pattern(chance: random.Random, depth: int = 0) -> str:
    if depth > 2:
        return chance.choice("ab.")
    parts = []
    for _ in range(chance.randint(1, 3)):
        part = chance.choice("aab.") if chance.random() < 0.6 else f"({random_pattern(chance, depth + 1)})"
        parts.append(part + chance.choice(["", "", "*", "+", "?", "{1,3}", "{2}", "*?", "++"]))
    return "".join(parts) + (f"|{random_pattern(chance, depth + 1)}" if chance.random() < 0.25 else "")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_where_oniguruma_gives_up_after_ten_million_steps_as_many_ways_are_said(seed):
    chance, gave_up = random.Random(seed), 0
    for _ in range(150):
        pattern = random_pattern(chance) + chance.choice(["", "$", "c", "(?!a)"])
        for text in ("a" * 40 + "b", "ab" * 20, "a" * 200):
            try:
                splits(pattern).encode(text)
            except BaseException as error:  # a panic
                assert "retry-limit" in str(error), pattern
                gave_up += 1
                assert ways(pattern, len(text)) > 1e5, (pattern, text)
    assert gave_up


def test_a_text_that_an_expression_has_no_end_with_is_refused_in_time(monkeypatch):
    monkeypatch.setattr(prompt, "MOST_S", 1.0)
    tokenizer, began = opened(splits("(a+)+$")), time.monotonic()
    with pytest.raises(InputError, match=r"tokenizer.json: to tokenize 2300 letters: took more than 1 s"):
        tokenizer.encode(("a" * 22 + "b") * 100)
    assert time.monotonic() - began < 60
    assert tokenizer.encode("ba") == [1, 0]  # and it goes on


@pytest.mark.parametrize("length", [10, 20_000])
def test_ids_of_a_copy_of_this_process_are_those_of_this_one(length):
    inner = splits("a*b*a$|b")
    assert opened(inner).encode("ab" * length) == inner.encode("ab" * length).ids


def test_a_decoder_of_such_an_expression_is_refused():
    from tokenizers import decoders

    inner = splits("a")
    inner.decoder = decoders.Replace(Regex("(a+)+$"), "b")
    with pytest.raises(InputError, match=r"its decoder's expression '.*' may take time without end"):
        opened(inner)


def test_a_normalizer_is_asked_too():
    inner = splits("a")
    inner.normalizer = normalizers.Replace(Regex("(a+)+$"), "b")
    assert TokenizerRules(inner).most_steps(100) > prompt.MOST_STEPS


def test_ids_that_chance_decides_are_refused():
    inner = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.5))
    assert len({tuple(inner.encode("ab" * 20).ids) for _ in range(20)}) > 1
    with pytest.raises(InputError, match=r"leaves merges out by chance \(dropout 0.5\)"):
        opened(inner)
