"""Are the runtime's token ids the library's?  Tried over conversations at export, and not believed.

What a template's strings leave open (who adds the first token, which blanks are lost, what of an earlier reply is read
again) is settled by trying: the fields of the loop that give the folder's own ids most often are taken.  Plain
conversations have to be equal; where only an odd kind of message differs, export says so in a line.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgemm import progress
from edgemm.bundle.chat import Message, chat_prompt
from edgemm.bundle.manifest import TextLoop
from edgemm.bundle.prompt import Tokenizer
from edgemm.errors import CheckpointError, EdgemmError
from edgemm.families.chat_strings import says

__all__ = ["LibraryIds", "conversations", "settle", "tell_what_is_frozen"]

LibraryIds = Callable[[list[dict[str, Any]]], Sequence[int]]  # messages, as processors take them -> the whole prompt's
PLAIN = "plain"
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


def conversations(takes_system: bool) -> Iterator[tuple[str, Talk]]:
    """Kind and messages."""
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


def _in_turn(words: Sequence[str]) -> Talk:
    return tuple(Message(("user", "assistant")[index % 2], word) for index, word in enumerate(words))


@dataclass(frozen=True)
class _Tried:
    """How one loop fared."""

    loop: TextLoop
    differs: dict[str, str]  # kind -> an example in words

    @property
    def rank(self) -> tuple[bool, int]:
        return PLAIN in self.differs, len(self.differs)


def settle(loop: TextLoop, tokenizer: Tokenizer, library: LibraryIds, around: tuple[str, str], folder: Any) -> TextLoop:
    """The loop that reads as the library does.  `around` are the strings that the tokenizer itself puts around a text.

    Raises CheckpointError where even plain conversations differ.
    """
    theirs: list[tuple[str, Talk, list[int]]] = []
    refused: Exception | None = None
    for kind, talk in conversations(loop.template.takes_system):
        try:
            ids = list(library([says(message.role, message.content) for message in talk]))
        except Exception as error:  # a conversation that the template itself refuses is none to be equal in
            refused = error
            continue
        theirs.append((kind, talk, ids))
    if not theirs:
        raise CheckpointError(f"{folder}: its library reads no conversation at all: {refused!s:.200}") from refused
    tried = [_try(candidate, tokenizer, theirs) for candidate in _candidates(loop, around)]
    best = min(tried, key=lambda each: each.rank)
    if PLAIN in best.differs:
        raise CheckpointError(
            f"{folder}: its library reads prompts otherwise than strings can say: {best.differs[PLAIN]}"
        )
    for kind, example in best.differs.items():
        progress.line(f"read otherwise than by the library: {kind}: {example}")
    return best.loop


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
            found = chat_prompt(talk, loop, tokenizer).input_ids.tolist()
        except EdgemmError as error:
            differs.setdefault(kind, str(error))
            continue
        if found != wanted:
            said = [message.content for message in talk]
            differs.setdefault(kind, f"{said!r:.80} is {len(wanted)} tokens there and {len(found)} here")
    return _Tried(loop, differs)
