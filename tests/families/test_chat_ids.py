"""Prompt ids are those of the folder's own tokenizer and template, or what differs is told: the library is asked."""

from __future__ import annotations

import dataclasses
import faulthandler
import os
import re
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.bundle.manifest import TextLoop
from edgemm.bundle.prompt import Tokenizer
from edgemm.errors import CheckpointError
from edgemm.families import hf_checkpoint
from edgemm.families.chat_ids import as_the_library_reads, conversations
from edgemm.families.folder import find_foreign
from edgemm.families.hf_checkpoint import literal, open_checkpoint
from edgemm.families.llama import _strings as strings_of
from tests.families.tiny.folders import write_folder
from tests.families.tiny.words import CORPUS, tokenizer, unspaced
from tests.heard import hearing

CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
QWEN3 = (  # earlier replies lose their thoughts, and the newlines after them
    "{%- for m in messages %}{%- set content = m.content %}"
    "{%- if m.role == 'assistant' and '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
R1 = (
    "{{ bos_token }}{%- for m in messages %}"
    "{%- if m.role == 'system' %}{{ m.content }}{%- elif m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{%- else %}{% set content = m.content %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + content + '<|end|>' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{ '<|Assistant|>' }}{%- endif %}"
)
LLAMA2 = (  # blanks around [INST] are the template's own, those of a message are lost
    "{%- for m in messages %}{%- if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{%- elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}"
    "{%- else %}{{ raise_exception('no system') }}{%- endif %}{%- endfor %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- set date = strftime_now('%d %b %Y') %}"
    "{{- '<|start|>system<|end|>Today: ' + date + '\\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content | trim }}"
    "{%- set messages = messages[1:] %}{%- endif %}"
    "{{- '<|eot|>' }}{%- for m in messages %}{{- '<|start|>' + m.role + '<|end|>\\n' + m.content | trim + '<|eot|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n' }}{%- endif %}"
)
UPPER = CHATML.replace("m.content", "m.content | upper")  # what no string can say


def first_blank(**named):
    """As Mistral's newer files: Metaspace puts a blank before the first word alone; <s> is added after."""
    inner = Inner(models.BPE(unk_token="<unk>", byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    every = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    inner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=every, show_progress=False))
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", **named)


def byte_level(template):
    specials = ["<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>", "<|end|>", "<|start|>", "<|eot|>", "<s>"]
    return tokenizer(specials, ["<think>", "</think>"], bos_token="<s>", eos_token="<|end|>", chat_template=template)


FOLDERS = {
    "chatml": lambda: byte_level(CHATML),
    "qwen3": lambda: byte_level(QWEN3),
    "r1": lambda: byte_level(R1),
    "llama3": lambda: byte_level(LLAMA3),
    "llama2": lambda: unspaced([], chat_template=LLAMA2),
    "llama2, metaspace": lambda: first_blank(chat_template=LLAMA2),
    "no template, prepend": lambda: unspaced([]),
    "no template, metaspace": lambda: first_blank(),
}


def read(library):
    """The loop, our tokenizer, and what export said."""
    folder = SimpleNamespace(
        tokenizer=library,
        tokenizer_json=library.backend_tokenizer.to_str().encode(),
        folder=Path("folder"),
    )
    found = strings_of(folder)
    loop = TextLoop(found.template, "", 1, 1, (255, 255, 255), (0,), joined=True, strip=found.strip)
    with hearing() as heard:
        loop = as_the_library_reads(folder, loop, library)
    return loop, Tokenizer("tokenizer.json", folder.tokenizer_json.decode()), heard


def theirs(library, talk):
    plain = [{"role": message.role, "content": message.content} for message in talk]
    if not library.chat_template:
        return library(plain[0]["content"])["input_ids"]
    return library.apply_chat_template(plain, add_generation_prompt=True)["input_ids"]


@pytest.mark.parametrize("name", FOLDERS)
def test_every_conversation_has_the_librarys_ids(name):
    library = FOLDERS[name]()
    loop, ours, _ = read(library)
    count = 0
    for kind, talk in conversations(loop.template.takes_system):
        if not library.chat_template and len(talk) > 1:
            continue
        wanted = theirs(library, talk)
        assert chat_prompt(talk, loop, ours).input_ids.tolist() == list(wanted), (kind, talk)
        count += 1
    assert count >= 10


def test_the_blank_before_the_first_word_is_there_though_the_first_token_is_added():
    library = first_blank()
    loop, ours, _ = read(library)
    assert loop.adds_special
    found = chat_prompt(as_messages("x"), loop, ours).input_ids.tolist()
    assert found == library("x")["input_ids"] and len(found) > 2  # <s>, the blank, x
    whole = Tokenizer("t", ours._inner.to_str()).encode("<s>x", special=True)
    assert whole != found  # what it was


def test_a_special_token_that_a_user_spells_stays_text_where_the_tokenizer_adds_the_first():
    library = first_blank()
    loop, ours, _ = read(library)
    ids = chat_prompt(as_messages("end</s>"), loop, ours).input_ids.tolist()
    assert ids[0] == 1 and ids.count(1) == 1 and library.eos_token_id not in ids
    assert len(ids) > len(chat_prompt(as_messages("end"), loop, ours))


@pytest.mark.slow
def test_a_date_that_is_frozen_is_told():
    *_, heard = read(byte_level(LLAMA3))
    assert re.search(r"says the date of the day; .*export, \d{4}-\d\d-\d\d", str(heard.lines))
    *_, heard = read(byte_level(CHATML))
    assert "date" not in str(heard.lines)


def test_what_no_string_can_say_is_refused():
    with pytest.raises(CheckpointError, match=r"folder: its (library|chat template)"):
        read(byte_level(UPPER))


def test_what_differs_in_an_odd_case_alone_is_told():
    """Only the system message loses its blanks."""
    template = CHATML.replace("m.content", "(m.content | trim if m.role == 'system' else m.content)")
    loop, _, heard = read(byte_level(template))
    assert "read otherwise than by the library: blanks around the system message" in str(heard.lines)
    assert not loop.strip


def test_without_the_rule_the_thoughts_would_be_read_again():
    """Or the tests above say nothing about it."""
    library = byte_level(QWEN3)
    loop, ours, _ = read(library)
    assert (loop.thoughts_end, loop.thoughts_blank) == ("</think>", "\n")
    talk = next(talk for kind, talk in conversations(False) if kind.startswith("thoughts"))
    keeps = dataclasses.replace(loop, thoughts_end="")
    assert len(chat_prompt(talk, keeps, ours)) > len(theirs(library, talk))


PICTURED = {  # family -> how many of the conversations its library reads at all
    "llava": 40,
    "janus": 40,
    "emu3": 40,
    "chameleon": 15,  # one question; without a chat template there are no turns
    "fuyu": 9,  # one question about one picture
}
TOLD = {("fuyu", "a picture without a word")}  # what these strings cannot say


def shown_to(processor, talk, side):
    """The library's ids, as its documentation asks for them, -1 where a picture is read."""
    shown = Image.new("RGB", (side, side), "red")
    if processor.chat_template:
        parts = [
            {
                "role": message.role,
                "content": [*[{"type": "image", "image": shown}] * len(message.images), text_part(message)],
            }
            for message in talk
        ]
        asked = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        ids = processor.apply_chat_template(parts, **asked)["input_ids"]
    else:
        [message] = talk
        count = len(message.images)
        if type(processor).__name__ == "FuyuProcessor":
            assert count == 1
            given = {"return_legacy_image_output": False, "images": shown, "text": message.content}
        else:
            given = {"images": [shown] * count or None, "text": processor.image_token * count + message.content}
        ids = processor(**given)["input_ids"]
    words = processor.tokenizer
    places = {words.convert_tokens_to_ids(processor.image_token), getattr(processor, "image_newline_id", None)}
    return [-1 if token in places else token for token in np.asarray(ids).reshape(-1).tolist()]


def text_part(message):
    return {"type": "text", "text": message.content}


@pytest.mark.parametrize("family", PICTURED)
def test_conversations_with_pictures_have_the_librarys_ids(family, tmp_path):
    found = find_foreign(write_folder(family, tmp_path / "folder"))
    checkpoint = open_checkpoint(found)
    with hearing() as heard:
        made = import_module(f"edgemm.families.{family}").parts(checkpoint)
    told = [line for line in heard.lines if "read otherwise" in line]
    assert len(told) == sum(name == family for name, _ in TOLD)
    loop, count = made.text, 0
    ours = Tokenizer("t", (made.tokenizer_json or checkpoint.tokenizer_json).decode())
    for kind, talk in conversations(loop.template.takes_system, pictures=True):
        try:
            wanted = shown_to(checkpoint.processor, talk, loop.image_size)
        except (AssertionError, ValueError):
            continue
        if (family, kind) in TOLD:
            assert kind in told[0]
            continue
        prompt = chat_prompt(talk, loop, ours)
        assert np.where(prompt.image_index < 0, prompt.input_ids, -1).tolist() == wanted, (kind, talk)
        count += 1
    assert count >= PICTURED[family]


@pytest.mark.parametrize("said", ["", "\n\n a\n", "a\"b'c {{ x }} {% endraw %} {# ", "\\n \0 \x1b é 😀"])
def test_what_a_template_said_is_said_again_without_it(said):
    """So that a stranger's template is run in a copy of the process alone."""
    library = PreTrainedTokenizerFast(tokenizer_object=Inner(models.BPE()), chat_template="{{ raise_exception(1) }}")
    talk = [{"role": "user", "content": "hi"}]
    assert library.apply_chat_template(talk, chat_template=literal(said), tokenize=False) == said


class Said:
    """A library's tokenizer, and what became of the process that ran its template."""

    def apply_chat_template(self, messages, **_):
        (message,) = messages
        if message == "dies":
            faulthandler.disable()
            os.abort()
        if message == "refuses":
            raise ValueError("no such role")
        return f"<{message}>"


@pytest.mark.parametrize(("words", "copies"), [("a refuses b", 1), ("a dies b", 1 + 3)])
def test_all_conversations_are_rendered_by_one_copy_and_who_dies_dies_alone(words, copies, monkeypatch):
    made, forked = [], hf_checkpoint.forked
    monkeypatch.setattr(hf_checkpoint, "forked", lambda *args: (made.append(args), forked(*args))[1])
    talks = [[word] for word in words.split()]
    first, bad, last = hf_checkpoint.rendered_each(Said(), talks, Path("folder"))
    assert (first, last, len(made)) == ("<a>", "<b>", copies)
    assert str(bad) == {"refuses": "no such role", "dies": "folder: its chat template: ended with SIGABRT"}[talks[1][0]]
