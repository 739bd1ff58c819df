"""What each contestant loads, made by its own converter from the same float weights; kept where it was made.

A kind that its converter refuses is told in the converter's own last words.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from environments import PEERS, llama_cpp_source, python_of

__all__ = ["CHECKPOINT", "KINDS", "Places", "model_of", "said_last", "surroundings"]

HERE = Path(__file__).parent
CHECKPOINT = HERE.parents[1] / "checkpoints" / "sticker-small"
CONTEXT = ["--max-context", "1024"]


@dataclass(frozen=True)
class Places:
    """Where environments and models are."""

    folder: Path
    work: Path

    @property
    def weights(self) -> Path:
        return self.work / "weights"

    @property
    def float32(self) -> Path:
        return self.weights / "float32"

    def run(self, environment: str | None, *words: str | Path) -> None:
        python = python_of(self.folder, environment) if environment else Path(sys.executable)
        if not python.exists():
            raise FileNotFoundError(f"{PEERS[environment or ''].title} has no environment under {self.folder}")
        command = [str(python), *map(str, words)]
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=surroundings(environment)
        )
        if done.returncode:
            raise RuntimeError(said_last(done))


def surroundings(environment: str | None) -> dict[str, str]:
    """Ours; a peer finds its own packages alone: this checkout has a folder `optimum`, too."""
    without = {key: value for key, value in os.environ.items() if not environment or key != "PYTHONPATH"}
    return {**without, "HF_HUB_OFFLINE": "1"}


# Stable Diffusion 3 may do without its third reader, a T5; diffusers opens it so only when it is told, which
# optimum-cli cannot.
WITHOUT_T5 = """
from diffusers import StableDiffusion3Pipeline
from optimum.commands.optimum_cli import main
StableDiffusion3Pipeline._optional_components += ["text_encoder_3", "tokenizer_3"]
main()
"""
Maker = Callable[[Places, Path], None]


def model_of(kind: str, places: Places) -> Path:
    """Raises RuntimeError with a converter's words, FileNotFoundError where an environment lacks."""
    if kind == "float32":
        return places.float32
    target = places.work / kind.replace(" ", "-")
    if not target.exists():
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        KINDS[kind](places, partial)
        partial.rename(target)
    return target


def said_last(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"it ended with {done.returncode} and said nothing"


def _gguf(places: Places, target: Path) -> None:
    target.mkdir(parents=True)
    (file,) = places.weights.glob("*.gguf")
    shutil.copyfile(file, target / file.name)


def _gguf_q8(places: Places, target: Path) -> None:
    target.mkdir(parents=True)
    _to_gguf(places, places.float32, target / "model.gguf")


def _to_gguf(places: Places, source: Path, file: Path) -> None:
    script = llama_cpp_source(places.folder) / "convert_hf_to_gguf.py"
    places.run("torch", script, source, "--outfile", file, "--outtype", "q8_0")


def _gguf_llava(places: Places, target: Path) -> None:
    """convert_hf_to_gguf.py knows LLaVA's design with Pixtral's eye alone; for CLIP's there is a script beside it."""
    model_of("llava", places)
    parts = places.work / "llava-parts"
    target.mkdir(parents=True)
    _to_gguf(places, parts / "text", target / "model.gguf")
    script = llama_cpp_source(places.folder) / "tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py"
    options = ["--clip-model-is-vision", "--llava-projector", parts / "eye" / "llava.projector", "-o", target]
    places.run("torch", script, "-m", parts / "eye", *options)
    next(target.glob("mmproj*.gguf")).rename(target / "mmproj.gguf")


def _llava(places: Places, target: Path) -> None:
    places.run("torch", HERE / "shapes.py", "llava", places.float32, target)
    apart = target.with_name(target.name + "-parts")
    shutil.rmtree(places.work / "llava-parts", ignore_errors=True)
    apart.rename(places.work / "llava-parts")


def _sd3(places: Places, target: Path) -> None:
    places.run("torch", HERE / "shapes.py", "sd3", "-", target)


def _genai(precision: str, source: str = "float32") -> Maker:
    def make(places: Places, target: Path) -> None:
        options = ["-p", precision, "-e", "cpu", "-c", places.work / "cache"]
        builder = ["-m", "onnxruntime_genai.models.builder"]
        places.run("genai", *builder, "-i", model_of(source, places), "-o", target, *options)

    return make


def _openvino(weights: str, source: str, task: str) -> Maker:
    def make(places: Places, target: Path) -> None:
        options = ["--task", task, "--weight-format", weights]
        command = ["-c", WITHOUT_T5, "export", "openvino"]
        places.run("optimum", *command, "--model", model_of(source, places), *options, target)

    return make


def _edgemm(precision: str, source: str = "float32") -> Maker:
    def make(places: Places, target: Path) -> None:
        found = CHECKPOINT if source == "sticker" else model_of(source, places)
        options = ["--precision", precision, *([] if source == "sticker" else CONTEXT)]
        places.run(None, "-m", "edgemm", "export", found, "--output", target, *options)

    return make


KINDS: Mapping[str, Maker] = {
    "gguf openvino": _gguf,  # apart from llama.cpp's: OpenVINO writes what it made of it beside it
    "gguf llamacpp": _gguf,
    "gguf q8": _gguf_q8,
    "genai int4": _genai("int4"),
    "genai fp32": _genai("fp32"),
    "openvino int8": _openvino("int8", "float32", "text-generation-with-past"),
    "edgemm fp32": _edgemm("fp32"),
    "edgemm int8": _edgemm("int8"),
    "edgemm int4": _edgemm("int4"),
    "llava": _llava,
    "gguf llava": _gguf_llava,
    "genai llava": _genai("int4", "llava"),
    "openvino llava": _openvino("int8", "llava", "image-text-to-text"),
    "edgemm llava int8": _edgemm("int8", "llava"),
    "edgemm llava int4": _edgemm("int4", "llava"),
    "sd3": _sd3,
    "openvino sd3": _openvino("int8", "sd3", "text-to-image"),
    "edgemm sticker int8": _edgemm("int8", "sticker"),
    "edgemm sticker int4": _edgemm("int4", "sticker"),
}
