"""A chat template (Jinja, for the library) as the plain strings that the runtime puts around each message.

The template is rendered with marks in place of what people say, and cut at the marks.  Whether strings can say what the
template does is not believed but tried: conversations are rendered both ways, and must be the same to the letter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgemm.bundle.files import reading
from edgemm.bundle.manifest import TextTemplate
from edgemm.errors import CheckpointError

__all__ = ["ChatStrings", "added_around", "chat_strings", "plain_strings", "says"]

MARKS = tuple(f"mark{letter}ends" for letter in "QXWZK")  # what no template says
Render = Callable[[list[dict[str, Any]]], str]  # messages -> the string, up to where the reply starts


@dataclass(frozen=True)
class ChatStrings:
    template: TextTemplate
    image_between: str  # between two pictures' places
    image_close: str  # between the last picture's place and the text
    strip: bool


def plain_strings(opening: str = "", reply_open: str = "") -> ChatStrings:
    """For models without a chat template: what is asked is simply continued."""
    template = TextTemplate(
        user_open="",
        user_close="",
        assistant_open=reply_open,
        assistant_close="",
        system_open="",
        system_close="",
        system_default="",
        opening=opening,
        reply_open=reply_open,
        takes_system=False,
    )
    return ChatStrings(template, "", "", False)


def added_around(tokenizer: Any) -> tuple[str, str]:
    """Special tokens that the tokenizer itself puts before and after a text, as strings."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            before, after = whole[:start], whole[start + len(bare) :]
            return tuple("".join(tokenizer.convert_ids_to_tokens(ids)) for ids in (before, after))  # type: ignore[return-value]
    raise CheckpointError("the tokenizer changes a text when it adds special tokens; such a one is not known here")


def chat_strings(render: Render, place: str | None, folder: Any) -> ChatStrings:
    """`place` is the token that stands for a picture in the rendered string; None for models that only read text.

    Raises CheckpointError when the template does what strings cannot.
    """
    q, answer, other, system, _ = MARKS

    def told(messages: list[dict[str, Any]]) -> str:
        with reading(folder, "its chat template cannot be rendered", CheckpointError):
            return render(messages)

    try:
        found = _cut(told, place, q, answer, other, system)
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{folder}: its chat template cannot be told in plain strings: {error}") from error
    _try_out(told, found, place, folder)
    return found


def _cut(render: Render, place: str | None, q: str, answer: str, other: str, system: str) -> ChatStrings:
    before, ask = _split(render([says("user", q)]), q)
    first, rest = _split(render([says("user", q), says("assistant", answer), says("user", other)]), q)
    reply, rest = _split(rest, answer)
    between, last = _split(rest, other)
    if first != before or last != ask:
        raise ValueError("the same message looks different in a longer conversation")
    user_open = _common_end(before, between)
    shared = _common_start(reply, ask)  # the end of a question, and what starts a reply
    try:
        head, rest = _split(render([says("system", system), says("user", q)]), system)
        takes_system = rest.endswith(user_open + q + ask)
        tail = rest[: len(rest) - len(user_open + q + ask)]
    except MemoryError:
        raise
    except Exception:  # templates refuse a system message in many ways
        head, tail, takes_system = "", "", False
    template = TextTemplate(
        user_open=user_open,
        user_close=shared,
        assistant_open=reply[len(shared) :],
        assistant_close=between[: len(between) - len(user_open)],
        system_open=head,
        system_close=tail,
        system_default="",
        opening=before[: len(before) - len(user_open)],
        reply_open=ask[len(shared) :],
        takes_system=takes_system,
    )
    strip = render([says("user", f" {q} ")]) == render([says("user", q)])
    image_between, image_close = _around_pictures(render, place, before, ask, q) if place else ("", "")
    return ChatStrings(template, image_between, image_close, strip)


def _around_pictures(render: Render, place: str, before: str, ask: str, q: str) -> tuple[str, str]:
    whole = render([says("user", q, pictures=2)])
    if not (whole.startswith(before + place) and whole.endswith(q + ask)):
        raise ValueError("pictures do not come right before the text of their message")
    _, between, rest = whole[: len(whole) - len(q + ask)].split(place)
    return between, rest


def _try_out(render: Render, found: ChatStrings, place: str | None, folder: Any) -> None:
    """Other words, other lengths, with a system message and without."""
    t = found.template
    for pictures in (0, *((1, 3) if place else ())):
        for system in ("", *(("Be brief.",) if t.takes_system else ())):
            messages = [says("system", system)] if system else []
            messages += [says("user", "Who?", pictures), says("assistant", "Me."), says("user", "Why?")]
            messages += [says("assistant", "So."), says("user", "And then?")]
            seen = found.image_between.join([place or ""] * pictures) + (found.image_close if pictures else "")
            ours = t.system_open + system + t.system_close if system else t.opening
            ours += t.user_open + seen + "Who?" + t.user_close + t.assistant_open + "Me." + t.assistant_close
            ours += t.user_open + "Why?" + t.user_close + t.assistant_open + "So." + t.assistant_close
            ours += t.user_open + "And then?" + t.user_close + (t.reply_open or "")
            if (theirs := render(messages)) != ours:
                raise CheckpointError(
                    f"{folder}: its chat template cannot be told in plain strings: {theirs!r} came out as {ours!r}"
                )


def says(role: str, text: str, pictures: int = 0) -> dict[str, Any]:
    """A message as processors take it."""
    return {"role": role, "content": [{"type": "image"}] * pictures + [{"type": "text", "text": text}]}


def _split(text: str, mark: str) -> tuple[str, str]:
    if text.count(mark) != 1:
        raise ValueError(f"what is said appears {text.count(mark)} times")
    before, _, after = text.partition(mark)
    return before, after


def _common_end(a: str, b: str) -> str:
    size = 0
    while size < min(len(a), len(b)) and a[-1 - size] == b[-1 - size]:
        size += 1
    return a[len(a) - size :]


def _common_start(a: str, b: str) -> str:
    size = 0
    while size < min(len(a), len(b)) and a[size] == b[size]:
        size += 1
    return a[:size]
