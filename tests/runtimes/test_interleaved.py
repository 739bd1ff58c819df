"""Text and pictures in one reply: what stands between the marks is drawn, read back, and the reply goes on."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import decoders, models, pre_tokenizers

import edgemm
from edgemm.errors import UsageError
from edgemm.runtimes import kv_cache
from edgemm.runtimes.image_call import DenoiseProgress, ImageResult, Picture
from edgemm.runtimes.interleaved import InterleavedResult, MarkedText
from edgemm.runtimes.text_call import TextChunk
from tests.runtimes import tiny_bundle

GRAMMAR = 'start: "Here: <draw>" /[a-c]{4}/ "</draw>" /[a-z ]{6}/ "<draw>dd</draw>!"'


def test_marks_are_found_in_text_that_comes_in_pieces():
    marked, shown = MarkedText("<draw>"), []
    for piece in ("a < b <d", "r", "aw>red", " heart"):
        shown.append(marked.push(piece))
    assert ("".join(shown), marked.prompt, marked.flush()) == ("a < b ", "red heart", "")
    never = MarkedText("<draw>")
    assert never.push("a <dra") + never.flush() == "a <dra" and never.prompt is None


class TestWithTheLibrary:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("llguidance")

    def test_text_and_pictures_come_in_the_order_of_the_reply(self, model):
        drawing = {"seed": 7, "num_inference_steps": 2}
        *events, last = model.generate("hello", grammar=GRAMMAR, drawing=drawing)
        assert isinstance(last, InterleavedResult)
        kinds = [type(part).__name__ for part in last.parts]
        assert kinds == ["str", "Picture", "str", "Picture", "str"]
        assert last.finish_reason == "stop"
        assert last.text.startswith("Here: ") and last.text.endswith("!") and "draw" not in last.text
        assert last.prompts[1] == "dd" and len(last.prompts[0]) == 4
        for prompt, picture in zip(last.prompts, last.images):
            assert np.array_equal(picture.pixels, model.generate_image(prompt, **drawing).pixels)
        assert "".join(event.text for event in events if isinstance(event, TextChunk)) == last.text
        assert sum(isinstance(event, DenoiseProgress) for event in events) == 4
        assert sum(isinstance(event, ImageResult) for event in events) == 2

    def test_the_reply_goes_on_from_what_was_drawn(self, model):
        """Another picture, another continuation: its tokens really stand in the conversation."""
        grammar = 'start: "<draw>aa</draw>" /[a-z]{12}/'
        texts = {list(model.generate("hello", grammar=grammar, drawing={"seed": seed}))[-1].text for seed in range(4)}
        assert len(texts) > 1
        again = [list(model.generate("hello", grammar=grammar, drawing={"seed": 1}))[-1] for _ in range(2)]
        assert again[0].text == again[1].text

    def test_what_follows_a_picture_has_random_numbers_of_its_own(self, model):
        """Where every letter is as likely as the next, the same numbers would write the same word again."""
        grammar = 'start: "<draw>a</draw>" /[a-z]{24}/ "<draw>a</draw>" /[a-z]{24}/'
        how = {"grammar": grammar, "temperature": 100.0, "drawing": {"num_inference_steps": 1}}
        first, again = (list(model.generate("hello", seed=5, **how))[-1] for _ in range(2))
        one, other = (part for part in first.parts if isinstance(part, str))
        # Of 26 letters one in 26 is the same by chance: 7 of 24 or more once in 20,000 replies.
        assert sum(map(str.__eq__, one, other)) < 7
        assert first.text == again.text

    def test_a_result_tells_the_seed_that_makes_it_come_again(self, model):
        how = {
            "grammar": 'start: "<draw>a</draw>" /[a-z]{24}/',
            "temperature": 100.0,
            "drawing": {"num_inference_steps": 1},
        }
        *_, first = model.generate("hello", **how)
        *_, again = model.generate("hello", **how, seed=first.seed)
        assert (again.token_ids, again.seed) == (first.token_ids, first.seed)
        *_, likeliest = model.generate("hello", **how | {"temperature": 0.0})
        assert likeliest.seed is None

    def test_what_the_last_token_of_a_mark_says_behind_it_is_shown(self, tmp_path, monkeypatch):
        """Vocabularies have a ">." or a ">!": it ends the mark and goes on with the reply."""
        together = 255  # was half a letter, which no text here has

        def with_two_letters():
            alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:together]
            made = tiny_bundle.Tokenizer(
                models.BPE({letter: i for i, letter in enumerate([*alphabet, ">!"])}, merges=[(">", "!")])
            )
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            made.decoder = decoders.ByteLevel()
            made.add_special_tokens(list(tiny_bundle.SPECIALS))
            return made

        monkeypatch.setattr(tiny_bundle, "byte_tokenizer", with_two_letters)
        how = {"temperature": 100.0, "drawing": {"num_inference_steps": 1}}
        with edgemm.load(tiny_bundle.build(tmp_path / "tiny.bundle"), device="cpu", threads=1) as model:
            for behind, kinds in (("!", ["Picture", "str"]), ("! Yes", ["Picture", "str"]), ("!<draw>b</draw>!", None)):
                said = []
                for seed in range(4):
                    grammar = f'start: "<draw>a</draw>{behind}"'
                    *events, last = model.generate("hello", grammar=grammar, seed=seed, **how)
                    text = behind.replace("<draw>b</draw>", "")
                    assert (last.text, last.finish_reason) == (text, "stop")
                    assert "".join(event.text for event in events if isinstance(event, TextChunk)) == text
                    assert [type(part).__name__ for part in last.parts] == (kinds or ["Picture", "str"] * 2)
                    said.append(together in last.token_ids)
                assert any(said)
            cut = {
                tuple(list(model.generate("hello", grammar=grammar, seed=seed, stop=["!"], **how))[-1].parts[1:])
                for seed in range(4)
            }
            assert cut == {()}

    def test_at_most_so_many_pictures(self, model):
        last = list(model.generate("hello", grammar=GRAMMAR, max_images=1))[-1]
        assert (len(last.images), last.finish_reason) == (1, "length")

    def test_cancel_while_drawing_keeps_the_text_and_the_unfinished_picture(self, model):
        stream = model.generate("hello", grammar=GRAMMAR, drawing={"num_inference_steps": 20})
        for event in stream:
            if isinstance(event, DenoiseProgress):
                break
        model.cancel()
        last = list(stream)[-1]
        assert last.finish_reason == "cancelled"
        assert last.text == "Here: " and isinstance(last.parts[1], Picture)


def test_a_reply_without_marks_is_only_text(model):
    last = list(model.generate("hello", max_new_tokens=8))[-1]
    plain = model.generate_text("hello", max_new_tokens=8)
    assert (last.text, last.token_ids, last.finish_reason) == (plain.text, plain.token_ids, plain.finish_reason)


def test_options_are_checked_before_anything_is_written(model):
    with pytest.raises(UsageError, match="num_inference_steps is 0"):
        model.generate("hello", drawing={"num_inference_steps": 0})
    with pytest.raises(UsageError, match="num_images is 3, a reply takes one picture at each of its places"):
        model.generate("hello", drawing={"num_images": 3})
    with pytest.raises(UsageError, match=r"give it to generate\(\) itself"):
        model.generate("hello", drawing={"timeout_s": 1.0})
    with pytest.raises(UsageError, match="two different strings"):
        model.generate("hello", draw_marks=("<x>", "<x>"))


def test_a_long_prompt_is_read_in_pieces_between_which_others_may_work(model, monkeypatch):
    """An empty chunk after each piece but the last; and the reply of a prompt that is read at once."""
    messages = [{"role": "user", "content": "y" * 560, "images": [np.zeros((8, 8, 3), dtype=np.uint8)]}]
    options = {"max_new_tokens": 9, "repetition_penalty": 1.5}
    *events, last = model.generate(messages, **options)
    assert [event.token_ids for event in events[:2]] == [(), ()] and events[2].token_ids
    monkeypatch.setattr(kv_cache, "PIECE", 10_000)
    *events, whole = model.generate(messages, **options)
    assert events[0].token_ids and (last.text, last.token_ids) == (whole.text, whole.token_ids)
