"""Folders that bitsandbytes packed, through transformers: read as the very numbers that bitsandbytes computes with."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgemm.errors import CheckpointError
from edgemm.model.pretrained import is_packed, load_transformer_weights, read_tensors, unpacked
from edgemm.model.transformer import Transformer

bitsandbytes = pytest.importorskip("bitsandbytes")
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KINDS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4, nested": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


def load(folder, dtype=torch.float32, **config):
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    more = {"quantization_config": BitsAndBytesConfig(**config)} if config else {}
    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype, **more)


def dense(layer) -> torch.Tensor:
    """What bitsandbytes says that a layer holds, if it was never run."""
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        state = copy.copy(layer.weight.quant_state)
        state.dtype = torch.float32  # the numbers themselves, not rounded to what is computed in
        return bitsandbytes.functional.dequantize_4bit(layer.weight.data, state)
    return bitsandbytes.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB).float()


def with_short_scales(layer) -> torch.Tensor:
    """What a Linear4bit that was never run will compute with once it has repacked itself: its scales in bfloat16."""
    state = copy.copy(layer.weight.quant_state)
    assert not state.nested
    state.absmax, state.dtype = state.absmax.bfloat16().float(), torch.float32
    return bitsandbytes.functional.dequantize_4bit(layer.weight.data, state)


def run_and_save(model, folder) -> None:
    """One forward, which repacks every layer on CPUs with AVX512-BF16; elsewhere its packing is called by hand."""
    with torch.no_grad():
        model(torch.arange(12)[None])
    for layer in packed_layers(model).values():
        weight = layer.weight
        if not getattr(weight.quant_state, "packing_format_for_cpu", False):
            assert not bitsandbytes.functional.has_avx512bf16(), "the forward was to repack it"
            pack = bitsandbytes.functional._convert_weight_packed_for_cpu
            weight.data, weight.quant_state = pack(weight.data, weight.quant_state)
    model.save_pretrained(folder)


def packed_layers(model):
    return {name: part for name, part in model.named_modules() if name.endswith(NAMES)}


@pytest.fixture(scope="module", params=list(KINDS))
def packed(request, llama_folder, tmp_path_factory):
    """A folder, and the model whose layers were never run."""
    folder = tmp_path_factory.mktemp("packed")
    load(llama_folder, **KINDS[request.param]).save_pretrained(folder)
    return folder, load(folder)


def test_every_number_is_the_one_that_bitsandbytes_computes_with(packed, llama_shape):
    folder, model = packed
    found = read_tensors(sorted(folder.glob("*.safetensors")))
    layers = packed_layers(model)
    assert len(layers) == 3 * 7 and is_packed(json.loads((folder / "config.json").read_text()))
    for name, layer in layers.items():
        torch.testing.assert_close(found[f"{name}.weight"], dense(layer), rtol=1e-6, atol=1e-7)
    state = load_transformer_weights(str(folder), llama_shape)
    assert state.keys() == Transformer(llama_shape).state_dict().keys()
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_model_that_was_run_before_it_was_saved_reads_as_what_it_computed_with(kind, dtype, llama_folder, tmp_path):
    """Repacked layers save their scales transposed.  bitsandbytes reads those as if they were not."""
    model = load(llama_folder, dtype, **KINDS[kind]).eval()
    wanted = {name: with_short_scales(layer) for name, layer in packed_layers(model).items()}
    run_and_save(model, tmp_path)
    found = read_tensors([tmp_path / "model.safetensors"])
    for name, weight in wanted.items():
        torch.testing.assert_close(found[f"{name}.weight"], weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nested_scales_of_a_model_that_was_run_read_as_bitsandbytes_reads_them(dtype, llama_folder, tmp_path):
    """Not as they were: bitsandbytes rounds them to bfloat16 at the forward, and to 8 bits again to save them."""
    model = load(llama_folder, dtype, **KINDS["nf4, nested"]).eval()
    before = {name: dense(layer) for name, layer in packed_layers(model).items()}
    run_and_save(model, tmp_path)
    found = read_tensors([tmp_path / "model.safetensors"])
    layers = packed_layers(load(tmp_path, dtype))
    assert layers.keys() == before.keys()
    for name, layer in layers.items():
        torch.testing.assert_close(found[f"{name}.weight"], dense(layer), rtol=1e-6, atol=1e-7)
        lost = (found[f"{name}.weight"] - before[name]).norm() / before[name].norm()
        assert lost < 2**-8, "more than the rounding of scales"  # bfloat16's step; garbage is at 1.4


def test_what_is_not_packed_stays_as_it_is(tmp_path):
    tensors = {"a.weight": torch.ones(2, 2, dtype=torch.bfloat16), "a.bias": torch.zeros(2)}
    assert unpacked(tensors, tmp_path) == tensors


def as_bytes(told: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("nf4", lambda t: t.pop("w.weight.absmax"), r"w\.weight\.absmax is missing"),
        ("nf4", lambda t: t.update({"w.weight": t["w.weight"][:-1]}), "holds 126 codes in 2 blocks, .* says"),
        ("nf4", lambda t: t.update({"w.weight.absmax": torch.ones(1)}), "in 1 blocks"),
        ("nf4", lambda t: t.update({STATE: torch.tensor([123], dtype=torch.uint8)}), "nf4 cannot be read"),
        ("nf4", lambda t: t.update({STATE: as_bytes(NESTED | {"nested_dtype": "save"})}), "nf4 cannot be read"),
        ("int8", lambda t: t.update({"w.SCB": torch.ones(3)}), r"int8 \(2, 4\) with \(3,\) scales"),
        ("int8", lambda t: t.update({"w.weight": torch.ones(2, 4)}), r"w\.weight is torch\.float32"),
    ],
)
def test_a_damaged_folder_is_refused_by_the_tensors_name(tmp_path, kind, change, message):
    tensors = {"w.weight": torch.ones(2, 4, dtype=torch.int8), "w.SCB": torch.ones(2)}
    if kind == "nf4":
        weight, state = bitsandbytes.functional.quantize_4bit(torch.randn(8, 16), quant_type="nf4")
        parts = state.as_dict(packed=True)
        tensors = {"w.weight": weight, **{f"w.weight.{name}": part for name, part in parts.items()}}
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        unpacked(load_file(tmp_path / "model.safetensors"), tmp_path)


STATE = "w.weight.quant_state.bitsandbytes__nf4"
NESTED = {"shape": [8, 16], "blocksize": 64, "nested_blocksize": 256, "nested_offset": 0.0}
