"""Speed and memory of bundles beside plain `transformers` + torch on the same checkpoint, in one run.

    python benchmarks/against_torch.py checkpoints/sticker-small --bundle demo/sticker-int8.bundle

Text: greedy tokens after a short prompt (prefill apart); transformers' own Llama with its cache, the same weights.
Drawing: the model's default sampler; torch with the prompt's prefix computed once, as in the runtime.
Each contestant is a fresh process, in turns, medians over all rounds; peak memory is its high-water mark after both.
Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT = "Write a short story about a small robot that learns to paint."
DRAWING = "red heart"
TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--bundle", type=Path, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        print(json.dumps(_torch(args.checkpoint) if args.contestant == "torch" else _bundle(Path(args.contestant))))
        return
    contestants = ["torch", *map(str, args.bundle)]
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name in contestants:
            samples[name].append(_ask(args, name))
    from edgemm.bench.conditions import machine_card

    rows = {
        name: {key: statistics.median(sample[key] for sample in found) for key in found[0]}
        for name, found in samples.items()
    }
    print(f"{'':32} {'tokens/s':>9} {'s a picture':>12} {'peak MB':>8}   ratios to torch")
    base = rows["torch"]
    for name, row in rows.items():
        label = "transformers + torch, fp32" if name == "torch" else Path(name).name
        ratios = (
            f"{row['tokens_per_s'] / base['tokens_per_s']:.2f}x tokens/s, "
            f"{base['picture_s'] / row['picture_s']:.2f}x drawing, {row['peak_mb'] / base['peak_mb']:.2f}x memory"
        )
        print(f"{label:32} {row['tokens_per_s']:>9.1f} {row['picture_s']:>12.2f} {row['peak_mb']:>8.0f}   {ratios}")
    print(json.dumps({"benchmark": "against_torch", "card": machine_card(), "medians": rows, "samples": samples}))


def _ask(args: argparse.Namespace, name: str) -> dict[str, float]:
    command = [sys.executable, __file__, str(args.checkpoint), "--bundle", "-", "--contestant", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _unstopped(path: Path) -> Any:
    """The bundle's runtime without stop tokens: both sides write all the tokens."""
    from dataclasses import replace

    from edgemm.bundle.bundle import open_bundle
    from edgemm.runtimes.backend.engine import plan_threads
    from edgemm.runtimes.engines import Engines, select
    from edgemm.runtimes.model import Model

    bundle = open_bundle(path)
    manifest = bundle.manifest
    assert manifest.loops.text is not None
    loops = replace(manifest.loops, text=replace(manifest.loops.text, stop_token_ids=()))
    manifest = replace(manifest, loops=loops)
    return Model(Engines(replace(bundle, manifest=manifest), select("cpu", manifest.targets), plan_threads()))


def _bundle(path: Path) -> dict[str, float]:
    from edgemm.bench.memory import peak_memory_bytes

    with _unstopped(path) as model:
        model.generate_text(PROMPT, max_new_tokens=4)
        text = model.generate_text(PROMPT, max_new_tokens=TOKENS, prompt_lookup_num_tokens=0)
        model.generate_image(DRAWING, num_inference_steps=2)
        picture = model.generate_image(DRAWING)
        return {
            "tokens_per_s": text.metrics.decode_tokens_per_s,
            "picture_s": picture.metrics.total_ms / 1e3,
            "peak_mb": peak_memory_bytes() / 1e6,
        }


def _torch(path: Path) -> dict[str, float]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from edgemm.bench.memory import peak_memory_bytes
    from edgemm.model import checkpoint
    from edgemm.model.prompts import read_prompt

    model = checkpoint.load(path)
    c = model.config.transformer
    config: Any = LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.width,
        intermediate_size=c.ffn_width,
        num_hidden_layers=c.depth,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_width,
        max_position_embeddings=c.max_context,
        rms_norm_eps=c.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        llama = LlamaForCausalLM(config)
    state = {f"model.{name}": tensor for name, tensor in model.transformer.state_dict().items()}  # shared, not copied
    llama.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]}, assign=True, strict=False)
    llama.model.rotary_emb = type(llama.model.rotary_emb)(config)
    llama.eval()
    ids = torch.from_numpy(read_prompt(model.config, model.tokenizer, PROMPT, 0).input_ids)[None]
    times = {}
    with torch.no_grad():
        llama.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        for count in (1, TOKENS):
            started = time.perf_counter()
            llama.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
            times[count] = time.perf_counter() - started
        tokens = model.config.image_tokens
        noise = torch.randn(1, tokens.token_count, tokens.token_width, generator=torch.Generator().manual_seed(0))
        model.draw([DRAWING], noise, model.with_sampler(num_inference_steps=2))
        started = time.perf_counter()
        model.draw([DRAWING], noise)
        picture_s = time.perf_counter() - started
    return {
        "tokens_per_s": (TOKENS - 1) / (times[TOKENS] - times[1]),
        "picture_s": picture_s,
        "peak_mb": peak_memory_bytes() / 1e6,
    }


if __name__ == "__main__":
    main()
