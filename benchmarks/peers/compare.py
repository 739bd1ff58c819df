"""edgemm beside its peers: the same weights and tokens, in turns, each with its quality; tables, then one JSON line.

    python benchmarks/peers/environments.py --folder build/peers            # once: an environment a peer
    python benchmarks/peers/compare.py --folder build/peers --rounds 4      # first run makes the models

text      SmolLM2-135M-Instruct: first tokens of 32, 128 and 512 tokens; 64 written after 128, greedy, no stop token;
          no two prompts of a process begin alike, so that a cache of prefixes is no help; perplexity over 400 tokens
          of a text that was written for this (text.txt)
picture   a LLaVA around the same model, random elsewhere (shapes.py): from pixels to the first token of an answer
drawing   12 steps for 64 pixels without guidance: sticker-small beside a pipeline of its size (shapes.py), which
          edgemm does not draw with, as they do not with edgemm's

Every turn is a process of its own, the order turns from round to round, medians are over all repetitions.  A peer that
is not set up is left out and named; so is what a converter refuses, in its own words.  Where the machine is quiet for
minutes at a time only: `--json FILE --rounds 1` adds a round to those that FILE has, and prints the table of all.
Where it never is: `--threads 1 --clock processor` counts the thread's own time, and takes the least of all repetitions
in place of the median, for what others do to caches only ever adds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environments import PEERS, python_of
from models import Places, model_of, said_last, surroundings

HERE = Path(__file__).parent
JOBS = ("text", "picture", "drawing")
PROMPTS = (32, 128, 512)


@dataclass(frozen=True)
class Entry:
    """One contestant: in whose environment which script runs on what."""

    title: str
    environment: str | None  # of PEERS; None is this interpreter, with edgemm
    script: str
    kind: str  # of its weights (models.py)
    job: str = "text"
    settings: dict[str, str] = field(default_factory=dict)


def _entries() -> dict[str, Entry]:
    torch, genai, openvino, llamacpp, edgemm = (
        (environment, f"contestant_{name}.py")
        for name, environment in [
            ("torch", "torch"), ("genai", "genai"), ("openvino", "openvino"), ("llamacpp", "llamacpp"),
            ("edgemm", None),
        ]
    )  # fmt: skip
    bfloat16 = {"PEER_DTYPE": "bfloat16"}
    return {
        "torch-fp32": Entry("transformers + torch, float32", *torch, "float32"),
        "torch-bf16": Entry("transformers + torch, bfloat16", *torch, "float32", settings=bfloat16),
        "genai-fp32": Entry("onnxruntime-genai, float32", *genai, "genai fp32"),
        "genai-int4": Entry("onnxruntime-genai, int4", *genai, "genai int4"),
        "openvino-q4": Entry("openvino-genai, GGUF Q4_1", *openvino, "gguf openvino"),
        "openvino-int8": Entry("openvino-genai, int8", *openvino, "openvino int8"),
        "llamacpp-q4": Entry("llama.cpp, GGUF Q4_1", *llamacpp, "gguf llamacpp"),
        "llamacpp-q8": Entry("llama.cpp, GGUF Q8_0", *llamacpp, "gguf q8"),
        "edgemm-fp32": Entry("edgemm, float32", *edgemm, "edgemm fp32"),
        "edgemm-int8": Entry("edgemm, int8", *edgemm, "edgemm int8"),
        "edgemm-int4": Entry("edgemm, int4", *edgemm, "edgemm int4"),
        "picture-torch": Entry("transformers + torch, float32", *torch, "llava", "picture"),
        "picture-genai": Entry("onnxruntime-genai, int4", *genai, "genai llava", "picture"),
        "picture-openvino": Entry("openvino-genai, int8", *openvino, "openvino llava", "picture"),
        "picture-llamacpp": Entry("llama.cpp, GGUF Q8_0", *llamacpp, "gguf llava", "picture"),
        "picture-edgemm-int8": Entry("edgemm, int8", *edgemm, "edgemm llava int8", "picture"),
        "picture-edgemm-int4": Entry("edgemm, int4", *edgemm, "edgemm llava int4", "picture"),
        "drawing-torch": Entry("diffusers + torch, float32", *torch, "sd3", "drawing"),
        "drawing-bf16": Entry("diffusers + torch, bfloat16", *torch, "sd3", "drawing", bfloat16),
        "drawing-openvino": Entry("openvino-genai, int8", *openvino, "openvino sd3", "drawing"),
        "drawing-edgemm-int8": Entry("edgemm, int8", *edgemm, "edgemm sticker int8", "drawing"),
        "drawing-edgemm-int4": Entry("edgemm, int4", *edgemm, "edgemm sticker int4", "drawing"),
    }


ENTRIES = _entries()
NOT_DRAWN = {"stable-diffusion.cpp": "not tried"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("build/peers"), help="where environments.py made its own")
    parser.add_argument("--work", type=Path, help="where models are kept (default: FOLDER/models)")
    parser.add_argument("--only", nargs="+", choices=ENTRIES, metavar="NAME", help=", ".join(ENTRIES))
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("-n", "--new-tokens", type=int, default=64)
    parser.add_argument("--text-tokens", type=int, default=400, help="for the perplexity; at most 400")
    parser.add_argument("--rounds", type=int, default=4, help="0 makes the models, and prints what FILE has")
    parser.add_argument("--repetitions", type=int, default=3, help="in each process")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="processor: threads' own time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the last line; rounds are added to those it has")
    args = parser.parse_args()
    names = [name for name in args.only or ENTRIES if ENTRIES[name].job in args.jobs]
    places = Places(args.folder.resolve(), (args.work or args.folder / "models").resolve())
    document = _document(args)
    models = _models(names, places, document["left_out"])
    request = _request(places, args)
    for _ in range(args.rounds):
        _round(models, places, request, args, document)
        _keep(document, args.json)  # what ends early has its whole rounds
    _print(document)
    print(_keep(document, args.json))
    return 0 if document["rows"] or not args.rounds else 4


def _keep(document: dict[str, Any], path: Path | None) -> str:
    middle = min if document["clock"] == "processor" else statistics.median
    document["rows"] = {name: _row(found, middle) for name, found in document["answers"].items() if found}
    line = json.dumps(document, separators=(",", ":"))
    if path:
        path.write_text(line + "\n")
    return line


def _document(args: argparse.Namespace) -> dict[str, Any]:
    """A new one, or that of earlier rounds with the same commit, threads and machine."""
    from edgemm.bench.conditions import machine_card
    from edgemm.device.machine import read_machine

    card = {**machine_card(), "cpu_features": list(read_machine().cpu_features)}
    same = {
        "benchmark": "peers",
        "threads": args.threads,
        "clock": args.clock,
        "work": {"prompts": PROMPTS, "new": args.new_tokens, "text": args.text_tokens},
        "environments": {name: [" ".join(step) for step in peer.steps] for name, peer in PEERS.items()},
    }
    same = json.loads(json.dumps(same))
    if args.json and args.json.exists():
        found = json.loads(args.json.read_text())
        differs = [key for key in same if found.get(key) != same[key]]
        differs += [key for key in ("cpu", "cpu_features", "commit") if found["card"].get(key) != card[key]]
        if differs:
            raise SystemExit(f"{args.json} was measured with another {differs[0]}: choose a new file")
        return found
    return {**same, "card": card, "left_out": dict(NOT_DRAWN), "answers": {}, "rows": {}}


def _models(names: list[str], places: Places, left_out: dict[str, str]) -> dict[str, Path]:
    models = {}
    if not (places.weights / "text_ids.json").exists():
        places.run("torch", HERE / "weights.py", places.weights)
    for name in names:
        left_out.pop(name, None)
        environment = ENTRIES[name].environment
        try:
            models[name] = model_of(ENTRIES[name].kind, places)
            if environment and not python_of(places.folder, environment).exists():
                raise FileNotFoundError(f"{PEERS[environment].title} has no environment under {places.folder}")
        except (OSError, RuntimeError) as error:
            left_out[name] = f"no model: {error}"
            models.pop(name, None)
    return models


def _request(places: Places, args: argparse.Namespace) -> Path:
    """What every contestant is asked, job by job."""
    ids = json.loads((places.weights / "text_ids.json").read_text())
    chosen = {
        "text": {"ids": ids, "prompts": PROMPTS, "new_tokens": args.new_tokens, "text_ids": ids[: args.text_tokens]},
        "picture": {"side": 224, "words": "What is this?"},
        "drawing": {"side": 64, "words": "red heart, fluent style", "steps": 12},
    }
    path = places.work / "request.json"
    path.write_text(json.dumps(chosen))
    return path


def _round(
    models: dict[str, Path], places: Places, request: Path, args: argparse.Namespace, document: dict[str, Any]
) -> None:
    """Everyone once; who goes first changes with the rounds that were before."""
    answers, left_out = document["answers"], document["left_out"]
    before = max((len(answers.get(name, ())) for name in models), default=0)
    names = [name for name in models if name not in left_out]
    turn = before % len(names) if names else 0
    for name in names[turn:] + names[:turn]:
        found = answers.setdefault(name, [])
        try:
            found.append(_ask(ENTRIES[name], places.folder, models[name], request, args, quality=not found))
        except RuntimeError as error:
            left_out[name] = str(error)


def _ask(
    entry: Entry, folder: Path, model: Path, request: Path, args: argparse.Namespace, quality: bool
) -> dict[str, Any]:
    python = str(python_of(folder, entry.environment)) if entry.environment else sys.executable
    command = [python, str(HERE / entry.script), entry.job, str(model), str(request)]
    command += ["--threads", str(args.threads), "--repetitions", str(args.repetitions), "--clock", args.clock]
    done = subprocess.run(
        [*command, *(["--quality"] if quality else [])],
        capture_output=True,
        text=True,
        env={**surroundings(entry.environment), "OMP_NUM_THREADS": str(args.threads), **entry.settings},
    )
    if done.returncode:
        raise RuntimeError(f"ended with {done.returncode}: {said_last(done)}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _row(found: list[dict[str, Any]], middle: Callable[[Iterable[float]], float] = statistics.median) -> dict[str, Any]:
    """`middle` of all repetitions of all rounds; of memory the most."""

    def one(key: str, length: str | None = None) -> float | None:
        rows = [answer[key][length] if length else answer[key] for answer in found if key in answer]
        return middle([ms for row in rows for ms in row]) if rows else None

    row: dict[str, Any] = {
        "load_s": middle([answer["load_s"] for answer in found]),
        "peak_mb": max(answer["peak_bytes"] for answer in found) / 1e6,
        "perplexity": next((answer["perplexity"] for answer in found if "perplexity" in answer), None),
        "prompt_tokens": found[0].get("prompt_tokens"),
        "picture_ms": one("picture_ms"),
    }
    if token_ms := one("token_ms"):
        row |= {"token_ms": token_ms, "tokens_per_s": 1e3 / token_ms}
        row["first_token_ms"] = {str(length): one("first_token_ms", str(length)) for length in PROMPTS}
    else:
        row["first_token_ms"] = one("first_token_ms")
    return {key: value for key, value in row.items() if value is not None}


COLUMNS = {
    "text": ("tokens/s", "first 32", "128", "512 ms", "perplexity", "load s", "peak MB"),
    "picture": ("first ms", "tokens", "load s", "peak MB"),
    "drawing": ("picture ms", "load s", "peak MB"),
}


def _cells(job: str, row: dict[str, Any]) -> list[str]:
    ends = [f"{row['load_s']:.2f}", f"{row['peak_mb']:.0f}"]
    if job == "picture":
        return [f"{row['first_token_ms']:.1f}", str(row.get("prompt_tokens", "-")), *ends]
    if job == "drawing":
        return [f"{row['picture_ms']:.1f}", *ends]
    firsts = [f"{row['first_token_ms'][str(length)]:.1f}" for length in PROMPTS]
    return [f"{row['tokens_per_s']:.1f}", *firsts, f"{row['perplexity']:.2f}", *ends]


def machine_kind(features: list[str]) -> str:
    """What decides which products are fast, in words."""
    named = {"AMX": "amx_int8", "AVX512-BF16": "avx512_bf16", "AVX512-VNNI": "avx512_vnni", "AVX-VNNI": "avx_vnni"}
    told = [title for title, flag in named.items() if flag in features]
    return " and ".join(told) + (", without AMX" if "AMX" not in told else "") if told else "neither AMX nor VNNI"


def _print(document: dict[str, Any]) -> None:
    card = document["card"]
    kind = machine_kind(card["cpu_features"])
    print(
        f"{card['cpu']} with {kind}; {document['threads']} threads; edgemm {card['commit']}; "
        + ("least processor time" if document["clock"] == "processor" else "medians")
    )
    for job in JOBS:
        rows = {name: row for name, row in document["rows"].items() if ENTRIES[name].job == job}
        if rows:
            print(f"\n{job:<32}" + "".join(f"{title:>11}" for title in COLUMNS[job]))
        for name, row in rows.items():
            rounds = len(document["answers"][name])
            cells = "".join(f"{cell:>11}" for cell in _cells(job, row))
            print(f"{ENTRIES[name].title:<32}{cells}   {rounds} rounds")
    for name, reason in document["left_out"].items():
        title = f"{ENTRIES[name].title} ({ENTRIES[name].job})" if name in ENTRIES else name
        print(f"left out: {title}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
