"""The thin runtime on Arm, emulated: components, replies and drawings of a bundle against what x86 and torch say.

    python benchmarks/arm64.py BUNDLE [--root build/arm64] [--cpus cortex-a72 ...] [--onnxruntime 1.32.0 | 1.23.2]
                               [--qemu qemu-aarch64-static] [--only denoiser ...]

Debian's qemu-user-static and mmdebstrap, and a network when the root is made: an arm64 Debian with Python 3.11, aarch64
wheels unpacked beside it, and the files of /proc and /sys by which ONNX Runtime counts Arm's cores.  No binfmt, no
chroot.  For each processor model one emulated process imports the runtime, makes ids of words, runs each component on
the inputs that x86 ran, and compares the bundle's recorded replies and drawings.  A line a comparison, then one JSON
line.  Orin's Cortex-A78AE is known to newer qemus than Debian 12's (11.1 has it): name one with --qemu; what a qemu
does not know is told and passed over.  Of a large bundle --only runs the components that are named, and no loop;
`--only first-load` compares what a first load does.
JetPack 6 has Python 3.10; no package registry has one for arm64, so its ONNX Runtime (1.23.2) runs here in Python 3.11.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
QEMU = "qemu-aarch64-static"
CPUS = ("cortex-a72", "cortex-a76", "cortex-a78ae", "neoverse-n1", "max,sme=off", "max")
DEBIAN = "bookworm"
INCLUDED = ("python3.11", "libstdc++6", "libcjson1", "libpng16-16", "libssl3")  # examples/c wants these, too
PACKAGES = (
    "numpy==2.4.6", "tokenizers==0.23.3", "safetensors==0.8.0", "pillow==13.0.0", "tqdm==4.70.1",
    "onnxruntime-extensions==0.15.2",  # which examples/c wants
)  # fmt: skip
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64")
PART = 0xD42  # of a Cortex-A78AE, as Orin has
CORES = 2
WORDS = "Draw a green star, one of 12 — ¿qué?"
FIRST_LOAD, PATIENCE_S = "first-load", 3600.0
WRONG = 0.3  # of an output's largest number: sound kernels differ by a hundredth, broken ones by more than 1
SIZES = {"b": 1, "s": 8, "T": 16, "t": 16, "m": 1}  # of named axes


def make_root(root: Path) -> None:
    """An arm64 Debian, unpacked and never configured."""
    if not (root / "usr/bin/python3.11").exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        words = ["mmdebstrap", "--variant=extract", "--arch=arm64", f"--include={','.join(INCLUDED)}", DEBIAN]
        subprocess.run([*words, str(root)], check=True)
    features = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
    told = f"BogoMIPS\t: 62.50\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    told += f"CPU variant\t: 0x0\nCPU part\t: {PART:#x}\nCPU revision\t: 1\n\n"
    files = {"proc/cpuinfo": "".join(f"processor\t: {core}\n{told}" for core in range(CORES))}
    cpu = "sys/devices/system/cpu"
    files |= {f"{cpu}/{name}": f"0-{CORES - 1}\n" for name in ("possible", "present", "online")}
    for core in range(CORES):
        files[f"{cpu}/cpu{core}/topology/core_id"] = f"{core}\n"
        files[f"{cpu}/cpu{core}/regs/identification/midr_el1"] = f"{0x410F0001 | PART << 4:#018x}\n"
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def make_site(folder: Path, packages: Sequence[str]) -> Path:
    """aarch64 wheels for Python 3.11, unpacked."""
    if not folder.exists():
        wheels = folder.with_name(f"{folder.name}-wheels")
        words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        words += [word for name in PLATFORMS for word in ("--platform", name)]
        words += ["--python-version", "3.11", "--implementation", "cp", "-d", str(wheels)]
        subprocess.run([*words, *packages], check=True)
        for wheel in wheels.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(folder)
        shutil.rmtree(wheels)
    return folder


def feeds(inputs: Sequence[Any], seed: int = 7) -> dict[str, np.ndarray]:
    """Something of the right form for each input of a component."""
    generator, made = np.random.default_rng(seed), {}
    s = SIZES["s"]
    whole = {"image_index": [-1] * s, "attention_limit": range(s), "input_ids": range(40, 40 + s)}
    whole |= {"logits_index": [s - 1], "prefix_length": [s]}
    for spec in inputs:
        shape = [size if isinstance(size, int) else SIZES.get(size, 1) for size in spec.shape]
        if spec.dtype == "int64":
            made[spec.name] = np.array(list(whole.get(spec.name, [0]))).reshape(shape)
        elif spec.dtype == "bool":
            made[spec.name] = np.ones(shape, bool)
        else:
            made[spec.name] = generator.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
    return made


def answers(bundle: Path, target: str, only: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """COMPONENT/OUTPUT -> what this machine's ONNX Runtime says."""
    import onnxruntime

    from edgemm.bundle.bundle import open_bundle

    opened, found = open_bundle(bundle), {}
    for name, variant in opened.manifest.graphs_for(target).items():
        if "." in name or (only and name not in only):  # a whole loop, or not asked for
            continue
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(
            str(opened.file(variant.graph)), options, providers=["CPUExecutionProvider"]
        )
        outputs = [output.name for output in session.get_outputs()]
        said = session.run(outputs, feeds(variant.inputs))
        found |= {f"{name}/{output}": np.asarray(array) for output, array in zip(outputs, said, strict=True)}
    return found


def inside(bundle: Path, wanted: Path, target: str, only: Sequence[str] = ()) -> dict[str, Any]:
    """On the emulated machine."""
    import onnxruntime

    from edgemm.bundle.bundle import open_bundle
    from edgemm.bundle.prompt import Tokenizer
    from edgemm.errors import EdgemmError
    from edgemm.runtimes.backend.engine import plan_threads
    from edgemm.runtimes.engines import Choice, Engines
    from edgemm.runtimes.model import Model
    from edgemm.verify.loops import compare_loops, first_answers
    from edgemm.verify.parity import precision_of, read_recorded

    opened, known = open_bundle(bundle), np.load(wanted)
    ids = Tokenizer(opened.file(opened.manifest.tokenizer)).encode(WORDS)
    report: dict[str, Any] = {"onnxruntime": onnxruntime.__version__, "ids": list(ids) == known["ids"].tolist()}
    off: dict[str, float] = {}
    for name, array in answers(bundle, target, only).items():
        component, size = name.partition("/")[0], max(float(np.abs(known[name]).max()), 1e-6)
        error = float(np.abs(array.astype(np.float64) - known[name]).max()) / size
        off[component] = max(off.get(component, 0.0), error if np.isfinite(error) else 9e9)
    alike = str(known["onnxruntime"]) == onnxruntime.__version__  # versions round static ranges in other places
    report |= {"components": off, "passed": not alike or max(off.values(), default=0.0) < WRONG}
    if only and FIRST_LOAD not in only:
        return report
    recorded = read_recorded(opened)
    precise = type(recorded)(**(vars(recorded) | {"precision": precision_of(opened.manifest, target)}))
    choice = Choice("cpu", "onnxruntime", target, "CPUExecutionProvider", "emulated")
    try:
        with Model(Engines(opened, choice, plan_threads(1))) as model:
            compared = list(first_answers(model, PATIENCE_S) if only else compare_loops(model, precise))
        report["loops"] = [comparison.line() for comparison in compared]
        report["passed"] &= all(comparison.passed for comparison in compared)
    except EdgemmError as error:
        report |= {"loops": [str(error)], "passed": False}
    return report


def emulated(qemu: str, root: Path, site: Path, cpu: str, words: Sequence[str]) -> dict[str, Any]:
    """One process; what it says on its last line."""
    cleared = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "VIRTUAL_ENV", "PYTHONHOME")
    given = {name: value for name, value in os.environ.items() if name not in cleared}
    given |= {"QEMU_CPU": cpu, "PYTHONPATH": f"{site}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    given |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    start = time.monotonic()
    command = [qemu, "-L", str(root), str(root / "usr/bin/python3.11"), __file__, *words]
    done = subprocess.run(command, env=given, capture_output=True, text=True)
    took = round(time.monotonic() - start)
    if done.returncode:
        return {"passed": False, "seconds": took, "failed": f"exit {done.returncode}: {done.stderr.strip()[-300:]}"}
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": took}


def show(cpu: str, found: Mapping[str, Any]) -> None:
    print(f"{cpu}: {'as on x86' if found['passed'] else 'NOT as on x86'}, {found['seconds']} s", flush=True)
    print(f"  {found.get('failed') or ('ids equal' if found['ids'] else 'ids DIFFER')}")
    for component, error in found.get("components", {}).items():
        print(f"  {component}: at most {error:.1e} of the largest number")
    for line in found.get("loops", ()):
        print(f"  {line}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--root", type=Path, default=ROOT / "build" / "arm64")
    parser.add_argument("--cpus", nargs="+", default=CPUS)
    parser.add_argument("--qemu", default=QEMU)
    parser.add_argument("--only", nargs="+", default=[], metavar="COMPONENT")
    parser.add_argument("--onnxruntime", default="1.32.0")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--inside", type=Path, help="this is the emulated machine: x86's answers")
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(inside(args.bundle, args.inside, args.target, args.only)))
        return 0
    missing = [tool for tool in (args.qemu, "mmdebstrap") if shutil.which(tool) is None]
    if missing:
        print(f"missing: {', '.join(missing)}: apt-get install qemu-user-static mmdebstrap", file=sys.stderr)
        return 4
    make_root(args.root)
    packages = [*PACKAGES, f"onnxruntime=={args.onnxruntime}"]
    site = make_site(args.root.with_name(f"{args.root.name}-{args.onnxruntime}"), packages)
    from edgemm.bundle.bundle import open_bundle
    from edgemm.bundle.prompt import Tokenizer

    bundle = args.bundle.resolve()
    opened = open_bundle(bundle)
    ids = Tokenizer(opened.file(opened.manifest.tokenizer)).encode(WORDS)
    wanted = args.root.resolve().with_name("x86.npz")
    import onnxruntime

    told: dict[str, Any] = {"ids": np.array(list(ids)), "onnxruntime": np.array(onnxruntime.__version__)}
    np.savez(wanted, **told, **answers(bundle, args.target, args.only))
    words = [str(bundle), "--inside", str(wanted), "--target", args.target]
    words += ["--only", *args.only] if args.only else []
    known = subprocess.run([args.qemu, "-cpu", "help"], capture_output=True, text=True).stdout.split()
    rows = {}
    for cpu in args.cpus:
        if cpu.partition(",")[0] not in known:
            print(f"{cpu}: {args.qemu} does not know it")
            continue
        rows[cpu] = emulated(args.qemu, args.root.resolve(), site.resolve(), cpu, words)
        show(cpu, rows[cpu])
    print(json.dumps({"bundle": bundle.name, "target": args.target, "onnxruntime": args.onnxruntime, "rows": rows}))
    return 0 if all(found["passed"] for cpu, found in rows.items() if cpu != "max") else 7


if __name__ == "__main__":
    sys.exit(main())
