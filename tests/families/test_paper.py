"""Sizes on paper: published checkpoints, from their configs alone, beside the counts that their makers publish."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from transformers import ChameleonConfig, Emu3Config, JanusConfig, LlamaConfig, LlavaConfig, Qwen3VLConfig

from edgemm.cli.main import main
from edgemm.families.folder import find_foreign
from edgemm.families.paper import measure
from edgemm.model.config import PRESETS, DenoiserConfig, TransformerConfig

VOCABULARY = {"<image>": 4, "<|extra_200|>": 5}


def janus(width: int, ffn: int, depth: int, heads: int) -> JanusConfig:
    """Janus-Pro as published: SigLIP-L, a VQ tokenizer of 16,384 codes, and a DeepSeek-LLM in Llama's shape."""
    text = LlamaConfig(
        vocab_size=102_400,
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    joined = {"projection_dim": width}
    return JanusConfig(
        text_config=text.to_dict(),
        vision_config={"projection_dim": width},
        vq_config={**joined, "image_token_embed_dim": width},
        tie_word_embeddings=False,
    )


SMOL = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)

QWEN3_VL_8B = Qwen3VLConfig(
    text_config={
        "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
    },
    vision_config={"out_hidden_size": 4096},
)  # fmt: skip

PUBLISHED = {  # name -> config, architecture, parameters in billions as its maker counts, K/V numbers a token
    "smollm2-135m": (SMOL, "LlamaForCausalLM", 0.1345, 2 * 30 * 3 * 64),
    "llava-1.5-7b": (LlavaConfig(), "LlavaForConditionalGeneration", 7.06, 2 * 32 * 32 * 128),
    "janus-pro-1b": (janus(2048, 5632, 24, 16), "JanusForConditionalGeneration", 2.09, 2 * 24 * 16 * 128),
    "janus-pro-7b": (janus(4096, 11_008, 30, 32), "JanusForConditionalGeneration", 7.42, 2 * 30 * 32 * 128),
    "chameleon-7b": (
        ChameleonConfig(vocabulary_map=VOCABULARY),
        "ChameleonForConditionalGeneration",
        7.04,
        2 * 32 * 32 * 128,
    ),
    "emu3": (Emu3Config(vocabulary_map=VOCABULARY), "Emu3ForConditionalGeneration", 8.76, 2 * 32 * 8 * 128),
    "qwen3-vl-8b": (QWEN3_VL_8B, "Qwen3VLForConditionalGeneration", 8.77, 2 * 36 * 8 * 128),
}


def folder_of(path: Path, name: str) -> Path:
    config, architecture, *_ = PUBLISHED[name]
    folder = path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": [architecture]}))
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_cache_are_what_the_makers_publish(tmp_path, name):
    _, _, billions, kv_numbers = PUBLISHED[name]
    found = find_foreign(folder_of(tmp_path, name))
    assert found is not None
    paper = measure(found)
    assert paper.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert paper.kv_bytes() == 4 * kv_numbers
    assert paper.bundle_bytes("fp32") <= 4.04 * paper.parameters + 1
    assert paper.bundle_bytes("int4") < paper.bundle_bytes("int8") < paper.bundle_bytes("fp32")


def test_a_model_of_bagels_size_is_estimated_from_a_config_that_nobody_trained(tmp_path, capsys):
    """Two experts in the shape of Qwen2.5-7B (arXiv:2505.14683: 7 of 14 billion active), and adaLN beside."""
    width, depth, heads, ffn = 3584, 28, 28, 18_944
    micro = PRESETS["micro"]()
    config = dataclasses.replace(
        micro,
        name="bagel-size",
        transformer=TransformerConfig(152_064, width, depth, heads, 4, 128, ffn, max_context=32_768),
        vision=dataclasses.replace(micro.vision, hidden_width=width),
        denoiser=DenoiserConfig(width, depth, heads, ffn, tuple(range(depth)), 1024, 64, condition_width=1024),
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    assert main(["inspect", str(tmp_path), "--estimate", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    product = 3 * width * ffn
    assert told["components"]["transformer"] == pytest.approx(
        152_064 * width + depth * (2 * width * width + 2 * width * 512 + product), rel=0.001
    )
    assert 12.5e9 < told["parameters"] < 17e9 and told["kv_bytes_per_token"] == 4 * 2 * depth * 4 * 128


def test_inspect_estimates_a_folder_without_weights(tmp_path, capsys):
    folder = folder_of(tmp_path, "smollm2-135m")
    assert main(["inspect", str(folder), "--estimate"]) == 0
    assert "134.5M parameters" in capsys.readouterr().out
    assert main(["inspect", str(folder), "--estimate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kv_bytes_per_token"] == 46_080
    assert main(["inspect", str(tmp_path), "--estimate"]) == 3


def published_folder(name: str, path: Path) -> Path:
    """Those that PUBLISHED has not: configs of the recorded folders with published sizes in them, and no numbers."""
    from benchmarks import real_shapes
    from tests.families.golden import Cases

    recorded = Cases(name).folder / "checkpoint"
    if name in real_shapes.MODELS:
        real_shapes.on_paper = True
        try:
            real_shapes.MODELS[name](path / name, 1.0)
        finally:
            real_shapes.on_paper = False
        return path / name
    real_shapes.copied(recorded, path / name)
    text = {
        "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152_064,
    }  # fmt: skip
    vision = {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "patch_size": 14, "image_size": 980,
    }  # fmt: skip
    real_shapes.changed(path / name / "llm_config.json", text)
    real_shapes.changed(path / name / "vit_config.json", vision)
    return path / name


TABLE = {  # name -> parameters in billions
    "janusflow": 2.09 - 0.05,  # its autoencoder is published apart
    "bagel": 14.7,
    "cosmos3-edge": 4.05,
}
FAMILIES_PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"


@pytest.mark.parametrize("name", [*PUBLISHED, *TABLE])
def test_the_table_of_boards_in_the_docs_is_what_inspect_estimates(tmp_path, name):
    from edgemm.estimate.boards import BOARDS, rows_of

    folder = folder_of(tmp_path, name) if name in PUBLISHED else published_folder(name, tmp_path)
    found = find_foreign(folder)
    assert found is not None
    paper = measure(found)
    if name in TABLE:
        assert paper.parameters / 1e9 == pytest.approx(TABLE[name], rel=0.03)
    sizes = {row.precision: row for row in rows_of(paper)}
    smallest = {
        precision: next((board for board in BOARDS if row.fits(board)), "none") for precision, row in sizes.items()
    }
    four = sizes["int4"]
    drawing = "-" if four.drawing_gb is None else f"{four.drawing_gb:.1f}"
    line = (
        f"| {name} | {paper.parameters / 1e9:.1f} | {four.bundle_gb:.1f} | {four.reading_gb:.1f} | {drawing} | "
        f"{four.kv_gb:.2f} | {smallest['int4']} | {smallest['int8']} | {smallest['fp16']} |"
    )
    assert line in FAMILIES_PAGE.read_text(encoding="utf-8")
