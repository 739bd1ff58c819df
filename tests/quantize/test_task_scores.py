"""`--tasks`: both models answer and draw the same, and the report says what differs, pair by pair."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from edgemm.cli.main import main
from edgemm.errors import InputError
from edgemm.evaluate.metrics import paired_difference
from edgemm.model import checkpoint
from edgemm.quantize.make import quantize
from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.simulated import swap
from edgemm.search.judges import Budget, Scores, differences, drawn_rightly, task_records, with_drawn
from tests.evaluate.conftest import FIXTURE
from tests.export.nano import left_behind, random_nano

LIMIT, STEPS = 2, 2
KINDS = ("label", "yesno", "group", "colour")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Where the judge of drawings is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model():
    return random_nano()


@pytest.fixture(scope="module")
def records(model):
    """Of the float model and of a coarse one."""
    coarse = copy.deepcopy(model)
    swap(coarse, quantize(coarse, QuantizeOptions("int4", "w4a8", "rtn")), folded=True)
    return [task_records(one, FIXTURE, LIMIT, STEPS) for one in (model, coarse)]


def test_every_kind_of_question_and_every_split_is_compared(records):
    told = differences(*records, FIXTURE, LIMIT)
    counts = {score: found["count"] for score, found in told["differences"].items()}
    wanted = {f"held-out-style: {kind}": LIMIT for kind in KINDS} | {"held-out-style: all but label": 3 * LIMIT}
    assert counts == wanted | {f"{split}: drawn top-1": LIMIT for split in ("train", "held-out-pair")}
    assert (told["data"], told["limit"]) == ("emoji64", LIMIT)


def test_a_difference_is_that_of_the_pairs(records):
    """Every answer of the coarse model is made wrong: what is left is what the float model had right."""
    plain, coarse = copy.deepcopy(records)
    for number, row in enumerate(plain["reading"]):
        row["right"] = number % 2 == 0
    for row in coarse["reading"]:
        row["right"] = False
    found = differences(plain, coarse, FIXTURE, LIMIT)["differences"]["held-out-style: all but label"]
    right = [float(row["right"]) for row in plain["reading"] if row["kind"] != "label"]
    assert found["value"] == -sum(right) / len(right) and found["changed"] == sum(right)
    assert found["low"] <= found["value"] <= found["high"] < 0
    assert found["p_value"] == paired_difference(right, [0.0] * len(right)).p_value


def test_a_model_beside_itself_differs_in_nothing(records):
    found = differences(records[0], records[0], FIXTURE, LIMIT)["differences"]
    assert {(one["value"], one["low"], one["high"], one["changed"]) for one in found.values()} == {(0, 0, 0, 0)}


def test_other_questions_are_refused(records):
    fewer = {name: rows[1:] for name, rows in records[1].items()}
    with pytest.raises(InputError, match="asked different things in reading"):
        differences(records[0], fewer, FIXTURE, LIMIT)


def drawing(split, prompt, **verdict):
    return {"split": split, "sample": prompt, "prompt": prompt, **verdict}


def test_the_share_of_right_drawings_is_the_judges():
    ranked = [drawing("train", prompt, drawn_rank=rank) for prompt, rank in zip("abab", (0, 3, 0, 0), strict=True)]
    assert drawn_rightly({"drawing": ranked}) == [1, 0.5], "two drawings of each of two prompts"
    checked = [drawing("train", prompt, passed=prompt != "b") for prompt in "abc"]
    assert drawn_rightly({"drawing": checked}) == [1, 0, 1]
    split = [drawing(name, "a", passed=name != "train") for name in ("train", "held-out-pair")]
    assert drawn_rightly({"drawing": split}) == [1], "what was trained says little"


def test_a_budget_of_drawings_sees_the_pairs():
    """Twelve prompts, three drawings of each: 18 right of 36, then 15, all lost by three prompts."""
    plain = [1.0] * 6 + [0.0] * 6
    scores = Scores(10, 10, 1.0, 50.0, 50.0, 1.0)
    found = with_drawn(scores, plain, [2 / 3] * 3 + plain[3:])
    assert found.drawn_lost_percent == pytest.approx(100 / 6)
    low, high = found.drawn_lost_range
    pairs = paired_difference(plain, [2 / 3] * 3 + plain[3:])
    assert (low, high) == pytest.approx((-200 * pairs.high, -200 * pairs.low)) and 0 <= low < 100 / 6 < high
    assert not Budget("drawn-4%", "drawn", 4).met(found) and Budget("drawn-20%", "drawn", 20).met(found)
    assert not Budget("drawn-4%", "drawn", 4).met(scores), "nobody looked"
    assert with_drawn(scores, [0.0, 0.0], [0.0, 1.0]).drawn_lost_percent == 0, "there was nothing to lose"


def test_drawings_of_several_seeds_are_asked_for(model):
    found = task_records(model, FIXTURE, 1, STEPS, suites=("draw",), seeds=2)["drawing"]
    assert [row["seed"] for row in found] == [0, 100_000] * 2
    assert len(drawn_rightly({"drawing": found})) == 1


def test_the_report_shows_the_tasks(model, tmp_path, capsys):
    checkpoint.save(model, tmp_path / "nano")
    words = ["quantize", str(tmp_path / "nano"), "--method", "rtn", "--steps", str(STEPS), "--text", "int8"]
    words += ["--tasks", str(FIXTURE), "--tasks-limit", str(LIMIT), "--output", str(tmp_path / "spec")]
    assert main(words) == 2
    assert "--tasks is for the report" in capsys.readouterr().err
    assert main([*words[:2], "--output", str(tmp_path / "spec"), "--budget-draw", "drawn-4%"]) == 2
    assert "is judged on a dataset: give --tasks DIR too" in capsys.readouterr().err
    assert main([*words, "--report", str(tmp_path / "page.html")]) == 0
    assert left_behind(tmp_path) == ["nano", "page.html", "page.json", "spec"]
    tasks = json.loads((tmp_path / "page.json").read_text())["tasks"]
    assert tasks["differences"]["train: drawn top-1"]["count"] == LIMIT
    page = Path(tmp_path / "page.html").read_text()
    assert "<h2>Tasks: emoji64</h2>" in page and "difference (95 %, paired)" in page
