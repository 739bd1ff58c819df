"""A cut vocabulary: the tokenizers library says which tokens a text has, transformers and torch what they compute."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, processors

from edgemm.errors import CheckpointError, InputError, UsageError
from edgemm.model import checkpoint
from edgemm.model.vocabulary import cut_tokenizer, cut_vocabulary, with_tokens_of
from edgemm.quantize.calibration import shipped_text
from tests.model.tiny import tokens_of
from tests.model.tiny_codes import random_codes
from tests.model.tiny_words import SIZE, trained, worded


@pytest.fixture(scope="module", params=["bytes", "characters", "whole words first", "merges as strings"])
def document(request) -> dict[str, Any]:
    found = json.loads(trained(request.param != "characters").to_str())
    found["model"]["ignore_merges"] = request.param == "whole words first"
    if request.param == "merges as strings":
        found["model"]["merges"] = [" ".join(pair) for pair in found["model"]["merges"]]
    return found


def loaded(document: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(document))


def texts(count: int) -> list[str]:
    """Of another book than the vocabulary's, some words each, and what no book has."""
    words, chance = shipped_text("evaluation.txt").split(), random.Random(0)
    pieces = [
        words[start : start + chance.randint(1, 6)] for start in (chance.randrange(len(words)) for _ in range(count))
    ]
    return [" ".join(piece) for piece in pieces] + ["a\tb\n\n", "Ünïcödé 漢字 🦊", "", "   ", "xqzjkw" * 5]


def test_a_text_whose_tokens_all_stay_has_the_same_tokens(document):
    before = loaded(document)
    needed = {token for text in texts(40) for token in before.encode(text).ids}
    cut, kept = cut_tokenizer(document, needed, SIZE - 200)
    after = loaded(cut)
    assert len(kept) == after.get_vocab_size() == SIZE - 200
    assert [after.id_to_token(new) for new in range(len(kept))] == [before.id_to_token(old) for old in kept]
    alike = 0
    for text in texts(400):
        was = before.encode(text).tokens
        if {before.token_to_id(token) for token in was} <= set(kept):
            assert after.encode(text).tokens == was
            alike += 1
        assert after.decode(after.encode(text).ids) == before.decode(before.encode(text).ids)
    assert 45 < alike < 400, "both kinds of text were seen"


def test_what_is_left_is_what_was_merged_first(document):
    _, kept = cut_tokenizer(document, (), SIZE - 300)
    words = {number: word for word, number in document["model"]["vocab"].items()}
    made = {"".join(pair if isinstance(pair, list) else pair.split(" ")) for pair in document["model"]["merges"]}
    places = [number for number, word in words.items() if word in made]
    assert [number for number in kept if words[number] in made] == sorted(places)[:-300]


def test_tokens_around_a_text_keep_their_meaning(document):
    tokenizer = loaded(document)
    start = tokenizer.token_to_id("<|im_start|>")
    tokenizer.add_special_tokens([AddedToken("<late>", special=True)])  # behind the vocabulary, and in none
    late = tokenizer.token_to_id("<late>")
    tokenizer.post_processor = processors.Sequence([
        processors.TemplateProcessing(
            single="<|im_start|> $A <late>", special_tokens=[("<|im_start|>", start), ("<late>", late)]
        ),
    ])  # fmt: skip
    cut, kept = cut_tokenizer(json.loads(tokenizer.to_str()), (), SIZE - 300)
    assert kept[-1] == late
    tokens = loaded(cut).encode("<late> a").tokens
    assert (tokens[0], tokens[1], tokens[-1]) == ("<|im_start|>", "<late>", "<late>")


@pytest.mark.parametrize("size", [100, SIZE, 2 * SIZE])
def test_a_size_that_cannot_be_is_refused_with_those_that_can(document, size):
    with pytest.raises(UsageError, match=rf"a vocabulary of {size} tokens: expected \d+.* to {SIZE - 1}"):
        cut_tokenizer(document, (), size)


def test_where_every_token_is_needed_nothing_can_be_cut(document):
    with pytest.raises(UsageError, match=f"need all {SIZE} tokens that there are: nothing can be cut"):
        cut_tokenizer(document, range(SIZE), SIZE - 1)


def test_another_kind_of_tokenizer_is_refused():
    pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(InputError, match="its model is WordPiece, and only byte pairs"):
        cut_tokenizer(json.loads(pieces.to_str()), (), 1)


def test_tokens_that_are_not_their_parts_in_a_row_are_refused(document):
    marked = {**document, "model": document["model"] | {"continuing_subword_prefix": "##"}}
    with pytest.raises(InputError, match="tokens inside of words begin with '##'"):
        cut_tokenizer(marked, (), SIZE - 100)


@pytest.mark.parametrize("experts", ["mot", "dense"])
def test_a_cut_model_draws_and_reads_as_before(experts):
    model = worded(experts=experts)
    asked = "What is this?"
    needed = {*model.encode(asked), *model.encode(" a red circle"), *model.encode("user\n"), *model.encode("Draw")}
    needed |= {*model.encode("assistant\n"), *model.encode("\n")}
    small = cut_vocabulary(model, needed, 500)
    assert small.config.transformer.vocab_size == 500
    noise = tokens_of(model, 1)
    assert torch.equal(small.draw(["a red circle"], noise), model.draw(["a red circle"], noise))
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    _, wanted = model.generate(asked, pixels, 1, stop=False)
    _, found = small.generate(asked, pixels, 1, stop=False)
    _, kept = cut_tokenizer(json.loads(model.tokenizer_json), needed, 500)
    torch.testing.assert_close(found, wanted[:, kept], rtol=1e-5, atol=1e-5)


def test_codes_of_pictures_stand_behind_a_vocabulary_that_cannot_be_cut():
    with pytest.raises(InputError, match="codes of pictures stand behind its vocabulary"):
        cut_vocabulary(random_codes(), (), 300)


def test_a_base_lends_the_rows_that_are_left(tmp_path):
    """The base is not stored again: tokenizer.json says which of its rows the checkpoint has."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model, base = worded(), tmp_path / "base"
    shape = model.config.transformer
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SIZE, hidden_size=shape.width, num_hidden_layers=shape.depth, num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads, head_dim=shape.head_width, intermediate_size=shape.ffn_width,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta}, rms_norm_eps=shape.norm_eps,
            tie_word_embeddings=True,
        )
    ).save_pretrained(base)  # fmt: skip
    (base / "tokenizer.json").write_text(model.tokenizer_json)
    small = cut_vocabulary(checkpoint.build(dataclasses.replace(model.config, base=str(base))), (), SIZE - 300)
    checkpoint.save(small, tmp_path / "small")
    again = checkpoint.load(tmp_path / "small")
    assert not any(name.startswith("transformer.") for name in checkpoint.stored_state(again))
    for name, tensor in small.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    changed = json.loads((tmp_path / "small" / "tokenizer.json").read_text())
    words = changed["model"]["vocab"]
    words["no word"] = words.pop(max(words, key=words.__getitem__))
    changed["model"]["merges"] = []
    (tmp_path / "small" / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match=r"base: has no token 'no word', which tokenizer.json has"):
        checkpoint.load(tmp_path / "small")


def test_a_teacher_takes_the_words_of_its_student():
    model = worded()
    small = cut_vocabulary(model, (), SIZE - 300)
    same = with_tokens_of(model, small)
    assert same.tokenizer_json == small.tokenizer_json
    assert torch.equal(same.transformer.embed_tokens.weight, small.transformer.embed_tokens.weight)
    assert with_tokens_of(model, model) is model
    with pytest.raises(CheckpointError, match="has no token"):
        with_tokens_of(small, model)
