"""The connector: drawing learns through queries and leaves a frozen language model, and so all reading, as it was."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from edgemm.model import checkpoint
from edgemm.model.config import PRESETS, ModelConfig
from edgemm.model.designs import variant
from edgemm.train.recipe_file import read_stages
from edgemm.train.run import train_stages
from edgemm.train.stores import QueryStore
from tests.export.nano import nano, random_nano
from tests.model.tiny import tokens_of
from tests.train.conftest import ROOT, read_log

PROMPTS = ("a red circle", "two stars")
QUICK = {"batch": 4, "log_every": 1, "threads": 1, "warmup": 1, "ema": 0.5}


@pytest.fixture(scope="module")
def model():
    return random_nano(variant(nano(), experts="connector"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shapes):
    """The run folder of both stages of the recipe, a few steps each."""
    output, start = (tmp_path_factory.mktemp("connector") / name for name in ("run", "start"))
    checkpoint.save(checkpoint.build(variant(nano(), experts="connector")), start)
    changes = {"data": shapes, "output": output, "read.start": start, "read.steps": 4, "draw.steps": 6, **QUICK}
    train_stages(
        read_stages(ROOT / "recipes" / "micro-connector.toml", [f"{key}={value}" for key, value in changes.items()])
    )
    return output


def test_drawing_changes_the_queries_and_nothing_else_that_reading_uses(trained):
    before, after = (checkpoint.load(trained / stage / "checkpoint") for stage in ("read", "draw"))
    assert len(read_log(trained / "draw")) == 6
    changed = {
        name
        for name, tensor in before.state_dict().items()
        if not torch.equal(tensor, after.state_dict()[name]) and name.startswith(("transformer", "image_encoder"))
    }
    assert changed == {"transformer.queries.weight"}
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    told = [model.generate("What is this?", pixels, 6, stop=False)[1] for model in (before, after)]
    assert torch.equal(*told)


def test_words_that_were_read_once_leave_the_queries_what_reading_them_again_does(model):
    """Prompts of unequal length, in other order, some twice; and the gradient that the queries get is the same."""
    captions = ["", *PROMPTS, "a star left of a blue cross"]
    store, rows = QueryStore(model, captions), torch.tensor([3, 0, 1, 1])
    gradients = []
    for read in (
        lambda: store.read(rows),
        lambda: model.prompt_cache([captions[row] for row in rows], learn=True),
    ):
        queries = model.transformer.queries.weight.requires_grad_(True)
        prefix = model.conditioner(*read())
        total = sum(tensor.square().sum() for tensor in (*prefix.keys, *prefix.values, prefix.prompt_vector))
        gradients.append((total.item(), *torch.autograd.grad(total, queries)))
        queries.requires_grad_(False)
    (found, mine), (expected, wanted) = gradients
    assert found == pytest.approx(expected, rel=1e-4) and wanted.abs().max() > 0
    torch.testing.assert_close(mine, wanted, atol=1e-3 * wanted.abs().max().item(), rtol=1e-3)


def test_the_denoiser_sees_the_queries_alone_however_long_the_prompt(model):
    queries = model.config.transformer.queries
    together = model.prefix(PROMPTS)
    assert together.keys[0].shape[2] == queries and together.mask.shape == (2, queries) and together.mask.all()
    for row, prompt in enumerate(PROMPTS):  # padding beside a longer prompt changes nothing
        torch.testing.assert_close(together.values[1][row : row + 1], model.prefix([prompt]).values[1])
    assert not torch.allclose(together.values[1][0], together.values[1][1])


def test_the_prompt_reaches_the_picture_through_the_queries(model):
    noise = tokens_of(model, 1)
    red, two = (model.draw([prompt], noise) for prompt in PROMPTS)
    assert (red - two).abs().max() > 1e-2
    assert model.transformer.queries is not None
    kept = model.transformer.queries.weight.clone()
    with torch.no_grad():
        model.transformer.queries.weight.neg_()
    assert (model.draw([PROMPTS[0]], noise) - red).abs().max() > 1e-2
    with torch.no_grad():
        model.transformer.queries.weight.copy_(kept)


def test_queries_are_stored_even_where_the_language_model_is_a_packages_own(model):
    config, model.config = model.config, dataclasses.replace(model.config, base="somewhere")
    stored = [name for name in checkpoint.stored_state(model) if name.startswith("transformer.")]
    model.config = config
    assert stored == ["transformer.queries.weight"]


def test_what_a_user_spells_is_no_query(model):
    assert model.encode("<|query_3|>") == [264 + 3]
    assert model.config.transformer.vocab_size == 264 and max(model.encode("<|query_3|>", special=False)) < 256


@pytest.mark.parametrize("preset", PRESETS)
def test_the_design_survives_its_config_file(preset):
    config = variant(PRESETS[preset](), experts="connector")
    assert ModelConfig.from_json(config.to_json()) == config
    assert config.family == "connector" and max(config.denoiser.prefix_layers) == config.transformer.depth - 1


def test_a_connector_without_queries_is_refused():
    with pytest.raises(ValueError, match="'connector' with 0 queries; a connector has some"):
        dataclasses.replace(PRESETS["micro"](), experts="connector")
