"""The first load of a bundle on this machine, in another process: what crashes or has no end, does so there.

Libraries trust the graphs that they load: whole numbers divided while constants are folded end a process, loops and
sizes have no bound.  So a bundle that was never used here is first loaded, and asked for one token and one step, by
`python -m edgemm.runtimes.first_load`.  The verdict is kept by the manifest's hash, which holds every file's, and by
what runs it, the processor too.  What a graph does only for some later input is not seen here.

The same process answers what was recorded at export, in short (verify/loops.py): libraries choose kernels by the
processor, and on some they are wrong.  Nobody takes such answers: the bundle is refused.

    <cache>/tried/<key>       an empty file: it went well
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm import progress
from edgemm.device.cache_folder import cache_folder, check_private, make_private, open_private
from edgemm.device.machine import this_processor
from edgemm.errors import BundleError, CheckFailedError, EdgemmError, InputError, ResourceError

if TYPE_CHECKING:
    from edgemm.bundle.bundle import Bundle

__all__ = ["TRUST", "check_first_load", "check_limits", "remember"]

TRUST = "EDGEMM_TRUST_BUNDLES"  # "1": all bundles here are one's own, and none is tried first
LEAST_BYTES = 2 << 30
TIMES_WEIGHTS = 6  # what kernels make of weights, and a step of each loop
TIMEOUT_S = 240.0  # a minute of it for what is compared
BYTES_A_SECOND = 4e6  # of weights, on the slowest boards


def check_first_load(
    bundle: Bundle,
    device: str,
    backend: str | Mapping[str, str] | None,
    runs_on: str,
    check: str | None = None,
    compare: str | None = None,
    memory_limit_mb: float | None = None,
) -> None:
    """BundleError where its graphs cannot be, or where the other process crashed; ResourceError where it took too much;
    CheckFailedError where it answered something else than was recorded.

    `runs_on` names what the verdict holds for; `check` is a function of the bundle, as MODULE:NAME, to be called
    instead of one token and one step; `compare` one of the loaded model, that says how it differs from what was
    recorded, or ""; the limit is kept there, too.  An error of the bundle's own is told when it is used: not here.
    """
    wish = _wish(device, backend, check)
    key = _key(bundle, runs_on, wish)
    if _is_known(key):
        return
    check_limits(bundle, os.environ.get(TRUST) == "1")
    if os.environ.get(TRUST) == "1":
        return
    from edgemm.device.child import ask

    weights = sum(record.size_bytes for record in bundle.manifest.files.values())
    timeout_s, memory_bytes = TIMEOUT_S + weights / BYTES_A_SECOND, LEAST_BYTES + TIMES_WEIGHTS * weights
    progress.status("first use of this bundle here: trying it in a process of its own, once")
    asked = json.dumps({**wish, "compare": compare, "memory_limit_mb": memory_limit_mb})
    answer = ask("edgemm.runtimes.first_load", [str(bundle.path), asked], timeout_s, memory_bytes)
    progress.status("")
    if answer.kind in ("crash", "time", "memory"):
        said = f"{bundle.path}: a process that was to try it {answer.problem}; so it is not loaded here"
        raise (BundleError if answer.kind == "crash" else ResourceError)(said)
    if answer.value and answer.value.get("manifest") == bundle.sha256:
        if differs := answer.value.get("differs"):
            raise CheckFailedError(f"{bundle.path}: {_refusal(str(differs), runs_on)}")
        _remember(key)


def remember(bundle: Bundle, device: str, backend: str | Mapping[str, str] | None, runs_on: str) -> None:
    """That it went well here; the arguments are check_first_load's."""
    _remember(_key(bundle, runs_on, _wish(device, backend, None)))


def _refusal(differs: str, runs_on: str) -> str:
    return (
        f"this machine computes something else than was recorded at export ({differs}), by {runs_on} on "
        f"{this_processor().partition(';')[0]}; so it is not loaded here. What may help: another version of that "
        f"library, another backend, or an export with --precision fp32; `edgemm verify` compares everything, and "
        f"{TRUST}=1 loads it as it is"
    )


def check_limits(bundle: Bundle, trusted: bool = False) -> None:
    """BundleError that names the first graph which would take its reader too far (bundle/graph_limits.py), or to
    another file; of a trusted bundle that alone is looked at."""
    from edgemm.bundle.graph_limits import broken_limits
    from edgemm.bundle.onnx_file import check_external_data

    for variant in bundle.manifest.every_variant.values():
        graph = bundle.held(variant.graph)
        data = bundle.path / variant.data if variant.data else None
        check_external_data(graph.path, data, graph.content(), variant.shared_locations)
        if trusted:
            continue
        sizes = {location: bundle.held(path).size_bytes for location, path in variant.weights.items()}
        try:
            problem = next(broken_limits(graph.content(), sizes), "")
        except (BundleError, IndexError, ValueError, UnicodeDecodeError, RecursionError) as error:
            raise BundleError(f"{graph.path}: not an ONNX graph: {error}") from error
        if problem:
            raise BundleError(f"{graph.path}: {problem}")


def _wish(device: str, backend: str | Mapping[str, str] | None, check: str | None) -> dict[str, Any]:
    return {"device": device, "backend": dict(backend) if isinstance(backend, Mapping) else backend, "check": check}


def _key(bundle: Bundle, runs_on: str, wish: dict[str, Any]) -> str:
    import edgemm

    words = [bundle.sha256, runs_on, this_processor(), edgemm.__version__, json.dumps(wish, sort_keys=True)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _is_known(key: str) -> bool:
    folder = cache_folder("tried")
    try:
        check_private(folder)
        open_private(folder / key).close()
    except (OSError, InputError):
        return False
    return True


def _remember(key: str) -> None:
    folder = cache_folder("tried")
    with contextlib.suppress(OSError, InputError):  # without a cache it is tried again
        make_private(folder)
        open_private(folder / key, os.O_RDWR | os.O_CREAT).close()


# The other process.


def main() -> int:
    from edgemm.device.child import die_with_parent

    path, wish = sys.argv[1], json.loads(sys.argv[2])
    die_with_parent()
    with contextlib.suppress(OSError):  # where memory ends for all, this one goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.environ[TRUST] = "1"
    told = _checked(path, wish["check"]) if wish["check"] else _used(path, wish)
    print(json.dumps(told))
    return 0


def _checked(path: str, check: str) -> dict[str, str]:
    from edgemm.bundle.bundle import open_bundle

    bundle = open_bundle(path)
    with contextlib.suppress(EdgemmError):  # its own caller is told
        _named(check)(bundle)
    return {"manifest": bundle.sha256}


def _used(path: str, wish: dict[str, Any]) -> dict[str, str]:
    import edgemm

    limit = wish["memory_limit_mb"]
    with edgemm.load(path, wish["device"], 1, backend=wish["backend"], memory_limit_mb=limit) as model:
        told = {"manifest": model.bundle.sha256}
        model.prepare()
        for use in _uses(model):
            with contextlib.suppress(EdgemmError):
                use()
        if wish["compare"]:
            told["differs"] = _named(wish["compare"])(model)
    return told


def _named(function: str) -> Callable[[Any], Any]:
    """Of MODULE:NAME."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _uses(model: Any) -> Iterator[Any]:
    """One token and one step."""
    loops = model.manifest.loops
    if loops.text:
        yield lambda: model.generate_text("a", max_new_tokens=1)
    if loops.denoise:
        yield lambda: model.generate_image("a", num_inference_steps=1)
    elif loops.image_tokens:
        yield lambda: next(iter(model.stream_image("a")))


if __name__ == "__main__":
    sys.exit(main())
