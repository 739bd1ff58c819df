"""What an image processor makes of pictures is what a bundle's fields make of them, or the folder is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from edgemm.bundle.picture import load_picture
from edgemm.errors import CheckpointError
from edgemm.families.family import picture_rule
from tests.families.tiny.folders import write_folder
from tests.families.tiny.pictures import picture


def processor_of(place, family, **changes):
    """Of a tiny folder with some of its settings changed, by the library."""
    folder = write_folder(family, place / family)
    path = next(path for name in ("preprocessor", "processor") if (path := folder / f"{name}_config.json").is_file())
    told = json.loads(path.read_text())
    told.get("image_processor", told).update(changes)
    path.write_text(json.dumps(told))
    return AutoImageProcessor.from_pretrained(folder)


@pytest.mark.parametrize("shape", [(40, 40), (70, 31), (9, 50), (90, 2)])
@pytest.mark.parametrize(
    ("family", "changes", "pads"),
    [
        ("llava", {}, False),
        ("llava", {"do_pad": True}, False),
        ("llava", {"do_pad": True, "do_center_crop": False, "size": {"height": 24, "width": 24}}, False),
        ("llava", {"do_rescale": False, "image_mean": [100.0] * 3, "image_std": [50.0] * 3}, False),
        ("janus", {"min_size": 6}, True),
    ],
)
def test_a_picture_becomes_what_the_librarys_processor_makes_of_it(tmp_path, family, changes, pads, shape):
    processor = processor_of(tmp_path, family, **changes)
    rule = picture_rule(processor, tmp_path, pads=pads)
    shown = picture(1, *shape)
    found = load_picture(shown, rule.size, rule.background, fit=rule.fit, resample=rule.resample, least=rule.least)
    found = found * np.reshape(rule.scale, (3, 1, 1)) + np.reshape(rule.shift, (3, 1, 1))
    wanted = processor(images=[Image.fromarray(np.asarray(shown))], return_tensors="np")["pixel_values"][0]
    assert np.abs(found - wanted).max() <= 1e-5


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llava", {"do_resize": False}, "numbers that are no picture resized to 24 x 24.*do_resize False"),
        ("llava", {"do_center_crop": False, "size": {"height": 32, "width": 32}, "do_resize": False}, "32 x 32"),
        ("llava", {"size": {"height": 32, "width": 32}}, "no picture resized to 32 x 32"),
        ("llava", {"resample": 4}, "resample is 4, expected one of: 0, 1, 2, 3"),
        ("janus", {"do_pad": False}, "numbers that are no picture resized to 16 x 16.*do_pad False"),
    ],
)
def test_settings_that_a_bundle_does_not_have_are_refused(tmp_path, family, changes, message):
    processor = processor_of(tmp_path, family, **changes)
    with pytest.raises(CheckpointError, match=message):
        picture_rule(processor, tmp_path, pads=family == "janus")
