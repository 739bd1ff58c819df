"""The engines of one opened bundle: each component loaded when it is first asked for, and what each of them runs on.

It knows components, backends and adapters, never prompts, options or loops.  Runs of all engines take turns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgemm.bundle.bundle import Bundle
from edgemm.bundle.manifest import ADAPTER_SCALES, OneCall, Variant
from edgemm.bundle.onnx_file import check_external_data
from edgemm.device.threads import ThreadPlan
from edgemm.errors import BundleError, InputError, UsageError
from edgemm.runtimes.adapters import AdaptedEngine, Adapter, Adapters, read_tensors
from edgemm.runtimes.backend.choice import Choice, assign, load_backend
from edgemm.runtimes.backend.engine import Engine, GraphFiles
from edgemm.runtimes.cache_budget import MemoryPlan, plan_memory

__all__ = ["Engines"]


class Engines:
    """A bundle's components for one target, on this device."""

    def __init__(
        self,
        bundle: Bundle,
        choice: Choice,
        plan: ThreadPlan,
        memory_limit_mb: float | None = None,
        backend: str | Mapping[str, str] | None = None,
    ) -> None:
        self.bundle = bundle
        self.choice = choice
        self.threads = plan
        self.memory: MemoryPlan = plan_memory(bundle.manifest, choice.target, memory_limit_mb)
        self.target = choice.target
        self.components = bundle.manifest.targets[choice.target]
        self.choices = assign(choice, self.components, backend)
        self.adapters = Adapters(
            {component: bundle.manifest.variant(component, self.target).inputs for component in self.components},
            read_tensors(bundle.file(ADAPTER_SCALES)) if ADAPTER_SCALES in bundle.manifest.files else {},
        )
        self._loaded: dict[str, Engine] = {}
        self._loading = {component: threading.Lock() for component in self.components}
        self._side_by_side = choice.device == "cpu"  # others share a device's memory, or build what they load
        self._running = threading.Lock()
        self._closed = False
        self._whole = threading.Lock()
        for component in self.components:
            files = self._files(component)
            check_external_data(files.graph, files.data)

    def __contains__(self, component: object) -> bool:
        return component in self.components

    def get(self, component: str, adapter: Adapter | None = None) -> Engine:
        """A component's engine, with the active adapter or the one given."""
        engine = self._load(component)
        factors = (adapter or self.adapters.active).placed(engine)
        return engine if factors is None else AdaptedEngine(engine, factors)

    def begin(self, component: str) -> None:
        """Loads a component in a thread of its own, where that disturbs nothing; what goes wrong, `get` tells."""
        if self._side_by_side and component in self:
            from concurrent.futures import ThreadPoolExecutor

            pool = ThreadPoolExecutor(1)
            pool.submit(self._load, component)
            pool.shutdown(wait=False)

    def timed(self, components: Sequence[str], adapter: Adapter | None = None) -> tuple[dict[str, Engine], float]:
        """Several at once, and the seconds that loading them took."""
        start, adapter = time.perf_counter(), adapter or self.adapters.active
        missing = [component for component in components if component in self and component not in self._loaded]
        if self._side_by_side and len(missing) > 1:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(len(missing)) as pool:  # a library loads without Python's lock
                list(pool.map(self._load, missing))
        return {component: self.get(component, adapter) for component in components}, time.perf_counter() - start

    def watch(self, watch: Callable[[Engine], Engine]) -> None:
        """Loads every engine and puts `watch(engine)` in its place."""
        self.timed(tuple(self.components))
        for component in self.components:
            self._loaded[component] = watch(self._loaded[component])

    def ids(self, path: str) -> np.ndarray:
        """A table of token ids in the bundle."""
        ids = read_tensors(self.bundle.file(path)).get("ids")
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
        variant = self.one_call(name).variants[self.target]
        with self._whole:
            self.check_open()
            if name not in self._loaded:
                choice, files = self.choices["transformer"], self._graph_files(f"one_call.{name}", variant)
                self._loaded[name] = load_backend(choice.backend).open_engine(
                    files, choice.provider, self.threads, self._running
                )
            return self._loaded[name]

    def check_open(self) -> None:
        if self._closed:
            raise UsageError("the model is closed")

    def close(self) -> None:
        """Lets every engine go; none is loaded again."""
        self._closed = True
        self._loaded.clear()

    def _load(self, component: str) -> Engine:
        if component not in self.components:
            raise InputError(f"this bundle has no {component} for target {self.target}")
        with self._loading[component]:
            self.check_open()
            if component not in self._loaded:
                choice, files = self.choices[component], self._files(component)
                engine = load_backend(choice.backend).open_engine(files, choice.provider, self.threads, self._running)
                self.check_open()  # it may have been closed meanwhile
                self._loaded[component] = engine
            return self._loaded[component]

    def _files(self, component: str) -> GraphFiles:
        return self._graph_files(component, self.bundle.manifest.variant(component, self.target))

    def _graph_files(self, component: str, variant: Variant) -> GraphFiles:
        data = None if variant.data is None else self.bundle.file(variant.data)
        return GraphFiles(component, self.bundle.file(variant.graph), data, variant)
