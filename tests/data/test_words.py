"""A little English, as one would say it."""

from __future__ import annotations

import pytest

from edgemm.data.labels import is_countable, plural, with_article


@pytest.mark.parametrize(
    "said",
    ["a cat", "an owl", "a unicorn", "an hourglass done", "an x-ray", "a one-piece swimsuit", "a ewe",
     "fireworks", "bread", "two hearts", "a bus", "an octopus", "a sport utility vehicle", "mount fuji", "scissors",
     "keycap: 5", "a cloud with rain", "an o button (blood type)", "a person lifting weights", "a compass"],
)  # fmt: skip
def test_article(said):
    label = said.removeprefix("a ").removeprefix("an ")
    assert with_article(label) == said


@pytest.mark.parametrize(
    ("one", "many"),
    [("duck", "ducks"), ("mouse", "mice"), ("red apple", "red apples"), ("fox", "foxes"), ("dog face", "dog faces"),
     ("butterfly", "butterflies"), ("monkey", "monkeys"), ("bowl with spoon", "bowls with spoon"),
     ("potato", "potatoes"),
     ("sandwich", "sandwiches"), ("kitchen knife", "kitchen knives"), ("fish", "fish"), ("cross", "crosses")],
)  # fmt: skip
def test_plural(one, many):
    assert plural(one) == many


@pytest.mark.parametrize("label", ["duck", "red heart", "bus", "octopus"])
def test_countable(label):
    assert is_countable(label)


@pytest.mark.parametrize("label", ["bread", "fireworks", "couch and lamp", "bowl with spoon", "keycap: 5"])
def test_not_countable(label):
    assert not is_countable(label)
