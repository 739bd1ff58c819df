"""Arrays tied to a GPU, and work that is put on its stream: node by node once, then as one captured graph.

What ONNX Runtime and TensorRT have in common.  Arrays in memory of both are given as they are, others through pinned
memory: copied before a run and after it, so every run reads what is there now.  An engine's own part is `enqueue`.
Not tried on a device yet.
"""

from __future__ import annotations

import numpy as np

from edgemm import progress
from edgemm.errors import EdgemmError
from edgemm.runtimes.backend.cuda_memory import Cuda, Graph
from edgemm.runtimes.backend.engine import Arrays, LoadedEngine, explained, first_line

__all__ = ["CudaBinding"]


class CudaBinding:
    """Runs of all engines of a process take turns, whichever model they belong to: they share one stream."""

    def __init__(self, engine: LoadedEngine, cuda: Cuda, inputs: Arrays, outputs: Arrays, capture: bool) -> None:
        self.engine, self.cuda = engine, cuda
        self._kept_alive = (*inputs.values(), *outputs.values())
        self._pinned: dict[tuple, np.ndarray] = {}  # place and kind of an array -> what the device sees instead
        self._before: list[tuple[np.ndarray, np.ndarray]] = []  # to, from
        self._after: list[tuple[np.ndarray, np.ndarray]] = []
        self._capture, self._runs = capture, 0
        self._graph: Graph | None = None

    def enqueue(self) -> None:
        """Puts the work on the stream and waits for nothing."""
        raise NotImplementedError

    def capturable(self) -> bool:
        """Now; asked from the second run on."""
        return True

    def given(self, array: np.ndarray) -> np.ndarray:
        """An input as the device sees it."""
        seen = self._seen(array)
        if seen is not array:
            self._before.append((seen, array))
        return seen

    def gotten(self, array: np.ndarray) -> np.ndarray:
        """An output; one that is an input as well is one array there, too."""
        seen = self._seen(array)
        if seen is not array:
            self._after.append((array, seen))
        return seen

    def _seen(self, array: np.ndarray) -> np.ndarray:
        if self.cuda.holds(array):
            return array
        key = (array.ctypes.data, array.shape, array.dtype)  # a first row begins where the whole does
        if key not in self._pinned:
            self._pinned[key] = self.cuda.staging(array.shape, array.dtype)
        return self._pinned[key]

    def run(self) -> None:
        """Waits for the result: the loops read it at once."""
        engine = self.engine
        try:
            with self.cuda.turn():
                for target, source in self._before:
                    np.copyto(target, source)
                self._runs += 1
                if self._capture and self._graph is None and self._runs > 1 and self.capturable():
                    self._graph = self._captured()  # the first run still set up what cannot be captured
                if self._graph is not None:
                    self._graph.launch()
                else:
                    self.enqueue()
                self.cuda.wait()
                for target, source in self._after:
                    np.copyto(target, source)
        except EdgemmError:
            raise
        except Exception as error:  # libraries' errors share no base but Exception
            what = f"{engine.component}: {engine.title} failed"
            raise explained(error, what, EdgemmError, engine.reason(error)) from error

    def _captured(self) -> Graph | None:
        """One launch instead of hundreds; what cannot be captured goes on as before."""
        try:
            return self.cuda.capture(self.enqueue)
        except Exception as error:
            self._capture = False
            told = f"{self.engine.component}: not captured as a CUDA graph, it runs node by node"
            progress.line(f"{told}: {first_line(error)}")
            return None
