"""The options of drawing: one list of names, wherever they are said."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from edgemm.runtimes.draw import DrawingOptions
from edgemm.runtimes.model import Model
from edgemm.runtimes.text import TextOptions


@pytest.mark.parametrize(
    ("call", "options", "own"),
    [(Model.stream_image, DrawingOptions, {"prompt"}), (Model.stream_text, TextOptions, {"prompt", "images"})],
)
def test_a_stream_takes_exactly_the_options_of_its_dataclass_with_their_defaults(call, options, own):
    said = {name: p.default for name, p in inspect.signature(call).parameters.items() if name not in own | {"self"}}
    assert said == {field.name: field.default for field in dataclasses.fields(options)}
