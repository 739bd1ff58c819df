"""Our transformer in a folder that transformers and bitsandbytes load: the same numbers, the same answers."""

from __future__ import annotations

import json

import pytest
import torch

from edgemm.cli.main import main
from edgemm.model import checkpoint
from edgemm.model.pretrained import load_transformer_weights
from edgemm.model.transformer import Transformer
from edgemm.quantize.bitsandbytes_folder import write_bitsandbytes
from edgemm.quantize.make import quantize
from edgemm.quantize.options import QuantizeOptions
from tests.export.nano import left_behind, random_nano

bitsandbytes = pytest.importorskip("bitsandbytes")
TEXT = "What a curious feeling! said Alice."


@pytest.fixture(scope="module")
def model():
    return random_nano()


@pytest.fixture(scope="module")
def source(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "nano"
    checkpoint.save(model, path)
    return path


@pytest.fixture(scope="module", params=["nf4", "int8"])
def written(request, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders") / request.param
    assert main(["quantize", str(source), "--bitsandbytes", request.param, "--output", str(folder)]) == 0
    return request.param, folder


def logits_of(transformer: Transformer, ids: torch.Tensor) -> torch.Tensor:
    hidden, _ = transformer(transformer.embed_tokens(ids), torch.arange(ids.shape[1])[None])
    return transformer.logits(hidden)


@torch.no_grad()
def test_transformers_loads_it_and_answers_alike(written, model):
    """What is left between them are the inputs of products, bfloat16's and LLM.int8's."""
    from transformers import AutoModelForCausalLM

    kind, folder = written
    library = AutoModelForCausalLM.from_pretrained(folder).eval()
    packed = bitsandbytes.nn.Linear4bit if kind == "nf4" else bitsandbytes.nn.Linear8bitLt
    assert sum(isinstance(part, packed) for part in library.modules()) == 2 * 7
    ours = Transformer(model.config.transformer)
    ours.load_state_dict(load_transformer_weights(str(folder), model.config.transformer))
    ids = torch.tensor([model.encode(TEXT)])
    found, wanted = library(ids).logits.float(), logits_of(ours, ids)
    noise = (found - wanted).square().mean() / wanted.square().mean()
    assert 10 * torch.log10(1 / noise) > 25
    float_ = logits_of(model.transformer, ids)
    coarse = (wanted - float_).square().mean() / float_.square().mean()
    assert coarse < (0.4 if kind == "nf4" else 0.01), "random weights make much of every step; another model is at 2"


def test_the_tokenizer_puts_our_template_around_messages(written, model):
    from transformers import AutoTokenizer

    from edgemm.model.prompts import read_prompt

    _, folder = written
    tokenizer = AutoTokenizer.from_pretrained(folder)
    talk = [{"role": "user", "content": TEXT}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
    assert list(ids) == read_prompt(model.config, model.tokenizer, TEXT, 0).input_ids.tolist()
    assert tokenizer.eos_token == model.config.stop_tokens[0]


def test_int8_codes_are_those_of_a_spec(model, tmp_path):
    """So a folder of LLM.int8 that is read and rounded again loses nothing."""
    write_bitsandbytes(model, tmp_path / "int8", "int8")
    again = random_nano()
    again.transformer.load_state_dict(load_transformer_weights(str(tmp_path / "int8"), model.config.transformer))
    name = "transformer.layers.1.mlp.up_proj"
    once, twice = (quantize(one, QuantizeOptions("w8a8", "fp16", "")) for one in (random_nano(), again))
    assert (once.tensors[f"{name}.codes"] == twice.tensors[f"{name}.codes"]).all()


def test_refusals(source, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "diary.txt").write_text("mine")
    command = ["quantize", str(source), "--bitsandbytes", "nf4"]
    for code, words, message in (
        (2, ["--output", str(tmp_path / "x"), "--draw", "int8"], "leave out --draw"),
        (3, ["--output", str(tmp_path / "there")], "exists already"),
        (3, ["--output", str(tmp_path / "there"), "--overwrite"], "exists and holds no model"),
    ):
        assert main([*command, *words]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert left_behind(tmp_path) == ["there"]


def test_config_says_what_transformers_needs(written):
    _, folder = written
    told = json.loads((folder / "config.json").read_text())
    assert told["quantization_config"]["quant_method"] == "bitsandbytes" and told["tie_word_embeddings"]
    assert left_behind(folder) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
