"""A checkpoint and a bundle look the same from outside."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgemm
from edgemm.errors import InputError, UsageError
from edgemm.evaluate.evaluation import Plan, evaluate_subject, open_subject
from edgemm.evaluate.subject import DrawSettings, real_pictures, shown
from tests.runtimes.tiny_bundle import build
from tests.runtimes.tiny_weights import Weights

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "micro-shapes"


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory):
    return build(tmp_path_factory.mktemp("bundles") / "tiny.bundle", Weights())


def test_a_folder_of_neither_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has neither config\.json nor manifest\.json; give a checkpoint"):
        open_subject(tmp_path, DrawSettings())
    with pytest.raises(InputError, match="is not a folder"):
        open_subject(tmp_path / "none", DrawSettings())


def test_a_drawing_depends_on_its_prompt_and_seed_alone(micro_checkpoint):
    subject = open_subject(micro_checkpoint, DrawSettings(num_inference_steps=3))
    together = subject.draw(["red heart, noto style", "dog", "dog"], [0, 1, 2])
    alone = subject.draw(["dog"], [1])
    assert together.shape == (3, 32, 32, 3) and together.dtype == np.uint8
    assert together.std() > 20  # not grey
    # Float sums may differ in the last bit with the batch, so a pixel may round the other way.
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 1
    assert np.abs(together[1].astype(int) - together[2]).max() > 10


def test_settings_change_the_drawing_of_a_checkpoint(micro_checkpoint):
    drawn = [
        open_subject(micro_checkpoint, settings).draw(["dog"], [0])
        for settings in (DrawSettings(3, 1.0), DrawSettings(3, 4.0), DrawSettings(2, 1.0))
    ]
    assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_a_bundle_draws_and_reads_what_the_runtime_does(bundle_path, emoji64):
    subject = open_subject(bundle_path, DrawSettings(num_inference_steps=2), device="cpu", threads=1)
    picture = real_pictures(emoji64, emoji64.samples[:1], 64)[0]
    with edgemm.load(bundle_path, device="cpu", threads=1) as model:
        expected = model.generate_image("a cat", num_inference_steps=2, seed=5).image.to_array()
        text = model.generate_text("What?", images=[picture], max_new_tokens=32).text
    assert np.array_equal(subject.draw(["a dog", "a cat"], [4, 5])[1], expected)
    assert list(subject.read([(picture, "What?")])) == [text]
    assert subject.kind == "bundle" and subject.drawing_size == len(expected)


def test_what_cannot_be_drawn_is_told_before_anything_is_read(bundle_path, emoji64, cache):
    """Reading comes first and takes hours; `read` would fail here, for it is no method any more."""
    subject = open_subject(bundle_path, DrawSettings(num_inference_steps=10**6), device="cpu", threads=1)
    subject.read = None  # type: ignore[method-assign, assignment]
    with pytest.raises(UsageError, match="num_inference_steps is 1000000"):
        evaluate_subject(subject, emoji64.path, Plan(cache=cache))


def test_clips_are_judged_by_no_suite_and_tokens_take_no_steps():
    from edgemm.evaluate.checkpoint_subject import CheckpointSubject
    from tests.model.tiny import micro, random_micro
    from tests.model.tiny_codes import random_codes

    clips = random_micro(micro(image_tokens=dataclasses.replace(micro().image_tokens, frames=2)))
    with pytest.raises(InputError, match="draws clips, which no suite judges"):
        _ = CheckpointSubject.of(clips, DrawSettings()).drawing_size
    with pytest.raises(UsageError, match="draws token by token and has no such option"):
        CheckpointSubject.of(random_codes(), DrawSettings(num_inference_steps=4))


def test_a_model_of_tokens_draws_a_graph_from_the_words_that_its_bundle_reads():
    """The runtime takes the line's end away."""
    from edgemm.evaluate.checkpoint_subject import CheckpointSubject
    from tests.model.tiny_codes import random_codes

    graph = edgemm.Graph([{"id": "a", "text": "a star"}, {"id": "b", "text": "a dog"}], [("a", "on", "b")])
    subject = CheckpointSubject.of(random_codes(), DrawSettings())
    words = graph.to_text().strip()
    assert words != graph.to_text()
    assert np.array_equal(subject.draw([graph], [3]), subject.draw([words], [3]))
    assert not np.array_equal(subject.draw([graph], [3]), subject.draw([graph.to_text()], [3]))


def test_a_bundle_is_read_without_torch(bundle_path):
    code = (
        "import sys, pathlib, numpy as np; from edgemm.evaluate import evaluation; "
        "from edgemm.evaluate.evaluation import open_subject; from edgemm.evaluate.subject import DrawSettings; "
        f"subject = open_subject(pathlib.Path({str(bundle_path)!r}), DrawSettings(), 'cpu', 1); "
        "list(subject.read([(np.zeros((8, 8, 3), np.uint8), 'What?')])); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_checkpoint_and_its_bundle_score_the_same(micro_checkpoint, emoji64, tmp_path, cache):
    from edgemm.evaluate.evaluation import Plan, evaluate
    from edgemm.verify.export_native import export_bundle

    export_bundle(micro_checkpoint, tmp_path / "micro.bundle", max_context=128)
    plan = Plan(limit=8, settings=DrawSettings(num_inference_steps=4), cache=cache, device="cpu", threads=1)
    torch_run, bundle_run = (
        evaluate(path, emoji64.path, plan) for path in (micro_checkpoint, tmp_path / "micro.bundle")
    )
    assert torch_run.document["read"] == bundle_run.document["read"]
    assert torch_run.records == bundle_run.records


def test_a_checkpoint_answers_questions_together_as_one_after_the_other(emoji64):
    subject = open_subject(CHECKPOINT, DrawSettings(), threads=1)
    questions = emoji64.questions[:: len(emoji64.questions) // 40]
    samples = {sample.id: sample for sample in emoji64.samples}
    asked = [(shown(emoji64, samples[question.sample]), question.question) for question in questions]
    asked.append((np.stack([picture for picture, _ in asked[:3]]), "Describe the picture."))  # a clip
    together = list(subject.read(asked))
    assert together == [next(subject.read([one])) for one in asked]
    assert len(set(together)) > 5


def taken_for_the_first(subject) -> int:
    """Questions that are asked before one is answered; all are answered in the end."""
    taken: list[int] = []
    replies = subject.read((taken.append(1) or np.zeros((8, 8, 3), np.uint8), "What?") for _ in range(20))
    next(replies)
    first = len(taken)
    assert len(list(replies)) == 19 and len(taken) == 20
    return first


def test_no_more_pictures_are_held_than_are_asked_about_at_once(micro_checkpoint, bundle_path):
    assert 1 < taken_for_the_first(open_subject(micro_checkpoint, DrawSettings(), threads=1)) < 20
    assert taken_for_the_first(open_subject(bundle_path, DrawSettings(), device="cpu", threads=1)) == 1


@pytest.fixture(scope="module")
def quantized(micro_checkpoint):
    from edgemm.model.checkpoint import load
    from edgemm.quantize.make import quantize
    from edgemm.quantize.options import QuantizeOptions
    from edgemm.quantize.simulated import swap

    model = load(micro_checkpoint)
    swap(model, quantize(model, QuantizeOptions("w8a8", "int8", "rtn")), folded=True)
    return model


def rounded(model, part, kind):
    """A copy whose layers of a part round what goes into them in one way."""
    from edgemm.quantize.simulated import QuantizedLinear

    model, found = copy.deepcopy(model), 0
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            own = name.startswith(part)
            layer.layer = dataclasses.replace(layer.layer, activations=kind if own else "token")
            found += own
    assert found
    return model


@pytest.mark.parametrize("kind", ["token", "tensor"])
def test_a_model_that_rounds_a_batch_together_is_asked_one_question_at_a_time(kind, quantized):
    """With one scale for all that goes into a product, what is asked beside a question would change its reply."""
    from edgemm.evaluate.checkpoint_subject import CheckpointSubject

    model = rounded(quantized, "transformer.", kind)
    assert (taken_for_the_first(CheckpointSubject.of(model, DrawSettings())) == 1) is (kind == "tensor")


def test_what_is_drawn_depends_on_no_picture_beside_it(quantized):
    from edgemm.evaluate.checkpoint_subject import CheckpointSubject

    model = rounded(quantized, "denoiser.", "tensor")
    subject = CheckpointSubject.of(model, DrawSettings(num_inference_steps=2))
    both = subject.draw(["a red heart", "two blue stars"], [1, 2])
    assert np.array_equal(both[1], subject.draw(["two blue stars"], [2])[0])
    assert subject.at_once > 1
