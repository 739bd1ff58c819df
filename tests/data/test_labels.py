"""Families keep together what a random split would leak."""

from __future__ import annotations

import pytest

from edgemm.data.labels import bare_hexcode, family_of, names_gender, slug

KNOWN = frozenset({"dog", "dog face", "health worker", "person running", "face"})


@pytest.mark.parametrize(
    ("text", "group", "subgroup", "family"),
    [
        ("orange heart", "smileys-emotion", "heart", "heart"),
        ("light blue heart", "smileys-emotion", "heart", "heart"),
        ("one-thirty", "travel-places", "time", "clock face"),
        ("twelve o’clock", "travel-places", "time", "clock face"),
        ("waning gibbous moon", "travel-places", "sky-weather", "moon phase"),
        ("crescent moon", "travel-places", "sky-weather", "crescent moon"),
        ("up-left arrow", "symbols", "arrow", "arrow"),
        ("oncoming bus", "travel-places", "transport-ground", "bus"),
        ("woman health worker", "people-body", "person-role", "health worker"),
        ("man running: facing right", "people-body", "person-activity", "person running"),
        ("family: man, girl, boy", "people-body", "family", "family"),
        ("woman: white hair", "people-body", "person", "person: hair"),
        ("princess", "people-body", "person-role", "person with crown"),
        ("dog face", "animals-nature", "animal-mammal", "dog"),
        ("green apple", "food-drink", "food-fruit", "apple"),
        ("black medium-small square", "symbols", "geometric", "square"),
        ("upside-down face", "smileys-emotion", "face-smiling", "upside-down face"),
        ("leafy green", "food-drink", "food-vegetable", "leafy green"),
        ("left luggage", "symbols", "transport-sign", "left luggage"),
        ("flag: greenland", "flags", "country-flag", "flag: greenland"),
        ("snowman", "travel-places", "sky-weather", "snowman"),
    ],
)
def test_family_drops_gender_direction_hour_phase_and_colour(text, group, subgroup, family):
    assert family_of(text, group, subgroup, KNOWN) == family


@pytest.mark.parametrize("text", ["man running", "old woman", "prince", "mrs. claus", "family: man, girl"])
def test_gendered_labels_are_known(text):
    assert names_gender(text)


@pytest.mark.parametrize("text", ["person running", "snowman", "mango", "womb"])
def test_other_labels_are_not_gendered(text):
    assert not names_gender(text)


def test_code_points_join_without_the_variation_selector():
    assert bare_hexcode("2764-FE0F") == "2764"
    assert bare_hexcode("1F3C3-200D-2642-FE0F") == "1f3c3-200d-2642"


def test_slug_is_the_icon_sets_spelling():
    assert slug("man’s shoe") == "mans-shoe"
    assert slug("AB button (blood type)") == "ab-button-blood-type"
