"""One random micro model and one tiny Llama, built once; tests must not change them."""

from __future__ import annotations

import pytest
import torch

from edgemm.model.config import TransformerConfig
from edgemm.model.unified import Unified
from tests.model.tiny import random_micro


@pytest.fixture(scope="session")
def model() -> Unified:
    return random_micro()


@pytest.fixture(scope="session")
def llama_shape() -> TransformerConfig:
    return TransformerConfig(
        vocab_size=96, width=64, depth=3, heads=4, kv_heads=2, head_width=16, ffn_width=128, rope_theta=5_000.0
    )


@pytest.fixture(scope="session")
def llama(llama_shape):
    """The reference library's own model of that shape, random."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=llama_shape.vocab_size,
        hidden_size=llama_shape.width,
        num_hidden_layers=llama_shape.depth,
        num_attention_heads=llama_shape.heads,
        num_key_value_heads=llama_shape.kv_heads,
        intermediate_size=llama_shape.ffn_width,
        rope_parameters={"rope_type": "default", "rope_theta": llama_shape.rope_theta},
        rms_norm_eps=llama_shape.norm_eps,
        max_position_embeddings=256,
        initializer_range=0.15,  # large, so that layers do something and the logits differ
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def llama_folder(llama, tmp_path_factory):
    """That model as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("llama")
    llama.save_pretrained(folder)
    return folder
