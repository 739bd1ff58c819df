"""`edgemm trim`: a checkpoint with fewer words, which goes on learning from a teacher that knows more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from edgemm.cli.main import main
from edgemm.data.format import read_dataset
from edgemm.families.folder import find_foreign
from edgemm.model import checkpoint
from edgemm.train.distill import distill
from edgemm.verify.export_foreign import export_foreign
from tests.families.tiny.llama import folder as llama
from tests.families.tiny.llava import folder as llava
from tests.families.tiny.words import SPOKEN
from tests.model.tiny_words import SIZE, worded
from tests.train.conftest import EMOJI
from tests.train.test_distill import settings


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "whole"
    checkpoint.save(worded(2 * SIZE), folder, torch.bfloat16)
    return folder


def trim(*words: object) -> int:
    return main(["trim", *map(str, words)])


def test_the_verb_keeps_what_datasets_say(whole, tmp_path, capsys, shapes):
    """Every word of a caption and an answer stays as many tokens as it was."""
    assert trim(whole, "--vocabulary", 1600, "--output", tmp_path / "small", "--text", shapes) == 0
    model, small = checkpoint.load(whole), checkpoint.load(tmp_path / "small")
    assert (len(small.tokenizer), small.config.name) == (1600, "small")
    assert load_file(tmp_path / "small" / "model.safetensors")["denoiser.position"].dtype == torch.bfloat16
    dataset = read_dataset(shapes)
    said = [caption for sample in dataset.samples for caption in sample.captions] + [
        q.answer for q in dataset.questions
    ]
    assert all(len(small.encode(text)) == len(model.encode(text)) for text in said)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--vocabulary", 1600, "--text", "none"], 3, "none: no such file or dataset folder"),
        (["--vocabulary", 300], 2, "a vocabulary of 300 tokens: expected"),
    ],
)
def test_what_cannot_be_is_one_line(whole, tmp_path, capsys, flags, code, said):
    assert trim(whole, *flags, "--output", tmp_path / "small") == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_a_student_with_fewer_words_learns_from_a_teacher_with_more(whole, tmp_path):
    assert trim(whole, "--vocabulary", 1600, "--output", tmp_path / "small", "--text", EMOJI) == 0
    distill(settings(whole, tmp_path / "run", student=tmp_path / "small", parts="denoiser", steps=1, warmup=0))
    before, after = (checkpoint.load(folder) for folder in (tmp_path / "small", tmp_path / "run" / "checkpoint"))
    assert after.tokenizer_json == before.tokenizer_json


@pytest.mark.parametrize("chat", [True, False], ids=["tied, with a template", "untied, blanks as letters"])
def test_a_text_models_folder_is_cut_and_goes_on_as_the_library_has_it(tmp_path, chat):
    """Rows behind the tokenizer go, ids in the configs follow, and the same text has the same logits."""
    folder = llama(tmp_path / "whole", chat=chat, num_hidden_layers=1)
    (folder / "LICENSE").write_text("as it is")
    words = AutoTokenizer.from_pretrained(folder)
    size = len(words) - 10
    banned = [[len(words) - 1], [len(words) - 1, len(words) - 2]]  # the last ones: others go, and they move
    GenerationConfig(bad_words_ids=banned, eos_token_id=[words.eos_token_id]).save_pretrained(folder)
    (tmp_path / "page.txt").write_text(SPOKEN[0])
    assert trim(folder, "--vocabulary", size, "--output", tmp_path / "small", "--text", tmp_path / "page.txt") == 0
    fewer, config = AutoTokenizer.from_pretrained(tmp_path / "small"), AutoConfig.from_pretrained(tmp_path / "small")
    assert len(fewer) == config.vocab_size == size and (tmp_path / "small" / "LICENSE").read_text() == "as it is"
    assert fewer.convert_ids_to_tokens(config.eos_token_id) == words.eos_token
    assert fewer.tokenize(SPOKEN[0]) == words.tokenize(SPOKEN[0])
    kept = GenerationConfig.from_pretrained(tmp_path / "small").bad_words_ids
    assert kept != banned
    assert list(map(fewer.convert_ids_to_tokens, kept)) == list(map(words.convert_ids_to_tokens, banned))
    models = [LlamaForCausalLM.from_pretrained(place).eval() for place in (folder, tmp_path / "small")]
    rows = [words.convert_tokens_to_ids(token) for token in fewer.convert_ids_to_tokens(range(size))]
    with torch.no_grad():
        before, after = (
            model(torch.tensor([one(SPOKEN[0])["input_ids"]])).logits[0]
            for model, one in zip(models, (words, fewer), strict=True)
        )
    torch.testing.assert_close(after, before[:, rows], rtol=1e-5, atol=1e-5)
    if chat:
        found = find_foreign(tmp_path / "small")
        assert found is not None
        export_foreign(found, tmp_path / "small.bundle", precision="int8")


def test_what_is_no_plain_text_model_is_refused(tmp_path, capsys):
    assert trim(llava(tmp_path / "llava"), "--vocabulary", 300, "--output", tmp_path / "small") == 3
    assert "holds LlavaForConditionalGeneration; vocabularies are cut of plain" in capsys.readouterr().err
