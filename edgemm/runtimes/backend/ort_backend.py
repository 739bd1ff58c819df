"""ONNX Runtime as a backend: sessions, and arrays bound to them by their address.

ONNX Runtime falls back to the CPU without a word, so what was asked for is compared with what the session says it uses.
It follows any external data path, so the graph is read first (onnx_file.py).
Numbers below 1.2e-38 count as zero while it runs: hidden scores leave them behind a softmax, and products with them
take up to twice the time.  The calling thread gets its own floating-point environment back.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import mmap
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from edgemm.bundle.components import TensorSpec, Variant
from edgemm.bundle.held_file import HeldFile
from edgemm.device.machine import cpu_features, read_fact
from edgemm.errors import BundleError, EdgemmError, MissingError
from edgemm.runtimes.backend.engine import (
    Arrays,
    Binding,
    GraphFiles,
    LoadedEngine,
    LockedBinding,
    ThreadPlan,
    check_names,
    explained,
    first_line,
)

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

__all__ = [
    "OrtEngine",
    "compare_io",
    "denormals_as_zero",
    "open_engine",
    "open_session",
    "providers",
    "session_options",
    "version",
]

ORT_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}
CPU = "CPUExecutionProvider"
NEEDED = (1, 30)  # of what graphs for CPUs are made: GroupQueryAttention without a mask of its own
ROUTES = (1, 28)  # of learned routing: what came before computes another SwiGLU, without a word
UPGRADE = "bundles for CPUs want 1.30 or newer: pip install -U 'onnxruntime>=1.30' (Python 3.11 or newer)"
QUIET = 4  # its errors are raised, too
WIDE_SUMS = "session.x64quantprecision"
REFUSES_WIDE_SUMS = "replace the existing tensor"  # in products that share one zero-point, as exported before
FOLDER = "session.model_external_initializers_file_folder_path"
SPIN_US = 1000  # threads wait less within a run; ONNX Runtime's own 40 ms would burn a core at every component's load
LOOPED = ("transformer", "denoiser")  # run again within a millisecond: their threads go on spinning, SPIN_US at most
BY_ROW, BY_ROW_BYTES = ("denoiser",), 64 << 20  # whose rows run side by side, where its weights are no larger
PACKING = {
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    "session.save_external_prepacked_constant_initializers": "1",
}
NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


def version() -> str:
    return ort.__version__


def providers() -> tuple[str, ...]:
    return tuple(ort.get_available_providers())


def open_engine(files: GraphFiles, provider: str, plan: ThreadPlan, lock: threading.Lock) -> OrtEngine:
    engine = OrtEngine(files.component, files.variant, open_session(files, provider, plan), lock)
    weights = files.weights(files.opened()[1]).values()
    if files.component in BY_ROW and sum(held.size_bytes for held in weights) <= BY_ROW_BYTES:
        engine.by_row = True
        if plan.count > 1:
            engine.open_row = partial(open_session, files, provider, ThreadPlan(1, False, plan.why))
    return engine


def open_session(
    files: GraphFiles, provider: str, plan: ThreadPlan, options: Mapping[str, str] = NO_OPTIONS
) -> ort.InferenceSession:
    """`options` are the provider's own.  The session has the tensors of the manifest, and uses what was asked for."""
    graph, component = files.graph, files.component
    if provider not in ort.get_available_providers():
        raise MissingError(f"{component}: ONNX Runtime {ort.__version__} has no {provider}")
    _check_routing(files)
    try:
        with denormals_as_zero():  # the first session of a process sets it in this thread, and leaves it so
            session = _session(files, [(provider, dict(options))], plan)
    except EdgemmError:
        raise
    except Exception as error:  # its errors share no base but Exception
        what, kind = f"{graph}: ONNX Runtime {ort.__version__} cannot load it", BundleError
        if sums_saturate() and REFUSES_WIDE_SUMS in str(error):
            raise BundleError(
                f"{graph}: its int8 products would overflow on this CPU, which has no VNNI; export it again with this "
                "edgemm, or with --precision int4 or fp32"
            ) from error
        if provider == CPU and _release(ort.__version__) < NEEDED:
            what, kind = f"{what}; {UPGRADE}; it says", MissingError
        raise explained(error, what, kind, first_line(error)) from error
    if session.get_providers()[0] != provider:
        raise MissingError(f"{component}: asked ONNX Runtime for {provider}, it uses {session.get_providers()[0]}")
    inputs = (*session.get_inputs(), *session.get_overridable_initializers())  # the last need not be given
    compare_io(graph, "input", files.variant.inputs, inputs)
    compare_io(graph, "output", files.variant.outputs, session.get_outputs())
    return session


def _check_routing(files: GraphFiles) -> None:
    if _release(ort.__version__) >= ROUTES:
        return
    from edgemm.bundle.onnx_file import ROUTED, read_outline

    if any(node.op_type in ROUTED for node in read_outline(files.graph).nodes):
        raise MissingError(
            f"{files.component}: it chooses among experts by ONNX Runtime's MoE, which computes another SwiGLU before "
            f"1.28, and this is {ort.__version__}: pip install -U 'onnxruntime>=1.30'"
        )


def _session(files: GraphFiles, providers: list[tuple[str, dict[str, str]]], plan: ThreadPlan) -> ort.InferenceSession:
    """Over the bytes that were verified.

    The graph's are handed over.  Weights ONNX Runtime reads itself, which takes no second copy of them: from the folder
    that was open then, and what it mapped becomes this process's own.  Where their name stands for another file by
    now, it gets what the open file holds.
    """
    graph, data = files.opened()
    content, weights = graph.content(), files.weights(data)
    if not files.checked:
        from edgemm.bundle.onnx_file import check_external_data

        check_external_data(graph.path, files.data, content, files.variant.shared_locations)
    place = _place_of(content, weights) if providers[0][0] == CPU else None
    if place is not None and (session := _prepacked(place, files, providers, plan)) is not None:
        return session
    if weights and all(held.is_in_place() for held in weights.values()):
        for held in weights.values():
            held.check()
        options = session_options(plan, files.component)
        options.add_session_config_entry(FOLDER, graph.folder if data is None else data.folder)
        if place is not None:
            size = sum(held.size_bytes for held in weights.values())
            from edgemm.runtimes.backend import prepacked

            prepacked.keep(place, size, partial(_pack, bytes(content), options, providers))
            if (session := _prepacked(place, files, providers, plan)) is not None:
                return session
            options = session_options(plan, files.component)
            options.add_session_config_entry(FOLDER, graph.folder if data is None else data.folder)
        with contextlib.ExitStack() as owned:
            for _, held in sorted({held.mapped_name: held for held in weights.values()}.items()):  # one order of locks
                owned.enter_context(own_mappings(held))
            session = ort.InferenceSession(bytes(content), options, providers=providers)
        if all(held.is_in_place() for held in weights.values()):
            for held in weights.values():
                held.check()
            return session
    options = session_options(plan, files.component)
    if weights:
        kept = [held.content() for held in weights.values()]  # until the session is there
        options.add_external_initializers_from_files_in_memory(list(weights), kept, list(map(len, kept)))
    return ort.InferenceSession(bytes(content), options, providers=providers)


def _place_of(content: memoryview, weights: Mapping[str, HeldFile]) -> Path | None:
    if os.environ.get("EDGEMM_PREPACKED") != "1":  # prepacked.SWITCH, without the module
        return None
    from edgemm.runtimes.backend import prepacked

    return prepacked.place_of(content, weights, ort.__version__)


def _prepacked(
    place: Path, files: GraphFiles, providers: list[tuple[str, dict[str, str]]], plan: ThreadPlan
) -> ort.InferenceSession | None:
    """Over weights that were packed before; None where there are none, or they do not load."""
    options = session_options(plan, files.component)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # all is done

    def open_graph(content: bytes, folder: str) -> ort.InferenceSession:
        options.add_session_config_entry(FOLDER, folder)
        return ort.InferenceSession(content, options, providers=providers)

    from edgemm.runtimes.backend import prepacked

    return prepacked.load(place, open_graph)


def _pack(
    content: bytes, options: ort.SessionOptions, providers: list[tuple[str, dict[str, str]]], folder: Path
) -> None:
    """What kernels make of a graph's weights, and the graph after all passes, into `folder`."""
    from edgemm.runtimes.backend import prepacked

    options.optimized_model_filepath = str(folder / prepacked.GRAPH)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", prepacked.WEIGHTS)
    for key, value in PACKING.items():
        options.add_session_config_entry(key, value)
    ort.InferenceSession(content, options, providers=providers)


class OrtEngine(LoadedEngine):
    """What another provider does differently, its engine overrides."""

    title = "ONNX Runtime"

    def __init__(self, component: str, variant: Variant, session: Any, lock: threading.Lock) -> None:
        super().__init__(component, variant, lock)
        self.session = session
        self.by_row = False  # each row of a batch runs alone, however many threads there are: the same numbers
        self.open_row: Callable[[], Any] | None = None  # a session of one thread, where rows run side by side

    def tie(self, inputs: Arrays, outputs: Arrays) -> Binding:
        rows = max(len(array) for array in outputs.values())
        if self.by_row and rows > 1 and all(spec.shape[0] == "b" for spec in self.outputs.values()):
            call = self._tied_by_row(inputs, outputs, rows)
        else:
            call = partial(self.run, _tied(self.session, inputs, outputs))
        return LockedBinding(self, (inputs, outputs), call)

    def _tied_by_row(self, inputs: Arrays, outputs: Arrays, count: int) -> Callable[[], None]:
        """Small graphs gain little from a second thread, and two rows keep two cores busy: each runs in one session of
        one thread, at once.  What has no axis b, as an adapter, is every row's."""
        session, pool = self._row_session

        def of(row: int, arrays: Arrays, specs: Mapping[str, TensorSpec]) -> Arrays:
            return {n: a[row : row + 1] if specs[n].shape[:1] == ("b",) else a for n, a in arrays.items()}

        ties = [_tied(session, of(row, inputs, self.inputs), of(row, outputs, self.outputs)) for row in range(count)]

        def call() -> None:
            if pool is None:
                for io in ties:
                    _run(session, io)
                return
            from concurrent.futures import wait

            others = [pool.submit(_run, session, io) for io in ties[1:]]
            try:
                _run(session, ties[0])
            finally:
                wait(others)
            for other in others:
                other.result()

        return call

    @cached_property
    def _row_session(self) -> tuple[Any, ThreadPoolExecutor | None]:
        if self.open_row is None:
            return self.session, None
        from concurrent.futures import ThreadPoolExecutor

        return self.open_row(), ThreadPoolExecutor(1)

    def shrinking(self) -> OrtEngine | None:
        """The same engine, whose runs give back what larger ones took; None where memory is not the CPU's."""
        if self.session.get_providers()[0] != CPU:
            return None
        options, twin = ort.RunOptions(), copy.copy(self)
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        twin.run = partial(self.run, options=options)  # type: ignore[method-assign]
        return twin

    def run(self, io: Any, options: ort.RunOptions | None = None) -> None:
        """With the lock held."""
        _run(self.session, io, options)


def _tied(session: Any, inputs: Arrays, outputs: Arrays) -> Any:
    io = session.io_binding()
    for side, bind in ((inputs, io.bind_input), (outputs, io.bind_output)):
        for name, array in side.items():
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    return io


def _run(session: Any, io: Any, options: ort.RunOptions | None = None) -> None:
    with denormals_as_zero():  # the option reaches the pool's threads alone
        session.run_with_iobinding(io, options)


def session_options(plan: ThreadPlan, component: str = "") -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = plan.count
    options.inter_op_num_threads = 1
    options.log_severity_level = QUIET
    if plan.count > 1:  # weights are put in the kernels' own order side by side; the numbers are the same
        options.add_session_config_entry("session.prepack.enable_parallel", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if plan.spinning else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    if component not in LOOPED:  # the next component's threads want the cores
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if sums_saturate():
        options.add_session_config_entry(WIDE_SUMS, "1")
    return options


@cache
def sums_saturate() -> bool:
    """Whether products of int8 add pairs in 16 bits, where two large ones overflow: x86 without VNNI.

    VPMADDUBSW saturates, VPDPBUSD does not (Intel SDM 2).  False where the CPU cannot be asked.
    """
    text = read_fact(Path("/proc/cpuinfo")) if platform.machine() in ("x86_64", "AMD64") else ""
    return bool(text) and not any("vnni" in name or name == "amx_int8" for name in cpu_features(text))


class _X86Environment(ctypes.Structure):
    """glibc's fenv_t: the x87 unit's words, then MXCSR."""

    _fields_ = (("x87", ctypes.c_uint32 * 7), ("control", ctypes.c_uint32))


class _ArmEnvironment(ctypes.Structure):
    """glibc's fenv_t on aarch64: FPCR, then FPSR."""

    _fields_ = (("control", ctypes.c_uint32), ("status", ctypes.c_uint32))


# machine -> fenv_t, and the bits that flush: MXCSR's FTZ and DAZ (Intel SDM 1, 10.2.3), FPCR's FZ (Arm ARM, C5.2.8)
ENVIRONMENTS = {"x86_64": (_X86Environment, 0x8040), "aarch64": (_ArmEnvironment, 1 << 24)}


@contextlib.contextmanager
def denormals_as_zero() -> Iterator[None]:
    """In this thread, until it ends; nothing where the C library is not glibc."""
    library, (kind, flush) = _math_library(), ENVIRONMENTS.get(platform.machine(), (_X86Environment, 0))
    if library is None or not flush:
        yield
        return
    environment = kind()
    library.fegetenv(ctypes.byref(environment))
    before = environment.control
    environment.control = before | flush
    library.fesetenv(ctypes.byref(environment))
    try:
        yield
    finally:
        environment.control = before
        library.fesetenv(ctypes.byref(environment))


@cache
def _math_library() -> ctypes.CDLL | None:
    return ctypes.CDLL("libm.so.6") if platform.libc_ver()[0] == "glibc" else None


def compare_io(graph: Path, side: str, specs: Sequence[TensorSpec], found: Sequence[Any]) -> None:
    """The manifest and the graph have to tell of the same tensors."""
    check_names(graph, side, specs, [{node.name} for node in found])
    nodes = {node.name: node for node in found}
    for spec in specs:
        node = nodes[spec.name]
        numbers = [(have, want) for have, want in zip(node.shape, spec.shape) if isinstance(have, int)]
        same = len(node.shape) == len(spec.shape) and all(have == want for have, want in numbers)
        if ORT_TYPES.get(node.type) != spec.dtype or not same:
            raise BundleError(
                f"{graph}: {side} {spec.name} is {node.type} {node.shape}, the manifest says {spec.dtype} {spec.shape}"
            )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


# Parts of a file that ONNX Runtime maps while it loads become memory of this process alone: nobody else writes there.
#
# It goes on reading weights that it does not pack anew.  Whoever cuts the file then ends this process (SIGBUS), and
# whoever writes into it changes the weights.  So once it has loaded, and before it runs, memory takes the place of each
# mapping (mmap, MAP_FIXED) and the open file is read into it.  On Linux; elsewhere nothing is done.

PRIVATE = mmap.PROT_READ | mmap.PROT_WRITE, sum(getattr(mmap, f"MAP_{name}", 0) for name in ("PRIVATE", "ANONYMOUS"))
MAP_FIXED = 0x10
SMALL_BYTES = 1 << 16  # are read with Python's lock held: to wait for it takes longer
FAILED = ctypes.c_void_p(-1).value
_LOCKS: dict[str, threading.Lock] = {}

Mapped = tuple[int, int, int]  # start, end, and where that is in the file


@contextlib.contextmanager
def own_mappings(held: HeldFile) -> Iterator[None]:
    """What is mapped in here of a file; BundleError where it is shorter by now.

    Loads of one file take turns, so that what is seen at the end is of this one alone.
    """
    name = os.fsencode(held.mapped_name)
    if sys.platform != "linux" or not name:
        yield
        return
    with _LOCKS.setdefault(held.mapped_name, threading.Lock()):
        before = set(_mappings(name))
        yield
        for neighbours in _side_by_side(mapping for mapping in _mappings(name) if mapping not in before):
            _own(held, neighbours)


def _mappings(name: bytes) -> list[Mapped]:
    """In order of their addresses."""
    with open("/proc/self/maps", "rb") as file:  # start-end rights offset device inode name
        lines = file.read()
    if name not in lines:
        return []
    found = [line.split(maxsplit=5) for line in lines.split(b"\n") if line.endswith(name)]
    spans = [(*fields[0].split(b"-"), fields[2]) for fields in found if len(fields) == 6 and fields[5] == name]
    return [(int(start, 16), int(end, 16), int(offset, 16)) for start, end, offset in spans]


def _side_by_side(mappings: Iterable[Mapped]) -> Iterator[list[Mapped]]:
    """Those between whose addresses nothing else lies: each change of a mapping halts every thread of the process."""
    neighbours: list[Mapped] = []
    for mapping in mappings:
        if neighbours and neighbours[-1][1] != mapping[0]:
            yield neighbours
            neighbours = []
        neighbours.append(mapping)
    if neighbours:
        yield neighbours


def _own(held: HeldFile, neighbours: list[Mapped]) -> None:
    """Where the kernel has no memory for it, the mapping stays as it is."""
    first, last, libc = neighbours[0][0], neighbours[-1][1], _libc()
    if libc.mmap(first, last - first, PRIVATE[0], PRIVATE[1] | MAP_FIXED, -1, 0) == FAILED:
        return
    for start, end, offset in neighbours:
        wanted = min(end - start, held.size_bytes - offset)
        if wanted > SMALL_BYTES or libc.pread(held.fileno(), start, wanted, offset) != wanted:
            held.read_into(memoryview((ctypes.c_char * wanted).from_address(start)).cast("B"), offset)


@cache
def _libc() -> Any:
    """Its calls keep Python's lock, which a thread that gives it away here would wait for up to 5 ms each time."""
    libc, size, pointer, number = ctypes.PyDLL(None), ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    libc.mmap.restype, libc.mmap.argtypes = pointer, (pointer, size, number, number, number, ctypes.c_long)
    libc.pread.restype, libc.pread.argtypes = ctypes.c_ssize_t, (number, pointer, size, ctypes.c_long)
    return libc
