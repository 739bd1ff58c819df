"""Questions about single emoji, made so that looking pays and guessing does not.

    label    "What is this?"                        the label
    group    "What kind of thing is this?"          four choices; every group is the answer equally often
    colour   "What colour is this?"                 four choices; only where pixels and label name the same colour
    yesno    "Is this a cat?"                       yes, and once no with another label of the same subgroup: each
                                                    label is asked about as often with yes as with no

Nobody is asked about a person's gender or skin.  Scenes have their own questions in compose.py and shapes.py.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import TypeVar

from edgemm.data.format import Question, Sample
from edgemm.data.labels import COLOURS, names_gender, with_article

__all__ = ["asked_by_split", "choice_question", "emoji_questions", "surely_differ", "balanced_partners", "capped"]

GROUP_WORDS = {
    "smileys-emotion": "a face or feeling",
    "people-body": "a person or body part",
    "animals-nature": "an animal or plant",
    "food-drink": "food or drink",
    "travel-places": "a place, weather or transport",
    "activities": "an activity",
    "objects": "an object",
    "symbols": "a symbol",
    "flags": "a flag",
}
SKIPPED_SUBGROUPS = {"person", "family", "person-symbol", "gender"}  # nothing to ask but looks and gender
CHOICES = 4
SMALLEST_GROUP = 0.25  # of the median: a group with fewer pictures would leave few questions for the others


def emoji_questions(samples: Sequence[Sample], colours: Mapping[str, str], seed: int) -> list[Question]:
    """All questions, sorted by sample; `colours` maps a sample id to the colour its pixels show."""

    def ask(members: Sequence[Sample], rng: random.Random) -> Iterable[Question]:
        askable = [sample for sample in members if _is_askable(sample)]
        for sample in askable:
            yield Question(sample.id, "label", "What is this?", sample.label, None, sample.split)
        yield from _group_questions(members, rng)
        yield from _colour_questions(members, colours, rng)
        yield from _yesno_questions(askable, rng)

    return asked_by_split(samples, seed, ask)


def asked_by_split(
    samples: Sequence[Sample], seed: int, ask: Callable[[Sequence[Sample], random.Random], Iterable[Question]]
) -> list[Question]:
    """What `ask` asks about each split's samples, with a generator of that split's own, in the samples' order."""
    by_split: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_split[sample.split].append(sample)
    questions = [q for split, some in sorted(by_split.items()) for q in ask(some, random.Random(f"{seed} {split}"))]
    order = {sample.id: index for index, sample in enumerate(samples)}
    return sorted(questions, key=lambda question: order[question.sample])


def _is_askable(sample: Sample) -> bool:
    return sample.subgroup not in SKIPPED_SUBGROUPS and not names_gender(sample.label)


def _group_questions(samples: Sequence[Sample], rng: random.Random) -> Iterable[Question]:
    by_group: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_group[sample.group].append(sample)
    enough = median(map(len, by_group.values())) * SMALLEST_GROUP
    groups = {name: some for name, some in by_group.items() if len(some) >= enough}
    if len(groups) < 2:
        return
    words = [GROUP_WORDS[name] for name in sorted(groups)]
    for name, some in sorted(capped(groups, min(map(len, groups.values())), rng).items()):
        for sample in some:
            yield choice_question(sample, "group", "What kind of thing is this?", GROUP_WORDS[name], words, rng)


def _colour_questions(samples: Iterable[Sample], colours: Mapping[str, str], rng: random.Random) -> Iterable[Question]:
    by_colour: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        named = [word for word in sample.label.split() if word in COLOURS]
        if len(named) == 1 and sample.group != "people-body" and colours.get(sample.id) == named[0]:
            by_colour[named[0]].append(sample)
    if not by_colour:
        return
    typical = max(1, int(median(map(len, by_colour.values()))))  # or black and white would be half of the answers
    for colour, some in sorted(capped(by_colour, typical, rng).items()):
        for sample in some:
            yield choice_question(sample, "colour", "What colour is this?", colour, COLOURS, rng)


def choice_question(
    sample: Sample, kind: str, text: str, answer: str, all_choices: Sequence[str], rng: random.Random
) -> Question:
    others = [choice for choice in all_choices if choice != answer]
    choices = [answer, *rng.sample(others, min(CHOICES - 1, len(others)))]
    rng.shuffle(choices)
    return Question(sample.id, kind, text, answer, tuple(choices), sample.split)


def _yesno_questions(samples: Sequence[Sample], rng: random.Random) -> Iterable[Question]:
    by_subgroup: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        by_subgroup[sample.style, sample.subgroup].append(sample)
    for _, members in sorted(by_subgroup.items()):
        rng.shuffle(members)
        for sample, other in balanced_partners(members, surely_differ):
            for label, answer in ((sample.label, "yes"), (other.label, "no")):
                text = f"Is this {with_article(label)}?"
                yield Question(sample.id, "yesno", text, answer, ("yes", "no"), sample.split)


def surely_differ(one: Sample, other: Sample) -> bool:
    """Whether `other`'s label is wrong for `one`'s picture: a whale is a doubtful no for a spouting whale."""
    words, other_words = set(one.label.split()), set(other.label.split())
    return one.family != other.family and not words <= other_words and not other_words <= words


# Question sets in which no word gives the answer away.
#
# Pure functions over lists; the questions themselves are in questions.py and scenes.py.

Item = TypeVar("Item")


def balanced_partners(items: Sequence[Item], differ: Callable[[Item, Item], bool]) -> list[tuple[Item, Item]]:
    """Pairs (item, other) in which every item stands once on the left and once on the right, and `differ` holds.

    Asking yes about the left and no about the right then makes a name alone worth nothing.  Neighbours in `items` are
    paired where they can be, so sorting the likeness in makes the no's hard; items that fit with nobody are left out.
    """
    items = list(items)
    while len(items) > 1:
        others = items[1:] + items[:1]
        lonely = [index for index in range(len(items)) if not _settle(index, items, others, differ)]
        if not lonely:
            return list(zip(items, others, strict=True))
        # One at a time, the one that fits with fewest: its neighbours may do well without it.
        del items[min(lonely, key=lambda index: sum(differ(items[index], other) for other in items))]
    return []


def _settle(index: int, items: list[Item], others: list[Item], differ: Callable[[Item, Item], bool]) -> bool:
    """Make `index` and its partner differ by swapping partners with the nearest item that allows it."""
    if differ(items[index], others[index]):
        return True
    for distance in range(1, len(items)):
        for swap in {(index + distance) % len(items), (index - distance) % len(items)}:
            if differ(items[index], others[swap]) and differ(items[swap], others[index]):
                others[index], others[swap] = others[swap], others[index]
                return True
    return False


def capped(groups: Mapping[str, Sequence[Item]], most: int, rng: random.Random) -> dict[str, list[Item]]:
    """At most `most` items of every group, chosen at random, in their old order."""
    chosen = {}
    for name in sorted(groups):
        indices = rng.sample(range(len(groups[name])), min(most, len(groups[name])))
        chosen[name] = [groups[name][index] for index in sorted(indices)]
    return chosen
