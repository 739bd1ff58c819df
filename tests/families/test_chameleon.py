"""Chameleon: pictures become tokens of the vocabulary, by a table; replies are words alone."""

from __future__ import annotations

import pytest

from tests.families.oracle import check_reading, library_of
from tests.families.tiny.pictures import picture
from tests.families.tiny.words import SPOKEN


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"seed": 4, "side": 20, "codes": 44, "num_key_value_heads": 4}])
def test_pictures_and_words_are_answered_as_by_the_library(exported, changes):
    folder, model = exported("chameleon", **changes)
    library, processor = library_of(folder, "ChameleonForConditionalGeneration")
    for shapes in ([(40, 40)], [(70, 31), (33, 50)], []):
        pictures = [picture(seed, *shape) for seed, shape in enumerate(shapes)]
        inputs = processor(text="<image>" * len(shapes) + SPOKEN[0], images=pictures or None, return_tensors="pt")
        check_reading(model, library, inputs, SPOKEN[0], pictures)
