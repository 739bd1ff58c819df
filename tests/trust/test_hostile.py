"""Whatever a stranger's bundle holds, it is refused in one line with the right code, or does no harm.

The fast half opens each input in this process, which has to survive it; the slow half runs every verb over every input
in processes of their own and prints the table (`-rP`, or run this file with `-s`).
"""

from __future__ import annotations

import shutil
from collections import Counter

import pytest

import edgemm
from edgemm.bundle.bundle import open_bundle
from edgemm.errors import EdgemmError
from edgemm.runtimes.first_load import check_limits
from tests.trust.hostile import GRAPHS, KINDS, MANIFESTS, PLACES, TOKENIZERS
from tests.trust.tries import RIGHT, VERBS, attempt

TRIED = (
    "late",
    "Range by 0",
    "negative size",
    "number out of range",
    "another size",
    "of another file",
    "folder above",
)
SAID_BEFOREHAND = [name for name in GRAPHS if not any(words in name for words in TRIED)]
HARMLESS = ("a regex without end",)


def spoil(kind: str, name: str, folder) -> None:
    KINDS[kind][name](folder)


@pytest.mark.parametrize("name", SAID_BEFOREHAND)
def test_a_graph_that_would_hurt_is_named_before_a_library_sees_it(copy, name):
    GRAPHS[name](copy)
    with pytest.raises(edgemm.BundleError) as caught:
        check_limits(open_bundle(copy))
    assert "\n" not in str(caught.value) and "cpu-fp32.onnx" in str(caught.value)


def test_a_sound_bundle_is_within_all_limits(sound):
    check_limits(open_bundle(sound))


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, inputs in KINDS.items() if kind != "graphs" for name in inputs if name not in HARMLESS],
)
def test_what_no_bundle_holds_is_one_line_with_the_right_code(copy, kind, name):
    spoil(kind, name, copy)
    with pytest.raises(EdgemmError) as caught, edgemm.load(copy, device="cpu", threads=1) as model:
        model.generate_text("i am a hi", max_new_tokens=1)
    assert caught.value.exit_code in RIGHT and "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_every_kind_has_its_table():
    assert KINDS == {"graphs": GRAPHS, "tokenizers": TOKENIZERS, "manifests": MANIFESTS, "places": PLACES}
    assert min(map(len, KINDS.values())) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_verb_refuses_every_input_in_one_line(sound, tmp_path, kind):
    """The table: kind x verb x (right / anything else); the last column is empty."""
    rows, wrong = Counter(), []
    for name in KINDS[kind]:
        folder = tmp_path / f"{len(rows)}-{abs(hash(name))}" / "tiny.bundle"
        shutil.copytree(sound, folder)
        spoil(kind, name, folder)
        for verb in VERBS:
            found = attempt(verb, folder)
            rows[verb, not found.problem] += 1
            if found.problem:
                wrong.append(f"{verb}, {name}: {found.problem}")
        shutil.rmtree(folder.parent)
    for verb in VERBS:
        print(f"{kind:12} {verb:8} {rows[verb, True]:4} right {rows[verb, False]:4} wrong")
    assert not wrong, "\n".join(wrong)
