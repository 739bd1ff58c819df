"""Are the runtime's token ids the library's?  Tried over conversations at export, and not believed.

What a template's strings leave open (who adds the first token, which blanks are lost, what of an earlier reply is read
again) is settled by trying: the fields of the loop that give the folder's own ids most often are taken.  Plain
conversations have to be equal, with a picture and without; where only an odd kind of message differs, export says so in
a line.  A special token that a user spells out is no such kind: it is text here, and the token itself in the library.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from edgemm import progress
from edgemm.bundle.chat import Message, chat_prompt
from edgemm.bundle.manifest import TextLoop
from edgemm.bundle.prompt import Tokenizer
from edgemm.errors import CheckpointError, EdgemmError
from edgemm.families.chat_strings import added_around, says
from edgemm.families.hf_checkpoint import Checkpoint, literal, rendered_each

__all__ = ["LibraryIds", "as_the_library_reads", "conversations", "plain", "settle", "without_pictures"]

# Messages, as processors take them -> the whole prompt's, -1 where a picture is read
LibraryIds = Callable[[list[dict[str, Any]]], Sequence[int]]
PLAIN, SHOWN = "plain", "plain, with a picture"
PICTURE = -1
WORDS = (
    "What is the capital of France?",
    "x",
    "naïve café, 日本, \U0001f388 and \U0001f469‍\U0001f680",
    "שלום, مرحبا بالعالم",
    "one\ntwo\n\n    three = 1  # 2.50",
    "ꙮ \u0f3c \x07 a letter that few vocabularies have",
    "I am <b>bold</b> & {{ braces }}",
)
SYSTEM = "Be brief."
THOUGHTS = ("<think>\nhmm\n</think>\n\nMe.", "<think>\n\n</think>\n\nMe.", "a </think> b")
CUTS = (("", ""), ("</think>", ""), ("</think>", "\n"))  # thoughts_end, thoughts_blank: DeepSeek-R1's, Qwen3's

Talk = tuple[Message, ...]


def as_the_library_reads(
    checkpoint: Checkpoint,
    loop: TextLoop,
    library: Any,
    ids: LibraryIds | None = None,
    tokenizer_json: bytes | None = None,
) -> TextLoop:
    """`loop`, whose prompts have the ids that the folder's own tokenizer or processor gives, or those of `ids`."""
    tell_what_is_frozen(library.chat_template)
    if not library.chat_template:
        progress.line("it has no chat template: a prompt goes in as it is and is continued; it knows no conversations")
    text = (tokenizer_json or checkpoint.tokenizer_json).decode()
    tokenizer = Tokenizer(checkpoint.folder / "tokenizer.json", text)
    reads = ids or _reader(checkpoint, loop, library)
    loop = settle(loop, tokenizer, reads, added_around(checkpoint.tokenizer), checkpoint.folder)
    return _stopped_by_its_template(loop, checkpoint.tokenizer)


def _stopped_by_its_template(loop: TextLoop, tokenizer: Any) -> TextLoop:
    """Published folders name one token in generation_config.json and end a reply by another: both are stops."""
    ids = tokenizer(loop.template.assistant_close, add_special_tokens=False)["input_ids"]
    ends = next((token for token in ids if token in tokenizer.added_tokens_decoder), None)
    if ends is None or ends in loop.stop_token_ids:
        return loop
    progress.line(
        f"its chat template ends a reply with {tokenizer.convert_ids_to_tokens(ends)}, which neither "
        "generation_config.json nor config.json names as an end: it is one in the bundle"
    )
    return replace(loop, stop_token_ids=(*loop.stop_token_ids, ends))


def _reader(checkpoint: Checkpoint, loop: TextLoop, library: Any) -> LibraryIds:
    """The stranger's own template is run once for all conversations (hf_checkpoint.rendered_each), and there alone."""
    if not library.chat_template:
        return lambda messages: _read(checkpoint, loop, library, messages, None)
    talks = [_messages(talk) for _, talk in _compared(loop)]
    given = [_as_given(loop, messages)[0] for messages in talks]
    said = dict(zip(map(repr, talks), rendered_each(library, given, checkpoint.folder), strict=True))
    return lambda messages: _read(checkpoint, loop, library, messages, said[repr(messages)])


def _as_given(loop: TextLoop, messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages with pictures as the library takes them, and those pictures."""
    picture = Image.new("RGB", (loop.image_size, loop.image_size))

    def given(part: dict[str, Any]) -> dict[str, Any]:
        return part | {"image": picture} if part["type"] == "image" else part

    talk = [{**message, "content": [given(part) for part in message["content"]]} for message in messages]
    shown = [part["image"] for message in talk for part in message["content"] if part["type"] == "image"]
    return talk if loop.image_token else [plain(message) for message in talk], shown


def _read(
    checkpoint: Checkpoint, loop: TextLoop, library: Any, messages: list[dict[str, Any]], said: str | Exception | None
) -> list[int]:
    talk, shown = _as_given(loop, messages)
    processes = hasattr(library, "image_processor")  # it shows pictures to itself, and counts their tokens
    if isinstance(said, Exception):
        raise said
    if said is not None:
        how = {"tokenize": True, "add_generation_prompt": True, "return_dict": True}
        found = library.apply_chat_template(talk, chat_template=literal(said), **how)
    else:
        [message] = messages
        said = loop.image_token * len(shown) + message["content"][-1]["text"]
        found = library(text=said, images=shown) if shown else library(text=said)
    ids = np.asarray(found["input_ids"]).reshape(-1).tolist()  # a list, a row, or a tensor (1, s)
    return without_pictures(checkpoint, ids, (loop.image_token,), 1 if processes else loop.image_token_count)


def without_pictures(checkpoint: Checkpoint, ids: Sequence[int], places: Sequence[str], times: int = 1) -> list[int]:
    """`ids` with -1, so many `times`, for each token that stands in the place of a picture."""
    named = {checkpoint.tokenizer.convert_tokens_to_ids(place) for place in places if place}
    return [each for token in ids for each in ([PICTURE] * times if token in named else [token])]


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """A processor's message as a tokenizer takes it."""
    return {"role": message["role"], "content": message["content"][-1]["text"]}


def conversations(takes_system: bool, pictures: bool = False) -> Iterator[tuple[str, Talk]]:
    """Kind and messages."""
    if pictures:
        yield from _with_pictures(takes_system)
    systems: tuple[Talk, ...] = ((), (Message("system", SYSTEM),)) if takes_system else ((),)
    for system in systems:
        for turns in range(1, 6):
            words = [WORDS[(turns + index) % len(WORDS)] for index in range(2 * turns - 1)]
            yield PLAIN, (*system, *_in_turn(words))
        for word in WORDS:
            yield PLAIN, (*system, *_in_turn([word]))
        for blank in (" {} ", "\n{}\n", "  {}"):
            yield "blanks around a question", (*system, *_in_turn([blank.format("Why?")]))
            yield "blanks around an earlier reply", (*system, *_in_turn(["Who?", blank.format("Me."), "Why?"]))
        for thought in THOUGHTS:
            yield "thoughts in an earlier reply", (*system, *_in_turn(["Who?", thought, "Why?"]))
        yield "an earlier reply that is empty", (*system, *_in_turn(["Who?", "", "Why?"]))
    if takes_system:
        for text in (" Be brief. ", "\nBe brief.\n"):
            yield "blanks around the system message", (Message("system", text), Message("user", "Why?"))


def _with_pictures(takes_system: bool) -> Iterator[tuple[str, Talk]]:
    one, two = (None,), (None, None)
    first, answer = Message("user", "Who?", one), Message("assistant", "Me.")
    for word in WORDS:
        yield SHOWN, (Message("user", word, one),)
    if takes_system:
        yield SHOWN, (Message("system", SYSTEM), Message("user", "Why?", one))
    yield "a picture in a conversation", (first, answer, Message("user", "Why?"))
    yield "a picture in a later message", (*_in_turn(["Who?", "Me."]), Message("user", "Why?", one))
    yield "two pictures in a message", (Message("user", "Why?", two),)
    yield "pictures in two messages", (first, answer, Message("user", "Why?", two))
    yield "a picture without a word", (Message("user", "", one),)
    for blank in (" {} ", "\n{}\n"):
        yield "blanks around a question to a picture", (Message("user", blank.format("Why?"), one),)


def _in_turn(words: Sequence[str]) -> Talk:
    return tuple(Message(("user", "assistant")[index % 2], word) for index, word in enumerate(words))


@dataclass(frozen=True)
class _Tried:
    """How one loop fared."""

    loop: TextLoop
    differs: dict[str, str]  # kind -> an example in words

    @property
    def rank(self) -> tuple[int, int]:
        return len({PLAIN, SHOWN} & self.differs.keys()), len(self.differs)


def settle(loop: TextLoop, tokenizer: Tokenizer, library: LibraryIds, around: tuple[str, str], folder: Any) -> TextLoop:
    """The loop that reads as the library does.  `around` are the strings that the tokenizer itself puts around a text.

    Raises CheckpointError where even plain conversations differ.
    """
    theirs: list[tuple[str, Talk, list[int]]] = []
    refused: dict[str, Exception] = {}
    pictures = _has_pictures(loop)
    for kind, talk in _compared(loop):
        try:
            ids = list(library(_messages(talk)))
        except MemoryError:
            raise
        except Exception as error:  # a conversation that the template itself refuses is none to be equal in
            refused.setdefault(kind, error)
            continue
        theirs.append((kind, talk, ids))
    compared = {kind for kind, *_ in theirs}
    if not compared & {PLAIN, SHOWN}:
        why = refused[SHOWN if pictures else PLAIN]
        raise CheckpointError(f"{folder}: its library reads no conversation at all: {why!s:.200}") from why
    if pictures and SHOWN not in compared:
        progress.line(f"not compared with the library: prompts with pictures: {refused[SHOWN]!s:.200}")
    tried = [_try(candidate, tokenizer, theirs) for candidate in _candidates(loop, around)]
    best = min(tried, key=lambda each: each.rank)
    for kind in (PLAIN, SHOWN):
        if kind in best.differs:
            raise CheckpointError(
                f"{folder}: its library reads prompts otherwise than strings can say: {best.differs[kind]}"
            )
    for kind, example in best.differs.items():
        progress.line(f"read otherwise than by the library: {kind}: {example}")
    return best.loop


def _has_pictures(loop: TextLoop) -> bool:
    return bool(loop.image_token) or loop.apart


def _compared(loop: TextLoop) -> Iterator[tuple[str, Talk]]:
    return conversations(loop.template.takes_system, _has_pictures(loop))


def _messages(talk: Talk) -> list[dict[str, Any]]:
    return [says(message.role, message.content, len(message.images)) for message in talk]


def tell_what_is_frozen(template: Any) -> None:
    """What a template computes anew each time, and a bundle's strings cannot."""
    if isinstance(template, str) and "strftime_now" in template:
        today = datetime.date.today().isoformat()
        progress.line(
            f"its chat template says the date of the day; the bundle will always say that of its export, {today}"
        )


def _candidates(loop: TextLoop, around: tuple[str, str]) -> Iterator[TextLoop]:
    before, after = around
    template = loop.template
    bare = replace(
        template,
        opening=template.opening.removeprefix(before),
        system_open=template.system_open.removeprefix(before),
        reply_open=None if template.reply_open is None else template.reply_open.removesuffix(after),
    )
    adders = [loop, replace(loop, template=bare, adds_special=True)] if before + after else [loop]
    for (end, blank), strip, adder in itertools.product(CUTS, (loop.strip, not loop.strip), adders):
        yield replace(adder, strip=strip, thoughts_end=end, thoughts_blank=blank)


def _try(loop: TextLoop, tokenizer: Tokenizer, theirs: Sequence[tuple[str, Talk, list[int]]]) -> _Tried:
    differs: dict[str, str] = {}
    for kind, talk, wanted in theirs:
        try:
            prompt = chat_prompt(talk, loop, tokenizer)
        except EdgemmError as error:
            differs.setdefault(kind, str(error))
            continue
        found = np.where(prompt.image_index < 0, prompt.input_ids, PICTURE).tolist()
        if found != wanted:
            said = [message.content for message in talk]
            differs.setdefault(kind, f"{said!r:.80} is {len(wanted)} tokens there and {len(found)} here")
    return _Tried(loop, differs)
