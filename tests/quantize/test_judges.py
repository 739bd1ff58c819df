"""The judges: equal models get full marks, worse ones less, and budgets turn numbers into an exit code."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch

from edgemm.cli.main import main
from edgemm.data.format import read_dataset
from edgemm.errors import CheckFailedError, UsageError
from edgemm.model import checkpoint
from edgemm.quantize.calibration import NOISE_SEED, read_calibration, thing_of
from edgemm.quantize.make import quantize
from edgemm.quantize.options import QuantizeOptions
from edgemm.quantize.simulated import swap
from edgemm.search.judges import PROMPTS, SEED, Scores, ask, compare, layer_signals, read_budget, require_budgets
from edgemm.verify.parity import ssim
from tests.export.nano import left_behind, random_nano

EMOJI = Path(__file__).parent.parent / "fixtures" / "emoji64"
TEXT = "Alice was beginning to get very tired of sitting by her sister on the bank."


@pytest.fixture(scope="module")
def model():
    return random_nano()


def test_a_model_beside_itself_has_full_marks(model):
    answers = ask(model, 2, TEXT)
    assert answers.perplexity > 1
    scores = compare(answers, ask(model, 2, TEXT))
    assert (scores.perplexity_percent, scores.token_agreement, scores.psnr_db) == (0, 1, 100)
    assert scores.ssim == pytest.approx(1)


def test_perplexity_is_that_of_transformers_formula(model):
    """exp of the mean cross-entropy, which torch computes itself."""
    ids = torch.tensor([model.encode(TEXT)])
    hidden, _ = model.transformer(model.transformer.embed_tokens(ids), torch.arange(ids.shape[1])[None])
    loss = torch.nn.functional.cross_entropy(model.transformer.logits(hidden)[0, :-1], ids[0, 1:])
    assert ask(model, 1, TEXT).perplexity == pytest.approx(math.exp(loss), rel=1e-4)


def test_fewer_bits_score_worse(model):
    plain = ask(model, 2, TEXT)
    found = []
    for text, draw in (("int8", "int8"), ("int4", "w4a8")):
        spec = quantize(copy.deepcopy(model), QuantizeOptions(text, draw, ""))
        signals = layer_signals(model, spec)
        quantized = copy.deepcopy(model)
        swap(quantized, spec)
        scores = compare(plain, ask(quantized, 2, TEXT))
        last = f"transformer.layers.{len(model.transformer.layers) - 1}.mlp.up_proj"  # drawing reads those below
        found.append((scores.psnr_db, scores.ssim, signals["denoiser.blocks.0.up_proj"], signals[last]))
    assert all(fine > coarse for fine, coarse in zip(*found, strict=True)), found


@pytest.mark.parametrize("source", [None, EMOJI])
def test_calibration_never_sees_what_the_judge_draws(model, source):
    """In no style, whether the prompts are the shipped ones or a dataset's that has the judge's own; nor its noise."""
    judged = {thing_of(prompt) for prompt in PROMPTS}
    assert len(judged) == len(PROMPTS) == 6
    if source:
        assert judged & {sample.label for sample in read_dataset(source).split("train")}
    assert not judged & {thing_of(prompt) for prompt in read_calibration(source, model).prompts}
    assert SEED != NOISE_SEED


def test_ssim_of_known_pictures():
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.5
    grey, lighter = torch.full((1, 3, 16, 16), 0.4), torch.full((1, 3, 16, 16), 0.5)
    assert ssim(lighter, grey) == pytest.approx((2 * 0.4 * 0.5 + 1e-4) / (0.4**2 + 0.5**2 + 1e-4), rel=1e-4)
    assert ssim(1 - picture, picture) < 0.2


def scores(percent: float = 0, psnr: float = 40, ssim_: float = 1, lost: float | None = None) -> Scores:
    return Scores(100, 100 + percent, 1, psnr, psnr, ssim_, lost)


@pytest.mark.parametrize(
    ("side", "word", "good", "bad", "message"),
    [
        ("text", "ppl+3%", scores(percent=2.9), scores(percent=3.1), r"ppl\+3% is not met: ppl is \+3.10 %"),
        ("text", "ppl+0.5%", scores(percent=-1), scores(percent=math.nan), r"ppl\+0.5% is not met"),
        ("draw", "psnr30", scores(psnr=30), scores(psnr=29), r"psnr30 is not met: psnr is \+29.00 dB"),
        ("draw", "drawn-4%", scores(lost=3.9), scores(lost=4.1), r"drawn-4% is not met: drawn is \+4.10 % lost"),
        ("draw", "drawn-4%", scores(lost=-2), scores(), "drawn-4% is not met"),
        ("draw", "ssim0.97", scores(ssim_=0.98), scores(ssim_=0.9), r"ssim0.97 is not met: ssim is \+0.90"),
    ],
)
def test_a_budget_is_met_or_named(side, word, good, bad, message):
    budget = read_budget(side, word)
    require_budgets(good, (budget,))
    with pytest.raises(CheckFailedError, match=message):
        require_budgets(bad, (budget,))


@pytest.mark.parametrize(
    ("side", "word"),
    [
        ("text", "psnr30"),
        ("draw", "ppl+3%"),
        ("text", "ppl+..%"),
        ("draw", "30"),
        ("draw", "drawn-4"),
        ("draw", "psnr30%"),
        ("draw", "ssim97%"),
        ("draw", "ssim97"),
        ("draw", "psnr1.2.3"),
        ("text", "drawn-4%"),
    ],
)
def test_a_budget_in_other_words_is_refused(side, word):
    with pytest.raises(UsageError, match=f"--budget-{side} '.*' is not of the form"):
        read_budget(side, word)


def test_the_command_judges_reports_and_keeps_nothing_that_misses(model, tmp_path, capsys):
    checkpoint.save(model, tmp_path / "nano")
    words = ["quantize", str(tmp_path / "nano"), "--method", "rtn", "--steps", "2", "--text", "int8", "--output"]
    report = tmp_path / "report.html"
    assert main([*words, str(tmp_path / "bad"), "--budget-draw", "psnr99"]) == 7
    assert "psnr99 is not met" in capsys.readouterr().err
    assert left_behind(tmp_path) == ["nano"]
    assert main([*words, str(tmp_path / "good"), "--budget-text", "ppl+50%", "--report", str(report)]) == 0
    document = json.loads(report.with_suffix(".json").read_text())
    assert document["scores"]["psnr_db"] > 20
    assert document["layers"]["denoiser.blocks.0.up_proj"]["signal_db"] > 30
    assert report.read_text().count("data:image/png;base64,") == 12
    (tmp_path / "file").write_text("no folder")
    assert main([*words, str(tmp_path / "kept"), "--report", str(tmp_path / "file" / "report.html")]) != 0
    assert (tmp_path / "kept" / "quant.json").is_file()  # the spec does not wait for its report
    missed = tmp_path / "missed.html"
    assert main([*words, str(tmp_path / "bad"), "--budget-draw", "psnr99", "--report", str(missed)]) == 7
    assert missed.is_file() and not (tmp_path / "bad").exists()
