"""A bundle that an earlier edgemm exported still opens, and answers what torch answered then.

tests/fixtures/bundle-of-november.tar.xz is what commit 24bc546 wrote for the tests' random model: `--precision int8
--drafts`, as prompt-lookup decoding's flag was called.  It is never made anew: another one is put beside it.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest

import edgemm
from edgemm.bundle.bundle import open_bundle
from edgemm.errors import BundleError
from edgemm.verify.loops import check_bundle
from edgemm.verify.parity import PARITY_FILE
from tests.export.nano import rehash

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


@pytest.fixture(scope="module")
def older(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(FIXTURES / "bundle-of-november.tar.xz") as archive:
        archive.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(folder)
    return folder / "old.bundle"


def test_it_answers_what_torch_answered_then(older):
    lines = check_bundle(open_bundle(older))
    assert any("text loop" in line for line in lines) and any("denoise loop" in line for line in lines)


def test_a_bundle_that_records_nothing_is_not_said_to_compute_it(older, tmp_path):
    path = Path(shutil.copytree(older, tmp_path / "silent.bundle"))
    told = json.loads((path / PARITY_FILE).read_text())
    (path / PARITY_FILE).write_text(json.dumps({**told, "text_cases": [], "draw_cases": []}))
    rehash(path, PARITY_FILE)
    with pytest.raises(BundleError, match=r"parity\.json: no case in it, so nothing of what the bundle computes was"):
        check_bundle(open_bundle(path))


def test_its_words_of_prompt_lookup_decoding_are_understood(older):
    with edgemm.load(older, device="cpu") as model:
        plain = model.generate_text("What is this? This is", max_new_tokens=16, ignore_eos=True)
        quick = model.generate_text(
            "What is this? This is", max_new_tokens=16, ignore_eos=True, prompt_lookup_num_tokens=4
        )
    assert quick.token_ids == plain.token_ids
