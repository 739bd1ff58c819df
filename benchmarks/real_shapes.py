"""Published shapes with random weights: what an export, and then one process that reads and draws, take of memory.

    python benchmarks/real_shapes.py janusflow --work build/real-shapes               # 4 GB folder, int4
    python benchmarks/real_shapes.py cosmos3-edge --work build/real-shapes            # 8 GB folder, int4
    python benchmarks/real_shapes.py janusflow --layers 0.25                          # a quarter of the layers

Configs are those of the recorded tiny folders (tests/fixtures/golden, shared/golden) with the published sizes in them;
tokenizers stay theirs.  Weights are bfloat16, written shard by shard, the same block of chance over and over: they cost
what trained ones cost.  What a layer adds to its residual stream is small, or its answers would drown in rounding.
Memory is the sum of a process and all its children, looked at twenty times a second; "anonymous" leaves out pages of
files, which the system may take back at any time.  Nothing here judges answers: the export itself does.  Prints a table
and, as its last line, one JSON document.  NVIDIA serves Cosmos3 as two containers, one that reads and one that draws,
and asks for 32 GB.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
GOLDEN = (ROOT / "tests" / "fixtures" / "golden", ROOT.parent / "shared" / "golden")
SHARD_BYTES = 1 << 30
SPREAD, ADDED = 0.02, 0.1  # of weights; and how much smaller those are that write to a residual stream
WRITERS = ("o_proj", "down_proj", "to_out", "to_add_out", "out_proj", "fc2", "proj.weight", "conv2")
BARS_GB = {"janusflow": 5.0, "cosmos3-edge": 8.0}  # of an export to int4
IN_USE = 1.3  # times the bundle: one process that reads and draws
USE = """
import json, sys, numpy as np, edgemm
with edgemm.load(sys.argv[1], device="cpu", threads=int(sys.argv[2])) as model:
    loop = model.manifest.loops.text
    picture = np.full((loop.image_size, loop.image_size, 3), 127, np.uint8)
    said = model.generate_text("What is this?", images=[picture], max_new_tokens=8)
    size = {} if sys.argv[3] == "0" else {"height": int(sys.argv[3]), "width": int(sys.argv[3])}
    drawn = model.generate_image("a red heart", num_inference_steps=2, seed=1, **size)
    print(json.dumps({"tokens": len(said.token_ids), "pixels": list(drawn.pixels.shape)}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--work", type=Path, default=Path("build/real-shapes"))
    parser.add_argument("--layers", type=float, default=1.0, help="this share of every tower's layers")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--side", type=int, default=0, help="pixels of the picture that is drawn (default: the model's)"
    )
    parser.add_argument("--keep", action="store_true", help="leave folder and bundle there")
    args = parser.parse_args()
    home = args.work / f"{args.model}-{args.layers:g}"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    folders = MODELS[args.model](home / "checkpoint", args.layers)
    folder_bytes = size_of(home)
    bundle = home / "made.bundle"
    words = ["export", str(folders[0]), "--output", str(bundle), "--precision", args.precision, *folders[1:]]
    made = watched([sys.executable, "-m", "edgemm", *words], home / "export.log")
    document: dict[str, Any] = {"benchmark": "real_shapes", "model": args.model, "layers": args.layers}
    document |= {"precision": args.precision, "folder_bytes": folder_bytes, "export": made}
    if made["code"] == 0:
        document["bundle_bytes"] = size_of(bundle)
        used = watched([sys.executable, "-c", USE, str(bundle), str(args.threads), str(args.side)], home / "use.log")
        document["use"] = used
    show(document)
    if not args.keep:
        shutil.rmtree(home / "checkpoint")
        shutil.rmtree(bundle, ignore_errors=True)
    from edgemm.bench.conditions import machine_card

    print(json.dumps(document | {"card": machine_card(), "nvidia_asks_gb": 32}))
    return int(made["code"] != 0 or document["use"]["code"] != 0)


def show(document: dict[str, Any]) -> None:
    gb = 1e9
    made, bar = document["export"], BARS_GB[document["model"]]
    print(f"{document['model']}, {document['layers']:g} of its layers, {document['precision']}")
    print(f"  folder           {document['folder_bytes'] / gb:6.2f} GB")
    told = f"{made['peak_bytes'] / gb:6.2f} GB, {made['anonymous_bytes'] / gb:.2f} anonymous, {made['seconds']:.0f} s"
    print(f"  export, peak     {told}   (bar for the whole model: {bar:g} GB)")
    if made["code"]:
        print(f"  the export ended with {made['code']}: {made['said']}")
        return
    bundle, used = document["bundle_bytes"], document["use"]
    print(f"  bundle           {bundle / gb:6.2f} GB")
    print(
        f"  reads and draws  {used['peak_bytes'] / gb:6.2f} GB, {used['anonymous_bytes'] / gb:.2f} anonymous, "
        f"{used['peak_bytes'] / bundle:.2f} of the bundle (bar: {IN_USE})"
    )
    if used["code"]:
        print(f"  it ended with {used['code']}: {used['said']}")


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# One command, watched.


def watched(command: list[str], log: Path) -> dict[str, Any]:
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        peak = {"peak_bytes": 0, "anonymous_bytes": 0}
        ended = threading.Event()
        thread = threading.Thread(target=follow, args=(process.pid, peak, ended))
        thread.start()
        code = process.wait()
        ended.set()
        thread.join()
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    return {"code": code, "seconds": round(time.monotonic() - start, 1), "said": lines[-1][-300:], **peak}


def follow(pid: int, peak: dict[str, int], ended: threading.Event) -> None:
    while not ended.wait(0.05):
        whole = anonymous = 0
        for one in family_of(pid):
            mine = memory_of(one)
            whole, anonymous = whole + mine[0], anonymous + mine[1]
        peak["peak_bytes"] = max(peak["peak_bytes"], whole)
        peak["anonymous_bytes"] = max(peak["anonymous_bytes"], anonymous)


def family_of(pid: int) -> Iterator[int]:
    """A process and all that it started."""
    yield pid
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield from family_of(int(child))
    except OSError:  # it ended meanwhile
        return


def memory_of(pid: int) -> tuple[int, int]:
    """Resident bytes, and those that are no file's."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    told = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if line.startswith(("VmRSS", "RssAnon"))}
    return int(told.get("VmRSS", 0)) * 1024, int(told.get("RssAnon", 0)) * 1024


# Folders.

Shapes = dict[str, tuple[int, ...]]
on_paper = False
BLOCK = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0))


def write(folder: Path, name: str, shapes: Shapes, shard_bytes: int = SHARD_BYTES) -> dict[str, str]:
    """Tensors, shard after shard; tensor -> file.  On paper, files that take no room."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = [[]]
    filled = 0
    for tensor, shape in shapes.items():
        filled += 2 * math.prod(shape)
        if filled > shard_bytes and shards[-1]:
            shards.append([])
            filled = 2 * math.prod(shape)
        shards[-1].append(tensor)
    places = {}
    for number, names in enumerate(shards, start=1):
        file = f"{name}.safetensors" if len(shards) == 1 else f"{name}-{number:05}-of-{len(shards):05}.safetensors"
        if on_paper:
            hollow({tensor: shapes[tensor] for tensor in names}, folder / file)
        else:
            save_file({tensor: numbers(tensor, shapes[tensor]) for tensor in names}, folder / file)
        places |= dict.fromkeys(names, file)
    return places


def hollow(shapes: Shapes, path: Path) -> None:
    """A file whose numbers nobody wrote: all are zero, and lie nowhere."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def numbers(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Norms of ones, biases of zeros, the rest by chance."""
    if name.endswith(("bias", "grn.beta")):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if "norm" in name or name.endswith("gamma"):
        return torch.ones(shape, dtype=torch.bfloat16)
    count = math.prod(shape)
    spread = SPREAD * (ADDED if any(writer in name for writer in WRITERS) else 1)
    start = sum(name.encode()) * 7919 % (len(BLOCK) // 2)
    block = (BLOCK[start:] * spread).bfloat16()
    return block.repeat(-(-count // len(block)))[:count].reshape(shape)


def recorded(name: str) -> Path:
    return next(place / name for place in GOLDEN if (place / name).is_dir())


def copied(source: Path, folder: Path) -> None:
    """All but weights."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"), copy_function=shutil.copyfile)


def changed(path: Path, changes: dict[str, Any]) -> None:
    document = json.loads(path.read_text())
    for key, value in changes.items():
        if isinstance(value, dict):
            document[key] = document.get(key, {}) | value
        else:
            document[key] = value
    path.write_text(json.dumps(document))


def share(layers: int, of: float) -> int:
    return max(1, round(layers * of))


def janusflow(folder: Path, layers: float) -> list[str]:
    """deepseek-ai/JanusFlow-1.3B and stabilityai/sdxl-vae."""
    from edgemm.families import janusflow as family
    from edgemm.families.autoencoder_kl import autoencoder_skeleton
    from tests.families.golden import found_at

    vae = folder.with_name("vae")
    copied(recorded("janusflow") / "checkpoint", folder)
    copied(recorded("janusflow") / "vae", vae)
    config = json.loads((folder / "config.json").read_text())
    config["language_config"] |= {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": share(24, layers),
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 102_400,
    }  # fmt: skip
    sizes = {
        "width": 1024,
        "layers": share(24, layers),
        "heads": 16,
        "patch_size": 16,
        "mlp_ratio": 4,
        "image_size": 384,
    }
    config["vision_und_enc_config"]["params"] |= sizes
    for part in ("enc", "dec"):
        config[f"vision_gen_{part}_config"]["params"] |= {"block_out_channels": [768], "hidden_size": 2048}
    config["vision_gen_dec_config"]["params"]["in_channels"] = 768
    (folder / "config.json").write_text(json.dumps(config))
    changed(folder / "preprocessor_config.json", {"image_size": 384})
    changed(folder / "processor_config.json", {"num_image_tokens": 576})
    changed(
        vae / "config.json", {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32}
    )
    model = family.skeleton(found_at(folder))
    write(folder, "model", {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    decoder = autoencoder_skeleton(vae).state_dict()
    write(vae, "diffusion_pytorch_model", {name: tuple(tensor.shape) for name, tensor in decoder.items()})
    return [str(folder), "--vae", str(vae)]


def cosmos3_edge(folder: Path, layers: float) -> list[str]:
    """nvidia's Cosmos3-Edge; sizes worked back from the counts in shared/golden/cosmos3.md; the autoencoder's encoder,
    which nobody reads, is left out.

    28 layers of 2048 (16 heads of 128 over 8, relu2 of 9216) read 1,409M and draw 1,415M; 131,072 words twice 537M;
    SigLIP 2 so400m with its projector 489M; Wan 2.2's decoder 555M.
    """
    copied(recorded("cosmos3-edge") / "checkpoint", folder)
    depth, eye_depth = share(28, layers), share(27, layers)
    text = {
        "hidden_size": 2048, "intermediate_size": 9216, "num_hidden_layers": depth, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131_072,
    }  # fmt: skip
    sections = [24, 20, 20]
    eye = {
        "hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": eye_depth,
        "num_patches": 256, "patch_size": 16,
    }  # fmt: skip
    rotary = {"mrope_section": sections, "rope_theta": 100_000_000.0, "rope_type": "default"}
    config = folder / "config.json"
    changed(
        config,
        {"text_config": {**text, "rope_parameters": rotary}, "vision_config": eye, "projector_hidden_size": 11_264},
    )
    drawing = {"latent_channel": 48, "patch_latent_dim": 192, "rope_axes_dim": sections}
    changed(folder / "transformer" / "config.json", {**text, **drawing})
    means = {"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
    changed(
        folder / "vae" / "config.json",
        {"base_dim": 160, "decoder_base_dim": 256, "dim_mult": [1, 2, 4, 4], "z_dim": 48, "num_res_blocks": 2, **means},
    )
    changed(
        folder / "preprocessor_config.json",
        {"patch_size": 16, "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}},
    )
    names = write(folder / "transformer", "diffusion_pytorch_model", cosmos3_towers(depth))
    seen = write(folder / "vision_encoder", "model", cosmos3_eye(eye_depth))
    write(folder / "vae", "diffusion_pytorch_model", wan_decoder([1024, 1024, 1024, 512, 256], 3, 48), 1 << 40)
    reads = {
        name: f"transformer/{file}"
        for name, file in names.items()
        if "gen" not in name and "add" not in name and not name.startswith(("proj", "time"))
    }
    reads |= {name: f"vision_encoder/{file}" for name, file in seen.items()}
    index = {"metadata": {"total_size": 0}, "weight_map": reads}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return [str(folder)]


def cosmos3_towers(
    depth: int, width: int = 2048, inner: int = 9216, groups: int = 1024, words: int = 131_072
) -> Shapes:
    found: Shapes = {"embed_tokens.weight": (words, width), "lm_head.weight": (words, width)}
    for layer in range(depth):
        at = f"layers.{layer}."
        for part, gen in (("mlp", ""), ("mlp_moe_gen", "_moe_gen")):
            found |= {f"{at}{part}.up_proj.weight": (inner, width), f"{at}{part}.down_proj.weight": (width, inner)}
            found |= {f"{at}{norm}{gen}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for pattern, last in (("to_{}", "to_out"), ("add_{}_proj", "to_add_out")):
            rows = {"q": width, "k": groups, "v": groups}
            found |= {f"{at}self_attn.{pattern.format(part)}.weight": (size, width) for part, size in rows.items()}
            found[f"{at}self_attn.{last}.weight"] = (width, width)
        found |= {
            f"{at}self_attn.{norm}.weight": (128,) for norm in ("k_norm_und_for_gen", "norm_added_k", "norm_added_q")
        }
    found |= {"norm.weight": (width,), "norm_moe_gen.weight": (width,)}
    for name, shape in {
        "proj_in": (width, 192),
        "proj_out": (192, width),
        "time_embedder.linear_1": (width, 256),
        "time_embedder.linear_2": (width, width),
    }.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found


def cosmos3_eye(depth: int, width: int = 1152, inner: int = 4304) -> Shapes:
    linear = {"model.visual.embeddings.patch_embedding": (width, 768)}
    linear |= {"model.projector.linear_fc1": (11_264, 4 * width), "model.projector.linear_fc2": (2048, 11_264)}
    norms = ["model.visual.post_layernorm", "model.projector.norm"]
    for layer in range(depth):
        at = f"model.visual.encoder.layers.{layer}."
        linear |= {f"{at}self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        linear |= {f"{at}mlp.fc1": (inner, width), f"{at}mlp.fc2": (width, inner)}
        norms += [f"{at}layer_norm1", f"{at}layer_norm2"]
    found: Shapes = {"model.visual.embeddings.position_embedding.weight": (256, width)}
    for name, shape in [*linear.items(), *((norm, (width,)) for norm in norms)]:
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found


def wan_decoder(widths: list[int], blocks: int, channels: int) -> Shapes:
    """Wan 2.2's, as diffusers names it."""
    found: Shapes = {}

    def convolution(name: str, out: int, into: int, *kernel: int) -> None:
        found.update({f"{name}.weight": (out, into, *kernel), f"{name}.bias": (out,)})

    def residual(name: str, into: int, out: int) -> None:
        convolution(f"{name}.conv1", out, into, 3, 3, 3)
        convolution(f"{name}.conv2", out, out, 3, 3, 3)
        found.update({f"{name}.norm1.gamma": (into, 1, 1, 1), f"{name}.norm2.gamma": (out, 1, 1, 1)})
        if into != out:
            convolution(f"{name}.conv_shortcut", out, into, 1, 1, 1)

    convolution("post_quant_conv", channels, channels, 1, 1, 1)
    convolution("decoder.conv_in", widths[0], channels, 3, 3, 3)
    middle = "decoder.mid_block"
    for number in range(2):
        residual(f"{middle}.resnets.{number}", widths[0], widths[0])
    convolution(f"{middle}.attentions.0.to_qkv", 3 * widths[0], widths[0], 1, 1)
    convolution(f"{middle}.attentions.0.proj", widths[0], widths[0], 1, 1)
    found[f"{middle}.attentions.0.norm.gamma"] = (widths[0], 1, 1)
    for level, out in enumerate(widths[1:]):
        at, into = f"decoder.up_blocks.{level}", widths[level]
        for number in range(blocks):
            residual(f"{at}.resnets.{number}", into if number == 0 else out, out)
        if level < len(widths) - 2:
            convolution(f"{at}.upsampler.resample.1", out, out, 3, 3)
        if level < len(widths) - 3:
            convolution(f"{at}.upsampler.time_conv", 2 * out, out, 3, 1, 1)
    found["decoder.norm_out.gamma"] = (widths[-1], 1, 1, 1)
    convolution("decoder.conv_out", 12, widths[-1], 3, 3, 3)
    return found


MODELS = {"janusflow": janusflow, "cosmos3-edge": cosmos3_edge}

if __name__ == "__main__":
    sys.exit(main())
