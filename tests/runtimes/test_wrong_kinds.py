"""What a caller hands in by mistake is an error that names the argument, never a library's own."""

from __future__ import annotations

import numpy as np
import pytest

import edgemm
from edgemm.errors import InputError, UsageError

OPENED = {
    "path": (None, "path is None, expected a string or a path"),
    "device": (None, "device is None, expected a string"),
    "threads": ("2", "threads is '2', expected a whole number or None"),
    "memory_limit_mb": ("1", "memory_limit_mb is '1', expected a number or None"),
    "backend": (5, "backend is 5, expected a string or an object or None"),
}


@pytest.mark.parametrize("name", OPENED)
def test_a_bundle_is_not_opened_by_arguments_of_another_kind(bundle_path, name):
    value, message = OPENED[name]
    with pytest.raises(UsageError) as told:
        edgemm.load(**{"path": bundle_path, "device": "cpu", name: value})
    assert str(told.value) == message


def test_true_is_no_number_of_threads(bundle_path):
    with pytest.raises(UsageError, match="threads is True"):
        edgemm.load(bundle_path, threads=True)


CALLS = [
    (lambda model: model.generate_text("x", timeout_s=10**400), UsageError, "timeout_s is 1000"),
    (lambda model: model.generate_texts("x"), UsageError, "prompts is 'x', expected a list"),
    (lambda model: model.generate_texts(["x"], images=5), UsageError, "images is 5, expected a list or None"),
    (lambda model: model.session().rewind("1"), UsageError, "turns is '1', expected a whole number"),
    (lambda model: model.session().rewind(1.0), UsageError, "turns is 1.0, expected a whole number"),
    (lambda model: model.generate("x", drawing=5), UsageError, "drawing is 5, expected an object or None"),
    (lambda model: model.generate("x", draw_marks=None), UsageError, "draw_marks is None, expected two different"),
    (lambda model: model.generate("x", draw_marks=("<", 2)), UsageError, r"draw_marks is \('<', 2\), expected two"),
    (lambda model: model.load_adapter("a", None), UsageError, "path is None, expected a string or a path"),
    (lambda model: model.load_adapter("a", "b", "1"), UsageError, "strength is '1', expected a number"),
    (lambda model: model.set_adapter(["a"]), UsageError, r"name is \['a'\], expected a string or None"),
    (lambda model: model.unload_adapter(["a"]), UsageError, r"name is \['a'\], expected a string"),
    (lambda model: drawn(model).save("a.blp"), InputError, "a.blp: cannot be written"),
    (lambda model: model.generate_texts([]), UsageError, "prompts is empty"),
    (lambda model: model.session(system=["x"]), UsageError, r"system is \['x'\], expected a string or None"),
    (lambda model: model.generate_image("x", noise="x"), InputError, "noise: expected float32 numbers"),
    (lambda model: model.generate_image("x", noise=np.zeros(3)), InputError, r"noise has shape \(3,\)"),
    (lambda model: drawn(model).save(None), UsageError, "path is None, expected a string or a path"),
    (lambda model: drawn(model).save("a\0.png"), InputError, "cannot be written: embedded null byte"),
    (lambda model: drawn(model).save("\ud800.png"), InputError, "cannot be written"),
]


def drawn(model):
    return model.generate_image("x", num_inference_steps=1).image


@pytest.mark.parametrize(("call", "kind", "message"), CALLS)
def test_a_call_with_an_argument_of_another_kind_names_it(model, call, kind, message):
    with pytest.raises(kind, match=message):
        call(model)
