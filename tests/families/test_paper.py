"""Sizes on paper: published checkpoints, from their configs alone, beside the counts that their makers publish."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from transformers import ChameleonConfig, Emu3Config, JanusConfig, LlamaConfig, LlavaConfig, Qwen3VLConfig

from edgemm.cli.main import main
from edgemm.families.folder import Found, find_foreign
from edgemm.families.paper import measure
from edgemm.model.config import PRESETS, DenoiserConfig, TransformerConfig
from edgemm.model.pretrained import POINTER
from tests.families.golden import Cases

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


TABLE = {  # name -> parameters in billions, as makers count them or as shared/golden's notes do
    "janusflow": 2.05,  # its autoencoder is published apart
    "bagel": 14.7,
    "cosmos3-edge": 4.05,
    "cosmos3-omni": 16.2,  # Qwen3-VL-8B, a generator of the same layers and Wan 2.2's decoder
    "showo2": 3.1,  # Qwen2.5-1.5B with its head apart, ten layers of the second head, SigLIP, and Wan 2.1
    "mobileo": 1.51,  # without the autoencoder's encoder, which it never uses
}
APART = {"showo2": ("llm", "clip", "vae"), "mobileo": ("sana",)}


def test_inspect_is_told_of_parts_that_are_published_apart(tmp_path, capsys):
    found = published_folder("showo2", tmp_path)
    parts = [f"--component={name}={tmp_path / name}" for name in ("llm", "clip")]
    assert main(["inspect", str(found.folder), "--estimate", *parts]) == 0
    without = capsys.readouterr().out
    assert main(["inspect", str(found.folder), "--estimate", *parts, "--vae", str(tmp_path / "vae")]) == 0
    assert "image_decoder" in capsys.readouterr().out and "image_decoder" not in without
    assert main(["inspect", str(found.folder), "--estimate"]) == 3
    assert "--component llm=FOLDER" in capsys.readouterr().err
    assert main(["inspect", str(found.folder), *parts]) == 2


def published_folder(name: str, path: Path) -> Found:
    """Configs of the recorded folders with published sizes in them, and no numbers."""
    from benchmarks import published_shapes
    from tests.families.golden import Cases

    Cases(name)  # some are too large for this repository
    published_shapes.on_paper = True
    try:
        published_shapes.MODELS[name](path / name, 1.0)
    finally:
        published_shapes.on_paper = False
    found = find_foreign(path / name)
    assert found is not None
    return dataclasses.replace(found, others={part: path / part for part in APART.get(name, ())})


FAMILIES_PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"


@pytest.mark.parametrize("name", [*PUBLISHED, *TABLE])
def test_the_table_of_boards_in_the_docs_is_what_inspect_estimates(tmp_path, name):
    from edgemm.estimate.boards import BOARDS, rows_of

    found = find_foreign(folder_of(tmp_path, name)) if name in PUBLISHED else published_folder(name, tmp_path)
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


@pytest.mark.parametrize("name", ["janusflow", "bagel", "mobileo", "cosmos3-edge", "cosmos3-omni"])
@pytest.mark.parametrize("content", [POINTER, None])
def test_weights_that_nobody_fetched_are_not_missed_on_paper(tmp_path, capsys, name, content):
    home = tmp_path / "home"
    shutil.copytree(Cases(name).folder, home, copy_function=shutil.copyfile)
    words = [f"--component={part}={home / part}" for part in ("vae", "sana") if (home / part).is_dir()]

    def estimated():
        assert main(["inspect", str(home / "checkpoint"), "--estimate", "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)["components"]

    whole = estimated()
    for path in home.rglob("*.safetensors"):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    assert estimated().keys() == whole.keys()
    if name.startswith(("janusflow", "cosmos3")):  # all sizes are in configs
        assert estimated() == whole
