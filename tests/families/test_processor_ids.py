"""Prompts of Qwen3-VL and Cosmos3 have the ids of the library's processor, recorded (tiny/record_ids.py)."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgemm.bundle.chat import Message, chat_prompt
from edgemm.bundle.prompt import Tokenizer
from edgemm.families import qwen3_vl
from edgemm.families.folder import find_foreign
from edgemm.families.hf_checkpoint import open_checkpoint
from tests.families.golden import GOLDEN
from tests.families.tiny.folders import write_folder
from tests.heard import hearing

RECORDED = json.loads((GOLDEN / "processor_ids.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("kind", "cosmos"), [("qwen3_vl", False), ("cosmos3_omni", True)])
def test_every_conversation_has_the_processors_ids(kind, cosmos, tmp_path):
    folder = write_folder("qwen3_vl", tmp_path / "folder", cosmos=cosmos)
    text = json.dumps(RECORDED["tokenizer"])  # that of then, whatever the library trains today
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    found = find_foreign(folder)
    assert found
    with hearing() as heard:
        loop = qwen3_vl.parts(open_checkpoint(found)).text
    assert loop and "read otherwise" not in str(heard.lines)
    ours, pictured = Tokenizer("tokenizer.json", text), 0
    for messages, wanted in RECORDED[kind]:
        talk = [Message(role, content, (None,) * count) for role, content, count in messages]
        prompt = chat_prompt(talk, loop, ours)
        assert np.where(prompt.image_index < 0, prompt.input_ids, -1).tolist() == wanted, talk
        pictured += -1 in wanted
    assert len(RECORDED[kind]) >= 50 and pictured >= 15
