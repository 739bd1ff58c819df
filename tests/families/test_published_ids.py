"""Models that no library knows: over the corpus of export, prompts have the ids of their published code.

What that code does with strings is written again here, over transformers' tokenizer; its answers on real folders are
the recorded ones of each family's own test.  The tokenizer has merges, so that it matters what is tokenized together.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgemm.bundle.chat import chat_prompt
from edgemm.bundle.prompt import Tokenizer
from edgemm.families import bagel, janusflow, mobileo, showo2
from edgemm.families.chat_ids import conversations
from tests.families.golden import GOLDEN
from tests.families.tiny.words import tokenizer

SYSTEM = "You are a helpful assistant."
SPECIALS = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<image_placeholder>",
    "<begin_of_image>", "<end_of_image>", "[PAD]", "<image>", "<|vid_start|>", "<|vid_end|>",
)  # fmt: skip
IMAGE = "<image>\n"
COUNT = 5  # tokens of a picture


@pytest.fixture(scope="module")
def words():
    return tokenizer(list(SPECIALS), bos_token="<s>", eos_token="</s>")


def janusflow_says(words, talk):
    """VLChatProcessor: one string, each content stripped, an empty one ends its role; the placeholder's id becomes a
    picture, whose first token is the image's beginning."""
    first = talk[0].content if talk[0].role == "system" else janusflow.SYSTEM
    text, turns = first + "\n\n", [message for message in talk if message.role != "system"]
    for index, message in enumerate(turns):
        content = ("<image_placeholder>\n" * len(message.images) + message.content).strip()
        role = ("User", "Assistant")[index % 2]
        text += f"{role}: {content}" + ("\n\n", "</s>")[index % 2] if content else f"{role}:"
    ids = [words.bos_token_id, *words.encode(f"{text}Assistant:".strip(), add_special_tokens=False)]
    place, end = words.convert_tokens_to_ids(["<image_placeholder>", "<end_of_image>"])
    return [each for token in ids for each in ([-1] * COUNT + [end] if token == place else [token])]


def bagel_says(words, talk):
    """prepare_prompts and prepare_vit_images: every text and every picture is a block of its own."""
    start, end, first, last = words.convert_tokens_to_ids(list(SPECIALS[2:6]))
    ids = []
    for message in talk:
        ids += [first, *[-1] * COUNT, last] * len(message.images)
        ids += [start, *words.encode(message.content), end]
    return [*ids, start]


def showo2_says(words, talk):
    """inference_mmu.py: one turn, its pieces tokenized apart; the picture's row of time is one of its rows."""
    system = talk[0].content if talk[0].role == "system" else SYSTEM
    question = talk[-1]
    assert len(talk) <= 2 and len(question.images) <= 1
    start, first, last = words.convert_tokens_to_ids(["<|im_start|>", "<|vision_start|>", "<|vision_end|>"])
    before = words.encode(f"system\n{system}<|im_end|>") + words.encode("\n<|im_start|>user\n")
    seen = [first, *[-1] * COUNT, last] if question.images else []
    return [start, *before, *seen, *words.encode(question.content), *words.encode("\n<|im_start|>assistant\n")]


def mobileo_says(words, talk):
    """LLaVA's conversation of Qwen 2, cut at <image>; each piece tokenized apart."""
    system = talk[0].content if talk[0].role == "system" else SYSTEM
    text = f"<|im_start|>system\n{system}<|im_end|>\n"
    for message in talk:
        if message.role != "system":
            text += f"<|im_start|>{message.role}\n{IMAGE * len(message.images)}{message.content}"
            text += "<|im_end|>\n"
    pieces = [words.encode(piece) for piece in f"{text}<|im_start|>assistant\n".split("<image>")]
    return [token for index, piece in enumerate(pieces) for token in ([-1] * COUNT if index else []) + piece]


RULE = SimpleNamespace(size=8, fit="pad_cut", resample="bicubic", background=(0, 0, 0))
LOOPS = {
    "janusflow": lambda folder: janusflow._text_loop(folder, RULE, 1, COUNT),
    "bagel": lambda folder: bagel._text_loop(folder, 8, COUNT),
    "showo2": lambda folder: showo2._text_loop(folder, 8, COUNT),
    "mobileo": lambda folder: mobileo._text_loop(folder, 8, COUNT),
}
OTHERWISE = {  # where the published code has no answer that could be meant
    "janusflow": {
        "blanks around the system message",  # is a constant there
        "an earlier reply that is empty",  # ends the conversation there
        "a picture without a word",  # loses the line's end there
        "blanks around a question to a picture",  # only blanks after it are lost there
    },
}


@pytest.mark.parametrize("family", LOOPS)
def test_prompts_have_the_ids_of_the_published_code(family, words, tmp_path):
    if family == "janusflow":
        said = (GOLDEN / "janusflow" / "checkpoint" / "processor_config.json").read_text()
        (tmp_path / "processor_config.json").write_text(said.replace(": 16", f": {COUNT - 1}"))
    ids = words.backend_tokenizer.token_to_id
    folder = SimpleNamespace(tokenizer=words, folder=Path(tmp_path), stop_token_ids=(0,))
    folder.token_ids = lambda *marks: [ids(mark) for mark in marks]
    loop = LOOPS[family](folder)
    ours, count = Tokenizer("t", words.backend_tokenizer.to_str()), 0
    for kind, talk in conversations(loop.template.takes_system, pictures=True):
        if kind in OTHERWISE.get(family, ()):
            continue
        try:
            wanted = globals()[f"{family}_says"](words, talk)
        except AssertionError:
            continue
        prompt = chat_prompt(talk, loop, ours)
        found = np.where(prompt.image_index < 0, prompt.input_ids, -1).tolist()
        assert found == wanted, (kind, talk)
        count += 1
    assert count >= (15 if family == "showo2" else 30)
