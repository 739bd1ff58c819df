"""Configs are checked at birth, and a damaged config.json is refused by the field's name."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest

from edgemm.errors import CheckpointError
from edgemm.model.config import PRESETS, ModelConfig, SamplerConfig

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_survives_its_json(preset):
    config = PRESETS[preset]()
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_the_small_preset_has_the_shape_of_smollm2_135m():
    shape = PRESETS["small"]().transformer
    assert (shape.depth, shape.width, shape.heads, shape.kv_heads, shape.head_width) == (30, 576, 9, 3, 64)
    assert (shape.ffn_width, shape.vocab_size, shape.rope_theta) == (1536, 49_152, 100_000)


@pytest.mark.parametrize("preset", PRESETS)
def test_reading_has_layers_of_its_own_above_those_the_denoiser_reads(preset):
    config = PRESETS[preset]()
    assert max(config.denoiser.prefix_layers) < config.transformer.depth - 1


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"heads": 3}, "heads 3 is not a multiple of kv_heads 2"),
        ("transformer", {"kv_heads": 0}, "kv_heads is 0, expected 1 or more"),
        ("transformer", {"head_width": 31}, "head_width 31 is odd"),
        ("vision", {"encoder": "clip"}, "'clip' is none of: lite0, patch, dual, conv, vq"),
        ("vision", {"image_size": 30}, "image_size 30 is not a multiple of stride 8"),
        ("vision", {"feature_width": 191}, "gives feature_width 192 at stride 8, not 191 at 8"),
        ("vision", {"encoder": "lite0"}, "gives feature_width 1280 at stride 32, not 192 at 8"),
        ("vision", {"blocks": (7,)}, "block 7 of encoder patch"),
        ("vision", {"words": 9}, "words 9 and word_tokens 0: both or neither"),
        ("image_tokens", {"kind": "tokens"}, "'tokens' are none of: patch, ae, vq"),
        ("image_tokens", {"codes": 9}, "codes is 9: kind 'vq' has 2 or more, the others 0"),
        ("sampler", {"top_k": 0}, "top_k 0"),
        ("image_tokens", {"patch": 5}, "image_size 32 is not a multiple of patch 5"),
        ("denoiser", {"heads": 3}, "width 128 is not a multiple of heads 3"),
        ("denoiser", {"prefix_layers": (0, 1)}, "depth 4 needs as many prefix_layers, not 2"),
        ("denoiser", {"prefix_layers": (0, 1, 2, -1)}, "cannot be negative"),
        ("sampler", {"num_inference_steps": 0}, "num_inference_steps is 0"),
        ("sampler", {"guidance_interval": (0.9, 0.1)}, "guidance_interval 0.9 to 0.1"),
        ("sampler", {"shift": 0.0}, "shift 0"),
    ],
)
def test_a_part_that_contradicts_itself_is_refused_with_both_numbers(part, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(getattr(PRESETS["micro"](), part), **changes)


def test_a_denoiser_that_reads_layers_which_are_not_there_is_refused():
    config = PRESETS["micro"]()
    with pytest.raises(ValueError, match="prefix layer 6 is beyond the transformer's 6 layers"):
        dataclasses.replace(config, denoiser=dataclasses.replace(config.denoiser, prefix_layers=(0, 1, 2, 6)))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema_version", 2, "schema_version is 2, this edgemm reads 1"),
        ("transformer.width", "128", "transformer.width: '128', expected a whole number"),
        ("transformer.heads", None, "transformer.heads: null"),
        ("transformer.colour", 1, "transformer.colour: unknown field"),
        ("denoiser", [], "denoiser: a list, expected an object"),
        ("denoiser.prefix_layers", [0, 1, 2, 2.5], "prefix_layers"),
        ("denoiser.heads", 3, "width 128 is not a multiple of heads 3"),
        ("background", [255, 255], "background: a list of 2, expected 3"),
        ("surprise", 1, "surprise: unknown field"),
        ("transformer.depth", 10**12, "transformer.depth is 1000000000000, expected 1000 at most"),
        ("vision.image_size", 10**12, "vision.image_size is 1000000000000, expected 8192 at most"),
        ("denoiser.prefix_layers", [0, 10**12], "denoiser.prefix_layers is 1000000000000, expected 16777216 at most"),
        ("denoiser.condition_width", 10**12, "denoiser.condition_width is 1000000000000"),
    ],
)
def test_a_damaged_config_names_file_and_field(tmp_path, path, value, message):
    document = copy.deepcopy(PRESETS["micro"]().to_json())
    *parents, name = path.split(".")
    inner = document
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    file = tmp_path / "config.json"
    file.write_text(json.dumps(document))
    with pytest.raises(CheckpointError) as refusal:
        ModelConfig.read(file)
    assert str(refusal.value).startswith(str(file))
    assert message in str(refusal.value)


@pytest.mark.parametrize("part", ["transformer", "vision", "image_tokens", "denoiser", "name"])
def test_a_config_without_a_part_is_refused_by_its_name(part):
    document = PRESETS["micro"]().to_json()
    del document[part]
    with pytest.raises(CheckpointError, match=f"{part}: missing"):
        ModelConfig.from_json(document)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not the JSON that was expected"), ("[]", "holds a list"), (None, "not found")]
)
def test_a_file_that_holds_no_config_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.read(tmp_path / "config.json")


def test_the_default_sampler_is_a_valid_one():
    assert SamplerConfig().guidance_interval == (0.0, 1.0)


def test_a_config_written_before_templates_were_the_bundles_still_opens(tmp_path):
    """`chat` once held image_close and stop_tokens, and none of what only foreign models need."""
    document = PRESETS["micro"]().to_json()
    seven = ("user", "assistant", "system")
    document["chat"] = {f"{role}_{side}": f"<{role} {side}>" for role in seven for side in ("open", "close")}
    document["chat"] |= {"system_default": "Be kind.", "image_close": "|", "stop_tokens": ["<stop>"]}
    del document["image_close"], document["stop_tokens"]
    config = ModelConfig.from_json(document)
    assert (config.chat.system_default, config.chat.user_open) == ("Be kind.", "<user open>")
    assert (config.image_close, config.stop_tokens) == ("|", ("<stop>",))
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_what_an_old_template_left_out_is_the_default():
    document = PRESETS["micro"]().to_json()
    document["chat"], document["draw"] = {"user_open": "<u>"}, {"close": "<c>"}
    config = ModelConfig.from_json(document)
    assert config.chat == dataclasses.replace(PRESETS["micro"]().chat, user_open="<u>")
    assert config.draw == dataclasses.replace(PRESETS["micro"]().draw, close="<c>")


@pytest.mark.parametrize("part", ["chat", "draw"])
def test_an_unknown_string_of_a_template_is_refused(part):
    document = PRESETS["micro"]().to_json()
    document[part]["colour"] = "red"
    with pytest.raises(CheckpointError, match=f"{part}.colour: unknown field"):
        ModelConfig.from_json(document)


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json")))
def test_shipped_configs_open_and_keep_their_strings(folder):
    document = json.loads((CHECKPOINTS / folder / "config.json").read_text(encoding="utf-8"))
    config = ModelConfig.read(CHECKPOINTS / folder / "config.json")
    told = dataclasses.asdict(config.chat) | {"image_close": config.image_close, "stop_tokens": [*config.stop_tokens]}
    assert told.items() >= document["chat"].items()
    assert dataclasses.asdict(config.draw).items() >= document["draw"].items()
