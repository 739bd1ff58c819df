"""Options said once: one dataclass gives keyword arguments, flags, help and the docs' table."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from edgemm.cli.flags import add_options, read_options
from edgemm.cli.main import Parser
from edgemm.errors import UsageError
from edgemm.options import from_keywords, option, options_table


@dataclass(frozen=True)
class Bread:
    slices: int = option(8, "how many", metavar="N")
    salt_g: float | None = option(None, "5 % is too much", old=("sodium", "salty"))
    seeded: bool = option(False, "with seeds", old=("seeds",))
    crust: bool = option(True, "leave the crust off")
    oven: Literal["gas", "wood"] = option("gas", "what heats it")
    toppings: Sequence[str] = option((), "may be repeated", flag="--topping", metavar="TEXT")
    tin: Path | None = option(None, "where it is baked")
    cuts: tuple[str, ...] | None = option(None, "all, or these", nargs="?", const=("all",), type=lambda s: (s,))
    dough: Any = option(None, "what it is made of", flag=False)


@dataclass(frozen=True)
class Rye(Bread):
    sour: int = option(1, "days")


def read(*words, options: type = Bread):
    parser = Parser(prog="bake", allow_abbrev=False)
    add_options(parser, options)
    return read_options(parser.parse_args(words), options)


def bake(**given):
    return from_keywords(Bread, "bake()", given, also=("loaves",))


def test_without_flags_it_is_the_dataclass_with_its_defaults():
    assert read() == Bread()


def test_every_type_has_its_flag():
    words = "--slices 3 --salt-g 0.5 --seeded --no-crust --oven wood --topping jam --topping tar --tin a/b --cuts"
    expected = Bread(3, 0.5, True, False, "wood", ["jam", "tar"], Path("a/b"), ("all",))
    assert read(*words.split()) == expected
    assert read("--cuts", "thin").cuts == ("thin",)


def test_flags_of_the_class_it_extends_are_there_too():
    assert read("--sour", "2", "--tin", "a", options=Rye) == Rye(tin=Path("a"), sour=2)


def test_only_the_flags_that_are_named():
    parser = Parser(prog="bake", allow_abbrev=False)
    add_options(parser, Bread, "slices")
    assert read_options(parser.parse_args(["--slices", "2"]), Bread, dough="rye") == Bread(slices=2, dough="rye")
    with pytest.raises(UsageError, match="--seeded"):
        parser.parse_args(["--seeded"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slices", "many"], "invalid int value: 'many'"),
        (["--oven", "sun"], "invalid choice: 'sun'"),
        (["--dough", "rye"], "unrecognized arguments"),
    ],
)
def test_a_wrong_flag_is_a_usage_error(words, message):
    with pytest.raises(UsageError, match=message):
        read(*words)


def test_an_old_flag_works_and_says_its_new_name_on_one_line(capsys):
    assert read("--salty", "2", "--seeds") == Bread(salt_g=2.0, seeded=True)
    assert capsys.readouterr().err == "edgemm: --salty is now --salt-g\nedgemm: --seeds is now --seeded\n"


def test_help_has_each_default_once_and_no_old_name():
    parser = Parser(prog="bake", allow_abbrev=False)
    add_options(parser, Bread)
    text = " ".join(parser.format_help().split())
    assert "how many (default 8)" in text and "what heats it (default gas)" in text and "5 % is too much" in text
    assert "sodium" not in text and "dough" not in text


def test_an_old_keyword_works_and_warns_where_the_call_stands():
    with pytest.warns(DeprecationWarning, match=r"^bake\(\): 'sodium' is now 'salt_g'$") as told:
        assert bake(sodium=1.0) == Bread(salt_g=1.0)
    assert told[0].filename == __file__


def test_new_names_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bake(salt_g=1.0, dough="rye") == Bread(salt_g=1.0, dough="rye")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"slice": 2}, r"^bake\(\) has no option 'slice'; did you mean 'slices'\?$"),
        ({"loafs": 2}, r"^bake\(\) has no option 'loafs'; did you mean 'loaves'\?$"),
        ({"temperature": 2}, r"^bake\(\) has no option 'temperature'; it has: slices, salt_g, .*dough$"),
        ({"sodium": 1, "salt_g": 2}, r"^bake\(\) was given 'salt_g' twice, once by an old name$"),
        ({"salt_g": 1, "sodium": 2}, r"^bake\(\) was given 'salt_g' twice, once by an old name$"),
    ],
)
def test_a_wrong_keyword_is_one_clear_line(given, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UsageError, match=message):
            bake(**given)


def test_the_docs_table_has_a_row_an_option():
    rows = options_table(Bread).splitlines()
    assert rows[2] == "| `slices` | `--slices` | `8` | how many |"
    assert rows[-1] == "| `dough` |  | `None` | what it is made of |"
    assert len(rows) == 2 + 9


@dataclass(frozen=True)
class Kinds(Bread):
    form: dict[str, int] | str | None = option(None, "what it is baked in")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"slices": 1.5}, "slices is 1.5, expected a whole number"),
        ({"slices": True}, "slices is True, expected a whole number"),
        ({"slices": "8"}, "slices is '8', expected a whole number"),
        ({"salt_g": True}, "salt_g is True, expected a number or None"),
        ({"salt_g": "x"}, "salt_g is 'x', expected a number or None"),
        ({"seeded": 1}, "seeded is 1, expected True or False"),
        ({"oven": "sun"}, "oven is 'sun', expected 'gas' or 'wood'"),
        ({"toppings": "salt"}, "toppings is 'salt', expected a list of strings"),
        ({"toppings": [1]}, r"toppings is \[1\], expected a list of strings"),
        ({"tin": 3}, "tin is 3, expected a path or None"),
        ({"form": 1}, "form is 1, expected dict or a string or None"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(given, expected):
    with pytest.raises(UsageError, match=f"^{expected}$"):
        from_keywords(Kinds, "bake()", given)


@pytest.mark.parametrize(
    "given",
    [
        {"slices": np.int64(3)},
        {"salt_g": np.float32(0.5)},
        {"salt_g": 1},
        {"salt_g": None},
        {"toppings": ("a", "b")},
        {"tin": "there"},
        {"dough": object()},
        {"form": {"a": 1}},
    ],
)
def test_numpys_numbers_lists_and_paths_are_what_they_seem(given):
    assert vars(from_keywords(Kinds, "bake()", given)).items() >= given.items()
