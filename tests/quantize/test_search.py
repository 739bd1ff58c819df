"""`--auto`: what it finds keeps both budgets, and a search that is killed goes on where it was."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from edgemm.cli.main import main
from edgemm.errors import CheckFailedError, InputError
from edgemm.export.lower_cpu import lower_ort_cpu
from edgemm.model import checkpoint
from edgemm.quantize import layers as recipe
from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.simulated import swap
from edgemm.quantize.spec import HEAD, REST, read_spec
from edgemm.search import search as searching
from edgemm.search.judges import ask, compare, read_budget
from edgemm.search.levels import FLOAT, group_of
from edgemm.search.report import front
from edgemm.search.search import Aim, search
from tests.evaluate.conftest import FIXTURE
from tests.export.nano import left_behind, random_nano

TEXT = "Alice was beginning to get very tired of sitting by her sister on the bank. " * 3


@pytest.fixture(scope="module")
def model():
    return random_nano()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A shorter text, fewer drawings; rare tokens in a vocabulary of bytes; products that cost what they weigh."""
    monkeypatch.setattr("edgemm.search.judges.PROMPTS", searching.PROMPTS[:3])
    monkeypatch.setattr("edgemm.search.judges.shipped_text", lambda name: TEXT)
    monkeypatch.setattr(recipe, "FREQUENT", {4: 100, 8: 100})
    monkeypatch.setattr(
        "edgemm.search.measured._measured", lambda n, k, rows, layer: n * k * rows * (layer.bits or 32) / 1e9
    )


def run(model, tmp_path, text="ppl+3%", draw="psnr30", goal="smallest", checker=None, **more):
    budgets = {"text": read_budget("text", text), "draw": read_budget("draw", draw)}
    searched = copy.deepcopy(model)
    options = QuantizeOptions(method="", steps=2, **more)
    return search(searched, Aim(goal, budgets, checker), options, tmp_path / "journal")


@pytest.mark.parametrize("goal", ["smallest", "fastest"])
def test_it_ends_within_both_budgets_and_below_8_bits(model, tmp_path, goal):
    found = run(model, tmp_path, "ppl+1%", "psnr28", goal)
    assert found.best.scores.perplexity_percent <= 1 and found.best.scores.psnr_db >= 28
    all8 = next(point for point in found.points if not point.choice)
    assert found.best.size_bytes < all8.size_bytes and 4 in found.best.choice.values()
    assert found.best.text_ms + found.best.draw_ms < all8.text_ms + all8.draw_ms
    swapped = copy.deepcopy(model)
    swap(swapped, found.spec)
    again = compare(found.plain, ask(swapped, 2))
    assert again.perplexity == pytest.approx(found.best.scores.perplexity, rel=1e-4)
    assert again.psnr_db == pytest.approx(found.best.scores.psnr_db, abs=0.1)


def test_budgets_that_bear_everything_give_4_bits_everywhere(model, tmp_path):
    found = run(model, tmp_path, "ppl+1000%", "psnr1")
    assert set(found.best.choice.values()) == {4}
    layers = found.spec.document.layers
    assert all(layer.bits in (4, None) for name, layer in layers.items() if not name.startswith("image_encoder"))
    assert layers[HEAD].rows == 100 and layers[HEAD + REST].bits == 4


def test_where_8_bits_miss_a_budget_layers_stay_in_float(model, tmp_path):
    found = run(model, tmp_path, "ppl+1000%", "psnr50")
    assert FLOAT in found.best.choice.values() and 4 not in found.best.choice.values()
    assert found.best.scores.psnr_db >= 50


def test_a_budget_that_cannot_be_met_is_named(model, tmp_path):
    with pytest.raises(CheckFailedError, match=r"budget psnr99.9 cannot be met: psnr is \+\d+"):
        run(model, tmp_path, draw="psnr99.9")


def test_the_walk_takes_what_hurts_least_first(model, tmp_path):
    """One layer is made so coarse that whoever takes it early cannot keep the budget."""
    fragile = copy.deepcopy(model)
    with torch.no_grad():
        fragile.transformer.layers[1].mlp.down_proj.weight[:, ::32] *= 40
        fragile.transformer.layers[1].mlp.up_proj.weight[::32] /= 40
    found = run(fragile, tmp_path, "ppl+2%", "psnr20")
    assert group_of("transformer.layers.1.mlp.down_proj") not in found.best.choice


def test_a_killed_search_measures_nothing_twice(model, tmp_path, monkeypatch):
    asked: list[int] = []
    real = searching.ask

    def ask_until(limit):
        def asking(*how):
            if len(asked) == limit:
                raise KeyboardInterrupt
            asked.append(1)
            return real(*how)

        return asking

    monkeypatch.setattr(searching, "ask", ask_until(4))
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path)
    with (tmp_path / "journal").open("a") as file:
        file.write('{"key": "torn')
    monkeypatch.setattr(searching, "ask", real)
    whole = run(model, tmp_path / "other")
    asked.clear()
    monkeypatch.setattr(searching, "ask", ask_until(10**6))
    rest = run(model, tmp_path)
    assert rest.best == whole.best and [p.choice for p in rest.points] == [p.choice for p in whole.points]
    assert len(asked) == len(whole.points) + 2 - 3, "float before and the best after, and what was not judged yet"


def test_another_searchs_journal_is_refused(model, tmp_path):
    def never(model):
        raise KeyboardInterrupt

    checker = searching.Checker("emoji64, 2 a split", never)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, checker=checker)
    with pytest.raises(InputError, match="an unfinished search with another checker, samples; delete it"):
        run(model, tmp_path, samples=7)


def test_a_search_that_goes_on_with_a_budget_of_drawings_counts_those_that_were_judged(model, tmp_path, monkeypatch):
    """What a killed search noted for another budget says which drawings were right, too."""
    checker, real = searching.Checker("half of them", lambda model: [1.0, 0.0]), searching.compare

    def kill(*answers):
        monkeypatch.setattr(searching, "compare", killed)
        return real(*answers)

    def killed(*answers):
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "compare", kill)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, "ppl+1000%", "psnr1", checker=checker)
    monkeypatch.setattr(searching, "compare", real)
    rest = run(model, tmp_path, "ppl+1000%", "drawn-4%", checker=checker)
    assert rest.points[0].scores.drawn_lost_percent == 0
    assert set(rest.best.choice.values()) == {4}


def test_nobody_beats_the_front():
    def point(name, size, ppl, psnr):
        scores = {"perplexity_percent": ppl, "psnr_db": psnr}
        return {"name": name, "size_bytes": size, "text_ms": 1, "draw_ms": 1, "scores": scores}

    points = [point("a", 10, 1, 30), point("b", 20, 0.5, 35), point("worse", 21, 0.6, 35), point("c", 5, 9, 10)]
    assert [found["name"] for found in front(points)] == ["c", "a", "b"]
    for row, drawn in zip(points, (0.5, 0.5, 0.6, 0.1), strict=True):
        row["drawn"] = drawn
    assert [found["name"] for found in front(points)] == ["c", "a", "b", "worse"], "it draws more of them rightly"


def test_the_command_writes_spec_page_and_table_and_the_spec_can_be_lowered(
    model, tmp_path, tmp_path_factory, monkeypatch, capsys, references_of
):
    """With a dataset whose judge scores the drawings of every variant."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    checkpoint.save(model, tmp_path / "nano")
    out = tmp_path / "spec"
    words = ["quantize", str(tmp_path / "nano"), "--auto", "--method", "rtn", "--steps", "2", "--output", str(out)]
    words += ["--tasks", str(FIXTURE), "--tasks-limit", "1"]
    assert main([*words, "--budget-text", "ppl+2%", "--budget-draw", "psnr25"]) == 0
    assert "What was tried is in" in capsys.readouterr().out
    assert left_behind(tmp_path) == ["nano", "spec", "spec.html", "spec.json"]
    told = json.loads((tmp_path / "spec.json").read_text())
    assert told["search"]["chosen"] in told["search"]["front"]
    assert told["scores"]["perplexity_percent"] <= 2
    assert {point["drawn"] for point in told["search"]["points"]} <= {0, 0.5, 1}, "of two drawings"
    page = (tmp_path / "spec.html").read_text()
    assert page.count("<svg") == 3 and "<th>drawn" in page
    spec = read_spec(out)
    graph, _ = lower_ort_cpu("transformer", references_of(model, "transformer"), spec)
    assert sum(node.op_type == "MatMulNBits" for node in graph.graph) == 16, "14 layers and two heads"


def test_auto_and_words_of_its_own_are_refused_together(tmp_path, capsys):
    assert main(["quantize", str(tmp_path), "--auto", "--text", "int8", "--output", str(tmp_path / "x")]) == 2
    assert "leave out --text" in capsys.readouterr().err


@pytest.fixture
def references_of():
    from edgemm.export.component_graphs import component_graphs
    from tests.traced import traced

    return lambda model, component: traced(component_graphs(model)[component])
