"""Published tensors in modules of our own: where they lie, and which of them a model takes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgemm.errors import CheckpointError
from edgemm.families.own_modules import INDEX, check_settings, fill, names_in, read_config


class Tied(nn.Module):
    """Two layers between an embedding and a head that is the embedding again."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
        self.layers = nn.ModuleList([nn.Linear(3, 3, bias=False) for _ in range(2)])
        if tied:
            self.head.weight = self.embed.weight


def skeleton(**how: bool) -> Tied:
    with torch.device("meta"):
        return Tied(**how)


def stored(folder, name: str = "model.safetensors", **weights: torch.Tensor) -> None:
    save_file({key.replace("_", "."): value for key, value in weights.items()}, folder / name)


def layer(seed: int) -> torch.Tensor:
    return torch.full((3, 3), float(seed))


def index(folder, **places: str) -> None:
    listed = {key.replace("_", "."): file for key, file in places.items()}
    (folder / f"model{INDEX}").write_text(json.dumps({"weight_map": listed}))


@pytest.mark.parametrize("twice", [False, True])
def test_what_is_tied_is_read_once_whether_it_is_stored_once_or_twice(tmp_path, twice):
    words = torch.arange(21.0).view(7, 3).half()
    stored(tmp_path, embed_weight=words, layers_0_weight=layer(1), layers_1_weight=layer(2))
    if twice:
        stored(tmp_path, "more.safetensors", head_weight=words + 1)
    model = skeleton()
    fill(model, tmp_path, names_in(tmp_path))
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.head(torch.eye(3)), words.float().T)


def test_a_head_of_its_own_that_is_not_there_is_missed(tmp_path):
    stored(tmp_path, embed_weight=torch.zeros(7, 3), layers_0_weight=layer(1), layers_1_weight=layer(2))
    with pytest.raises(CheckpointError, match=r"1 tensors are missing, for example head\.weight"):
        fill(skeleton(tied=False), tmp_path, names_in(tmp_path))


def test_layers_that_a_config_does_not_count_are_told(tmp_path):
    more = {f"layers_{number}_weight": layer(number) for number in range(3)}
    stored(tmp_path, embed_weight=torch.zeros(7, 3), **more)
    with pytest.raises(CheckpointError, match=r"layers\.2\.weight is of a layer that its config does not count"):
        fill(skeleton(), tmp_path, names_in(tmp_path))


def test_an_index_says_which_files_are_read(tmp_path):
    stored(tmp_path, "a.safetensors", layers_0_weight=layer(1))
    stored(tmp_path, "b.safetensors", layers_1_weight=layer(2))
    stored(tmp_path, "old.safetensors", layers_0_weight=layer(9))
    index(tmp_path, layers_0_weight="a.safetensors", layers_1_weight="b.safetensors")
    assert {name: file.name for name, file in names_in(tmp_path).items()} == {
        "layers.0.weight": "a.safetensors",
        "layers.1.weight": "b.safetensors",
    }
    index(tmp_path, layers_0_weight="b.safetensors", layers_1_weight="b.safetensors")
    with pytest.raises(CheckpointError, match=r"says that layers\.0\.weight is in b\.safetensors, where it is not"):
        names_in(tmp_path)
    for file, message in (
        ("../a.safetensors", "no file of this folder"),
        ("c.safetensors", "1 of 1 files are missing"),
    ):
        index(tmp_path, layers_0_weight=file)
        with pytest.raises(CheckpointError, match=message):
            names_in(tmp_path)


def test_a_tensor_in_two_files_is_not_chosen_by_the_order_of_their_names(tmp_path):
    stored(tmp_path, "a.safetensors", layers_0_weight=layer(1))
    stored(tmp_path, "b.safetensors", layers_0_weight=layer(2))
    with pytest.raises(
        CheckpointError, match=r"layers\.0\.weight is in a\.safetensors and in b\.safetensors; keep one"
    ):
        names_in(tmp_path)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ('{"a": {"norm_eps": "small"}}', "norm_eps is 'small', expected a number above 0"),
        ('{"layer_norm_eps": NaN}', "layer_norm_eps is nan, expected a number above 0"),
        ('{"stride": 0}', "stride is 0, expected a whole number from 1 to 1024"),
        ('{"padding": [1]}', r"padding is \[1\], expected a whole number from 0 to 1024"),
        ('{"norm_num_groups": true}', "norm_num_groups is True, expected a whole number"),
    ],
)
def test_numbers_that_are_none_are_told_by_name(tmp_path, said, message):
    (tmp_path / "config.json").write_text(said)
    with pytest.raises(CheckpointError, match=message):
        read_config(tmp_path / "config.json", "sizes")


def test_a_setting_that_these_modules_do_not_compute_is_refused_by_name(tmp_path):
    check_settings({"other": 3}, {"upsamples": 1}, tmp_path)
    with pytest.raises(CheckpointError, match="upsamples is 2, this export knows 1"):
        check_settings({"upsamples": 2}, {"upsamples": 1}, tmp_path)
