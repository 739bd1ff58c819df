"""Folders of the five published families with one thing wrong: one line that names it, exit 3, before any tracing."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from edgemm.cli.main import main
from tests.families.golden import Cases

APART = {"janusflow": ("vae",), "showo2": ("llm", "clip", "vae"), "mobileo": ("sana",), "bagel": (), "cosmos3-edge": ()}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
GONE = object()
PIXELS, MODEL = "checkpoint/preprocessor_config.json", "checkpoint/config.json"


def say(path: str, *keys: str, value: object):
    """A setting of a JSON file changed."""

    def spoil(home: Path) -> None:
        document = json.loads((home / path).read_text())
        inner = document
        for key in keys[:-1]:
            inner = inner[key]
        inner.pop(keys[-1], None)
        if value is not GONE:
            inner[keys[-1]] = value
        (home / path).write_text(json.dumps(document))

    return spoil


def be(path: str, content: bytes | None):
    """A file with other content, or none."""

    def spoil(home: Path) -> None:
        (home / path).unlink() if content is None else (home / path).write_bytes(content)

    return spoil


def whole_numbers(path: str):
    """The first weight's numbers called whole ones."""

    def spoil(home: Path) -> None:
        raw = (home / path).read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        next(entry for name, entry in header.items() if name.endswith("proj.weight"))["dtype"] = "I16"
        new = json.dumps(header).encode()
        (home / path).write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + size :])

    return spoil


def lose(folder: str, token: str):
    """A special token of a tokenizer called otherwise, in all of its files."""

    def spoil(home: Path) -> None:
        for path in (home / folder).glob("*.json"):
            path.write_text(path.read_text().replace(token, "<|gone|>"))

    return spoil


FLOW = ("checkpoint/config.json", "vision_gen_enc_config", "params")
AUTOENCODER = "checkpoint/vae/config.json"
FAULTS = [
    ("janusflow", be("checkpoint/tokenizer.json", None), "no tokenizer; expected tokenizer.json"),
    ("janusflow", be("checkpoint/tokenizer.json", POINTER), "tokenizer.json: a Git-LFS pointer"),
    ("janusflow", be("checkpoint/config.json", b"[1, 2]"), "expected"),
    ("janusflow", be("vae/config.json", POINTER), "vae/config.json: a Git-LFS pointer"),
    ("janusflow", say(PIXELS, "image_std", value="half"), "image_std is 'half', expected 3 numbers"),
    ("janusflow", say(PIXELS, "image_std", value=[0.5]), "image_std is [0.5], expected 3 numbers"),
    ("janusflow", say(PIXELS, "image_std", value=[0, 0, 0]), "image_std is [0, 0, 0], which is divided by"),
    ("janusflow", say(PIXELS, "image_mean", value=GONE), "image_mean is None, expected 3 numbers"),
    ("janusflow", say(PIXELS, "background_color", value="grey"), "background_color is 'grey', expected 3 numbers"),
    ("janusflow", say(MODEL, "language_config", "max_position_embeddings", value=0), "reads 0 tokens at most"),
    ("janusflow", say(MODEL, "language_config", "rope_theta", value=0), "rope_theta is 0, expected a number above 0"),
    ("janusflow", say(PIXELS, "do_normalize", value=False), "do_normalize is False, this export knows True"),
    ("janusflow", say(PIXELS, "rescale_factor", value=1), "rescale_factor is 1, this export knows 0.0039"),
    ("janusflow", say(PIXELS, "min_size", value="small"), "min_size is 'small', expected a whole number"),
    ("janusflow", say(*FLOW, "stride", value=4), "stride is 4, this export knows 2"),
    ("janusflow", say(*FLOW, "norm_eps", value="wide"), "norm_eps is 'wide', expected a number above 0"),
    ("janusflow", say(*FLOW, "layers_in_middle", value=1), "is of a layer that its config does not count"),
    (
        "janusflow",
        say(MODEL, "language_config", "num_hidden_layers", value=2),
        "layers.2.input_layernorm.weight is of a",
    ),
    ("janusflow", say(MODEL, "vision_und_enc_config", "params", "select_layer", value=-2), "select_layer is -2"),
    ("janusflow", say("vae/config.json", "mid_block_add_attention", value=False), "mid_block.attentions.0"),
    ("janusflow", say("vae/config.json", "shift_factor", value=math.nan), "shift_factor nan"),
    ("janusflow", lose("checkpoint", "<begin_of_image>"), "its tokenizer has no '<begin_of_image>'"),
    ("mobileo", say("sana/transformer/config.json", "timestep_scale", value=0.5), "timestep_scale is 0.5"),
    ("mobileo", say("sana/transformer/config.json", "qk_norm", value="rms_norm"), "qk_norm is 'rms_norm'"),
    ("mobileo", say(MODEL, "image_aspect_ratio", value="anyres"), "image_aspect_ratio is 'anyres', this export knows"),
    ("mobileo", lose("checkpoint", "<|im_start|>"), "its tokenizer has no '<|im_start|>'"),
    (
        "mobileo",
        say("sana/vae/config.json", "scaling_factor", value="0.4"),
        "scaling_factor is '0.4'",
    ),
    ("mobileo", say("sana/vae/config.json", "latent_channels", value=5), "its config says (32, 5, 3, 3)"),
    ("showo2", be("checkpoint/config.json", POINTER), "config.json"),
    ("showo2", be("llm/tokenizer.json", POINTER), "llm/tokenizer.json: a Git-LFS pointer"),
    ("showo2", say(MODEL, "num_diffusion_layers", value=1), "diffusion_head_a.1.adaLN_modulation.1.bias is of a layer"),
    ("showo2", say(MODEL, "add_qk_norm", value=False), "add_qk_norm is False, this export knows True"),
    ("showo2", lose("llm", "<|vision_start|>"), "llm: its tokenizer has no '<|vision_start|>'"),
    ("bagel", lose("checkpoint", "<|vision_end|>"), "its tokenizer has no '<|vision_end|>'"),
    ("cosmos3-edge", say(MODEL, "text_config", value=GONE), "numbers by its config.json, and its weights hold 2"),
    ("cosmos3-edge", say(AUTOENCODER, "z_dim", value=7), "z_dim is 7, its weights have 6"),
    ("cosmos3-edge", say(AUTOENCODER, "dim_mult", value=[1, 2, 4, 4]), "dim_mult is [1, 2, 4, 4], its weights have [1"),
    (
        "cosmos3-edge",
        say(AUTOENCODER, "scale_factor_spatial", value=8),
        "scale_factor_spatial is 8, its weights have 16",
    ),
    (
        "cosmos3-edge",
        say(AUTOENCODER, "latents_std", value=[1] * 5),
        "latents_std is [1, 1, 1, 1, 1], expected 6 numbers",
    ),
    ("cosmos3-edge", lose("checkpoint/text_tokenizer", "<|video_pad|>"), "another vocabulary than that of"),
    ("cosmos3-edge", lose("checkpoint", "<|vision_start|>"), "its tokenizer has no '<|vision_start|>'"),
    ("bagel", be("checkpoint/config.json", b"[1, 2]"), "config.json"),
    ("bagel", whole_numbers("checkpoint/ema.safetensors"), "has whole numbers (int16), expected floats"),
    ("cosmos3-edge", be("checkpoint/config.json", b"[1, 2]"), "config.json"),
    ("cosmos3-edge", be("checkpoint/model.safetensors.index.json", None), "names those in folders below, such as tran"),
    ("cosmos3-edge", be("checkpoint/scheduler/scheduler_config.json", POINTER), "a Git-LFS pointer"),
]


@pytest.mark.parametrize(("family", "spoil", "message"), FAULTS)
def test_a_spoiled_folder_says_what_is_wrong_in_one_line(tmp_path, capsys, family, spoil, message):
    home = tmp_path / "home"
    shutil.copytree(Cases(family).folder, home, copy_function=shutil.copyfile)
    spoil(home)
    parts = [f"--component={name}={home / name}" for name in APART[family]]
    code = main(["export", str(home / "checkpoint"), "--output", str(home / "out.bundle"), *parts])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgemm: error")]
    assert (code, len(said)) == (3, 1) and message in said[0], said
    assert "a bug" not in said[0] and not (home / "out.bundle").exists()
