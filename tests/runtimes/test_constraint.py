"""Replies that can be nothing but JSON of a schema, or a word of a grammar; and what is said without the library."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from edgemm.errors import MissingError, UsageError
from edgemm.runtimes.constraint import LONG

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["heart", "star"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["label", "count"],
    "additionalProperties": False,
}


def test_without_the_library_the_error_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingError, match=r"need the package llguidance: pip install 'edgemm\[constrained\]'"):
        model.stream_text("hello", json_schema=SCHEMA)


class TestWithTheLibrary:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("llguidance")

    @pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 1}, {"temperature": 1.5, "seed": 2}])
    def test_a_model_that_babbles_writes_json_of_the_schema(self, model, options):
        with pytest.raises(json.JSONDecodeError):
            json.loads(model.generate_text("hello", max_new_tokens=60, **options).text)
        result = model.generate_text("hello", max_new_tokens=60, json_schema=SCHEMA, **options)
        found = json.loads(result.text)
        assert result.finish_reason == "stop"
        assert found.keys() == {"label", "count"}
        assert found["label"] in ("heart", "star") and 0 <= found["count"] <= 99

    def test_a_schema_may_be_text(self, model):
        as_dict, as_text = (
            model.generate_text("hello", max_new_tokens=60, json_schema=schema).token_ids
            for schema in (SCHEMA, json.dumps(SCHEMA))
        )
        assert as_dict == as_text

    def test_a_grammar_leaves_the_choice_to_the_model(self, model):
        logits = {}
        for word in ("yes", "no"):
            logits[word] = model.generate_text("hello", max_new_tokens=9, grammar=f'start: "{word}"', logprobs=0)
            assert logits[word].text == word
        chosen = model.generate_text("hello", max_new_tokens=9, grammar='start: "yes" | "no"').text
        first = {word: reply.logprobs[0].logprob for word, reply in logits.items()}
        assert chosen == max(first, key=first.__getitem__)

    def test_each_row_of_a_batch_has_a_constraint_of_its_own(self, model):
        for prompt, result in zip(("hello", "a"), model.generate_texts(["hello", "a"], json_schema=SCHEMA)):
            assert result.token_ids == model.generate_text(prompt, json_schema=SCHEMA).token_ids

    def test_too_few_tokens_end_it_with_length(self, model):
        result = model.generate_text("hello", max_new_tokens=4, json_schema=SCHEMA)
        assert (result.finish_reason, len(result.token_ids)) == ("length", 4)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"json_schema": {"type": "rocket"}}, "json_schema cannot be used: .*rocket"),
            ({"json_schema": '{"type'}, "json_schema: not JSON"),
            ({"json_schema": [1]}, r"json_schema is \[1\], expected an object"),
            ({"grammar": 'start: "a'}, "grammar cannot be used"),
            ({"json_schema": {"$ref": "#"}}, "json_schema cannot be used: it allows no text at all$"),
            ({"grammar": "start: start"}, "grammar cannot be used: it allows no text at all$"),
            ({"json_schema": "[" * 100_000}, "json_schema: not JSON: nested too deep"),
            ({"grammar": 'start: "a"', "json_schema": SCHEMA}, "both given"),
        ],
    )
    def test_a_constraint_that_makes_no_sense_is_refused(self, model, options, message):
        with pytest.raises(UsageError, match=message):
            model.stream_text("hello", **options)

    def test_a_grammar_that_grows_too_large_on_the_way_is_its_callers_fault(self, model):
        with pytest.raises(UsageError, match="grammar cannot be used: lexer error: too many expressions"):
            model.generate_text("x", grammar="start: /a{1000000}/", max_new_tokens=3)


def test_logprobs_are_the_models_own_distribution(model):
    result = model.generate_text("hello", max_new_tokens=6, logprobs=100, temperature=2.0, seed=3, top_k=5)
    assert result.logprobs is not None and len(result.logprobs) == 6
    for token, told in zip(result.token_ids, result.logprobs):
        assert told.token_id == token and told.token == model.tokenizer.decode([token])
        ranks = [logprob for _, _, logprob in told.top]
        assert ranks == sorted(ranks, reverse=True) and len(ranks) == 100
        assert np.exp(ranks).sum() <= 1 + 1e-9
        assert {i: logprob for i, _, logprob in told.top[:5]}[token] == told.logprob  # top_k kept five
    assert model.generate_text("hello", max_new_tokens=2).logprobs is None
    with pytest.raises(UsageError, match="logprobs is 101, expected 0 to 100"):
        model.stream_text("hello", logprobs=101)


def test_chunks_carry_the_logprobs_of_their_tokens(model):
    *chunks, last = model.stream_text("hello", max_new_tokens=5, logprobs=0)
    assert tuple(told for chunk in chunks for told in chunk.logprobs) == last.result.logprobs


RULES = 6_000  # that lead to one another: the library's stack does not hold 3,000
CHAINS = {
    "grammar": "start: r0\n" + "".join(f'r{i}: r{i + 1} | "a"\n' for i in range(RULES)) + f'r{RULES}: "a"',
    "json_schema": {
        "$ref": "#/$defs/0",
        "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(RULES)} | {str(RULES): {}},
    },
}


@pytest.mark.skipif(sys.platform != "linux", reason="a copy of the process tries it")
@pytest.mark.parametrize("name", CHAINS)
def test_what_would_end_the_process_is_refused(bundle_path, name):
    pytest.importorskip("llguidance")
    program = (
        "import json, sys, edgemm\n"
        "asked = json.load(sys.stdin)\n"
        "with edgemm.load(sys.argv[1], device='cpu', threads=1) as model:\n"
        "    try:\n"
        "        model.generate_text('hello', **asked)\n"
        "    except edgemm.UsageError as error:\n"
        "        print(error)\n"
        "    print(model.generate_text('hello', max_new_tokens=1, grammar='start: \"b\"').text)\n"
    )
    asked = json.dumps({name: CHAINS[name]})
    told = subprocess.run([sys.executable, "-c", program, bundle_path], input=asked, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    refused, said = told.stdout.splitlines()
    assert refused.startswith(f"{name} cannot be used: ") and refused.endswith("ended with SIGSEGV")
    assert said == "b"


def test_a_long_schema_is_no_worse_than_a_short_one(model):
    pytest.importorskip("llguidance")
    names = [f"a{index:04}" for index in range(2_000)]
    assert len(str(names)) > LONG
    reply = model.generate_text("hello", json_schema={"enum": names}, max_new_tokens=40)
    assert json.loads(reply.text) in names
