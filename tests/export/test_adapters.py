"""Adapters that are swapped at run time: what PEFT merges into torch, bound to a bundle, whatever its precision."""

from __future__ import annotations

import base64
import copy
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import edgemm
import edgemm.serve
from edgemm.bundle.adapter_config import FILES
from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.bundle.components import ADAPTER_PREFIX, TensorSpec
from edgemm.errors import InputError, UsageError
from edgemm.export.schemes import SCHEMES
from edgemm.quantize.options import QuantizeOptions
from edgemm.runtimes import schedule
from edgemm.runtimes.adapters import Adapters
from tests.export.nano import needs_opset_24
from tests.serve.conftest import running

pytestmark = needs_opset_24

PROMPT = "What is this?"
TARGETS = {
    "transformer": r"layers\.\d+\.\w+\.(q_proj|v_proj|gate_proj|down_proj)",
    "denoiser": r"(.*\.)?(qkv_proj|up_proj)",
}


def peft_adapter(model, folder, seed, rank, parts=("transformer", "denoiser")):
    """Random factors, written by PEFT, and the model that PEFT merges them into."""
    from peft import LoraConfig, get_peft_model

    merged = copy.deepcopy(model)
    torch.manual_seed(seed)
    for part in parts:
        config = LoraConfig(r=rank, lora_alpha=24, target_modules=TARGETS[part], init_lora_weights=False)
        adapted = get_peft_model(getattr(merged, part), config)
        adapted.save_pretrained(str(folder / part))
        setattr(merged, part, adapted.merge_and_unload())
    return merged.eval()


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    """name -> (folder, merged model); "words" is a transformer's alone, and its folder is PEFT's own."""
    root = tmp_path_factory.mktemp("adapters")
    made = {
        name: (root / name, peft_adapter(model, root / name, seed, rank))
        for name, seed, rank in (("a", 1, 4), ("b", 2, 8))
    }
    words = peft_adapter(model, root / "words", 3, 4, ("transformer",))
    return made | {"words": (root / "words" / "transformer", words)}


@pytest.fixture(scope="module")
def opened(export, tmp_path_factory, adapters):
    """precision -> an open bundle with every adapter loaded."""
    root, models = tmp_path_factory.mktemp("adaptable"), {}
    for precision in ("fp32", "int8"):
        models[precision] = edgemm.load(export(root / precision, precision=precision, adapters=()), device="cpu")
        for name, (folder, _) in adapters.items():
            models[precision].load_adapter(name, folder)
    yield models
    for each in models.values():
        each.close()


@pytest.fixture(autouse=True)
def plain_again(opened):
    yield
    for each in opened.values():
        each.set_adapter(None)


def torch_draws(model, seed=1):
    tokens = model.config.image_tokens
    noise = torch.from_numpy(schedule.initial_noise(seed, tokens.token_count, tokens.token_width))[None]
    with torch.no_grad():
        return model.draw(["red heart"], noise, model.config.sampler)[0].numpy()


def answers(runtime):
    words = runtime.generate_text(PROMPT, max_new_tokens=16, logprobs=3)
    return words.token_ids, words.logprobs, runtime.generate_image("red heart", seed=1).pixels


def logits(runtime):
    prompt = chat_prompt(as_messages(PROMPT, ()), runtime.manifest.loops.text, runtime.tokenizer)
    return runtime._text.conversation().prefill(prompt).copy()


def equal(one, other):
    return one[:2] == other[:2] and np.array_equal(one[2], other[2])


@pytest.mark.parametrize("name", ["a", "b", "words"])
def test_both_modes_are_those_of_the_merged_model(opened, adapters, model, name):
    runtime, merged = opened["fp32"], adapters[name][1]
    runtime.set_adapter(name)
    found = answers(runtime)
    with torch.no_grad():
        assert found[0] == tuple(merged.generate(PROMPT, None, 16)[0])
    np.testing.assert_allclose(found[2], torch_draws(merged), atol=2e-4)
    assert np.abs(torch_draws(merged) - torch_draws(model)).max() > 0.05, (
        "an adapter that changes nothing proves nothing"
    )


def test_a_server_answers_with_each_adapter_by_its_name_all_at_once(opened, adapters):
    httpx = pytest.importorskip("httpx", reason="needs the extras serve and dev")
    pytest.importorskip("starlette", reason="needs the extras serve and dev")
    runtime, wanted = opened["fp32"], {}
    for name in (None, "a", "b"):
        runtime.set_adapter(name)
        text = runtime.generate_text(PROMPT, max_new_tokens=16).text
        wanted[name] = text, runtime.generate_image("red heart", seed=1).image.to_array()
    runtime.set_adapter(None)
    names = {name: runtime.manifest.name + (f":{name}" if name else "") for name in wanted}
    application = edgemm.serve.app(runtime, adapter=[f"{name}={adapters[name][0]}" for name in ("a", "b")])
    with running(application) as url, ThreadPoolExecutor(6) as pool:
        chat, draw = f"{url}/v1/chat/completions", f"{url}/v1/images/generations"
        asked = [{"role": "user", "content": PROMPT}]
        said = {
            name: pool.submit(httpx.post, chat, json={"model": full, "messages": asked, "max_tokens": 16}, timeout=60)
            for name, full in names.items()
        }
        drawn = {
            name: pool.submit(httpx.post, draw, json={"model": full, "prompt": "red heart", "seed": 1}, timeout=60)
            for name, full in names.items()
        }
        for name, (text, pixels) in wanted.items():
            assert said[name].result().json()["choices"][0]["message"]["content"] == text
            file = io.BytesIO(base64.b64decode(drawn[name].result().json()["data"][0]["b64_json"]))
            assert np.array_equal(np.asarray(Image.open(file)), pixels)
    assert len({pixels.tobytes() for _, pixels in wanted.values()}) == 3


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_b_a_is_a_bit_for_bit_and_without_one_the_bundle_is_itself(opened, export, precision, tmp_path):
    """And that is the bundle without adapters, too: both are smoothed and rounded alike, where neither looks up."""
    runtime, seen = opened[precision], []
    for name in (None, "a", "b", "a", None):
        runtime.set_adapter(name)
        seen.append(answers(runtime))
    assert equal(seen[1], seen[3]) and equal(seen[0], seen[4])
    assert not equal(seen[0], seen[1]) and not equal(seen[1], seen[2])
    bundle = export(tmp_path / "plain.bundle", precision=precision, prompt_lookup=False)
    with edgemm.load(bundle, device="cpu") as plain:
        assert equal(answers(plain), seen[0])


def test_adapters_fit_weights_that_were_smoothed(opened, adapters, export, monkeypatch, tmp_path):
    """Against the bundle in float32, which says what the merged model says; unscaled factors are another adapter."""
    blocks = replace(SCHEMES["cpu", "int8"], quantize=QuantizeOptions("int8", "int8"))
    monkeypatch.setitem(SCHEMES, ("cpu", "int8"), blocks)  # which smooths layers that drawing reads, and has no others
    exact = opened["fp32"]
    assert "adapters/scales.safetensors" not in exact.manifest.files
    with edgemm.load(export(tmp_path / "bundle", precision="int8", adapters=()), device="cpu") as smoothed:
        assert "adapters/scales.safetensors" in smoothed.manifest.files

        def signal_db(name: str) -> float:
            smoothed.set_adapter(name)
            exact.set_adapter("a")
            wanted, found = (logits(runtime) for runtime in (exact, smoothed))
            return 10 * np.log10(np.square(wanted).mean() / np.square(found - wanted).mean())

        smoothed.load_adapter("a", adapters["a"][0])
        fitting = signal_db("a")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(smoothed.adapters, "_scales", {})
            smoothed.load_adapter("unscaled", adapters["a"][0])
        assert fitting >= 20  # what export asks of int8
        assert signal_db("unscaled") < fitting - 6


def test_a_call_and_a_session_keep_the_adapter_they_began_with(opened):
    runtime = opened["fp32"]
    runtime.set_adapter("a")
    wanted = runtime.generate_text(PROMPT, max_new_tokens=12).token_ids
    chat = runtime.session()
    stream = chat.stream_text(PROMPT, max_new_tokens=12)
    chunks = [next(stream)]
    runtime.set_adapter("b")
    chunks += stream
    assert chunks[-1].result.token_ids == wanted
    chat.rewind()
    assert chat.generate_text(PROMPT, max_new_tokens=12).token_ids == wanted
    assert runtime.generate_text(PROMPT, max_new_tokens=12).token_ids != wanted


def test_what_is_drawn_in_a_reply_keeps_the_adapter_that_the_reply_began_with(opened):
    pytest.importorskip("llguidance")
    runtime = opened["fp32"]
    runtime.set_adapter("a")
    wanted = runtime.generate_image("red heart", num_inference_steps=2).pixels
    grammar, drawing = 'start: "Here: <draw>red heart</draw>!"', {"num_inference_steps": 2}
    stream = runtime.generate(PROMPT, grammar=grammar, drawing=drawing)
    next(stream)
    runtime.set_adapter("b")
    *_, last = stream
    assert np.array_equal(last.images[0].pixels, wanted)
    assert not np.array_equal(runtime.generate_image("red heart", num_inference_steps=2).pixels, wanted)


def test_adapters_swapped_while_eight_threads_draw_and_write_never_mix(opened, adapters):
    """Each picture and each reply is bit for bit one that an adapter, or none, gives alone."""
    runtime, names, over, told = opened["fp32"], (None, "a", "b", "words"), threading.Event(), []

    def picture(seed):
        return runtime.generate_image("red heart", seed=seed, num_inference_steps=2).pixels.tobytes()

    def reply():
        found = runtime.generate_text(PROMPT, max_new_tokens=6, logprobs=2)
        return found.token_ids, found.logprobs

    alone = {}
    for name in names:
        runtime.set_adapter(name)
        alone[name] = reply(), [picture(seed) for seed in range(8)]
    assert len({pictures[0] for _, pictures in alone.values()}) == 4

    def swap():
        while not over.is_set():
            for name in names:
                runtime.set_adapter(name)
                runtime.load_adapter("a", adapters["a"][0])  # the same again, under those who draw with it
                over.wait(0.002)

    def use(seed):
        for _ in range(6):
            pixels, words = picture(seed), reply()
            drawn = [name for name, (_, pictures) in alone.items() if pictures[seed] == pixels]
            told.append((drawn, [name for name, (said, _) in alone.items() if said == words]))

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(use, range(8)))
    finally:
        over.set()
        swapping.join()
    assert all(len(drawn) == 1 and len(written) == 1 for drawn, written in told)
    assert len({name for drawn, _ in told for name in drawn}) >= 3


def test_unloading_the_active_one_leaves_none(opened, adapters):
    runtime = opened["fp32"]
    plain = answers(runtime)
    runtime.load_adapter("again", adapters["a"][0])
    runtime.set_adapter("again")
    assert not equal(answers(runtime), plain)
    runtime.load_adapter("again", adapters["b"][0])  # the one that is active is forgotten, too
    runtime.unload_adapter("again")
    assert equal(answers(runtime), plain) and "again" not in runtime.adapters.names
    with pytest.raises(UsageError, match="adapter 'again' is not loaded; loaded: a, b, words"):
        runtime.set_adapter("again")


def test_an_adapter_that_does_not_fit_says_where(opened, adapters, bundles, tmp_path):
    runtime, folder = opened["fp32"], tmp_path / "bad"
    with pytest.raises(InputError, match="no adapter; it holds transformer/ or denoiser/"):
        runtime.load_adapter("bad", tmp_path)
    folder.mkdir()
    config = json.loads((adapters["words"][0] / "adapter_config.json").read_text())
    tensors = load_file(adapters["words"][0] / "adapter_model.safetensors")

    def write(config, tensors):
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "adapter_model.safetensors")
        runtime.load_adapter("bad", folder)

    key = "base_model.model.layers.0.self_attn.q_proj.lora_A.weight"
    cases = [
        (config | {"use_dora": True}, tensors, "use_dora is True: DoRA sets magnitudes; merge it before you export"),
        (
            config | {"init_lora_weights": "pissa"},
            tensors,
            "its first factors were taken from the base; merge it .*; or save",
        ),
        (config | {"alora_invocation_tokens": [1]}, tensors, "alora_invocation_tokens is .1.,.* it acts only behind"),
        (config, {name: tensor for name, tensor in tensors.items() if name != key}, "only one of its two factors"),
        (config, tensors | {key: tensors[key][:, :-1].contiguous()}, "q_proj is .* for this bundle's"),
        (config, tensors | {key: tensors[key] * float("nan")}, "holds NaN"),
        (
            config,
            tensors | {key.replace("q_proj", "z_proj"): tensors[key].clone()},
            "z_proj takes no adapter in this bundle",
        ),
    ]
    for changed, arrays, message in cases:
        with pytest.raises(InputError, match=message):
            write(changed, arrays)
    assert "bad" not in runtime.adapters.names
    with edgemm.load(bundles["fp32"], device="cpu") as plain:
        with pytest.raises(InputError, match="takes no adapters: export it again with --adapters"):
            plain.load_adapter("a", adapters["a"][0])


def test_strength_is_how_much_of_an_adapter_is_added(opened, adapters, model):
    """Half of it is what a torch model half way to the merged one draws; none of it changes nothing."""
    runtime, (folder, merged) = opened["fp32"], adapters["a"]
    half, ours, theirs = copy.deepcopy(model), model.denoiser.state_dict(), merged.denoiser.state_dict()
    half.denoiser.load_state_dict({name: (ours[name] + theirs[name]) / 2 for name in ours})
    runtime.load_adapter("half", folder / "denoiser", strength=0.5)
    runtime.load_adapter("nothing", folder, strength=0.0)
    runtime.set_adapter("half")
    np.testing.assert_allclose(answers(runtime)[2], torch_draws(half), atol=2e-4)
    runtime.set_adapter("nothing")
    found = answers(runtime)
    runtime.set_adapter(None)
    plain = answers(runtime)
    assert found[:2] == plain[:2]
    np.testing.assert_allclose(found[2], plain[2], atol=1e-5)  # its empty prompt is read anew, not the bundle's own
    with pytest.raises(UsageError, match="adapter strength is nan, expected a finite number"):
        runtime.load_adapter("bad", folder, strength=float("nan"))
    for name in ("half", "nothing"):
        runtime.unload_adapter(name)


def test_half_precision_factors_are_read(opened, adapters, tmp_path):
    runtime, source = opened["fp32"], adapters["words"][0]
    tensors = load_file(source / "adapter_model.safetensors")
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
        save_file({key: tensor.to(dtype) for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")
        runtime.load_adapter(name, folder)
        for key, factor in runtime.adapters._loaded[name].factors["transformer"].items():
            exact = runtime.adapters._loaded["words"].factors["transformer"][key]
            np.testing.assert_allclose(factor, exact, rtol=1e-2, atol=1e-6)
        runtime.unload_adapter(name)


def test_export_refuses_layers_that_take_none(export, tmp_path):
    with pytest.raises(UsageError, match="adapters names 'z_proj', expected some of: down_proj"):
        export(tmp_path / "x", adapters=("z_proj",))


def test_no_half_of_an_adapter_is_lost_without_a_word(model, tmp_path):
    """A bundle whose denoiser alone takes adapters, and one that has no transformer at all."""
    peft_adapter(model, tmp_path / "both", seed=1, rank=4)
    sizes = {name: tensor.shape for name, tensor in load_file(tmp_path / "both/denoiser" / FILES[1]).items()}
    specs = []
    for name, shape in sizes.items():
        module, kind = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".lora_", 1)
        entries = (shape[1], "r") if kind == "A" else ("r", shape[0])
        specs.append(TensorSpec(f"{ADAPTER_PREFIX}{module}.{kind.lower()}", "float32", entries))
    draws = {"denoiser": tuple(specs)}
    takes_half = Adapters({"transformer": (TensorSpec("input_ids", "int64", ("b", "s")),), **draws})
    with pytest.raises(InputError, match="the transformer of this bundle takes no adapter, and a half would be lost"):
        takes_half.load("both", tmp_path / "both")
    takes_half.load("half", tmp_path / "both" / "denoiser")
    Adapters(draws).load("both", tmp_path / "both")
