"""Two trainings of one base become one checkpoint that draws as the one and reads as the other, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgemm.errors import CheckpointError
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS
from edgemm.model.designs import variant
from edgemm.train.merge import join
from tests.model.tiny import random_micro, tokens_of


def trained_apart(folder: Path) -> tuple[Path, Path]:
    """One base, saved after its image expert changed and after its projection and top layer changed."""
    for name in ("drawing", "reading"):
        model = random_micro()
        changed = [model.denoiser, model.conditioner] if name == "drawing" else [model.image_encoder]
        if name == "reading":
            changed.append(model.transformer.layers[-1])
        for part in changed:
            for parameter in part.parameters():
                parameter.data = (parameter.data * 1.5).bfloat16().float()
        checkpoint.save(model, folder / name)
    return folder / "drawing", folder / "reading"


def test_joined_draws_as_the_one_and_reads_as_the_other(tmp_path: Path) -> None:
    drawing, reading = trained_apart(tmp_path)
    for name in ("drawing", "reading"):  # what the joined checkpoint is stored in
        checkpoint.save(checkpoint.load(tmp_path / name), tmp_path / name, torch.bfloat16)
    join(drawing, reading, tmp_path / "both")
    both, draws, reads = (checkpoint.load(tmp_path / name) for name in ("both", "drawing", "reading"))
    noise = tokens_of(both, 1)
    assert torch.equal(both.draw(["red circle"], noise), draws.draw(["red circle"], noise))
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for found, wanted in zip(both.generate("What?", pixels, 8), reads.generate("What?", pixels, 8), strict=True):
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(wanted))
    assert both.config.name == "both"


def test_a_reading_that_changed_what_drawing_reads_is_refused(tmp_path: Path) -> None:
    drawing, reading = trained_apart(tmp_path)
    model = checkpoint.load(reading)
    model.transformer.layers[0].mlp.up_proj.weight.data += 1  # type: ignore[union-attr,operator]
    checkpoint.save(model, reading)
    with pytest.raises(CheckpointError, match="layer 0 differs"):
        join(drawing, reading, tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_a_reading_with_another_embedding_is_refused(tmp_path: Path) -> None:
    drawing, reading = trained_apart(tmp_path)
    model = checkpoint.load(reading)
    model.transformer.embed_tokens.weight.data[7] += 1
    checkpoint.save(model, reading)
    with pytest.raises(CheckpointError, match="embedding differs"):
        join(drawing, reading, tmp_path / "both")


def test_a_reading_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    drawing, reading = trained_apart(tmp_path)
    file = reading / "tokenizer.json"
    file.write_text(file.read_text().replace("<|reserved_4|>", "<|another|>"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json differs"):
        join(drawing, reading, tmp_path / "both")


def test_a_connectors_queries_come_with_its_drawing(tmp_path: Path) -> None:
    for name in ("drawing", "reading"):
        model = checkpoint.build(variant(PRESETS["micro"](), experts="connector"), 0)
        if name == "drawing":
            assert model.transformer.queries is not None
            for parameter in (*model.denoiser.parameters(), model.transformer.queries.weight):
                torch.nn.init.normal_(parameter, std=0.1)
        checkpoint.save(model, tmp_path / name, torch.bfloat16)
    join(tmp_path / "drawing", tmp_path / "reading", tmp_path / "both")
    both, draws = (checkpoint.load(tmp_path / name) for name in ("both", "drawing"))
    noise = tokens_of(both, 1)
    assert torch.equal(both.draw(["red circle"], noise), draws.draw(["red circle"], noise))
