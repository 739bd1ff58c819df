"""What PEFT can write of a LoRA, on a checkpoint with a base and on one without, and at run time: right, or refused by
the name of what is wrong.  PEFT's own model, at the end of its training, says what is right."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.other import get_pattern_key
from torch import nn

from edgemm.bundle.adapter_config import KEYS, REFUSED, AdapterConfig, _fits
from edgemm.bundle.components import ADAPTER_PREFIX, TensorSpec
from edgemm.errors import InputError, UsageError
from edgemm.model import checkpoint
from edgemm.model.unified import Unified
from edgemm.runtimes.adapters import read_factors
from edgemm.train.merge import merge
from tests.train.test_finetune import llama_start, pictures, said, start

__all__ = ["llama_start", "start"]  # fixtures

LAYERS = [f"layers.{layer}.self_attn.{name}" for layer in (4, 5) for name in ("q_proj", "v_proj")]
WORDS: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": LAYERS}
PICTURES: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["o_proj", "up_proj"]}
RIGHT = "right"


@dataclasses.dataclass(frozen=True)
class Case:
    config: dict[str, Any]
    merged: str = RIGHT  # or what the refusal names
    run: str = RIGHT
    part: str = "transformer"
    edits: dict[str, Any] = dataclasses.field(default_factory=dict)  # of adapter_config.json, once it is written


CASES = {
    "plain": Case(WORDS),
    "rslora": Case(WORDS | {"use_rslora": True}),
    "dora": Case(WORDS | {"use_dora": True}, run="use_dora is True: DoRA sets magnitudes; merge it before you export"),
    "ranks": Case(WORDS | {"rank_pattern": {"q_proj": 2}}),
    "ranks and alphas": Case(
        WORDS
        | {
            "rank_pattern": {r"^layers\.4\.self_attn\.q_proj": 8},
            "alpha_pattern": {"4.self_attn.v_proj": 3, "5.self.attn.v_proj": 9},
        }
    ),
    "rslora of many ranks": Case(WORDS | {"use_rslora": True, "rank_pattern": {"layers.5.self_attn.v_proj": 1}}),
    "ranks that overlap": Case(  # PEFT sorts patterns when it saves; of ranks the tensors say which one was meant
        WORDS | {"rank_pattern": {"v_proj": 2, "5.self_attn.v_proj": 9}}
    ),
    "alphas that overlap": Case(
        WORDS | {"alpha_pattern": {"v_proj": 3, "5.self_attn.v_proj": 9}},
        r"alpha_pattern says \[3, 9\] of",
        "alpha_pattern",
    ),
    "a regular expression": Case(WORDS | {"rank_pattern": {".*q_proj": 2}}, "rank_pattern", "rank_pattern"),
    "all linear layers": Case(WORDS | {"target_modules": "all-linear"}),
    "a pattern that never ends": Case(WORDS, edits={"target_modules": "(l|la|.)*(.*)*!", "exclude_modules": "(.*)*"}),
    "a norm, saved": Case(WORDS | {"modules_to_save": ["norm"]}, run="modules_to_save"),
    "an embedding, saved": Case(WORDS | {"modules_to_save": ["embed_tokens"]}, run="modules_to_save"),
    "an embedding": Case(
        WORDS | {"target_modules": ["embed_tokens", *LAYERS]},
        "is LoRA on an embedding, which is the output head",
        "lora_embedding",
    ),
    "some tokens": Case(
        WORDS | {"trainable_token_indices": {"embed_tokens": [3]}}, "trainable_token", "trainable_token"
    ),
    "gaussian": Case(WORDS | {"init_lora_weights": "gaussian"}),
    "orthogonal": Case(WORDS | {"init_lora_weights": "orthogonal"}),
    "mica": Case(WORDS | {"init_lora_weights": "mica"}),
    "pissa": Case(WORDS | {"init_lora_weights": "pissa"}, run="init_lora_weights is 'pissa': its first factors were"),
    "pissa of many ranks": Case(WORDS | {"init_lora_weights": "pissa", "rank_pattern": {"q_proj": 2}}, run="init_lora"),
    "pissa by chance": Case(
        WORDS | {"init_lora_weights": "pissa_niter_2"}, "'pissa_niter_2': it changed", "it changed"
    ),
    "olora": Case(WORDS | {"init_lora_weights": "olora"}, run="init_lora_weights is 'olora'"),
    "dora on pissa": Case(WORDS | {"init_lora_weights": "pissa", "use_dora": True}, run="use_dora"),
    "another base's name": Case(
        WORDS, edits={"base_model_name_or_path": "somebody/else", "task_type": "CAUSAL_LM", "revision": "main"}
    ),
    "a picture's": Case(PICTURES, part="denoiser"),
    "a picture's, many ranks": Case(PICTURES | {"rank_pattern": {"o_proj": 1}, "use_rslora": True}, part="denoiser"),
    "a picture's, dora": Case(PICTURES | {"use_dora": True}, run="use_dora", part="denoiser"),
    "a picture's biases": Case(PICTURES | {"bias": "all"}, run="bias is 'all'", part="denoiser"),
    "a picture's biases, some": Case(PICTURES | {"bias": "lora_only"}, run="bias is 'lora_only'", part="denoiser"),
    "a picture's norm": Case(PICTURES | {"modules_to_save": ["head"]}, run="modules_to_save", part="denoiser"),
    "a bias of factors": Case(
        PICTURES | {"lora_bias": True, "target_modules": ["up_proj"]}, run="lora_bias", part="denoiser"
    ),
    "pissa of pictures": Case(PICTURES | {"init_lora_weights": "pissa"}, run="init_lora", part="denoiser"),
}


def outputs(model) -> list[torch.Tensor]:
    return [said(model), pictures(model)]


@functools.cache
def untouched(origin: Path) -> list[torch.Tensor]:
    return outputs(checkpoint.load(origin))


def trained(origin: Path, case: Case, folder: Path) -> tuple[Any, Unified]:
    """PEFT's model as if trained, saved to `folder`, and the whole that it is a part of."""
    model = checkpoint.load(origin).requires_grad_(False)
    torch.manual_seed(0)
    module: nn.Module = getattr(model, case.part)
    peft: Any = get_peft_model(module, LoraConfig(**case.config)).eval()
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=random) * 0.03
    peft.save_pretrained(str(folder / case.part))
    path = folder / case.part / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | case.edits))
    return peft, model


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("base", [False, True], ids=["own weights", "a base"])
def test_a_merged_checkpoint_does_what_pefts_model_did_or_the_adapter_is_refused(request, tmp_path, name, base):
    case = CASES[name]
    origin = request.getfixturevalue("llama_start" if base else "start")
    _, model = trained(origin, case, tmp_path / "adapter")
    if case.merged != RIGHT:
        with pytest.raises(InputError, match=case.merged):
            merge(origin, tmp_path / "adapter", tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
        return
    merge(origin, tmp_path / "adapter", tmp_path / "merged")
    found, wanted, before = outputs(checkpoint.load(tmp_path / "merged")), outputs(model), untouched(origin)
    touched = case.part == "denoiser"  # said, or drawn
    assert (found[touched] - before[touched]).abs().max() > 0.01
    torch.testing.assert_close(found[0], wanted[0], atol=2e-4, rtol=1e-4)  # logits of spread 10
    torch.testing.assert_close(found[1], wanted[1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_factors_at_run_time_are_pefts_change_or_the_adapter_is_refused(start, tmp_path, name):
    case = CASES[name]
    before = dict(getattr(checkpoint.load(start), case.part).named_modules())
    linear = {module: layer for module, layer in before.items() if isinstance(layer, nn.Linear)}
    specs = {}
    for module, layer in linear.items():
        for kind, shape in (("a", (layer.in_features, "rank")), ("b", ("rank", layer.out_features))):
            specs[f"{ADAPTER_PREFIX}{module}.{kind}"] = TensorSpec(f"{ADAPTER_PREFIX}{module}.{kind}", "float32", shape)
    peft, _ = trained(start, case, tmp_path)
    if case.run != RIGHT:
        with pytest.raises(InputError, match=case.run):
            read_factors(tmp_path / case.part, specs)
        return
    factors = read_factors(tmp_path / case.part, specs)
    merged = dict(peft.merge_and_unload().named_modules())
    changed = 0
    for module, layer in linear.items():
        a, b = (factors[f"{ADAPTER_PREFIX}{module}.{kind}"] for kind in "ab")
        change = (merged[module].weight - layer.weight).detach().numpy().T
        np.testing.assert_allclose(a @ b, change, atol=1e-6)
        changed += bool(np.abs(change).max() > 1e-3)
    assert changed >= 4


def test_the_converted_form_of_pissa_is_a_lora_like_any_other(start, llama_start, tmp_path):
    for origin in (start, llama_start):
        case, folder = CASES["pissa"], tmp_path / origin.parent.name
        model = checkpoint.load(origin).requires_grad_(False)
        peft: Any = get_peft_model(model.transformer, LoraConfig(**case.config)).eval()
        peft.save_pretrained(str(folder / "initial"))
        with torch.no_grad():
            for parameter in peft.parameters():
                parameter += 0.02 * parameter.requires_grad
        wanted = outputs(model)
        initial = str(folder / "initial")
        peft.save_pretrained(str(folder / "adapter" / "transformer"), path_initial_model_for_weight_conversion=initial)
        assert AdapterConfig.read(folder / "adapter" / "transformer").beyond_factors == {}
        merge(origin, folder / "adapter", folder / "merged")
        torch.testing.assert_close(said(checkpoint.load(folder / "merged")), wanted[0], atol=2e-4, rtol=1e-4)


def test_a_base_stays_a_base_where_factors_say_all(llama_start, tmp_path):
    """And the adapter that grew is the sum of both, whatever their ranks."""
    for name in ("plain", "ranks and alphas"):
        trained(llama_start, CASES[name], tmp_path / name)
    merge(llama_start, tmp_path / "plain", tmp_path / "once")
    merge(tmp_path / "once", tmp_path / "ranks and alphas", tmp_path / "twice")
    merge(llama_start, tmp_path / "ranks and alphas", tmp_path / "other")
    names = ("once", "other", "twice")
    before = checkpoint.load(llama_start).transformer.state_dict()
    once, other, twice = (checkpoint.load(tmp_path / name).transformer.state_dict() for name in names)
    assert checkpoint.load(tmp_path / "twice").config.base
    for name, weight in before.items():
        torch.testing.assert_close(twice[name], once[name] + other[name] - weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dora", "a norm, saved", "pissa", "a picture's biases"])
def test_there_is_no_half_of_what_is_more_than_factors(start, tmp_path, name):
    trained(start, CASES[name], tmp_path / "adapter")
    with pytest.raises(UsageError, match="of which there is no half: leave --strength out"):
        merge(start, tmp_path / "adapter", tmp_path / "merged", strength=0.5)


def test_every_key_of_peft_is_known():
    assert set(LoraConfig().to_dict()) <= set(KEYS) and len(set(KEYS)) == len(KEYS)


ON = {key: {"an": "option"} for key in REFUSED} | {"fan_in_fan_out": True, "alora_invocation_tokens": [5, 6]}


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        *(({key: value}, f"{key} is .*, which edgemm cannot apply: {REFUSED[key]}") for key, value in ON.items()),
        ({"use_xora": True}, "use_xora is True, a key that this edgemm does not know"),
        ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda': it changed the base .* path_initial_model_for"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq': it changed the base"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga': it changed the base"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA', expected 'LORA'"),
        ({"r": 0}, "r is 0, expected a whole number above 0"),
        ({"r": 2.5}, "r is 2.5, expected a whole number above 0"),
        ({"r": 5}, "says rank 5 of .*, its factors have 4"),
        ({"lora_alpha": "8"}, "lora_alpha is '8', expected a number"),
        ({"lora_alpha": float("nan")}, "NaN is not JSON"),
        ({"use_rslora": "no"}, "use_rslora is 'no', expected true or false"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is .*, expected an object"),
        ({"rank_pattern": {"q_proj": 2}}, "says rank 2 of layers.4.self_attn.q_proj, its factors have 4"),
        ({"alpha_pattern": {"(a+)+": 2}}, r"alpha_pattern has '\(a\+\)\+'; edgemm follows no regular"),
        ({"alpha_pattern": {"q_proj" * 100: 2}}, "follows no regular expressions"),
    ],
)
def test_a_config_that_asks_for_what_cannot_be_had_is_refused_by_the_key(start, tmp_path, edits, message):
    case = dataclasses.replace(CASES["plain"], edits=edits)
    trained(start, case, tmp_path / "adapter")
    with pytest.raises(InputError, match=message):
        merge(start, tmp_path / "adapter", tmp_path / "merged")
    with pytest.raises(InputError, match=message):
        config = AdapterConfig.read(tmp_path / "adapter" / "transformer")
        config.scale(LAYERS[0], 4)


def test_keys_that_are_off_are_nobodys_business(start, tmp_path):
    off = dict.fromkeys((*REFUSED, "use_xora"), None) | {"use_dora": False, "bias": "none", "layer_replication": []}
    trained(start, dataclasses.replace(CASES["plain"], edits=off), tmp_path / "adapter")
    merge(start, tmp_path / "adapter", tmp_path / "merged")


def test_names_fit_as_pefts_patterns_do():
    modules = ["layers.0.self_attn.q_proj", "layers.10.self_attn.q_proj", "q_proj", "blocks.0.attn.qkv_proj", "a-b.c"]
    patterns = [
        *(
            "q_proj",
            "^q_proj",
            "proj",
            r"layers\.0\.self_attn\.q_proj",
            "layers.0.self.attn.q_proj",
            "0.self_attn.q_proj",
        ),
        *(
            r"^layers\.10\.self_attn\.q_proj$",
            "self_attn.q_proj$",
            "........",
            ".",
            r"\.q_proj",
            "b.c",
            "^",
            "$",
            ".q_proj",
        ),
    ]
    for module in modules:
        for pattern in patterns:
            assert _fits(pattern, module) == (get_pattern_key([pattern], module) is pattern), (pattern, module)
