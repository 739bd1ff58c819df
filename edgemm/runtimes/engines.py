"""What a bundle's components run on, and why; and their engines, each loaded when it is first asked for.

Two tables and a choice: a backend is imported when it is chosen, never before, and comes with the line that installs
it.  A device that was asked for and is not there is an error; only `auto` may choose another.  It knows components,
backends and adapters, never prompts, options or loops.  Runs of all engines take turns.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemm.bundle.bundle import Bundle
from edgemm.bundle.components import ADAPTER_PREFIX, OneCall, Variant
from edgemm.bundle.manifest import ADAPTER_SCALES
from edgemm.errors import BundleError, InputError, MissingError, UsageError
from edgemm.runtimes.backend.engine import Backend, Engine, GraphFiles, ThreadPlan

if TYPE_CHECKING:
    from edgemm.runtimes.adapters import Adapter, Adapters
    from edgemm.runtimes.cache_budget import CacheBudget, MemoryPlan
    from edgemm.runtimes.turns import Turns

__all__ = ["BACKENDS", "DEVICES", "ON_CPU", "Choice", "Engines", "assign", "load_backend", "select"]

BACKENDS: dict[str, tuple[str, str, str]] = {  # backend -> (module, the object in it or "", how to get it)
    "onnxruntime": ("edgemm.runtimes.backend.ort_backend", "", "pip install 'edgemm[ort]'"),
    "ort_cuda": ("edgemm.runtimes.backend.ort_cuda_backend", "", "pip install 'edgemm[cuda]' and an NVIDIA driver"),
    "tensorrt": (
        "edgemm.runtimes.backend.tensorrt_backend",
        "TENSORRT",
        "comes with JetPack: sudo apt-get install nvidia-jetpack",
    ),
    "tensorrt_rtx": (
        "edgemm.runtimes.backend.tensorrt_backend",
        "TENSORRT_RTX",
        "pip install 'edgemm[tensorrt-rtx]'",
    ),
    "openvino": ("edgemm.runtimes.backend.openvino_backend", "", "pip install 'edgemm[openvino]'"),
    "openvino-bf16": ("edgemm.runtimes.backend.openvino_backend", "", "pip install 'edgemm[openvino]'"),
}

ON_CPU = {  # backends that a component may be given by hand, and what each calls the CPU
    "onnxruntime": "CPUExecutionProvider",
    "openvino": "CPU f32",
    "openvino-bf16": "CPU bf16",  # products in bfloat16, on CPUs that have it
}


@dataclass(frozen=True)
class Device:
    backend: str
    target: str  # the bundle's target that fits it
    provider: str  # the backend's own name for it
    cure: str


ON_JETSON = "on a Jetson TensorRT comes with JetPack (sudo apt-get install nvidia-jetpack)"

DEVICES = {  # `auto` takes the first that works and that the bundle was exported for
    **{
        name: Device("tensorrt", name, "TensorRT", ON_JETSON)
        for name in ("jetson-thor", "jetson-orin", "jetson-orin-jp6")
    },
    "rtx": Device("tensorrt_rtx", "rtx", "TensorRT-RTX", "pip install 'edgemm[tensorrt-rtx]' and an NVIDIA driver"),
    "cuda": Device("ort_cuda", "cuda", "CUDAExecutionProvider", "pip install 'edgemm[cuda]' and an NVIDIA driver"),
    "cpu": Device("onnxruntime", "cpu", "CPUExecutionProvider", "pip install 'edgemm[ort]'"),
}


MANY = ("cuda", "rtx")  # of which a machine may have several: "cuda:1"


@dataclass(frozen=True)
class Choice:
    """What a model runs on."""

    device: str
    backend: str
    target: str
    provider: str
    why: str

    @property
    def number(self) -> int:
        """Of the GPU, as CUDA counts."""
        from edgemm.device.gpu import gpu_number

        return gpu_number(self.device)

    def __str__(self) -> str:
        return f"{self.device} with {self.backend} ({self.provider}), target {self.target}: {self.why}"


def select(device: str, targets: Iterable[str]) -> Choice:
    """`device` is `auto` or a row of DEVICES, some with a number; `targets` are what the bundle was exported for."""
    offered = tuple(targets)
    if device == "auto":
        return _select_auto(offered)
    row = DEVICES[_row_of(device)]
    problem = _problem(row)
    if problem:
        raise MissingError(f"device {device!r} was asked for: {problem}; {row.cure}")
    target = _target(row, offered)
    if target not in offered:
        raise BundleError(f"the bundle has no target {target!r}, only: {', '.join(offered)}; export it for that target")
    return _choice(device, target, "it was asked for")


def _row_of(device: str) -> str:
    """Its name in DEVICES; "cuda:1" is the second of CUDA's GPUs."""
    name, colon, number = device.partition(":")
    if name not in DEVICES or (colon and (name not in MANY or not re.fullmatch("[0-9]{1,3}", number))):
        numbered = " or ".join(f"{each}:1" for each in MANY)
        raise UsageError(f"device is {device[:40]!r}, expected one of: auto, {', '.join(DEVICES)}, or {numbered}")
    return name


def _select_auto(offered: tuple[str, ...]) -> Choice:
    passed_over = []
    for device, row in DEVICES.items():
        target = _target(row, offered)
        problem = _problem(row) if target in offered else f"the bundle has no target {target!r}"
        if not problem:
            return _choice(device, target, "; ".join([*passed_over, "it is there"]))
        passed_over.append(f"not {device}, because {problem}")
    load_backend("onnxruntime")  # when it is the package that is missing, its cure is the better message
    raise BundleError(f"nothing here runs this bundle: {'; '.join(passed_over)}; export it with --target cpu")


def _target(row: Device, offered: tuple[str, ...]) -> str:
    """A CPU also runs what was made for a browser, where nothing was made for it."""
    made_for = ("cpu", "web") if row.target == "cpu" else (row.target,)
    return next((target for target in made_for if target in offered), row.target)


def _choice(device: str, target: str, why: str) -> Choice:
    row = DEVICES[_row_of(device)]
    return Choice(device, row.backend, target, row.provider, why)


def _problem(row: Device) -> str:
    """Why a device cannot be used, or an empty string."""
    try:
        backend = load_backend(row.backend)
    except MissingError as error:
        return str(error)
    if problem := getattr(backend, "problem", None):  # it knows better than a list of names
        return str(problem(row.target))
    providers = backend.providers()
    return "" if row.provider in providers else f"{row.backend} here has {', '.join(providers)} and no {row.provider}"


def assign(choice: Choice, components: Iterable[str], asked: str | Mapping[str, str] | None) -> dict[str, Choice]:
    """component -> what it runs on; `asked` is a backend for all, or {component: backend} for some."""
    names = tuple(components)
    wanted = dict.fromkeys(names, asked) if isinstance(asked, str) else dict(asked or {})
    for component, backend in wanted.items():
        if component not in names:
            raise UsageError(f"backend names component {component!r}, expected some of: {', '.join(names)}")
        if backend not in ON_CPU:
            raise UsageError(f"backend of {component} is {backend!r}, expected one of: {', '.join(ON_CPU)}")
        if choice.device != "cpu":
            raise UsageError(f"backend {backend!r} runs on the CPU, the device is {choice.device}: say device='cpu'")
        load_backend(backend)
    why = "it was asked for"
    by_hand = {c: Choice("cpu", backend, choice.target, ON_CPU[backend], why) for c, backend in wanted.items()}
    return {component: by_hand.get(component, choice) for component in names}


def load_backend(name: str) -> Backend:
    """MissingError with the cure when its package is not installed."""
    module, part, cure = BACKENDS[name]
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        behind: BaseException | None = error
        while behind is not None:  # a library that is interrupted while it begins says so in its own words
            if isinstance(behind, KeyboardInterrupt):
                raise behind from None
            behind = behind.__cause__ or behind.__context__
        raise MissingError(f"backend {name} is not installed ({error}): {cure}") from error
    return getattr(found, part) if part else found


class Engines:
    """A bundle's components for one target, on this device."""

    def __init__(
        self,
        bundle: Bundle,
        choice: Choice,
        plan: ThreadPlan,
        memory_limit_mb: float | None = None,
        backend: str | Mapping[str, str] | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.bundle = bundle
        self.choice = choice
        self.threads = plan
        self._memory_limit_mb, self._backend = memory_limit_mb, backend
        self.target = choice.target
        self.components = bundle.manifest.targets[choice.target]
        self.choices = assign(choice, self.components, backend)
        self._loaded: dict[str, Engine] = {}
        self._loading = {component: threading.Lock() for component in self.components}
        self._side_by_side = choice.device == "cpu"  # others share a device's memory, or build what they load
        self._running = threading.Lock()
        self._closed = False
        self._whole = threading.Lock()
        variants = {component: bundle.manifest.variant(component, self.target) for component in self.components}
        self._files = {component: self._opened(component, variant) for component, variant in variants.items()}
        self.budget: CacheBudget | None = None  # of all conversations together; None without a limit
        self.turns = turns  # the caller's, or where the limit does not hold all components
        if memory_limit_mb is not None:  # too small a limit is told before anything is loaded
            from edgemm.runtimes.cache_budget import CacheBudget

            self.budget = CacheBudget(self.memory.cache_bytes)
            if self.memory.in_turns:
                self.turns = self._turns(self.budget)
        if self.takes_adapters:
            _ = self.adapters  # now, for threads may ask at once

    @cached_property
    def memory(self) -> MemoryPlan:
        """What this takes, and what a limit leaves for conversations."""
        from edgemm.runtimes.cache_budget import plan_memory

        return plan_memory(self.bundle.manifest, self.target, self._memory_limit_mb, self.choice.device == "cpu")

    def _turns(self, budget: CacheBudget) -> Turns:
        from edgemm.runtimes.cache_budget import WORK_BYTES
        from edgemm.runtimes.turns import Turns

        room = (self.memory.limit_bytes or 0) - WORK_BYTES
        return Turns(lambda: room - budget.taken_bytes)

    @cached_property
    def adapters(self) -> Adapters:
        """Those that were loaded, and the one that the next call takes."""
        from edgemm.runtimes.adapters import Adapters

        manifest = self.bundle.manifest
        inputs = {component: manifest.variant(component, self.target).inputs for component in self.components}
        scaled = ADAPTER_SCALES in manifest.files
        return Adapters(inputs, self.bundle.tensors(ADAPTER_SCALES) if scaled else {})

    @cached_property
    def takes_adapters(self) -> bool:
        """Whether the bundle was exported with --adapters."""
        variants = [self.bundle.manifest.variant(component, self.target) for component in self.components]
        return any(spec.name.startswith(ADAPTER_PREFIX) for variant in variants for spec in variant.inputs)

    @property
    def adapter(self) -> Adapter | None:
        """The one that is active; None where nothing takes any."""
        return self.adapters.active if self.takes_adapters else None

    def try_first(self, compare: str | None = None) -> None:
        """In another process, where this bundle was never used on this machine (first_load.py)."""
        from edgemm.runtimes.first_load import check_first_load

        check_first_load(
            self.bundle, self.choice.device, self._backend, self._runs_on, None, compare, self._memory_limit_mb
        )
        self._files = {component: replace(files, checked=True) for component, files in self._files.items()}

    def keep_as_tried(self) -> None:
        """Whoever wrote this bundle has run it here, with the libraries that are chosen."""
        from edgemm.runtimes.first_load import remember

        remember(self.bundle, self.choice.device, self._backend, self._runs_on)

    @property
    def _runs_on(self) -> str:
        found = {f"{c.backend} {load_backend(c.backend).version()} {c.provider}" for c in self.choices.values()}
        return "; ".join(sorted(found))

    def __contains__(self, component: object) -> bool:
        return component in self.components

    def get(self, component: str, adapter: Adapter | None = None) -> Engine:
        """A component's engine, with the active adapter or the one given."""
        engine, adapter = self._load(component), adapter or self.adapter
        return engine if adapter is None else adapter.bound_to(engine)

    def begin(self, component: str) -> None:
        """Loads a component in a thread of its own, where that disturbs nothing; what goes wrong, `get` tells."""
        if self._side_by_side and component in self:
            with contextlib.suppress(RuntimeError):  # no thread can be had: `get` does it
                threading.Thread(target=self._try_to_load, args=(component,)).start()

    def timed(self, components: Sequence[str], adapter: Adapter | None = None) -> tuple[dict[str, Engine], float]:
        """Several at once, and the seconds that loading them took."""
        start, adapter = time.perf_counter(), adapter or self.adapter
        missing = [component for component in components if component in self and component not in self._loaded]
        for component in missing[1:]:  # a library loads without Python's lock
            self.begin(component)
        return {component: self.get(component, adapter) for component in components}, time.perf_counter() - start

    def watch(self, watch: Callable[[Engine], Engine]) -> None:
        """Loads every engine and puts `watch(engine)` in its place."""
        self.timed(tuple(self.components))
        for component in self.components:
            self._loaded[component] = watch(self._loaded[component])

    def ids(self, path: str) -> np.ndarray:
        """A table of token ids in the bundle."""
        ids = self.bundle.tensors(path).get("ids")
        if ids is None or ids.dtype != np.int64 or ids.ndim != 1:
            raise BundleError(f"{path}: expected a tensor `ids` of whole numbers")
        return ids

    def one_call(self, name: str) -> OneCall:
        """What the manifest says of a loop that is one graph."""
        call = self.bundle.manifest.one_call.get(name)
        if call is None or self.target not in call.variants:
            raise InputError(
                f"this bundle has no graph of a whole loop for {name} and target {self.target}: "
                f"edgemm export --one-call {name}"
            )
        return call

    def whole(self, name: str) -> Engine:
        """The engine of that graph, on what runs the transformer."""
        variant, component = self.one_call(name).variants[self.target], f"one_call.{name}"
        with self._whole:
            self.check_open()
            if component not in self._loaded:
                choice, files = self.choices["transformer"], self._opened(component, variant)
                self._loaded[component] = self._engine(files, choice)
            return self._loaded[component]

    def check_open(self) -> None:
        if self._closed:
            raise UsageError("the model is closed")

    def has_loaded(self, component: str) -> bool:
        return component in self._loaded

    def close(self) -> None:
        """Lets every engine go; none is loaded again."""
        self._closed = True
        self._loaded.clear()
        if self.turns is not None:
            self.turns.close()
        self._files.clear()
        self.bundle.close()

    def _try_to_load(self, component: str) -> None:
        with contextlib.suppress(Exception):
            self._load(component)

    def _load(self, component: str) -> Engine:
        if component not in self.components:
            raise InputError(f"this bundle has no {component} for target {self.target}")
        with self._loading[component]:
            self.check_open()
            if component not in self._loaded:
                engine = self._engine(self._files[component], self.choices[component])
                self.check_open()  # it may have been closed meanwhile
                self._loaded[component] = engine
            return self._loaded[component]

    def _engine(self, files: GraphFiles, choice: Choice) -> Engine:
        """Open, or one that will be whenever it runs."""
        backend = load_backend(choice.backend)
        where = {"number": choice.number} if ":" in choice.device else {}  # a CPU has none
        open_engine: Any = partial(backend.open_engine, files, choice.provider, self.threads, self._running, **where)
        if self.turns is None:
            return open_engine()
        from edgemm.runtimes.turns import TurnTaker

        return TurnTaker(files.component, files.variant, self._running, self.turns, open_engine)

    def _opened(self, component: str, variant: Variant) -> GraphFiles:
        """Its files, open from now on."""
        graph = self.bundle.held(variant.graph)
        data = None if variant.data is None else self.bundle.held(variant.data)
        shared = tuple(map(self.bundle.held, variant.shares))
        return GraphFiles(component, graph.path, data.path if data else None, variant, (graph, data), shared=shared)
