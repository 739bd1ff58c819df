"""docs/nvidia.md and docs/devices.md say of everything how far it was tried, in the words of one legend."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
LEGEND = ("ran", "ran emulated", "built", "checked", "stand-in", "not tried")
PAGES = ("nvidia.md", "devices.md")


def sections(page: str) -> dict[str, str]:
    """Heading -> heading and text."""
    parts = re.split(r"(?m)^(?=## )", (DOCS / page).read_text(encoding="utf-8"))[1:]
    return {part.partition("\n")[0].removeprefix("## "): part for part in parts}


def marks(text: str) -> list[str]:
    """Words in single asterisks; one sentence may begin with such a word."""
    found = re.findall(r"(?<![*\w])\*([A-Za-z][\w -]*?)\*(?![*\w])", text.replace("\n", " "))
    return [word.lower() for word in found]


@pytest.mark.parametrize("page", PAGES)
def test_every_section_says_how_far_it_was_tried(page):
    assert [heading for heading, text in sections(page).items() if not set(marks(text)) & set(LEGEND)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_mark_is_in_the_legend_of_the_page(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    legend = re.findall(r"(?m)^- \*([\w -]+)\*", text)
    assert tuple(legend) == LEGEND
    assert set(marks(text)) <= set(LEGEND)


@pytest.mark.parametrize("page", PAGES)
def test_every_row_of_a_table_with_a_column_of_marks_has_one(page):
    """That column is the one called `marked`; rows without a word in it would read as if they had run."""
    text, wanting = (DOCS / page).read_text(encoding="utf-8"), []
    for table in re.findall(r"(?m)(?:^\|.*\n)+", text):
        head, _, *rows = [[cell.strip() for cell in row.strip("|\n ").split("|")] for row in table.splitlines()]
        if "marked" in head:
            column = head.index("marked")
            wanting += [row for row in rows if not set(marks(row[column])) & set(LEGEND)]
    assert wanting == []


def blocks(page: str) -> list[str]:
    """Paragraphs and items below the first heading, in one line each; neither code nor tables."""
    text = (DOCS / page).read_text(encoding="utf-8").partition("\n## ")[2].partition("\n")[2]
    text = re.sub(r"(?ms)^(    .*?$\n?)+|^```.*?^```$", "", text)
    parts = re.split(r"\n{2,}|\n(?=- |\d+\. )", text)
    return [" ".join(part.split()) for part in parts if part.strip() and not part.lstrip().startswith(("|", "#"))]


@pytest.mark.parametrize("page", PAGES)
def test_every_paragraph_and_item_says_how_far_it_was_tried(page):
    assert [block for block in blocks(page) if not set(marks(block)) & set(LEGEND)] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_sentence_is_longer_than_35_words(page):
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "Code", block)) for block in blocks(page)]
    sentences = [said for block in plain for said in re.split(r"(?<=[.:;?!*])\s+(?=[A-Z*])", block)]
    assert [said for said in sentences if len(said.split()) > 35] == []
