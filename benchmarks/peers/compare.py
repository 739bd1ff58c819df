"""edgemm beside its peers: the same weights and tokens, in turns, each with its quality; a table, then one JSON line.

    python benchmarks/peers/environments.py --folder build/peers            # once: an environment a peer
    python benchmarks/peers/compare.py --folder build/peers --rounds 5      # first run makes the models

Work: SmolLM2-135M-Instruct reads 128 tokens and writes 64, greedy, no stop token; no two prompts of a process begin
alike, so that a cache of prefixes is no help; perplexity over 400 tokens of a text that was written for this
(text.txt).  Every turn is a process of its own, the order turns from round to round, medians are over all repetitions.
A peer that is not set up is left out and named.  It speaks of text alone: none of the peers draws with the same model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environments import PEERS, python_of

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """One contestant: in whose environment which script runs on what."""

    title: str
    environment: str | None  # of PEERS; None is this interpreter, with edgemm
    script: str
    kind: str  # of its weights, or how they are made
    settings: dict[str, str] = field(default_factory=dict)


ENTRIES = {
    "torch-fp32": Entry("transformers + torch, float32", "torch", "contestant_torch.py", "float32"),
    "torch-bf16": Entry(
        "transformers + torch, bfloat16", "torch", "contestant_torch.py", "float32", {"PEER_DTYPE": "bfloat16"}
    ),
    "genai-int4": Entry("onnxruntime-genai, int4", "genai", "contestant_genai.py", "genai int4"),
    "genai-fp32": Entry("onnxruntime-genai, float32", "genai", "contestant_genai.py", "genai fp32"),
    "openvino-q4": Entry("openvino-genai, GGUF Q4_1", "openvino", "contestant_openvino.py", "gguf openvino"),
    "llamacpp-q4": Entry("llama.cpp, GGUF Q4_1", "llamacpp", "contestant_llamacpp.py", "gguf llamacpp"),
    "edgemm-fp32": Entry("edgemm, float32", None, "contestant_edgemm.py", "edgemm fp32"),
    "edgemm-int8": Entry("edgemm, int8", None, "contestant_edgemm.py", "edgemm int8"),
    "edgemm-int4": Entry("edgemm, int4", None, "contestant_edgemm.py", "edgemm int4"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("build/peers"), help="where environments.py made its own")
    parser.add_argument("--work", type=Path, help="where models are kept (default: FOLDER/models)")
    parser.add_argument("--only", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("-p", "--prompt-tokens", type=int, default=128, help="at most 400")
    parser.add_argument("-n", "--new-tokens", type=int, default=64)
    parser.add_argument("--text-tokens", type=int, default=400, help="for the perplexity; at most 400")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=3, help="in each process")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    folder, work = args.folder.resolve(), (args.work or args.folder / "models").resolve()
    left_out: dict[str, str] = {}
    weights = _weights(folder, work)
    request = _request(weights, work, args)
    models = {}
    for name in args.only:
        try:
            models[name] = _model(ENTRIES[name], folder, weights, work)
        except (OSError, subprocess.CalledProcessError) as error:
            left_out[name] = f"not set up: {error}"
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    for turn in range(args.rounds):
        order = list(models)[turn % len(models) :] + list(models)[: turn % len(models)] if models else []
        for name in order:
            if name in left_out:
                continue
            try:
                answers[name].append(_ask(ENTRIES[name], folder, models[name], request, args, quality=turn == 0))
            except RuntimeError as error:
                left_out[name] = str(error)
    rows = {name: _row(found) for name, found in answers.items() if found and name not in left_out}
    _print(rows, left_out)
    print(json.dumps(_document(args, rows, answers, left_out), separators=(",", ":")))
    return 0 if rows else 4


def _weights(folder: Path, work: Path) -> Path:
    weights = work / "weights"
    if not (weights / "text_ids.json").exists():
        subprocess.run([str(python_of(folder, "torch")), str(HERE / "weights.py"), str(weights)], check=True)
    return weights


def _request(weights: Path, work: Path, args: argparse.Namespace) -> Path:
    """What every contestant is asked, cut out of the text."""
    ids = json.loads((weights / "text_ids.json").read_text())
    chosen = {
        "prompt_ids": ids[: args.prompt_tokens],
        "new_tokens": args.new_tokens,
        "text_ids": ids[: args.text_tokens],
    }
    path = work / "request.json"
    path.write_text(json.dumps(chosen))
    return path


def _model(entry: Entry, folder: Path, weights: Path, work: Path) -> Path:
    """The folder that a contestant loads; made when it is not there."""
    if entry.environment and not python_of(folder, entry.environment).exists():
        raise FileNotFoundError(f"{PEERS[entry.environment].title} has no environment under {folder}")
    if entry.kind == "float32":
        return weights / "float32"
    target = work / entry.kind.replace(" ", "-")
    if target.exists():
        return target
    source = str(weights / "float32")
    maker, _, precision = entry.kind.partition(" ")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if maker == "gguf":
        partial.mkdir(parents=True)
        (file,) = weights.glob("*.gguf")
        shutil.copyfile(file, partial / file.name)
    elif maker == "genai":
        command = [
            "-m",
            "onnxruntime_genai.models.builder",
            "-i",
            source,
            "-o",
            str(partial),
            "-p",
            precision,
            "-e",
            "cpu",
        ]
        python = str(python_of(folder, "genai"))
        subprocess.run([python, *command, "-c", str(work / "cache")], check=True, stdout=subprocess.DEVNULL)
    else:
        command = ["-m", "edgemm", "export", source, "--output", str(partial), "--precision", precision]
        subprocess.run([sys.executable, *command, "--max-context", "1024"], check=True, stdout=subprocess.DEVNULL)
    partial.rename(target)
    return target


def _ask(
    entry: Entry, folder: Path, model: Path, request: Path, args: argparse.Namespace, quality: bool
) -> dict[str, Any]:
    python = str(python_of(folder, entry.environment)) if entry.environment else sys.executable
    command = [python, str(HERE / entry.script), str(model), str(request)]
    command += ["--threads", str(args.threads), "--repetitions", str(args.repetitions)]
    done = subprocess.run(
        [*command, *(["--quality"] if quality else [])],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", **entry.settings},
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"ended with {done.returncode}: {said}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _row(found: list[dict[str, Any]]) -> dict[str, Any]:
    token_ms = statistics.median(ms for answer in found for ms in answer["token_ms"])
    return {
        "tokens_per_s": 1e3 / token_ms,
        "token_ms": token_ms,
        "first_token_ms": statistics.median(ms for answer in found for ms in answer["first_token_ms"]),
        "load_s": statistics.median(answer["load_s"] for answer in found),
        "peak_mb": max(answer["peak_bytes"] for answer in found) / 1e6,
        "perplexity": next((a["perplexity"] for a in found if a["perplexity"] is not None), None),
    }


def _print(rows: dict[str, dict[str, Any]], left_out: dict[str, str]) -> None:
    head = f"{'':<32} {'tokens/s':>9} {'first ms':>9} {'load s':>7} {'peak MB':>8} {'perplexity':>11}"
    print(head)
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["tokens_per_s"]):
        print(
            f"{ENTRIES[name].title:<32} {row['tokens_per_s']:>9.1f} {row['first_token_ms']:>9.1f} "
            f"{row['load_s']:>7.2f} {row['peak_mb']:>8.0f} {row['perplexity']:>11.2f}"
        )
    for name, reason in left_out.items():
        print(f"left out: {ENTRIES[name].title}: {reason}")


def _document(
    args: argparse.Namespace, rows: dict[str, Any], answers: dict[str, Any], left_out: dict[str, str]
) -> dict[str, Any]:
    from edgemm.bench.conditions import machine_card

    return {
        "benchmark": "peers",
        "card": machine_card(),
        "threads": args.threads,
        "work": {"prompt": args.prompt_tokens, "new": args.new_tokens, "text": args.text_tokens},
        "rounds": args.rounds,
        "repetitions": args.repetitions,
        "environments": {name: [" ".join(step) for step in peer.steps] for name, peer in PEERS.items()},
        "rows": rows,
        "left_out": left_out,
        "answers": answers,
    }


if __name__ == "__main__":
    sys.exit(main())
