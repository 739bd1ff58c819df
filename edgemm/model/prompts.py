"""What training and the torch reference ask a model: its config as the loops and templates of bundle/prompt.py.

The thin runtime builds the same rows from the bundle's manifest, with the same code.  The native models' tokenizers are
made here, too.  No tensors here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgemm.bundle.chat import Message, chat_prompt, with_graph
from edgemm.bundle.manifest import GraphRows, MotionRows, TextLoop
from edgemm.bundle.node_link import Graph
from edgemm.bundle.prompt import PictureTokens, Prompt, Tokenizer, negative_drawing_prompt, prompt_between
from edgemm.model.config import ModelConfig

__all__ = [
    "BYTES",
    "QUERY",
    "byte_tokenizer_json",
    "codes_prompt",
    "draw_prompt",
    "learned_tokenizer_json",
    "read_prompt",
    "reply_ids",
    "stop_ids",
    "text_loop",
    "with_queries",
]

QUERY = "<|query_{}|>"  # how a tokenizer spells a connector's learned queries


def text_loop(config: ModelConfig, tokenizer: Tokenizer) -> TextLoop:
    """How the model is asked, as its bundle says it."""
    return TextLoop(
        template=config.chat,
        image_close=config.image_close,
        image_size=config.vision.image_size,
        image_token_count=config.vision.token_count,
        background=config.background,
        stop_token_ids=tuple(stop_ids(config, tokenizer)),
        graph=None if config.graph is None else GraphRows(config.graph.kinds, config.graph.nodes, config.graph.named),
        motion=None if config.motion is None else MotionRows(config.motion.token_count, config.motion.every),
        rope_theta=config.transformer.rope_theta,
    )


def read_prompt(
    config: ModelConfig,
    tokenizer: Tokenizer,
    text: str,
    pictures: int,
    graph: Graph | None = None,
    clip: bool = False,
) -> Prompt:
    """One user message with `pictures` pictures, the frames of a clip or not, or a graph, before its text, and the
    start of the reply."""
    loop = text_loop(config, tokenizer)
    images = loop.clip((None,) * pictures) if clip else (None,) * pictures
    messages = with_graph((Message("user", text, images),), graph, loop.graph)
    return chat_prompt(messages, loop, tokenizer)


def draw_prompt(
    config: ModelConfig, tokenizer: Tokenizer, prompt: str, edits: bool = False, graph: Graph | None = None
) -> Prompt:
    """What the denoiser's prefix is made of ("" is the unconditional one), with a picture to draw from or without, or a
    graph to draw."""
    picture = PictureTokens(config.vision.token_count)
    rows = text_loop(config, tokenizer).graph
    if graph is not None and rows is None:
        prompt, graph = f"{graph.to_text()}{prompt}".strip(), None
    block = None if graph is None or rows is None else (graph, rows, picture)
    return negative_drawing_prompt(prompt, config.draw, tokenizer, picture if edits else None, graph=block)


def codes_prompt(config: ModelConfig, tokenizer: Tokenizer, prompt: str) -> Prompt:
    """What a picture's first code follows; "" is the unconditional prompt."""
    return prompt_between(config.draw.open + " ", prompt, config.draw.close, tokenizer)


def reply_ids(config: ModelConfig, tokenizer: Tokenizer, reply: str) -> list[int]:
    """Ids the model is taught to say: the reply and the token that ends it."""
    return tokenizer.encode(reply) + tokenizer.encode(config.stop_tokens[0], special=True)


def stop_ids(config: ModelConfig, tokenizer: Tokenizer) -> list[int]:
    ids = [tokenizer.encode(token, special=True) for token in config.stop_tokens]
    for token, pieces in zip(config.stop_tokens, ids, strict=True):
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


RESERVED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|reserved_{i}|>" for i in range(5))]
BYTES = 256 + len(RESERVED)  # tokens of a tokenizer that has learned nothing


def byte_tokenizer_json() -> str:
    """A tokenizer.json of 256 bytes and the chat tokens (vocabulary 264): no training, no files, for `micro`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore
    return _with_reserved(tokenizer)


def learned_tokenizer_json(texts: Iterable[str], size: int) -> str:
    """A tokenizer.json of at most `size` tokens, BYTES or more: bytes, the commonest pairs of `texts` one after the
    other (byte-level BPE, arXiv:1508.07909) within words as GPT-2 parts them, and the chat tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore
    trainer = trainers.BpeTrainer(vocab_size=size - len(RESERVED), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return _with_reserved(tokenizer)


def _with_reserved(tokenizer: Any) -> str:
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in RESERVED])
    return tokenizer.to_str()
