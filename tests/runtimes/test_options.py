"""The options of text and pictures: one list of names, wherever they are said."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgemm.cli import chat, draw
from edgemm.cli.main import Parser, main
from edgemm.errors import UsageError
from edgemm.options import flag_of, from_keywords, options_of, options_table
from edgemm.runtimes.image_call import DrawingKeywords, DrawingOptions
from edgemm.runtimes.text_call import TextKeywords, TextOptions

PAGE = Path(__file__).resolve().parents[2] / "docs" / "embedding.md"
BOTH = [(TextOptions, TextKeywords, chat), (DrawingOptions, DrawingKeywords, draw)]


@pytest.mark.parametrize(("options", "keywords", "verb"), BOTH)
def test_what_type_checkers_see_is_the_dataclass(options, keywords, verb):
    seen = {name: hint.__forward_arg__ for name, hint in keywords.__annotations__.items()}
    assert seen == {field.name: field.type for field in dataclasses.fields(options)}
    assert not keywords.__required_keys__


@pytest.mark.parametrize(("options", "keywords", "verb"), BOTH)
def test_the_docs_have_every_option(options, keywords, verb):
    """To mend: put what edgemm.options.options_table gives between the two marks."""
    table = re.search(rf"<!-- {options.__name__} -->\n(.*?)\n?<!-- end -->", PAGE.read_text(encoding="utf-8"), re.S)
    assert table and table.group(1) == options_table(options)


@pytest.mark.parametrize(("options", "keywords", "verb"), BOTH)
def test_a_verb_has_a_flag_for_every_option(options, keywords, verb):
    parser = Parser()
    verb.add_arguments(parser)
    known = {flag for action in parser._actions for flag in action.option_strings}
    wanted = {flag_of(name, said) for name, (_, said) in options_of(options).items()} - {None}
    assert len(wanted) > 9 and wanted <= known


def call(model, function, **options):
    made = {
        "generate_text": lambda: model.generate_text("x", **options),
        "stream_text": lambda: model.stream_text("x", **options),
        "generate_texts": lambda: model.generate_texts(["x"], **options),
        "generate": lambda: model.generate("x", **options),
        "generate_image": lambda: model.generate_image("x", **options),
        "stream_image": lambda: model.stream_image("x", **options),
        "session.generate_text": lambda: model.session().generate_text("x", **options),
        "session.stream_text": lambda: model.session().stream_text("x", **options),
    }
    return made[function]()


@pytest.mark.parametrize(
    ("function", "wrong", "right"),
    [
        ("generate_text", "max_tokens", "max_new_tokens"),
        ("stream_text", "image", "images"),
        ("generate_texts", "temprature", "temperature"),
        ("generate", "max_image", "max_images"),
        ("generate_image", "steps", None),
        ("stream_image", "inference_steps", "num_inference_steps"),
        ("session.generate_text", "topk", "top_k"),
        ("session.stream_text", "timeout", "timeout_s"),
    ],
)
def test_a_wrong_name_says_who_was_called_and_what_was_meant(model, function, wrong, right):
    hint = f"; did you mean {right!r}?" if right else "; it has: num_inference_steps, guidance_scale, "
    with pytest.raises(UsageError) as told:
        call(model, function, **{wrong: 1})
    assert str(told.value).startswith(f"{function.rpartition('.')[2]}() has no option {wrong!r}{hint}")


def test_a_wrong_name_for_pictures_inside_of_a_reply_is_told_as_such(model):
    with pytest.raises(UsageError, match=r"^generate\(drawing=...\) has no option 'sed'; did you mean 'seed'\?$"):
        model.generate("x", drawing={"sed": 1})


@pytest.mark.parametrize(
    "function", ["generate_text", "stream_text", "session.generate_text", "session.stream_text", "generate_texts"]
)
def test_an_old_name_warns_at_the_line_of_the_call(model, function):
    with pytest.warns(DeprecationWarning, match="'guess_ahead' is now 'prompt_lookup_num_tokens'") as told:
        call(model, function, guess_ahead=0, max_new_tokens=1)
    assert told[0].filename == __file__


def test_an_old_flag_still_works(bundle_path, capsys):
    words = ["chat", str(bundle_path), "--device", "cpu", "--prompt", "hello", "--max-new-tokens", "3"]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert main([*words, "--guess-ahead", "0"]) == 0
    printed = capsys.readouterr()
    assert printed.out == plain
    assert printed.err == "edgemm: --guess-ahead is now --prompt-lookup-num-tokens\n"


@pytest.mark.parametrize("verb", ["chat", "draw"])
def test_flags_are_known_without_numpy(verb):
    code = (
        f"import sys; from edgemm.cli.main import main; main([{verb!r}, '--help']); assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(("name", "value"), [("top_k", 5), ("top_p", 0.9), ("min_p", 0.1)])
def test_what_narrows_a_choice_that_is_not_made_is_refused(model, name, value):
    with pytest.raises(UsageError, match=f"{name} is {value}, and without a temperature the likeliest token is taken"):
        model.generate_text("x", **{name: value}, max_new_tokens=2)
    likeliest = model.generate_text("x", max_new_tokens=2)
    for more in ({"temperature": 0.0, name: value}, {"top_p": 1.0, "min_p": 0.0}):
        again = model.generate_text("x", max_new_tokens=2, **more)
        assert (again.token_ids, again.seed) == (likeliest.token_ids, None)


def test_what_is_not_given_stays_as_it_was_also_beside_an_old_name():
    before = TextOptions(max_new_tokens=7, prompt_lookup_num_tokens=2)
    with pytest.warns(DeprecationWarning, match="guess_ahead"):
        after = from_keywords(TextOptions, "ask()", {"guess_ahead": 5}, over=before)
    assert after == TextOptions(max_new_tokens=7, prompt_lookup_num_tokens=5)
