"""The whole verb, on a random model and real pictures."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from edgemm.cli.main import main
from edgemm.evaluate import evaluation
from tests.evaluate.conftest import FIXTURE


@pytest.fixture
def evaluated(micro_checkpoint, cache, tmp_path, capsys):
    def run(*words: str) -> tuple[int, list[str], str]:
        usual = {"--data": FIXTURE, "--limit": 3, "--cache": cache, "--output": tmp_path / "out"}
        if "read" not in words:
            usual["--num-inference-steps"] = 2
        given = [str(word) for flag, value in usual.items() if flag not in words for word in (flag, value)]
        code = main(["eval", str(micro_checkpoint), *given, *words])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return run


def test_all_suites_print_tables_and_one_json_line(evaluated, tmp_path):
    code, lines, _ = evaluated("--json")
    assert code == 0
    document = json.loads(lines[-1])
    assert "Reading: held-out-style" in "\n".join(lines) and "held-out pairs" in "\n".join(lines)
    assert document["model"]["kind"] == "checkpoint" and document["settings"]["num_inference_steps"] == 2
    assert document["draw"]["judge"]["candidates"] == 85
    assert document["draw"]["parts"]["held-out-pair"]["drawn_top1"]["count"] == 3
    assert document["read"]["held-out-style"]["kinds"]["label"]["accuracy"]["count"] == 3
    out = tmp_path / "out"
    assert json.loads((out / "eval.json").read_text()) == document
    assert len((out / "reading.jsonl").read_text().splitlines()) == 12  # four kinds
    assert len((out / "drawing.jsonl").read_text().splitlines()) == 6  # two splits
    assert Image.open(out / "drawings.png").size[0] == 1200


@pytest.fixture
def own(tmp_path):
    """Pictures of one's own, those of `test` kept back."""
    for folder, colour in (("train/flag", "red"), ("test/sea", "blue")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        Image.new("RGB", (16, 16), colour).save(tmp_path / "in" / folder / "1.png")
    words = ["data", "pictures", "--source", str(tmp_path / "in"), "--output", str(tmp_path / "set")]
    assert main(words) == 0
    return tmp_path


def test_pictures_of_ones_own_are_asked_about_what_was_kept_back_and_nobody_judges_drawings(evaluated, own):
    code, lines, error = evaluated("--data", str(own / "set"))
    assert code == 0 and "Reading: test" in "\n".join(lines)
    assert "reading is asked about split 'test'; --splits chooses others" in error
    assert "drawing is left out" in error and "a pictures dataset, only of emoji, icons, shapes" in error
    assert "draw" not in json.loads((own / "out" / "eval.json").read_text())


def test_asked_for_drawings_alone_that_nobody_judges_it_says_so_before_a_model_is_loaded(evaluated, own):
    code, _, error = evaluated("--data", str(own / "set"), "--suite", "draw")
    assert code == 3 and "no judge for drawings of a pictures dataset" in error and "edgemm draw" in error
    assert len(error.splitlines()) == 1


def test_where_nothing_was_kept_back_it_says_that_too(evaluated, own):
    words = ["data", "pictures", "--source", str(own / "in" / "train"), "--output", str(own / "all")]
    assert main(words) == 0
    code, _, error = evaluated("--data", str(own / "all"), "--suite", "read")
    assert code == 0 and "split 'train', on which it may have been trained: nothing was kept back" in error


def test_one_suite_leaves_the_other_alone(evaluated, tmp_path):
    code, lines, _ = evaluated("--suite", "read")
    assert code == 0
    assert "draw" not in json.loads((tmp_path / "out" / "eval.json").read_text())
    assert not (tmp_path / "out" / "drawings.png").exists()
    assert lines[-1].startswith("Wrote eval.json, reading.jsonl, report.html to ")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--limit", "0"], 2, "--limit is 0, expected at least 1"),
        (["--num-inference-steps", "-1"], 2, "--num-inference-steps is -1"),
        (["--guidance-scale", "nan"], 2, "--guidance-scale is nan"),
        (["--suite", "sing"], 2, "invalid choice: 'sing'"),
        (["--splits", "held-out-style", "scorer", "--suite", "read"], 3, "no question in split 'scorer'"),
        (["--suite", "read", "--seeds", "2"], 2, "--seeds says how to draw, --suite read does not"),
        (["--suite", "read", "--guidance-scale", "1"], 2, "--guidance-scale says how to draw"),
        (["--suite", "draw", "--circular"], 2, "--circular says how to read, --suite draw does not"),
        (["--groups", "faces"], 3, "nothing to draw is in group 'faces'; groups: "),
        (["--data", "nowhere"], 3, "no dataset folder at nowhere"),
        (["--device", "cuda"], 2, "--device cuda is for bundles; torch runs a checkpoint on the CPU"),
    ],
)
def test_what_makes_no_sense_is_one_line(evaluated, tmp_path, words, code, said):
    found, _, error = evaluated(*words)
    assert found == code and said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_who_is_compared_with_nothing_is_told_before_the_first_one_works(evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "open_subject", None)  # it would be called to load the first
    code, _, error = evaluated("--suite", "read", "--compare", str(tmp_path / "typo"))
    assert code == 3 and f"{tmp_path / 'typo'}: is not a folder; give a checkpoint" in error


def test_a_group_that_nothing_is_in_is_told_beside_one_that_is_drawn(evaluated):
    code, _, error = evaluated("--suite", "draw", "--groups", "food-drink", "faces", "--limit", "1")
    assert code == 0 and error.count("nothing to draw is in group 'faces'; groups: ") == 1


def test_what_the_first_one_did_is_kept_where_the_other_cannot(evaluated, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    code, lines, error = evaluated("--suite", "read", "--compare", str(tmp_path / "broken"))
    assert code == 3 and "broken" in error and any(line.startswith("Reading: held-out-style") for line in lines)
    assert "compare" not in json.loads((tmp_path / "out" / "eval.json").read_text())


def test_scenes_that_are_drawn_whole_take_no_groups(evaluated, tmp_path):
    assert main(["data", "shapes", "--output", str(tmp_path / "set"), "--count", "24"]) == 0
    code, _, error = evaluated("--data", str(tmp_path / "set"), "--groups", "food-drink")
    assert code == 3 and "a shapes dataset is drawn whole; leave --groups out" in error


def test_help_brings_no_torch():
    import subprocess
    import sys

    code = "import sys, edgemm.cli.eval, edgemm.evaluate.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_model_compared_with_itself_differs_in_nothing_and_the_page_says_so(evaluated, micro_checkpoint, tmp_path):
    code, lines, _ = evaluated("--suite", "read", "--compare", str(micro_checkpoint), "--circular", "--json")
    assert code == 0
    document = json.loads(lines[-1])
    differences = document["compare"]["differences"].values()
    assert differences and all(found["value"] == 0 == found["changed"] for found in differences)
    part = document["read"]["held-out-style"]
    assert set(part["circular"]) == {"colour", "group"} and 0 <= part["vqa"]["value"] <= 1
    assert any(line.startswith("Against micro (checkpoint") for line in lines)
    assert "<svg" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
