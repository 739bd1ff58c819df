"""Guessing ahead: several tokens a run, and every reply the one that it would have been."""

from __future__ import annotations

import pytest

import edgemm
from edgemm.bench.timeline import EngineClock
from edgemm.errors import InputError, UsageError
from edgemm.export.trace import trace
from edgemm.runtimes.text_loop import guess
from edgemm.verify import export_native as bundle_export
from tests.export.nano import needs_opset_24

pytestmark = needs_opset_24

REPEATING = "Say abcabcabcabcabcabc again: abcabc"
COPY = 'start: "abcabcabcabcabcabc!"'


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("abcdeabc", "dea"),  # the longest match wins
        ("abxabyab", "yab"),  # of two, the later
        ("aaaa", "a"),
        ("abcd", ""),
        ("a", ""),
    ],
)
def test_a_guess_is_what_followed_before(said, found):
    assert bytes(guess(said.encode(), 3)).decode() == found


def test_no_more_is_guessed_than_asked_for():
    assert guess([1, 2, 3, 4, 5, 1], 2) == [2, 3] and guess([1, 2, 1], 0) == []


@pytest.fixture(scope="module", params=["fp32", pytest.param("int4", marks=pytest.mark.slow)])
def drafting(request, checkpoint_path, references, tmp_path_factory):
    """A bundle whose transformer checks guesses; the other components are traced already."""
    path = tmp_path_factory.mktemp("drafts") / f"{request.param}.bundle"
    with pytest.MonkeyPatch.context() as patch:
        whole = {"transformer": trace}
        patch.setattr(bundle_export, "trace", lambda graph: whole.get(graph.name, references)(graph))
        bundle_export.export_bundle(checkpoint_path, path, precision=request.param, prompt_lookup=True)
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
def test_a_reply_is_the_same_with_guesses(drafting, prompt, options):
    one, other = (
        drafting.generate_text(prompt, max_new_tokens=100, prompt_lookup_num_tokens=ahead, **options)
        for ahead in (0, 6)
    )
    assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)


def test_what_repeats_takes_fewer_runs(drafting):
    runs = {}
    for ahead in (0, 6):
        clock, engine = EngineClock(), drafting.engine("transformer")
        drafting.watch_engines(clock.watch)
        reply = drafting.generate_text(REPEATING, grammar=COPY, max_new_tokens=40, prompt_lookup_num_tokens=ahead)
        runs[ahead] = sum(run.component == "transformer" for run in clock.runs)
        drafting.watch_engines(lambda watched, engine=engine: engine if watched.component == "transformer" else watched)
    assert runs[0] == len(reply.token_ids) and runs[6] < runs[0] / 2


def test_a_session_goes_on_as_if_nothing_had_been_guessed(drafting):
    said = {}
    for ahead in (0, 6):
        with drafting.session() as chat:
            first = chat.generate_text(REPEATING, grammar=COPY, prompt_lookup_num_tokens=ahead)
            second = chat.generate_text("And abcabc?", max_new_tokens=30, prompt_lookup_num_tokens=ahead)
            said[ahead] = (first.token_ids, second.token_ids, chat.tokens)
    assert said[0] == said[6]


def test_drawing_and_batches_take_such_a_bundle_as_any_other(drafting, runtimes):
    plain = runtimes["fp32" if drafting.manifest.quantization is None else "int4"]
    drawn = [one.generate_image("red heart", seed=1).pixels for one in (drafting, plain)]
    assert (drawn[0] == drawn[1]).all()
    replies = drafting.generate_texts(["What is this?", REPEATING], max_new_tokens=8)
    assert replies[0].token_ids == drafting.generate_text("What is this?", max_new_tokens=8).token_ids


def test_guessing_is_refused_where_it_cannot_be(runtimes, drafting, tmp_path, checkpoint_path):
    with pytest.raises(InputError, match="export it with --prompt-lookup"):
        runtimes["fp32"].stream_text("x", prompt_lookup_num_tokens=4)
    with pytest.raises(UsageError, match="prompt_lookup_num_tokens is -1, expected 0 to 64"):
        drafting.stream_text("x", prompt_lookup_num_tokens=-1)
    with pytest.raises(UsageError, match="prompt_lookup_num_tokens is for one reply at a time"):
        drafting.generate_texts(["x"], prompt_lookup_num_tokens=4)
    with pytest.raises(UsageError, match="--prompt-lookup is for target cpu alone"):
        bundle_export.export_bundle(checkpoint_path, tmp_path / "x", target="rtx", prompt_lookup=True)
