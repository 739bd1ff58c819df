"""Built engines on disk: one folder a key, whole or not there, and never trusted without its hash.

    <cache>/<key>/engine      what TensorRT loads
    <cache>/<key>/engine.json what it depends on, how it was built, its SHA-256
    <cache>/<key>.lock        held by the one process that builds it; the kernel lets go of it when that process dies

An entry appears by rename, so a killed process leaves a folder that the next one removes.  The oldest unused entries go
when all together are larger than the limit.  An engine is a program: nothing is taken from a folder that others may
write, and no link is followed (device/cache_folder.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemm import progress
from edgemm.device.cache_folder import cache_folder, check_private, locked, make_private, open_private
from edgemm.engines.engine_spec import EngineSpec
from edgemm.errors import InputError

__all__ = ["EngineCache", "Entry", "default_folder"]

LIMIT_BYTES = 16 << 30
CHUNK_BYTES = 1 << 20
LARGEST_RECORD_BYTES = 1 << 24
ENGINE, RECORD = "engine", "engine.json"


def default_folder() -> Path:
    return cache_folder("engines")


@dataclass(frozen=True)
class Entry:
    path: Path  # of the engine
    record: dict[str, Any]  # engine.json


class EngineCache:
    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    def find(self, spec: EngineSpec) -> tuple[Entry | None, str]:
        """The engine, or why there is none that may be loaded ("" when there is none at all)."""
        home = self.folder / spec.key
        if not home.is_dir():
            return None, ""
        try:
            check_private(self.folder)
            check_private(home)
            with open_private(home / RECORD) as stream:
                record = json.loads(stream.read(LARGEST_RECORD_BYTES))
            if record["spec"] != spec.to_json():
                return None, "it was built for something else"
            if _sha256(home / ENGINE) != record["sha256"]:
                return None, "its bytes are not those that were built"
            with contextlib.suppress(PermissionError):  # an administrator's cache
                os.utime(home / RECORD)  # when it was last of use
        except InputError as error:
            return None, str(error)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            return None, f"it is damaged ({type(error).__name__})"
        return Entry(home / ENGINE, record), ""

    @contextlib.contextmanager
    def lock(self, spec: EngineSpec) -> Iterator[None]:
        """Held by one process at a time."""
        make_private(self.folder)

        def waiting(seconds: float) -> None:
            progress.status(f"{spec}: another process builds it, waiting for {seconds:.0f} s")

        with locked(self.folder / f"{spec.key}.lock", waiting):
            yield

    def workshop(self, spec: EngineSpec) -> Path:
        """An empty folder to build in, inside the cache; the lock has to be held.  What a killed process left goes."""
        folder = self.folder / f".{spec.key}.partial"
        if folder.is_symlink():
            folder.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        return folder

    def store(self, spec: EngineSpec, workshop: Path, record: dict[str, Any]) -> Entry:
        """`workshop`/engine becomes the entry; an older one of the same key stays until this one is whole."""
        engine = workshop / ENGINE
        whole = {**record, "spec": spec.to_json(), "sha256": _sha256(engine), "size_bytes": engine.stat().st_size}
        with open(workshop / RECORD, "w") as stream:
            json.dump(whole, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        home, aside = self.folder / spec.key, self.folder / f".{spec.key}.old"
        shutil.rmtree(aside, ignore_errors=True)
        if home.exists():
            os.rename(home, aside)
        os.rename(workshop, home)
        shutil.rmtree(aside, ignore_errors=True)
        self._evict(home)
        return Entry(home / ENGINE, whole)

    def _evict(self, kept: Path) -> None:
        """Removes what was longest of no use, until the rest fits; the newest entry stays, however large."""
        homes = [path.parent for path in self.folder.glob(f"*/{RECORD}") if not path.parent.name.startswith(".")]
        used = {}
        for home in homes:
            with contextlib.suppress(OSError):  # another process may be evicting, too
                used[home] = ((home / RECORD).stat().st_mtime, (home / ENGINE).stat().st_size)
        total = sum(size for _, size in used.values())
        for home in sorted(used, key=lambda home: used[home]):
            if total > self.limit_bytes and home != kept:
                shutil.rmtree(home, ignore_errors=True)
                total -= used[home][1]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_private(path) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
