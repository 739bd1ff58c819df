"""An eye of the model's own: what it is taught by, what of it stays, and who reads with it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from edgemm.data.clips import build_clips
from edgemm.data.format import read_dataset
from edgemm.errors import InputError
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS
from edgemm.model.designs import variant
from edgemm.train.recipe import EyeRecipe
from edgemm.train.run import train
from edgemm.train.tasks.align import features_key
from edgemm.train.tasks.eye import EyeTask, caption_words, words_of
from tests.train.conftest import read_log, recipe

CONFIG = variant(PRESETS["micro"](), vision="conv")


def eye_recipe(data, output, **changes) -> EyeRecipe:
    settings = {"batch": 32, "learning_rate": 4e-3, "precision": "fp32", "log_every": 1, "threads": 1, "warmup": 5}
    return EyeRecipe(data=str(data), output=str(output), start="micro", vision="conv", ema=0.0, **settings | changes)


def test_a_captions_words_are_its_words_and_its_pairs_of_neighbors():
    assert words_of("a Green circle") == {"a", "green", "circle", "a green", "green circle"}


def test_words_are_those_that_captions_share_the_commonest_first():
    said = [{"a", "red", "circle"}] * 5 + [{"a", "blue", "circle"}] * 6 + [{"a", "green", "star"}] * 4
    assert caption_words(said) == ["a", "circle", "blue", "red"]


def test_the_folded_eye_sees_what_the_learner_with_its_normalizations_sees(tmp_path, shapes):
    model = checkpoint.build(CONFIG).requires_grad_(False)
    task = EyeTask(model, eye_recipe(shapes, tmp_path, steps=1))
    for step in range(3):  # running means and variances that are not those of birth
        task.loss(step)
    learner = task.learner.eval()
    learner.fold()
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = pixels * 2 - 1
    with torch.no_grad():
        for conv, norm in zip(learner.convs, learner.norms, strict=True):
            x = norm(conv(x)).relu()
        seen = model.image_encoder.features(pixels)
    assert seen.shape == (2, 16, 128)
    torch.testing.assert_close(seen, x.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)


def test_it_learns_is_stored_and_reading_leaves_it_as_it_was(tmp_path, shapes):
    train(eye_recipe(shapes, tmp_path / "eye", steps=60))
    losses = [line["loss"] for line in read_log(tmp_path / "eye")]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    start = tmp_path / "eye" / "checkpoint"
    train(recipe("micro-read", tmp_path / "read", data=shapes, start=start, steps=1, batch=2, views=1))
    taught, reads = (checkpoint.load(folder) for folder in (start, tmp_path / "read" / "checkpoint"))
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen, again = (model.image_encoder.features(pixels) for model in (taught, reads))
    torch.testing.assert_close(again, seen, atol=0.02, rtol=0.02)  # a read checkpoint is bfloat16
    assert not torch.equal(seen, checkpoint.build(CONFIG).image_encoder.features(pixels))


def test_what_one_eye_saw_is_not_kept_for_another(shapes):
    samples = read_dataset(shapes).samples[:2]
    settings = recipe("micro-read", "unused", data=shapes)
    eyes = [checkpoint.build(CONFIG, seed).image_encoder.encoder for seed in (0, 0, 1)]
    keys = [features_key(settings, samples, CONFIG.vision, [eye]) for eye in eyes]
    assert keys[0] == keys[1] != keys[2]


def test_a_model_without_an_eye_of_its_own_is_refused(tmp_path, shapes):
    settings = dataclasses.replace(eye_recipe(shapes, tmp_path, steps=1), vision="single")
    with pytest.raises(InputError, match="its eye is patch; give vision = 'conv'"):
        train(settings)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "clips"
    folder.mkdir()
    build_clips(folder, 64, 60, 0)
    return folder


def test_clips_are_refused_where_nothing_reads_motion(clips, tmp_path):
    with pytest.raises(InputError, match="holds clips, and an eye is taught by still pictures; give those, or motion"):
        train(eye_recipe(clips, tmp_path / "eye", steps=1))


def test_what_reads_motion_is_taught_by_clips_and_the_eye_stays(clips, tmp_path):
    train(eye_recipe(clips, tmp_path / "motion", steps=40, batch=8, motion="1"))
    losses = [line["loss"] for line in read_log(tmp_path / "motion")]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    born = checkpoint.build(variant(PRESETS["micro"](), vision="conv", motion="1"))
    taught, born = (model.state_dict() for model in (checkpoint.load(tmp_path / "motion" / "checkpoint"), born))
    changed = {name.split(".")[0] for name, tensor in taught.items() if not torch.equal(tensor, born[name])}
    assert changed == {"motion_encoder"}


def test_the_words_of_a_clip_say_what_moves_which_way_first(clips):
    told = [sample.captions[-1] for sample in read_dataset(clips).samples]
    two = next(sample for sample in read_dataset(clips).samples if len(sample.scene["objects"]) == 2)
    first = two.scene["objects"][two.scene["wanted"]["first"]]
    said = f"{first['colours'][0]} {first['name']} {first['way']} {first['speed']}"
    assert two.captions[-1].startswith(f"{said}, then ") and len(set(told)) > len(told) // 2
    assert {f"{first['name']} {first['way']}", f"{first['way']} {first['speed']}"} <= words_of(two.captions[-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 2}, "stride 2, expected 4, 8, 16"),
        ({"image_size": 36, "stride": 12}, "stride 12, expected 4, 8, 16"),
        ({"feature_width": 100}, "feature_width 100, expected a multiple of 8"),
        ({"feature_width": 0}, "feature_width is 0"),
    ],
)
def test_a_config_that_no_such_eye_fits_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG.vision, **changes)
