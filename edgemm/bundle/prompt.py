"""Messages to the token row that the transformer reads: ids, picture rows, and who may see whom.

Training, the torch reference and the runtime all build their rows here.  It knows templates and token counts, never
cache slots, engines or pixels.  Each piece (a template's string, a user's text) is tokenized alone, or all of them as
one string, where the model was trained so (`joined`).  Only the template's own strings may hold special tokens.
Axes: s tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgemm.bundle.loops import DenoiseTemplate, ImageTokensLoop, Limits, TextLoop
from edgemm.bundle.tokenizer import Tokenizer
from edgemm.errors import InputError, UsageError

__all__ = [
    "Message",
    "Prompt",
    "as_messages",
    "chat_prompt",
    "check_length",
    "drawing_prompt",
    "image_prompt",
    "negative_drawing_prompt",
    "picture_in_reply",
    "picture_prompt",
    "prompt_between",
    "turn_prompt",
    "unconditional_prompt",
    "with_picture_ids",
]

ROLES = ("system", "user", "assistant")
PICTURE_ID = 0  # stands where a picture's row does; the transformer never looks at it
PLACE = "\0"  # of a picture, in strings of a template
ALONE = ("", "")  # nothing around a picture belongs to its block


@dataclass(frozen=True)
class Message:
    role: str
    content: str
    images: tuple[Any, ...] = ()


@dataclass(frozen=True, eq=False)
class Prompt:
    """One row of tokens, as the transformer wants it; positions count from 0."""

    input_ids: np.ndarray  # (s) int64
    image_index: np.ndarray  # (s) int64: row of the pictures' tokens, -1 for text
    attention_limit: np.ndarray  # (s) int64: last position each one may see
    users_own: np.ndarray  # (s) float32: 1 on the user's own text

    def __len__(self) -> int:
        return len(self.input_ids)

    def opens(self, other: Prompt) -> bool:
        """Whether another begins with this one, so that who has read that has read this."""
        size = len(self)
        return all(
            np.array_equal(mine, theirs[:size])
            for mine, theirs in (
                (self.input_ids, other.input_ids),
                (self.image_index, other.image_index),
                (self.attention_limit, other.attention_limit),
            )
        )

    @property
    def text_ids(self) -> list[int]:
        return self.input_ids[self.image_index < 0].tolist()


Pieces = list[tuple[str, bool]]  # a string, and whether it is the user's own


@dataclass
class _Builder:
    tokenizer: Tokenizer
    ids: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    pictures: int = 0

    def text(self, piece: str, own: bool = False) -> None:
        ids = self.tokenizer.encode(piece, special=not own)
        self.limits += range(len(self.ids), len(self.ids) + len(ids))
        self.ids += ids
        self.rows += [-1] * len(ids)
        self.own += [float(own)] * len(ids)

    def tokens(self, ids: Sequence[int]) -> None:
        """Ids that the model wrote itself."""
        self.limits += range(len(self.ids), len(self.ids) + len(ids))
        self.ids += ids
        self.rows += [-1] * len(ids)
        self.own += [0.0] * len(ids)

    def picture(self, count: int, causal: bool = False, around: tuple[str, str] = ALONE, lead: int = 0) -> None:
        """`count` tokens, and those of the words around them, that see one another, or only those before them; with
        `lead` so many tokens and the word before them do only that."""
        start, end = (self.tokenizer.encode(word, special=True) if word else [] for word in around)
        ids = [*start, *[PICTURE_ID] * count, *end]
        first, last = len(self.ids), len(self.ids) + len(ids) - 1
        block = len(ids) if causal else len(start) + lead if lead else 0  # where those begin that see one another
        self.limits += [*range(first, first + block), *[last] * (len(ids) - block)]
        self.ids += ids
        rows = range(self.pictures * count, (self.pictures + 1) * count)
        self.rows += [*[-1] * len(start), *rows, *[-1] * len(end)]
        self.own += [0.0] * len(ids)
        self.pictures += 1

    def build(self) -> Prompt:
        return Prompt(
            np.array(self.ids, dtype=np.int64),
            np.array(self.rows, dtype=np.int64),
            np.array(self.limits, dtype=np.int64),
            np.array(self.own, dtype=np.float32),
        )


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
    builder, template = _Builder(tokenizer), loop.template
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


def check_length(tokens: int, limits: Limits) -> None:
    """Refuses what no empty cache of this bundle has room for."""
    if tokens > limits.max_context:
        raise InputError(
            f"the prompt takes {tokens} tokens, this bundle holds at most {limits.max_context}; shorten it"
        )


def turn_prompt(message: Message, unread: Sequence[int], loop: TextLoop, tokenizer: Tokenizer) -> Prompt:
    """What follows a reply: its last tokens that were written and not yet read, its end, and the next message."""
    if loop.joined:
        raise UsageError(
            "this model reads a conversation as one string, so a session has one turn; "
            "give all messages to generate_text"
        )
    builder = _Builder(tokenizer)
    builder.tokens(unread)
    builder.text(loop.template.assistant_close)
    _user(builder, message, loop)
    builder.text(loop.template.assistant_open)
    return builder.build()


def picture_in_reply(unread: Sequence[int], loop: TextLoop, tokenizer: Tokenizer) -> Prompt:
    """A picture that the model drew, in the middle of its reply."""
    builder = _Builder(tokenizer)
    builder.tokens(unread)
    builder.picture(loop.image_token_count, around=loop.around, lead=loop.image_lead)
    builder.text(loop.image_close)
    return builder.build()


def _user(builder: _Builder, message: Message, loop: TextLoop) -> None:
    if not loop.block:
        builder.text(loop.template.user_open)
    for _ in message.images:
        builder.picture(loop.image_token_count, around=loop.around, lead=loop.image_lead)
    if message.images:
        builder.text(loop.image_close)
    if loop.block:
        builder.text(loop.template.user_open)
    builder.text(message.content, own=True)
    builder.text(loop.template.user_close)


Size = tuple[int, int]  # height and width of the picture, in pixels


def drawing_prompt(
    prompt: str,
    template: DenoiseTemplate,
    tokenizer: Tokenizer,
    picture: int = 0,
    size: Size = (0, 0),
    causal: bool = False,
    around: tuple[str, str] = ALONE,
) -> Prompt:
    """What the denoiser's prefix is made of; `picture` is how many tokens a picture to edit takes, `causal` whether
    they see only those before them, `around` the words that make a block with them, before the template's own."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError("prompt is empty, expected some text")
    return negative_drawing_prompt(prompt, template, tokenizer, picture, size, causal, around)


def picture_prompt(tokenizer: Tokenizer, picture: int, around: tuple[str, str] = ALONE) -> Prompt:
    """The block of a picture to edit, and no word."""
    builder = _Builder(tokenizer)
    builder.picture(picture, around=around)
    return builder.build()


def negative_drawing_prompt(
    prompt: str,
    template: DenoiseTemplate,
    tokenizer: Tokenizer,
    picture: int = 0,
    size: Size = (0, 0),
    causal: bool = False,
    around: tuple[str, str] = ALONE,
) -> Prompt:
    """What guidance leads away from: the same around another prompt, which may be empty."""
    builder, said = _Builder(tokenizer), prompt.strip() if template.strip else prompt
    if picture and around != ALONE:
        builder.picture(picture, around=around)
        picture = 0
    sentence = template.size_sentence.format(height=size[0], width=size[1])
    if sentence:
        said = said.rstrip(".")
        sentence = f". {sentence}" if said else sentence
    if not template.joined:
        builder.text(template.open)
        if picture:
            builder.picture(picture, causal)
            builder.text(template.image_close)
        if said:
            builder.text(" " + said, own=True)
        builder.text(sentence)
        builder.text(template.close)
        return builder.build()
    before: Pieces = [(template.open, False)]
    after: Pieces = [(said, True), (sentence, False), (template.close, False)]
    if not picture:
        builder.tokens(_joined_ids([*before, *after], tokenizer).tolist())
        return builder.build()
    builder.tokens(_joined_ids(before, tokenizer).tolist())
    builder.picture(picture, causal)
    builder.tokens(_joined_ids([(template.image_close, False), *after], tokenizer).tolist())
    return builder.build()


def image_prompt(prompt: str, loop: ImageTokensLoop, tokenizer: Tokenizer) -> Prompt:
    """What the first token of a picture follows."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError("prompt is empty, expected some text")
    return _around(prompt, loop, tokenizer)


def prompt_between(open: str, prompt: str, close: str, tokenizer: Tokenizer) -> Prompt:
    """The three as one string; a prompt that spells a special token is tokenized alone."""
    return _causal(_joined_ids([(open, False), (prompt, True), (close, False)], tokenizer))


def unconditional_prompt(prompt: Prompt, negative: str | None, loop: ImageTokensLoop, tokenizer: Tokenizer) -> Prompt:
    """The other half of guidance: the same prompt blotted out, or one that says what is not wanted."""
    if loop.unconditional == "prompt":
        return _around(loop.negative_prompt if negative is None else negative, loop, tokenizer)
    if negative is not None:
        raise UsageError("negative_prompt is given, but this model guides away from a blotted-out prompt")
    kept = np.isin(prompt.input_ids, loop.kept_ids)
    return _causal(np.where(kept, prompt.input_ids, loop.pad_id))


def with_picture_ids(prompt: Prompt, token_ids: np.ndarray) -> Prompt:
    """The prompt with token ids (m) where its pictures stand, for models that read pictures as tokens."""
    pictured = prompt.image_index >= 0
    ids = prompt.input_ids.copy()
    ids[pictured] = token_ids[prompt.image_index[pictured]]
    return replace(prompt, input_ids=ids, image_index=np.full_like(prompt.image_index, -1))


def _around(prompt: str, loop: ImageTokensLoop, tokenizer: Tokenizer) -> Prompt:
    return prompt_between(loop.open, prompt.strip() if loop.strip else prompt, loop.close, tokenizer)


def _joined_chat(messages: Sequence[Message], loop: TextLoop, tokenizer: Tokenizer) -> Prompt:
    template, rest = loop.template, list(messages)
    pieces: Pieces = [(template.opening, False)]
    if rest[0].role == "system":
        content = rest.pop(0).content
        pieces = [(template.system_open, False), (content, True), (template.system_close, False)]
    for message in rest:
        if message.role == "user":
            rows = loop.image_token_count - int(loop.open_is_first)
            picture = loop.image_open + loop.image_token * rows + loop.image_end
            pictures = loop.image_between.join([PLACE if loop.apart else picture] * len(message.images))
            pieces += [(template.user_open, False), (pictures, False)]
            pieces += [(loop.image_close if message.images else "", False), (message.content, True)]
            pieces.append((template.user_close, False))
        else:
            said = message.content
            if loop.thoughts_end and loop.thoughts_end in said:
                said = said.rpartition(loop.thoughts_end)[2].lstrip(loop.thoughts_blank)
            pieces += [(template.assistant_open, False), (said, True), (template.assistant_close, False)]
    pieces.append((template.assistant_open if template.reply_open is None else template.reply_open, False))
    pieces = [(piece.strip() if own and loop.strip else piece, own) for piece, own in pieces]
    if loop.apart:
        return _apart(pieces, loop, tokenizer)
    ids = _joined_ids(pieces, tokenizer, loop.adds_special)
    return _causal(ids, _picture_rows(ids, sum(len(message.images) for message in rest), loop, tokenizer))


def _apart(pieces: Pieces, loop: TextLoop, tokenizer: Tokenizer) -> Prompt:
    """The strings between pictures, each as one."""
    builder, before = _Builder(tokenizer), []
    for piece, own in pieces:
        *places, last = [piece] if own else piece.split(PLACE)  # nobody's own text holds a place
        for text in places:
            builder.tokens(_joined_ids([*before, (text, False)], tokenizer).tolist())
            builder.picture(loop.image_token_count, causal=True)
            before = []
        before.append((last, own))
    builder.tokens(_joined_ids(before, tokenizer).tolist())
    return builder.build()


def _picture_rows(ids: np.ndarray, pictures: int, loop: TextLoop, tokenizer: Tokenizer) -> np.ndarray:
    """image_index of each position."""
    places = [loop.image_token, *([loop.image_open] if loop.open_is_first else [])]
    named = [tokenizer.token_id(place) for place in places if place]
    pictured = np.isin(ids, [token for token in named if token is not None])
    if pictured.sum() != pictures * loop.image_token_count:
        raise UsageError(f"the prompt spells {loop.image_token!r}, which stands for pictures alone; leave it out")
    return np.where(pictured, np.cumsum(pictured) - 1, -1)


def _joined_ids(pieces: Pieces, tokenizer: Tokenizer, add_special: bool = False) -> np.ndarray:
    """Ids of all pieces as one string: Tokenizer.encode_whole's."""
    return np.array(tokenizer.encode_whole(pieces, add_special), dtype=np.int64)


def _causal(ids: np.ndarray, image_index: np.ndarray | None = None) -> Prompt:
    """Every token sees those before it, a picture's too."""
    rows = np.full_like(ids, -1) if image_index is None else image_index.astype(np.int64)
    return Prompt(ids, rows, np.arange(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.float32))
