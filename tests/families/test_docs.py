"""docs/families.md promises nothing that no test shows: its cells name tests, and its rows every family."""

from __future__ import annotations

import re
from pathlib import Path

from edgemm.families.table import FAMILIES, NOT_BUILT

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "families.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "](../tests/" in line]


def test_every_cell_names_a_test_that_is_there():
    named = re.findall(r"\]\((\.\./tests/[\w/]+\.py)#(\w+)\)", "\n".join(ROWS))
    assert len(named) > 50
    for path, test in set(named):
        assert f"def {test}(" in (DOCS / path).read_text(encoding="utf-8"), f"{path} has no {test}"


def test_no_cell_says_yes_without_a_test():
    for row in ROWS:
        for cell in row.split("|")[3:-1]:
            told = re.sub(r"\[[^\]]*\]\([^)]*\)", "", cell).strip(" ,")
            assert told == "" or told == "-" or re.search(r"no|cannot|none", told), f"{cell!r} names no test"


def test_every_family_has_a_row_and_what_is_not_built_is_told():
    for module in set(FAMILIES.values()):
        assert f"](../edgemm/families/{module.rpartition('.')[2]}.py) |" in PAGE
    told = PAGE[PAGE.index("Known and not built") :].split("\n\n")[0]
    assert all(title in told for title, _ in NOT_BUILT.values())
