"""Prompt-lookup decoding: several tokens a run, and every reply the one that it would have been."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import edgemm
from edgemm.bench.timeline import EngineClock
from edgemm.cli import export
from edgemm.cli.main import Parser
from edgemm.errors import InputError, UsageError
from edgemm.export.options import ExportOptions
from edgemm.runtimes.prompt_lookup import LONGEST_MATCH, Gains, PromptLookup, Said
from edgemm.verify import export_native as bundle_export
from tests.export.nano import needs_opset_24

pytestmark = needs_opset_24

REPEATING = "Say abcabcabcabcabcabc again: abcabc"
COPY = 'start: "abcabcabcabcabcabc!"'


@pytest.mark.parametrize(
    ("said", "match", "found"),
    [
        ("abcdeabc", 3, "dea"),  # the longest match wins
        ("abxabyab", 2, "yab"),  # of two, the later
        ("aaaa", 3, "a"),
        ("abcd", 0, ""),
        ("a", 0, ""),
    ],
)
def test_candidates_are_what_followed_before(said, match, found):
    *before, last = said.encode()
    length, candidates = Said(before).add(last, 3)
    assert (length, bytes(candidates).decode()) == (match, found)


def find_candidates(said, most):
    """The same by looking everywhere."""
    for length in range(min(LONGEST_MATCH, len(said) - 1), 0, -1):
        for start in range(len(said) - length - 1, -1, -1):
            if said[start : start + length] == said[-length:]:
                return length, said[start + length : start + length + most]
    return 0, []


def test_candidates_are_those_of_a_search_through_all_that_was_said():
    random = np.random.default_rng(0)
    tokens, said = random.integers(0, 4, 300).tolist(), Said([])
    for end, token in enumerate(tokens, 1):
        assert said.add(token, 3) == find_candidates(tokens[:end], 3)


class Timed:
    """A transformer whose runs take one second, and `slope` more for each candidate."""

    def __init__(self, slope):
        self.slope, self.cache, self.seconds, self.runs = slope, self, 0.0, []

    used, has_room = 0, staticmethod(lambda tokens: True)

    def step(self, token):
        self.read_candidates([token])

    def read_candidates(self, tokens):
        self.runs.append(len(tokens))
        self.seconds += 1 + self.slope * (len(tokens) - 1)
        return [None] * len(tokens)

    def keep(self):
        pass


def seconds_a_token(said, slope, most=None):
    transformer = Timed(slope)
    lookup = PromptLookup(transformer, [], most, clock=lambda: transformer.seconds)
    for token in said:
        lookup.step(int(token))
    return transformer.seconds / len(said)


RANDOM = np.random.default_rng(0)
REPLIES = {
    "again and again": np.arange(400) % 10,
    "never the same": np.arange(400),
    "a pair, then another word": np.array([number % 4 if number % 4 < 3 else 100 + number for number in range(400)]),
    "chance": RANDOM.integers(0, 8, 400),
    "half a copy": np.concatenate([RANDOM.integers(0, 500, 200), np.arange(200) % 20]),
}


@pytest.mark.parametrize("slope", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("reply", REPLIES)
def test_by_default_lookup_loses_nothing_and_wins_where_a_run_of_more_is_cheap(reply, slope):
    """What never repeats, or repeats by chance alone, may cost a few tries: two in a hundred."""
    took = seconds_a_token(REPLIES[reply], slope)
    assert took <= 1.02
    if reply == "again and again" and slope < 0.9:
        assert took < {0.1: 0.3, 0.3: 0.5}[slope]
    if reply == "a pair, then another word" and slope == 0.1:
        assert took < 0.75
    if reply not in ("again and again", "never the same"):
        assert took < seconds_a_token(REPLIES[reply], slope, most=6)


def test_what_a_candidate_costs_is_seen_on_the_way():
    gains = Gains()
    for _ in range(20):
        gains.expects(3, [7])
        gains.came(7)
    assert gains.best(3, 6) == 6
    for _ in range(20):
        gains.took(0, 1.0)
        gains.took(2, 3.5)  # more than twice as long for each
    assert gains.best(3, 6) == 0


def test_candidates_that_were_right_by_chance_are_soon_not_believed():
    gains = Gains()
    assert gains.best(3, 6) > 0
    for _ in range(6):
        gains.expects(3, [7])
        gains.came(8)
    assert gains.best(3, 6) == 0


@pytest.fixture(scope="module", params=["fp32", pytest.param("int4", marks=pytest.mark.slow)])
def lookup(request, export, tmp_path_factory):
    """A bundle whose transformer checks candidates."""
    path = tmp_path_factory.mktemp("lookup") / f"{request.param}.bundle"
    export(path, precision=request.param, prompt_lookup=True)
    with edgemm.load(path, device="cpu", threads=1) as runtime:
        yield runtime


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.9, "seed": 3, "logprobs": 1},
        {"repetition_penalty": 1.3, "stop": ["q"]},
        {"grammar": COPY},
    ],
    ids=["greedy", "sampled", "penalised", "constrained"],
)
@pytest.mark.parametrize("prompt", ["What is this?", REPEATING, "x" * 440], ids=["plain", "repeating", "nearly full"])
def test_a_reply_is_the_same_with_candidates(lookup, prompt, options):
    one, *others = (
        lookup.generate_text(prompt, max_new_tokens=100, prompt_lookup_num_tokens=most, **options)
        for most in (0, 6, None)
    )
    for other in others:
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)


def test_what_repeats_takes_fewer_runs(lookup):
    runs = {}
    for most in (0, 6):
        clock, engine = EngineClock(), lookup._engines.get("transformer")
        lookup._engines.watch(clock.watch)
        reply = lookup.generate_text(REPEATING, grammar=COPY, max_new_tokens=40, prompt_lookup_num_tokens=most)
        runs[most] = sum(run.component == "transformer" for run in clock.runs)
        lookup._engines.watch(lambda watched, engine=engine: engine if watched.component == "transformer" else watched)
    assert runs[0] == len(reply.token_ids) and runs[6] < runs[0] / 2


def test_a_session_goes_on_as_if_nothing_had_been_looked_up(lookup):
    said = {}
    for most in (0, 6):
        with lookup.session() as chat:
            first = chat.generate_text(REPEATING, grammar=COPY, prompt_lookup_num_tokens=most)
            second = chat.generate_text("And abcabc?", max_new_tokens=30, prompt_lookup_num_tokens=most)
            said[most] = (first.token_ids, second.token_ids, chat.tokens)
    assert said[0] == said[6]


def test_drawing_and_batches_take_such_a_bundle_as_any_other(lookup, runtimes):
    plain = runtimes["fp32" if lookup.manifest.quantization is None else "int4"]
    drawn = [one.generate_image("red heart", seed=1).pixels for one in (lookup, plain)]
    assert (drawn[0] == drawn[1]).all()
    replies = lookup.generate_texts(["What is this?", REPEATING], max_new_tokens=8)
    assert replies[0].token_ids == lookup.generate_text("What is this?", max_new_tokens=8).token_ids


def test_prompt_lookup_is_refused_where_it_cannot_be(runtimes, lookup, tmp_path, checkpoint_path):
    with pytest.raises(InputError, match="export it with --prompt-lookup"):
        runtimes["fp32"].stream_text("x", prompt_lookup_num_tokens=4)
    with pytest.raises(UsageError, match="prompt_lookup_num_tokens is -1, expected 0 to 64"):
        lookup.stream_text("x", prompt_lookup_num_tokens=-1)
    with pytest.raises(UsageError, match="prompt_lookup_num_tokens is for one reply at a time"):
        lookup.generate_texts(["x"], prompt_lookup_num_tokens=4)
    with pytest.raises(UsageError, match="--prompt-lookup is for target cpu alone"):
        bundle_export.export_bundle(checkpoint_path, tmp_path / "x", target="rtx", prompt_lookup=True)


def test_the_flag_by_its_old_name_says_the_new_one(capsys):
    parser = Parser()
    export.add_arguments(parser)
    assert parser.parse_args(["x", "--output", "y", "--drafts"]).prompt_lookup
    assert capsys.readouterr().err == "edgemm: --drafts is now --prompt-lookup\n"


@pytest.mark.parametrize(
    ("options", "takes"),
    [
        ({"precision": "fp32"}, False),
        ({"precision": "fp32", "prompt_lookup": True}, True),
        ({"precision": "int8"}, True),
        ({"precision": "int8", "prompt_lookup": False}, False),
        ({"precision": "int8", "adapters": ()}, False),
        ({"precision": "int4", "cache": "int8"}, False),
        ({"precision": "cpu=int8,cuda=fp16", "target": "cpu,cuda"}, False),
        ({"target": "web"}, False),
        ({"quant": Path("spec")}, False),
        ({"precision": "int8", "one_call": ("read",)}, False),
    ],
)
def test_candidates_are_taken_unasked_where_replies_stay_the_same_to_the_bit(options, takes):
    found = ExportOptions(**options)
    assert found.looks_up(fits=True) is takes
    assert found.looks_up(fits=False) is (found.prompt_lookup is True)


def test_the_flag_and_its_opposite():
    parser = Parser()
    export.add_arguments(parser)
    words = {flag: parser.parse_args(["x", "--output", "y", *flag.split()]).prompt_lookup for flag in FLAGS}
    assert words == FLAGS


FLAGS = {"": None, "--prompt-lookup": True, "--no-prompt-lookup": False}


def test_a_program_that_knows_nothing_of_candidates_gets_the_logits_without(bundles):
    """draft_index is an input that may be left out, and says then that there are none, of any batch."""
    session = ort.InferenceSession(bundles["int8"] / "components" / "transformer" / "cpu-int8.onnx")
    assert [value.name for value in session.get_overridable_initializers()] == ["draft_index"]
    sizes = {"b": 2, "s": 3, "T": 16, "m": 1}
    given = {
        value.name: np.zeros([sizes.get(n, n) for n in value.shape], np.int64 if "int64" in value.type else np.float32)
        for value in session.get_inputs()
    }
    given |= {"input_ids": np.array([[5, 6, 7], [8, 9, 10]]), "image_index": np.full((2, 3), -1)}
    given |= {"attention_limit": np.tile(np.arange(3), (2, 1)), "logits_index": np.full(2, 2)}
    names = ["logits", "draft_logits"]
    without, none, some = (
        session.run(names, given | more)
        for more in ({}, {"draft_index": np.zeros((2, 0), np.int64)}, {"draft_index": np.array([[0, 1], [0, 1]])})
    )
    assert without[1].shape == none[1].shape == (2, 0, some[1].shape[2]) and some[1].shape[1] == 2
    assert (without[0] == none[0]).all() and (without[0] == some[0]).all()


def test_what_is_exported_unasked_looks_up(runtimes):
    """Of 8 bits; of a float32 bundle it has to be asked for."""
    takes = {precision: model._text.conversation().takes_candidates for precision, model in runtimes.items()}
    assert takes == {precision: precision != "fp32" for precision in runtimes}
