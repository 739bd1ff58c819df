"""Questions about scenes whose every object is known: how many, where, is there one.

    count       "How many ducks are there?"                 a number; every number is the answer equally often
    relation    "Is the duck left of the pizza?"            yes once, and once no with the opposite relation
    existence   "Is there a duck?"                          yes once, and once no with a name from another scene;
                                                            every name is asked about as often with yes as with no

A scene is a dict with `objects` (each with a `name`) and `relation` (subject, relation, object) or None.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from edgemm.data.balance import balanced_partners, capped
from edgemm.data.format import Question, Sample
from edgemm.data.layout import OPPOSITE
from edgemm.data.words import plural, with_article

__all__ = ["count_questions", "existence_questions", "names_in", "relation_questions"]


def count_questions(samples: Iterable[Sample], rng: random.Random) -> Iterable[Question]:
    """About scenes that show several of a kind."""
    by_split: defaultdict[str, defaultdict[str, list[Question]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        if (sample.scene or {})["task"] in ("counting", "two kinds"):
            for name, count in sorted(names_in(sample).items()):
                text = f"How many {plural(name)} are there?"
                question = Question(sample.id, "count", text, str(count), None, sample.split)
                by_split[sample.split][question.answer].append(question)
    for _, by_answer in sorted(by_split.items()):
        for _, questions in sorted(capped(by_answer, min(map(len, by_answer.values())), rng).items()):
            yield from questions


def relation_questions(samples: Iterable[Sample]) -> Iterable[Question]:
    """About scenes whose caption states a relation."""
    for sample in samples:
        scene = sample.scene or {}
        if not scene["relation"]:
            continue
        one, other = (scene["objects"][scene["relation"][role]]["name"] for role in ("subject", "object"))
        word = scene["relation"]["relation"]
        for said, answer in ((word, "yes"), (OPPOSITE[word], "no")):
            text = f"Is the {one} {said} the {other}?"
            yield Question(sample.id, "relation", text, answer, ("yes", "no"), sample.split)


def existence_questions(
    samples: Sequence[Sample], may_deny: Callable[[str, str], bool], rng: random.Random
) -> Iterable[Question]:
    """One yes and one no a scene; `may_deny(asked, present)` says whether `asked` is surely not what `present` is."""
    by_pool: defaultdict[tuple[str, str], list[tuple[Sample, str]]] = defaultdict(list)
    for sample in samples:
        by_pool[sample.split, sample.style].append((sample, rng.choice(sorted(names_in(sample)))))

    def differ(one: tuple[Sample, str], other: tuple[Sample, str]) -> bool:
        return all(may_deny(other[1], present) for present in names_in(one[0]))

    for _, asked in sorted(by_pool.items()):
        rng.shuffle(asked)
        for (sample, name), (_, absent) in balanced_partners(asked, differ):
            for said, answer in ((name, "yes"), (absent, "no")):
                yield Question(
                    sample.id, "existence", f"Is there {with_article(said)}?", answer, ("yes", "no"), sample.split
                )


def names_in(sample: Sample) -> Counter[str]:
    """How often each name occurs in the scene."""
    return Counter(item["name"] for item in (sample.scene or {})["objects"])
