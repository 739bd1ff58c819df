"""Both NVIDIA dialects say what torch says: run by ONNX Runtime's CPU, because no GPU is needed to know that."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from edgemm.bundle.bundle import Bundle, open_bundle
from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.bundle.picture import load_picture, seeded_picture
from edgemm.cli.main import main
from edgemm.errors import InputError
from edgemm.export.dialects import DIALECTS, in_dialect
from edgemm.runtimes import schedule
from edgemm.runtimes.backend.engine import plan_threads
from edgemm.runtimes.engines import Choice, Engines
from edgemm.runtimes.kv_cache import CachedTransformer
from edgemm.runtimes.model import Model
from edgemm.verify.loops import check_bundle
from tests.engines.tiny_engines import needs_rtx
from tests.export.nano import needs_opset_24
from tests.export.passes.one_op import one_op, ops
from tests.heard import hearing

pytestmark = needs_opset_24

PRECISIONS = {"cpu": "fp32", "jetson-orin": "fp32", "jetson-orin-jp6": "fp32", "rtx": "fp16", "cuda": "fp16"}
DIALECT = {"jetson-orin": "standard-24", "jetson-orin-jp6": "portable-21", "rtx": "standard-24"}
NEW_TOKENS = 64
NEWER_OPS = {"Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter"}


@pytest.fixture(scope="module")
def lines():
    return []


@pytest.fixture(scope="module")
def bundle(export, tmp_path_factory, lines):
    words = ",".join(f"{target}={precision}" for target, precision in PRECISIONS.items())
    path = tmp_path_factory.mktemp("dialects") / "nano.bundle"
    with hearing(lines):
        return open_bundle(export(path, target=",".join(PRECISIONS), precision=words))


@pytest.fixture(scope="module")
def opened(bundle):
    """target -> its graphs, run on this machine's CPU."""
    plan = plan_threads(1)
    choices = {t: Choice("cpu", "onnxruntime", t, "CPUExecutionProvider", "a test") for t in DIALECT}
    models = {t: Model(Engines(bundle, choice, plan)) for t, choice in choices.items()}
    yield models
    for model in models.values():
        model.close()


def graph(bundle, component, target):
    return onnx.load(str(bundle.path / bundle.manifest.variant(component, target).graph), load_external_data=False)


def test_each_dialect_has_the_operators_it_is_named_after(bundle):
    for target, dialect in DIALECT.items():
        transformer = graph(bundle, "transformer", target)
        assert bundle.manifest.variant("transformer", target).dialect == dialect
        opset = 20 if dialect == "portable-21" else 24  # 21 where weights have four bits
        assert [(o.domain, o.version) for o in transformer.opset_import] == [("", opset)]
        assert NEWER_OPS & ops(transformer) == (NEWER_OPS if dialect == "standard-24" else set())


def test_weights_are_stored_once_a_precision(bundle):
    """Float32 for cpu and both Orins, float16 for both others: two files a component, not five."""
    for component in ("image_encoder", "transformer", "conditioner", "denoiser"):
        variants = {target: bundle.manifest.variant(component, target) for target in PRECISIONS}
        files = {path.name for path in (bundle.path / "components" / component).glob("*.data")}
        assert len(files) == 2, files
        assert variants["rtx"] == variants["cuda"]
        assert variants["cpu"].data == variants["jetson-orin"].data == variants["jetson-orin-jp6"].data
        assert variants["cuda"].data != variants["jetson-orin"].data


def test_caches_have_one_size_and_are_half_where_the_graph_is(bundle):
    for target, precision in (("jetson-orin", "float32"), ("rtx", "float16")):
        past = [s for s in bundle.manifest.variant("transformer", target).inputs if s.name.startswith("past_")]
        assert {(spec.dtype, spec.shape[2]) for spec in past} == {(precision, bundle.manifest.limits.max_context)}
        prefix = [s for s in bundle.manifest.variant("denoiser", target).inputs if s.name.startswith("prefix_key")]
        assert all(spec.dtype == precision and isinstance(spec.shape[2], int) for spec in prefix)
        edges = [s.dtype for s in bundle.manifest.variant("denoiser", target).inputs if s.name == "noisy_tokens"]
        assert edges == ["float32"]


def test_export_compared_every_variant_and_every_loop(lines):
    passed = [line for line in lines if line.startswith("-[✓]")]
    for dialect in DIALECTS:
        for component in ("image_encoder", "transformer", "conditioner", "denoiser", "image_decoder"):
            assert any(f"{component} ({dialect}, fp32)" in line for line in passed)
    for target in ("jetson-orin", "jetson-orin-jp6"):
        assert sum(f"{target}: " in line and "loop" in line for line in passed) == 5  # three replies, two pictures


@pytest.mark.parametrize("target", ["jetson-orin", "jetson-orin-jp6"])
@pytest.mark.parametrize("pictures", [0, 1])
def test_sixty_four_greedy_tokens_are_torchs(opened, model, target, pictures):
    size = model.config.vision.image_size
    images = [seeded_picture(seed, size) for seed in range(pictures)]
    pixels = [torch.from_numpy(load_picture(image, size, model.config.background, 10**6)) for image in images]
    wanted, _ = model.generate("What is this?", torch.stack(pixels) if pixels else None, NEW_TOKENS, stop=False)
    assert choices(opened[target], "What is this?", images, wanted) == list(wanted)
    assert len(set(wanted)) > NEW_TOKENS // 4, "a model that repeats itself would prove nothing"


def choices(runtime, text, images, tokens):
    """The likeliest token after the prompt and after each of torch's own."""
    prompt = chat_prompt(as_messages(text, images), runtime.manifest.loops.text, runtime.tokenizer)
    loop = runtime.manifest.loops.text
    pictures = [load_picture(image, loop.image_size, loop.background, 10**6) for image in images]
    seen = runtime._text.reader.encode(pictures, loop) if images else None
    transformer = CachedTransformer(runtime._engines.get("transformer"), runtime.manifest.limits.max_context)
    found = [int(transformer.prefill(prompt, seen).argmax())]
    return found + [int(transformer.step(token).argmax()) for token in tokens[:-1]]


@pytest.mark.parametrize(("target", "atol"), [("jetson-orin", 1e-4), ("jetson-orin-jp6", 1e-4), ("rtx", 2e-2)])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_whole_drawings_are_torchs(opened, model, target, atol, guidance):
    """Float32 within 1e-4 after all steps; float16 within what six steps of it make of rounding."""
    tokens = model.config.image_tokens
    noise = schedule.initial_noise(1, tokens.token_count, tokens.token_width)
    sampler = model.with_sampler(guidance_scale=guidance)
    wanted = model.draw(["red heart"], torch.from_numpy(noise)[None], sampler)[0].numpy()
    found = opened[target].generate_image("red heart", guidance_scale=guidance, seed=1).pixels
    np.testing.assert_allclose(found, wanted, atol=atol)


@needs_rtx
def test_every_component_builds_with_tensorrt_for_rtx(bundle, tmp_path, capsys):
    """The whole way: `edgemm build` and NVIDIA's own parser and builder, with no GPU; and what they recognise."""
    words = ["build", str(bundle.path), "--target", "rtx", "--sm", "89", "--json", "--cache", str(tmp_path / "engines")]
    assert main(words) == 0
    engines = {row["component"]: row for row in json.loads(capsys.readouterr().out)["engines"]}
    assert engines.keys() == bundle.manifest.components.keys()
    assert all(row["fresh"] and row["rung"] == "as asked" and row["size_bytes"] > 1000 for row in engines.values())
    depth = 2
    layers = engines["transformer"]["layers"]
    assert layers["KV_CACHE_UPDATE"] == 2 * depth and layers["ROTARY_EMBEDDING"] == 2 * depth
    assert layers["ATTENTION_INPUT"] == layers["ATTENTION_OUTPUT"] == depth
    assert engines["denoiser"]["layers"]["ATTENTION_INPUT"] == depth
    assert main(words) == 0
    assert not any(row["fresh"] for row in json.loads(capsys.readouterr().out)["engines"])


def test_a_prompt_longer_than_the_conditioner_is_refused(opened):
    with pytest.raises(InputError, match=r"takes \d+ tokens, this bundle draws from at most 128"):
        opened["jetson-orin"].generate_image("a red heart and " * 20)


def test_verify_names_the_node_that_a_target_cannot_take(bundle, tmp_path, capsys):
    copy = tmp_path / "copy.bundle"
    shutil.copytree(bundle.path, copy)
    assert main(["verify", str(copy), "--no-parity"]) == 0
    document = json.loads((copy / "manifest.json").read_text())
    document["targets"]["jetson-orin-jp6"]["transformer"] = "standard-24-fp32"
    (copy / "manifest.json").write_text(json.dumps(document))
    capsys.readouterr()
    assert main(["verify", str(copy), "--no-parity"]) == 7
    line = capsys.readouterr().err
    assert "target jetson-orin-jp6, transformer: the graph is of opset 24, expected at most 21 (and" in line


def test_a_bundle_that_runs_nowhere_here_is_compared_by_the_cpu(bundle):
    """On a workstation a Jetson's bundle can be checked, though not run."""
    targets = {"jetson-orin-jp6": bundle.manifest.targets["jetson-orin-jp6"]}
    for_a_jetson = Bundle(bundle.path, dataclasses.replace(bundle.manifest, targets=targets))
    assert len(check_bundle(for_a_jetson)) == 9


def test_a_node_that_a_dialect_cannot_say_is_named():
    side = {"x": (np.float32, [4])}
    swish = ir.from_proto(one_op("Swish", side, {"y": side["x"]}))
    assert ir.to_proto(in_dialect(swish, "standard-24")).graph.node == ir.to_proto(swish).graph.node
    with pytest.raises(ValueError, match="swish: Swish is newer than opset 21"):
        in_dialect(swish, "portable-21")
