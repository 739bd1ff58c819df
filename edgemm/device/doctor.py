"""What can this machine run, what is missing, and which line installs it: before anything is built or copied.

Needs numpy alone, like the base install: every library is asked for by name or in a child process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgemm.bundle.bundle import Bundle, Variant, open_bundle, size_problem
from edgemm.device.fatbin import CudaCode, find_cuda_code
from edgemm.device.gpu import CudaDriver, Gpu, missing_precision, probe_cuda
from edgemm.device.machine import Board, Machine, read_board, read_machine
from edgemm.device.providers import Provider, probe_providers
from edgemm.device.targets import (
    EXTRAS,
    Extra,
    Findings,
    Verdict,
    driver_advice,
    find_system_tensorrt,
    judge,
    read_extra,
    rtx_cuda,
)
from edgemm.errors import InputError

__all__ = ["BundleFit", "Report", "TargetFit", "examine", "report_json", "report_text"]

NO_CUDA = CudaDriver(None, (), "")


@dataclass(frozen=True)
class TargetFit:
    """What one target of a bundle would do here."""

    target: str
    engine: str  # what would run it; "" when nothing does
    precision: dict[str, str]  # of each component
    weights_bytes: int
    problem: str  # "" when it runs
    cure: str  # what to do about it; "" when nothing on this machine would help


@dataclass(frozen=True)
class BundleFit:
    """What one bundle would do here."""

    name: str
    targets: tuple[str, ...]  # that it was exported for
    runs: tuple[str, ...]  # of them, those that run here
    weights_bytes: int  # of its largest target: graphs and their weights, without caches and buffers
    problem: str  # "" when it runs
    each: tuple[TargetFit, ...] = ()  # target by target


@dataclass(frozen=True)
class Report:
    machine: Machine
    board: Board | None
    cuda: CudaDriver
    providers: tuple[Provider, ...]
    extras: dict[str, Extra]
    verdicts: tuple[Verdict, ...]
    bundle: BundleFit | None
    cuda_code: CudaCode | None = None  # that the installed onnxruntime-gpu holds
    recorded: str = ""  # the folder that a machine was read from, which is not this one

    @property
    def healthy(self) -> bool:
        """The bundle runs here; without one, that any bundle could."""
        return not self.bundle.problem if self.bundle else any(verdict.runs for verdict in self.verdicts)


def examine(bundle: Path | None = None, root: Path = Path("/")) -> Report:
    """Reads the machine; `root` is where /proc, /sys and /etc are looked for.  A board that was recorded has the GPU
    that its files tell of; packages and providers are always those of this machine."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected a recorded machine's root, with its proc, sys and etc")
    shown = ("proc/cpuinfo", "proc/meminfo", "proc/device-tree")
    if root != Path("/") and not any((root / name).exists() for name in shown):
        raise InputError(f"{root}: holds no recorded machine; expected {', '.join(shown)} in it")
    opened = open_bundle(bundle, verify=False) if bundle else None
    machine, board, cuda, providers = (
        read_machine(root, bundle or Path(".")),
        read_board(root),
        probe_cuda(),
        probe_providers(),
    )
    if board and root != Path("/"):
        cuda = CudaDriver(None, (Gpu(board.soc, board.compute_capability, machine.memory_bytes or 0),), "")
    code = find_cuda_code()
    extras = {name: read_extra(name, board) for name in EXTRAS}
    found = Findings(board, cuda, providers, extras, find_system_tensorrt(root), code, driver_advice(root), rtx_cuda())
    verdicts = judge(found)
    fit = fit_bundle(opened, verdicts, machine, cuda) if opened else None
    return Report(machine, board, cuda, providers, extras, verdicts, fit, code, "" if root == Path("/") else str(root))


def fit_bundle(
    bundle: Bundle, verdicts: tuple[Verdict, ...], machine: Machine, cuda: CudaDriver = NO_CUDA
) -> BundleFit:
    targets = tuple(bundle.manifest.targets)
    here = {verdict.target: verdict for verdict in verdicts if verdict.target in targets}
    problems = {target: _problem(bundle, verdict, machine, cuda) for target, verdict in here.items()}
    runs = tuple(target for target, problem in problems.items() if not problem)
    weights = max(_weights_bytes(bundle, target) for target in runs or targets)
    told = "; ".join(f"{target}: {problem}" for target, problem in problems.items())
    problem = "" if runs else told or f"exported for {', '.join(targets)}, which this edgemm does not know"
    each = tuple(_target_fit(bundle, target, here.get(target), problems.get(target, "")) for target in targets)
    return BundleFit(bundle.manifest.name, targets, runs, weights, problem, each)


def _target_fit(bundle: Bundle, target: str, verdict: Verdict | None, problem: str) -> TargetFit:
    return TargetFit(
        target=target,
        engine=verdict.engine if verdict and not problem else "",
        precision={name: bundle.manifest.variant(name, target).precision for name in bundle.manifest.targets[target]},
        weights_bytes=_weights_bytes(bundle, target),
        problem=problem if verdict else "this edgemm does not know that target",
        cure=verdict.cure if verdict and problem else "",
    )


def _problem(bundle: Bundle, verdict: Verdict, machine: Machine, cuda: CudaDriver) -> str:
    """Why this bundle does not run on that target here, or an empty string."""
    if not verdict.runs:
        return verdict.problem
    if problem := next(filter(None, (_file_problem(bundle, name) for name in _files(bundle, verdict.target))), ""):
        return problem
    precisions = [variant.precision for variant in _variants(bundle, verdict.target)]
    lacking = [missing_precision(precisions, gpu.compute_capability) for gpu in cuda.gpus]
    if lacking and lacking[0]:
        able = f"; one that does: --device {verdict.target}:{lacking.index(None)}" if None in lacking else ""
        return lacking[0] + able
    opset = max(map(_opset, _variants(bundle, verdict.target)), default=0)
    if verdict.newest_opset is not None and opset > verdict.newest_opset:
        return (
            f"its graphs are opset {opset}, {verdict.engine} reads up to {verdict.newest_opset}: a newer one is needed"
        )
    weights, available = _weights_bytes(bundle, verdict.target), machine.memory_available_bytes
    if available is not None and weights > available:
        return f"its weights take {_size(weights)}, and {_size(available)} of memory are free"
    return ""


def report_json(report: Report) -> dict[str, Any]:
    """Plain values only; absent things are null."""
    verdicts = [{**asdict(verdict), "runs": verdict.runs} for verdict in report.verdicts]
    extras = {name: {**asdict(extra), "cure": extra.cure} for name, extra in report.extras.items()}
    board = {**asdict(report.board), "target": report.board.target} if report.board else None
    found = {**asdict(report), "board": board, "extras": extras, "verdicts": verdicts, "healthy": report.healthy}
    return {"schema_version": 1, **found}


def report_text(report: Report) -> str:
    lines = [*_machine_lines(report), "", "targets"]
    for verdict in report.verdicts:
        mark = "[✓]" if verdict.runs else "[x]"
        lines.append(f"  {mark} {verdict.target:<16} {verdict.engine or verdict.problem}")
        if verdict.cure:
            lines.append(f"{'':23}{verdict.cure}")
    lines += ["", "extras", *_extra_lines(report.extras)]
    if report.bundle:
        fit = report.bundle
        lines += ["", f"bundle {fit.name}: what each of its targets would do here"]
        for each in fit.each:
            kinds = ", ".join(f"{name} {kind}" for name, kind in each.precision.items())
            lines.append(f"  {'[x]' if each.problem else '[✓]'} {each.target:<16} {each.engine or each.problem}")
            lines.append(f"{'':23}{_size(each.weights_bytes)} of weights: {kinds}")
            lines += [f"{'':23}{each.cure}"] if each.cure else []
    return "\n".join([*lines, "", _last_line(report)])


def _machine_lines(report: Report) -> list[str]:
    machine, board, cuda = report.machine, report.board, report.cuda
    rows: dict[str, str | None] = {
        "system": f"{machine.distribution or 'unknown'}, {machine.system}",
        "python": machine.python,
        "cpu": f"{machine.cpu} ({' '.join(machine.cpu_features) or 'no known vector instructions'})",
        "cores": f"{machine.cores_usable:g} of {machine.cores} usable",
        "memory": f"{_size(machine.memory_bytes)}, {_size(machine.memory_available_bytes)} free",
        "disk": f"{_size(machine.disk_free_bytes)} free",
        "power mode": _power_mode(report),
        "board": None,
        "gpu": "; ".join(f"{gpu.name}, SM {gpu.compute_capability}, {_size(gpu.memory_bytes)}" for gpu in cuda.gpus),
        "cuda": f"driver runs up to CUDA {cuda.version}" if cuda.version else cuda.problem,
    }
    if board:
        rows["board"] = f"{board.model}, Linux for Tegra {board.l4t or '?'} (JetPack {board.jetpack or '?'})"
    rows["tensorrt"] = _tensorrt(report.extras)
    rows["ort-gpu"] = f"code for SM {report.cuda_code}" if report.cuda_code else None
    rows["recorded"] = f"in {report.recorded}; packages and providers are this machine's" if report.recorded else None
    rows["providers"] = ", ".join(f"{p.name} {'works' if p.usable else 'does not work'}" for p in report.providers)
    return [f"{name:<11}{value}" for name, value in rows.items() if value]


def _power_mode(report: Report) -> str:
    """nvpmodel's name on a Jetson, elsewhere what governs the clocks."""
    if report.board:
        return report.board.power_mode or "unknown"
    return f"governor {report.machine.governor}" if report.machine.governor else "not told to this machine"


def _tensorrt(extras: Mapping[str, Extra]) -> str:
    packages = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
    found = [
        f"{title} {extras[name].versions[name]}" for name, title in packages.items() if name in extras[name].versions
    ]
    return ", ".join(found) or "not installed"


def _extra_lines(extras: Mapping[str, Extra]) -> list[str]:
    lines = []
    for extra in extras.values():
        have = ", ".join(f"{package} {version}" for package, version in extra.versions.items())
        lines.append(f"  {'[x]' if extra.missing else '[✓]'} {extra.name:<16} {have or 'nothing'}")
        if extra.missing:
            lines.append(f"{'':23}{extra.cure}")
    return lines


def _last_line(report: Report) -> str:
    if report.bundle:
        fit = report.bundle
        return (
            f"{fit.name} runs here on: {', '.join(fit.runs)}."
            if not fit.problem
            else f"{fit.name} does not run here: {fit.problem}."
        )
    runs = [verdict.target for verdict in report.verdicts if verdict.runs]
    if runs:
        return f"Bundles exported for {' and '.join(runs)} run here."
    cures = [verdict.cure for verdict in report.verdicts if verdict.cure]
    return f"No bundle runs here yet. Start with: {cures[0]}" if cures else "No bundle runs here."


def _variants(bundle: Bundle, target: str) -> list[Variant]:
    return [bundle.manifest.variant(component, target) for component in bundle.manifest.targets[target]]


def _opset(variant: Variant) -> int:
    """24 of the dialect "opset24+contrib"."""
    found = re.match(r"opset(\d+)", variant.dialect)
    return int(found.group(1)) if found else 0


def _weights_bytes(bundle: Bundle, target: str) -> int:
    return sum(bundle.manifest.files[path].size_bytes for path in _files(bundle, target))


def _files(bundle: Bundle, target: str) -> list[str]:
    """Of a target's graphs, each once."""
    found = (path for variant in _variants(bundle, target) for path in (variant.graph, variant.data) if path)
    return list(dict.fromkeys(found))


def _file_problem(bundle: Bundle, name: str) -> str:
    return size_problem(bundle.path, name, bundle.manifest.files[name])


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "unknown"
    return f"{size_bytes / 1e9:.3g} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.3g} MB"
