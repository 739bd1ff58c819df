"""Adapters, taught and merged: each touches its own half of the model, and what is merged is what was trained."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgemm.cli.main import main
from edgemm.errors import CheckpointError, UsageError
from edgemm.model import checkpoint
from edgemm.model.prompts import byte_tokenizer_json
from edgemm.train.adapters import dense_weight, to_dense, to_nf4
from edgemm.train.merge import joined, merge
from edgemm.train.recipe_file import FinetuneRecipe, read_recipe
from edgemm.train.run import AdapterTask, finetune
from tests.model.tiny import micro, random_micro, tokens_of
from tests.train.conftest import EMOJI, ROOT, read_log

PROMPTS = ["a red circle", "a dog"]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A random micro in float32, so that nothing is rounded on its way to disk."""
    folder = tmp_path_factory.mktemp("start") / "micro"
    checkpoint.save(random_micro(), folder)
    return folder


@pytest.fixture(scope="module")
def llama_start(tmp_path_factory) -> Path:
    """The same with a transformer that has a base: the reference library's Llama, in a folder of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = micro().transformer
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        intermediate_size=shape.ffn_width,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=shape.norm_eps,
        max_position_embeddings=shape.max_context,
        initializer_range=0.15,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("start")
    LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    (folder / "llama" / "tokenizer.json").write_text(byte_tokenizer_json())
    checkpoint.save(random_micro(micro(base=str(folder / "llama"))), folder / "micro")
    return folder / "micro"


def settings(start: Path, output: Path, **changes) -> FinetuneRecipe:
    given = {"start": start, "data": EMOJI, "output": output, "threads": 1, "lora_rank": 4, "batch": 8, "views": 1}
    words = [f"{key}={value}" for key, value in {**given, **changes}.items()]
    return read_recipe(None, words, FinetuneRecipe, "finetune")


def grown(start: Path, output: Path, **changes) -> tuple[AdapterTask, Path]:
    """A task whose adapter is random in every weight, and the folder it was saved to."""
    recipe = settings(start, output, pictures=8, **changes)
    task = AdapterTask(checkpoint.load(start).requires_grad_(False), recipe)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            if "magnitude" in name:
                parameter *= 1 + 0.2 * torch.rand(parameter.shape, generator=random)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.05)
    task.save(output / "checkpoint")
    return task, output / "adapters" / recipe.name


def said(model) -> torch.Tensor:
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return model.generate("What is this?", pixels, 4, stop=False)[1]


def pictures(model) -> torch.Tensor:
    return model.draw(PROMPTS, tokens_of(model, len(PROMPTS)), model.with_sampler(num_inference_steps=3))


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_a_merged_checkpoint_does_what_the_trained_adapters_did(start, tmp_path, method):
    task, adapter = grown(start, tmp_path, method=method, parts="both")
    trained = task.drawing.model
    merge(start, adapter, tmp_path / "merged")
    merged, before = checkpoint.load(tmp_path / "merged"), checkpoint.load(start)
    torch.testing.assert_close(pictures(merged), pictures(trained), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(said(merged), said(trained), atol=1e-4, rtol=1e-5)  # logits of spread 10
    assert (pictures(merged) - pictures(before)).abs().max() > 0.01
    assert (said(merged) - said(before)).abs().max() > 0.01
    assert merged.config == dataclasses.replace(before.config, name="merged")


def test_an_adapter_of_the_image_expert_leaves_text_as_it_was_to_the_last_bit(start, tmp_path):
    _, adapter = grown(start, tmp_path, parts="denoiser")
    merge(start, adapter, tmp_path / "merged")
    before, after = checkpoint.load(start), checkpoint.load(tmp_path / "merged")
    assert torch.equal(said(before), said(after))
    assert not torch.equal(pictures(before), pictures(after))


def test_an_adapter_of_the_transformer_leaves_drawing_as_it_was_to_the_last_bit(start, tmp_path):
    _, adapter = grown(start, tmp_path, parts="transformer")
    merge(start, adapter, tmp_path / "merged")
    before, after = checkpoint.load(start), checkpoint.load(tmp_path / "merged")
    assert torch.equal(pictures(before), pictures(after))
    assert not torch.equal(said(before), said(after))


def test_an_adapter_lies_in_pefts_own_layout_and_peft_reads_it(start, tmp_path):
    from peft import PeftModel

    task, adapter = grown(start, tmp_path, parts="both", name="style", target_modules="q_proj,qkv_proj")
    assert sorted(path.relative_to(adapter).as_posix() for path in adapter.rglob("*.*")) == [
        f"{part}/adapter_{file}"
        for part in ("denoiser", "transformer")
        for file in ("config.json", "model.safetensors")
    ]
    assert {key.split(".")[-3] for key in load_file(adapter / "denoiser" / "adapter_model.safetensors")} == {"qkv_proj"}
    plain = checkpoint.load(start)
    PeftModel.from_pretrained(plain.denoiser, str(adapter / "denoiser"))
    assert torch.equal(pictures(plain), pictures(task.drawing.model))


def test_sixty_four_pictures_of_a_style_lower_the_loss(drawn, tmp_path):
    recipe = read_recipe(
        ROOT / "recipes" / "style-lora.toml",
        [f"start={drawn / 'checkpoint'}", f"data={EMOJI}", f"output={tmp_path}", "threads=1"]
        + ["steps=24", "batch=16", "log_every=1", "learning_rate=3e-3", "lora_rank=8"],
        FinetuneRecipe,
    )
    assert recipe.pictures == 64 and recipe.parts == "denoiser"
    finetune(recipe)
    losses = [line["loss"] for line in read_log(tmp_path)]
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6])


def test_a_stopped_run_goes_on_with_the_same_losses(start, tmp_path):
    changes = {"parts": "both", "pictures": 16, "log_every": 1, "save_every": 2}
    finetune(settings(start, tmp_path / "whole", steps=4, decay=0, **changes))
    for steps in (2, 4):
        finetune(settings(start, tmp_path / "stopped", steps=steps, decay=0, **changes))
    whole, stopped = ([line["loss"] for line in read_log(tmp_path / run)] for run in ("whole", "stopped"))
    assert whole == stopped and len(whole) == 4
    one, other = (tmp_path / run / "adapters" / "adapter" for run in ("whole", "stopped"))
    for part in ("denoiser", "transformer"):
        tensors = [load_file(folder / part / "adapter_model.safetensors") for folder in (one, other)]
        assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def test_qlora_after_one_forward_merges_into_what_was_trained(start, tmp_path):
    """bitsandbytes repacks a layer at such a forward, and what is dequantized after that is garbage."""
    pytest.importorskip("bitsandbytes")
    task, adapter = grown(start, tmp_path, method="qlora", parts="transformer")
    trained = task.reading.model.eval()
    logits = said(trained)  # in eval mode, without gradients: the trap
    merge(start, adapter, tmp_path / "rounded", onto="nf4")
    torch.testing.assert_close(said(checkpoint.load(tmp_path / "rounded")), logits, atol=1e-4, rtol=1e-5)

    merge(start, adapter, tmp_path / "float")
    weights, before = (checkpoint.load(path).transformer.state_dict() for path in (tmp_path / "float", start))
    factors = load_file(adapter / "transformer" / "adapter_model.safetensors")
    name = "layers.5.mlp.down_proj"
    up, down = (factors[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "BA")
    torch.testing.assert_close(
        weights[f"{name}.weight"], before[f"{name}.weight"] + 32 / 4 * up @ down, atol=1e-5, rtol=0
    )


def test_nf4_gives_the_same_numbers_before_and_after_a_forward():
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.Linear(64, 32, bias=False)).eval()
    exact = model[0].weight.detach().clone()
    to_nf4(model)
    rounded = dense_weight(model[0])
    assert 0 < (rounded - exact).abs().max() < 0.2 * exact.abs().max()
    with torch.no_grad():
        x = torch.randn(4, 128)
        quantized = model(x)
    assert torch.equal(dense_weight(model[0]), rounded)
    to_dense(model)
    torch.testing.assert_close(model(x), quantized, atol=1e-5, rtol=1e-5)


def test_adapters_side_by_side_add_up(tmp_path):
    """A rank-4 LoRA on two layers and an rsLoRA of rank 2 on others, as one."""
    from peft import LoraConfig, get_peft_model

    model = random_micro()
    whole = {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}
    folders = []
    for rank, root, targets in ((4, False, "q_proj|o_proj"), (2, True, "q_proj|up_proj")):
        one = random_micro()
        config = LoraConfig(r=rank, lora_alpha=3, use_rslora=root, target_modules=rf"layers\.[45]\.\w+\.({targets})")
        peft = get_peft_model(one.transformer, config)
        for index, (name, parameter) in enumerate(peft.named_parameters()):
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.1
        folders.append(tmp_path / str(rank))
        peft.save_pretrained(folders[-1])
        for name, tensor in peft.merge_and_unload().state_dict().items():
            whole[name] = whole[name] + tensor - model.transformer.state_dict()[name]
    joined(folders, tmp_path)
    checkpoint.merge_adapter(model, tmp_path)
    for name, tensor in model.transformer.state_dict().items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-5, rtol=1e-5)


def test_a_transformer_with_a_base_keeps_it_and_its_adapter_grows(llama_start, tmp_path):
    _, adapter = grown(llama_start, tmp_path, parts="transformer")
    merge(llama_start, adapter, tmp_path / "once")
    merge(tmp_path / "once", adapter, tmp_path / "twice")
    before, once, twice = (checkpoint.load(path) for path in (llama_start, tmp_path / "once", tmp_path / "twice"))
    name = "layers.4.mlp.down_proj.weight"
    step = once.transformer.state_dict()[name] - before.transformer.state_dict()[name]
    assert step.abs().max() > 0.01
    expected = once.transformer.state_dict()[name] + step
    torch.testing.assert_close(twice.transformer.state_dict()[name], expected, atol=1e-5, rtol=1e-5)
    assert once.config.base == before.config.base
    assert not any(key.startswith("transformer.") for key in load_file(tmp_path / "twice" / "model.safetensors"))


@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_half_of_an_adapter_is_half_way_to_the_whole(start, llama_start, tmp_path, method):
    for origin, parts in ((start, "both"), (llama_start, "transformer")):
        _, adapter = grown(origin, tmp_path, parts=parts, method=method)
        merge(origin, adapter, tmp_path / "whole")
        merge(origin, adapter, tmp_path / "half", strength=0.5)
        before, half, whole = (checkpoint.load(path) for path in (origin, tmp_path / "half", tmp_path / "whole"))
        changed = 0
        for (name, old), some, new in zip(
            before.state_dict().items(), half.state_dict().values(), whole.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(some, (old + new) / 2, atol=1e-5, rtol=1e-5, msg=name)
            changed += not torch.equal(old, new)
        assert changed >= 4
        for path in (adapter, tmp_path / "half", tmp_path / "whole"):
            shutil.rmtree(path)


def test_there_is_no_half_of_a_dora(start, tmp_path):
    _, adapter = grown(start, tmp_path, parts="denoiser", method="dora")
    with pytest.raises(UsageError, match="DoRA sets magnitudes"):
        merge(start, adapter, tmp_path / "half", strength=0.5)
    assert not (tmp_path / "half").exists()


def test_what_no_lora_can_say_makes_the_weights_the_checkpoints_own(llama_start, tmp_path):
    _, adapter = grown(llama_start, tmp_path, parts="transformer", method="dora")
    merge(llama_start, adapter, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["base"] == "" and config["origin"] == checkpoint.load(llama_start).config.base
    assert not torch.equal(said(checkpoint.load(tmp_path / "merged")), said(checkpoint.load(llama_start)))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--target-modules", "nose_proj"], 2, "nose_proj is no linear layer of the denoiser, which has: down_proj"),
        (["--method", "qlora"], 2, "for the denoiser alone take method lora"),
        (["--name", "a/b"], 2, "expected a folder's name"),
        (["--rank", "0"], 2, "lora_rank is 0, expected 1 to 4096"),
        (["--set", "optimizer=muon"], 2, "optimizer is 'muon', expected one of: adamw"),
    ],
)
def test_what_cannot_be_taught_is_one_line(start, tmp_path, capsys, words, code, message):
    given = ["finetune", str(start), "--data", str(EMOJI), "--output", str(tmp_path / "run"), *words]
    assert main(given) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_another_model_is_refused_and_nothing_is_written(start, tmp_path):
    other = tmp_path / "other"
    small = dataclasses.replace(micro().denoiser, width=64)
    checkpoint.save(random_micro(micro(denoiser=small)), other)
    _, adapter = grown(start, tmp_path)
    with pytest.raises(CheckpointError, match="does not fit this checkpoint"):
        merge(other, adapter, tmp_path / "merged")
    with pytest.raises(CheckpointError, match="no adapter; its folder holds transformer or denoiser"):
        merge(start, tmp_path / "nowhere", tmp_path / "merged")
    with pytest.raises(UsageError, match="for an adapter of the transformer"):
        merge(start, adapter, tmp_path / "merged", onto="nf4")
    assert not (tmp_path / "merged").exists()


def test_the_verbs_work_one_after_the_other(start, tmp_path, capsys):
    run, merged = str(tmp_path / "run"), str(tmp_path / "merged")
    words = ["--data", str(EMOJI), "--output", run, "--steps", "2", "--pictures", "8", "--rank", "2", "--name", "pets"]
    assert main(["finetune", str(start), *words, "--set", "threads=1"]) == 0
    adapter = f"{run}/adapters/pets"
    assert f"Wrote {adapter}; merge it: edgemm merge" in capsys.readouterr().out
    document = json.loads(Path(adapter, "denoiser", "adapter_config.json").read_text())
    assert (document["r"], document["lora_alpha"]) == (2, 4)
    words = [sys.executable, "-m", "edgemm", "merge", str(start), adapter, "--output", merged]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)  # libraries keep quiet, too
    aloud = [line for line in told.stderr.splitlines() if not line.startswith("merging (")]  # told of each half minute
    assert aloud == []
    assert told.stdout == f"Wrote {merged}; export it: edgemm export {merged} --output merged.bundle\n"
    assert checkpoint.load(merged).config.name == "merged"


def test_a_folder_of_pictures_is_enough(start, tmp_path, capsys, monkeypatch):
    """Named like any of the layouts, with a broken picture among them; the dataset on the way is kept for next time."""
    from PIL import Image

    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path / "cache" / "edgemm"))
    for name in ("a", "b", "c"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), "red").save(tmp_path / "mine" / f"{name}.png")
    (tmp_path / "mine" / "metadata.csv").write_text(
        "\ufefffile_name;text\n" + "".join(f"{name}.png;a red flag\n" for name in "abcd"), encoding="utf-8"
    )
    run = str(tmp_path / "run")
    words = ["finetune", str(start), "--data", str(tmp_path / "mine"), "--output", run, "--set", "batch=2"]
    words += ["--rank", "2", "--set", "threads=1", "--parts", "both", "--set", "views=1"]
    assert main([*words, "--steps", "1"]) == 3
    message = capsys.readouterr().err
    assert "d.png: cannot be read" in message and "--skip-broken leaves such pictures out" in message
    assert main([*words, "--steps", "1", "--skip-broken"]) == 0
    printed = capsys.readouterr()
    (dataset,) = (tmp_path / "cache" / "edgemm" / "datasets").iterdir()
    assert "3 pictures; 1 broken ones left out, the first: " in printed.err
    assert f"as a dataset: {dataset}; look at {dataset}/contact_sheet.png" in printed.err
    assert json.loads((dataset / "dataset.json").read_text())["size"] == max(
        micro().image_tokens.image_size, micro().vision.image_size
    )
    assert "merge it: edgemm merge" in printed.out and Path(run, "adapters", "adapter", "denoiser").is_dir()
    assert main([*words, "--steps", "2", "--skip-broken"]) == 0  # goes on with the same dataset
    assert "broken" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "--data is needed; --output is needed"),
        (["--data", "x", "--output", "run", "--config", "none.toml"], 3, "none.toml: cannot be read"),
        (["--data", "nowhere", "--output", "run"], 3, "nowhere: no folder and no .tar; give a folder of pictures"),
        (["--data", "empty", "--output", "run"], 3, "empty: no pictures in it; expected pictures with metadata.jsonl"),
        (["--data", "bare", "--output", "run"], 3, "a.png: no words; expected metadata.jsonl with file_name, a.txt"),
    ],
)
def test_every_slip_on_the_way_to_an_adapter_is_told_what_to_give(
    start, tmp_path, capsys, monkeypatch, words, code, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path / "cache" / "edgemm"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.png").write_bytes(b"")
    assert main(["finetune", str(start), *words]) == code
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
