"""Strings to ids, the way training and the torch reference see them: templates around messages and drawing prompts.

Each piece of a template is tokenized alone, so the thin runtime gets the same ids from the bundle's loop spec without
knowing this file.  Special tokens are special in a template's own strings only: a user who spells one out writes plain
text.  No tensors here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgemm.model.config import ModelConfig

__all__ = [
    "QUERY",
    "DrawPrompt",
    "TextPrompt",
    "byte_tokenizer_json",
    "codes_prompt",
    "draw_prompt",
    "read_prompt",
    "reply_ids",
    "stop_ids",
    "with_codes",
    "with_queries",
]

QUERY = "<|query_{}|>"  # how a tokenizer spells a connector's learned queries

Encode = Callable[..., list[int]]  # Unified.encode: a string, and whether special tokens are special in it


@dataclass(frozen=True)
class DrawPrompt:
    ids: list[int]  # 0 where an image token stands
    skip: int  # tokens of the template's opening
    prompt_mask: list[int]  # 1 on the user's own tokens
    image_index: list[int]  # -1 for text, else the row of the image tokens
    attention_limit: list[int]  # last position each token may see


@dataclass(frozen=True)
class TextPrompt:
    ids: list[int]  # 0 where an image token stands
    image_index: list[int]  # -1 for text, else the row of the image tokens
    attention_limit: list[int]  # last position each token may see


def draw_prompt(config: ModelConfig, encode: Encode, prompt: str, pictures: int = 0) -> DrawPrompt:
    """Ids of `open`, the tokens of `pictures` pictures to draw from, " " + prompt (nothing for the empty, unconditional
    prompt), `close`."""
    opening, closing = encode(config.draw.open), encode(config.draw.close)
    own = encode(" " + prompt, special=False) if prompt else []
    block, first = config.vision.token_count, len(opening)
    seen = pictures * block
    ids = opening + [0] * seen + own + closing
    mask = [0] * (first + seen) + [1] * len(own) + [0] * len(closing)
    index = [-1] * first + list(range(seen)) + [-1] * (len(own) + len(closing))
    limit = list(range(len(ids)))
    for position in range(first, first + seen):  # a picture's tokens see one another
        limit[position] = first + ((position - first) // block + 1) * block - 1
    return DrawPrompt(ids, first, mask, index, limit)


def codes_prompt(config: ModelConfig, encode: Encode, prompt: str) -> list[int]:
    """Ids that a picture's first code follows: `open`, " ", the prompt ("" is the unconditional one) and `close` as one
    string; each alone where the prompt spells a special token."""
    pieces = (config.draw.open + " ", prompt, config.draw.close)
    if encode(prompt) != encode(prompt, special=False):
        return [*encode(pieces[0]), *encode(prompt, special=False), *encode(pieces[2])]
    return encode("".join(pieces))


def with_codes(prompt: TextPrompt, ids: list[int]) -> TextPrompt:
    """The prompt with token ids in place of its image tokens: pictures that are read as codes."""
    placed = [token if row < 0 else ids[row] for token, row in zip(prompt.ids, prompt.image_index, strict=True)]
    return TextPrompt(placed, [-1] * len(placed), prompt.attention_limit)


def read_prompt(config: ModelConfig, encode: Encode, text: str, pictures: int) -> TextPrompt:
    """One user message with `pictures` pictures before its text, and the opening of the reply."""
    chat, block = config.chat, config.vision.token_count
    ids: list[int] = []
    image_index: list[int] = []
    limit: list[int] = []

    def add_text(piece: str, special: bool = True) -> None:
        for token in encode(piece, special=special) if piece else []:
            limit.append(len(ids))
            ids.append(token)
            image_index.append(-1)

    if chat.system_default:
        add_text(chat.system_open)
        add_text(chat.system_default)
        add_text(chat.system_close)
    add_text(chat.user_open)
    for picture in range(pictures):
        last = len(ids) + block - 1  # the block's tokens see one another
        ids += [0] * block
        image_index += range(picture * block, (picture + 1) * block)
        limit += [last] * block
    if pictures:
        add_text(chat.image_close)
    add_text(text, special=False)
    add_text(chat.user_close)
    add_text(chat.assistant_open)
    return TextPrompt(ids, image_index, limit)


def reply_ids(config: ModelConfig, encode: Encode, reply: str) -> list[int]:
    """Ids the model is taught to say: the reply and the token that ends it."""
    return encode(reply, special=False) + encode(config.chat.stop_tokens[0])


def stop_ids(config: ModelConfig, encode: Encode) -> list[int]:
    ids = [encode(token) for token in config.chat.stop_tokens]
    for token, pieces in zip(config.chat.stop_tokens, ids, strict=True):
        if len(pieces) != 1:
            raise ValueError(f"stop token {token!r} is {len(pieces)} tokens in this tokenizer, it must be one")
    return [pieces[0] for pieces in ids]


def with_queries(tokenizer_json: str, vocabulary: int, queries: int) -> str:
    """A tokenizer.json with a connector's queries as special tokens, right behind the vocabulary."""
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    if (found := tokenizer.get_vocab_size()) != vocabulary:
        raise ValueError(f"the tokenizer has {found} tokens, queries come right behind a vocabulary of {vocabulary}")
    tokens = [AddedToken(QUERY.format(number), special=True, normalized=False) for number in range(queries)]
    tokenizer.add_special_tokens(tokens)
    return tokenizer.to_str()


def byte_tokenizer_json() -> str:
    """A tokenizer.json of 256 bytes and the chat tokens (vocabulary 264): no training, no files, for `micro`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore
    reserved = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|reserved_{i}|>" for i in range(5))]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in reserved])
    return tokenizer.to_str()
