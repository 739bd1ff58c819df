"""A conversation as the token row that the transformer reads: messages, what stands around them, and their pictures.

It knows roles and templates; how pieces become ids and rows is in prompt.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemm.bundle.manifest import GraphRows, TextLoop
from edgemm.bundle.prompt import PictureTokens, Pieces, Prompt, PromptBuilder, Tokenizer, causal_prompt, joined_ids
from edgemm.errors import UsageError

if TYPE_CHECKING:
    from edgemm.bundle.node_link import Graph, GraphSource

__all__ = ["Message", "as_messages", "chat_prompt", "picture_in_reply", "turn_prompt", "with_graph"]

ROLES = ("system", "user", "assistant")
PLACE = "\0"  # of a picture, in strings of a template


@dataclass(frozen=True)
class Message:
    role: str
    content: str
    images: tuple[Any, ...] = ()
    places: tuple[int, ...] = ()  # characters of the content that stand before each of the last images; none: all do
    graph: Graph | None = None  # before the content, as rows; the last images are its nodes'

    @property
    def loose(self) -> int:
        """Pictures that stand before the content."""
        shown = 0 if self.graph is None else len(self.graph.pictures)
        return len(self.images) - len(self.places) - shown

    @property
    def pieces(self) -> list[str]:
        """The content, cut where pictures stand in it."""
        cuts = (0, *self.places, len(self.content))
        return [self.content[start:end] for start, end in pairwise(cuts)]

    @property
    def in_words(self) -> str:
        """The content with its graph, where all pictures stand before it: [picture 2] tells one by its place there."""
        pieces = self.pieces
        if self.graph is not None:
            *texts, last = self.graph.parts()[0]
            pieces = [*texts, last + self.content]
        first, *rest = pieces
        numbers = range(self.loose + 1, len(self.images) + 1)
        return first + "".join(f"[picture {number}]{piece}" for number, piece in zip(numbers, rest, strict=True))


def as_messages(prompt: str | Sequence[dict[str, Any]], images: Any = ()) -> tuple[Message, ...]:
    """A prompt, or a list of {"role", "content", "images"}; loose images go to the last message.

    `images` are a list of pictures, or one.  `content` may also be a list of text and image parts, as transformers and
    OpenAI's interface have it: a message's pictures come before its text, whose parts are joined by newlines.
    """
    images = _pictures(images)
    if isinstance(prompt, str):
        return _checked((Message("user", prompt, images),))
    if isinstance(prompt, (bytes, dict)) or not isinstance(prompt, Iterable):
        raise UsageError(f"the prompt is {type(prompt).__name__}, expected a string or a list of messages")
    messages = []
    for index, entry in enumerate(prompt):
        if not isinstance(entry, dict) or not {"role", "content"} <= entry.keys() <= {"role", "content", "images"}:
            raise UsageError(f"messages[{index}] is {entry!r:.80}, expected role, content and perhaps images")
        content, shown = _parts(entry["content"], f"messages[{index}]")
        messages.append(Message(entry["role"], content, (*shown, *_pictures(entry.get("images")))))
    if messages and images:
        last = messages[-1]
        messages[-1] = Message(last.role, last.content, last.images + images)
    return _checked(tuple(messages))


def with_graph(
    messages: tuple[Message, ...], graph: GraphSource | None, rows: GraphRows | None = None
) -> tuple[Message, ...]:
    """The conversation with a graph before what its user said first: as rows where the model reads such, else as text,
    with pictures where nodes have them."""
    if graph is None:
        return messages
    from edgemm.bundle.node_link import read_graph

    graph = read_graph(graph)
    first = next(index for index, message in enumerate(messages) if message.role == "user")
    asked = messages[first]
    if rows is not None:
        told = replace(asked, graph=graph, images=(*asked.images, *graph.pictures))
        return (*messages[:first], told, *messages[first + 1 :])
    texts, pictures = graph.parts()
    said = "".join(texts)
    places = tuple(sum(map(len, texts[: index + 1])) for index in range(len(pictures)))
    content = f"{said}{asked.content}"
    images = (*asked.images[: asked.loose], *pictures)
    return (*messages[:first], replace(asked, content=content, images=images, places=places), *messages[first + 1 :])


def _pictures(images: Any) -> tuple[Any, ...]:
    """A list of pictures as it is, and one picture as a list of one."""
    if images is None:
        return ()
    listed = isinstance(images, (list, tuple, Iterator)) and not hasattr(images, "read")  # as a file has
    several = listed or getattr(images, "ndim", 0) == 4
    return tuple(images) if several else (images,)


PICTURE_KEYS = ("image", "path", "url", "base64")  # of a part of type "image", as transformers takes them


def _parts(content: Any, where: str) -> tuple[Any, tuple[Any, ...]]:
    """Text and pictures of a content that is a list of parts."""
    if not isinstance(content, (list, tuple)):
        return content, ()
    texts, images = [], []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
            continue
        found = None
        if kind in ("image_url", "input_image"):
            found = part.get("image_url")
            found = found.get("url") if isinstance(found, dict) else found
        elif kind == "image":
            key = next((key for key in PICTURE_KEYS if part.get(key) is not None), None)
            found = f"data:image/any;base64,{part[key]}" if key == "base64" else part.get(key)
        if found is None:
            raise UsageError(
                f"{where}.content[{index}] is {part!r:.60}, expected {{'type': 'text', 'text': ...}}, "
                f"{{'type': 'image', {PICTURE_KEYS[0]!r}: ...}} or {{'type': 'image_url', 'image_url': {{'url': ...}}}}"
            )
        images.append(found)
    return "\n".join(texts), tuple(images)


def _checked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if not messages:
        raise UsageError("messages is empty, expected at least one")
    for index, message in enumerate(messages):
        if message.role not in ROLES:
            raise UsageError(f"messages[{index}].role is {message.role!r}, expected one of: {', '.join(ROLES)}")
        if not isinstance(message.content, str):
            kind = type(message.content).__name__
            raise UsageError(f"messages[{index}].content is {kind}, expected a string")
        if message.role == "system" and index:
            raise UsageError(f"messages[{index}].role is 'system', which may only come first")
        if message.images and message.role != "user":
            raise UsageError(f"messages[{index}]: only a user's message carries images")
    last = messages[-1]
    if last.role != "user":
        raise UsageError(f"the last message is the {last.role}'s, expected the user's")
    if not last.content.strip() and not last.images:
        raise UsageError("prompt is empty, expected some text")
    return messages


def chat_prompt(messages: Sequence[Message], loop: TextLoop, tokenizer: Tokenizer) -> Prompt:
    """The whole conversation, up to where the reply starts."""
    if messages[0].role == "system" and not loop.template.takes_system:
        raise UsageError("this model was trained without system messages: say it in the first message")
    if loop.joined:
        return _joined_chat(messages, loop, tokenizer)
    builder, template = PromptBuilder(tokenizer), loop.template
    system = messages[0].content if messages[0].role == "system" else template.system_default
    if system:
        builder.text(template.system_open)
        builder.text(system, own=messages[0].role == "system")
        builder.text(template.system_close)
    for message in messages:
        if message.role == "user":
            _user(builder, message, loop)
        elif message.role == "assistant":
            builder.text(template.assistant_open)
            builder.text(message.content, own=True)
            builder.text(template.assistant_close)
    builder.text(template.assistant_open)
    return builder.build()


def turn_prompt(message: Message, unread: Sequence[int], loop: TextLoop, tokenizer: Tokenizer) -> Prompt:
    """What follows a reply: its last tokens that were written and not yet read, its end, and the next message."""
    if loop.joined:
        raise UsageError(
            "this model reads a conversation as one string, so a session has one turn; "
            "give all messages to generate_text"
        )
    builder = PromptBuilder(tokenizer)
    builder.tokens(unread)
    builder.text(loop.template.assistant_close)
    _user(builder, message, loop)
    builder.text(loop.template.assistant_open)
    return builder.build()


def picture_in_reply(unread: Sequence[int], loop: TextLoop, tokenizer: Tokenizer) -> Prompt:
    """A picture that the model drew, in the middle of its reply."""
    builder = PromptBuilder(tokenizer)
    builder.tokens(unread)
    builder.picture(PictureTokens.of(loop))
    builder.text(loop.image_close)
    return builder.build()


def _user(builder: PromptBuilder, message: Message, loop: TextLoop) -> None:
    if not loop.block:
        builder.text(loop.template.user_open)
    loose = len(message.images) if loop.block else message.loose
    for picture in message.images[:loose]:
        builder.picture(PictureTokens.of(loop, picture))
    if loose:
        builder.text(loop.image_close)
    if loop.block:
        builder.text(loop.template.user_open)
    if message.graph is not None:
        assert loop.graph is not None  # with_graph saw to it
        builder.graph(message.graph, loop.graph, PictureTokens.of(loop))
    first, *rest = [message.in_words] if loop.block else message.pieces
    builder.text(first, own=True)
    for piece in rest:
        builder.picture(PictureTokens.of(loop))
        builder.text(loop.image_close)
        builder.text(piece, own=True)
    builder.text(loop.template.user_close)


def _joined_chat(messages: Sequence[Message], loop: TextLoop, tokenizer: Tokenizer) -> Prompt:
    template, rest = loop.template, list(messages)
    pieces: Pieces = [(template.opening, False)]
    if rest[0].role == "system":
        content = rest.pop(0).content
        content = content.strip() if loop.strip else content
        pieces = [(template.system_open, False), (content, True), (template.system_close, False)]
    for message in rest:
        if message.role == "user":
            rows = loop.image_token_count - int(loop.open_is_first)
            picture = loop.image_open + loop.image_token * rows + loop.image_end
            one = PLACE if loop.apart else picture
            pieces += [(template.user_open, False), (loop.image_between.join([one] * message.loose), False)]
            pieces.append((loop.image_close if message.loose else "", False))
            pieces += _between(_stripped(message.pieces) if loop.strip else message.pieces, one + loop.image_close)
            pieces.append((template.user_close, False))
        else:
            said = message.content
            if loop.thoughts_end and loop.thoughts_end in said:
                said = said.rpartition(loop.thoughts_end)[2].lstrip(loop.thoughts_blank)
            said = said.strip() if loop.strip else said
            pieces += [(template.assistant_open, False), (said, True), (template.assistant_close, False)]
    pieces.append((template.assistant_open if template.reply_open is None else template.reply_open, False))
    if loop.apart:
        return _apart(pieces, loop, tokenizer)
    ids = joined_ids(pieces, tokenizer, loop.adds_special)
    return causal_prompt(ids, _picture_rows(ids, sum(len(message.images) for message in rest), loop, tokenizer))


def _stripped(pieces: list[str]) -> list[str]:
    """Without the blanks around the whole."""
    pieces[0] = pieces[0].lstrip()
    pieces[-1] = pieces[-1].rstrip()
    return pieces


def _between(own: list[str], picture: str) -> Pieces:
    first, *rest = own
    return [(first, True), *(piece for text in rest for piece in ((picture, False), (text, True)))]


def _apart(pieces: Pieces, loop: TextLoop, tokenizer: Tokenizer) -> Prompt:
    """The strings between pictures, each as one."""
    builder, before = PromptBuilder(tokenizer), []
    for piece, own in pieces:
        *places, last = [piece] if own else piece.split(PLACE)  # nobody's own text holds a place
        for text in places:
            builder.tokens(joined_ids([*before, (text, False)], tokenizer).tolist())
            builder.picture(PictureTokens(loop.image_token_count, causal=True))
            before = []
        before.append((last, own))
    builder.tokens(joined_ids(before, tokenizer).tolist())
    return builder.build()


def _picture_rows(ids: np.ndarray, pictures: int, loop: TextLoop, tokenizer: Tokenizer) -> np.ndarray:
    """image_index of each position."""
    places = [loop.image_token, *([loop.image_open] if loop.open_is_first else [])]
    named = [tokenizer.token_id(place) for place in places if place]
    pictured = np.isin(ids, [token for token in named if token is not None])
    if pictured.sum() != pictures * loop.image_token_count:
        raise UsageError(f"the prompt spells {loop.image_token!r}, which stands for pictures alone; leave it out")
    return np.where(pictured, np.cumsum(pictured) - 1, -1)
