"""Llama-shaped text models: Llama, SmolLM, Mistral, Qwen 2 and 3.  The plainest family: one component, one loop."""

from __future__ import annotations

from typing import Any

from edgemm.families.chat_strings import ChatStrings, added_around, chat_strings, plain_strings
from edgemm.families.family import Parts, Pieces
from edgemm.families.hf_checkpoint import Checkpoint
from edgemm.families.llama_graph import check_llama_shaped, example_tokens, text_pieces, transformer_component
from edgemm.loops import TextLoop

__all__ = ["CANNOT", "parts", "pieces"]

CANNOT = "pictures: this model knows none; tools and other roles of its chat template than system, user, assistant"
EXAMPLE = "The capital of France is a city on a river, and its name has five letters."


def pieces(model: Any) -> Pieces:
    return {"transformer": text_pieces(model.model, model.lm_head)}


def parts(checkpoint: Checkpoint) -> Parts:
    model, config = checkpoint.model, checkpoint.config
    most = check_llama_shaped(config, checkpoint.folder)
    graph = transformer_component(model.model, model.lm_head)
    return Parts(
        graphs={graph.name: graph},
        inputs={graph.name: example_tokens(graph, checkpoint.tokenizer(EXAMPLE)["input_ids"])},
        text=_text_loop(checkpoint),
        most_context=most,
    )


def _text_loop(checkpoint: Checkpoint) -> TextLoop:
    found = _strings(checkpoint)
    return TextLoop(
        template=found.template,
        image_close="",
        image_size=1,
        image_token_count=1,
        background=(255, 255, 255),
        stop_token_ids=checkpoint.stop_token_ids,
        joined=True,
        strip=found.strip,
    )


def _strings(checkpoint: Checkpoint) -> ChatStrings:
    tokenizer = checkpoint.tokenizer
    if not tokenizer.chat_template:
        return plain_strings(*added_around(tokenizer))

    def render(messages: list[dict[str, Any]]) -> str:
        plain = [{"role": message["role"], "content": message["content"][-1]["text"]} for message in messages]
        return tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)

    return chat_strings(render, None, checkpoint.folder)
