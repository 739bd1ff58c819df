"""A bundle on disk: open it, and prove that every file is the one that was exported.

Nothing here runs a graph.  Sizes are checked first, then SHA-256, before any runtime opens a file; links, devices and
paths that leave the folder are refused.  The fields are in manifest.py and loops.py, writing is in writer.py.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm import progress
from edgemm.bundle.components import COMPONENTS, Component, TensorSpec, Variant, check_bundle_path
from edgemm.bundle.drawing import DenoiseLoop, DenoiseTemplate, ImageTokensLoop
from edgemm.bundle.files import library, reading
from edgemm.bundle.manifest import (
    SCHEMA_VERSION,
    UNCONDITIONAL,
    FileRecord,
    Licence,
    Limits,
    Loops,
    Manifest,
    Source,
    TextLoop,
    TextTemplate,
)
from edgemm.errors import BundleError

if TYPE_CHECKING:
    import numpy as np

    from edgemm.bundle.held_file import FileHashes, HeldFile

__all__ = [
    "COMPONENTS",
    "SCHEMA_VERSION",
    "UNCONDITIONAL",
    "Bundle",
    "Component",
    "DenoiseLoop",
    "DenoiseTemplate",
    "FileRecord",
    "ImageTokensLoop",
    "Licence",
    "Limits",
    "Loops",
    "Manifest",
    "Source",
    "TensorSpec",
    "TextLoop",
    "TextTemplate",
    "Variant",
    "altered_files",
    "open_bundle",
    "read_tensors",
    "resolve",
    "size_problem",
    "verify_files",
]

LARGEST_MANIFEST_BYTES = 16_000_000


@dataclass(frozen=True)
class Bundle:
    """A folder and what its manifest says; made by open_bundle."""

    path: Path
    manifest: Manifest
    sha256: str = ""  # of manifest.json, as it was read
    _held: dict[str, HeldFile] = field(default_factory=dict, compare=False, repr=False)

    def file(self, name: str) -> Path:
        """The regular file `name` inside the bundle."""
        return resolve(self.path, name)

    def held(self, name: str) -> HeldFile:
        """The same, opened: when it was verified, else now, and then for good."""
        if name not in self._held:
            from edgemm.bundle.held_file import HeldFile

            self._held.setdefault(name, HeldFile(self.file(name)))
        return self._held[name]

    def text(self, name: str) -> str:
        """Of a text file in UTF-8."""
        held = self.held(name)
        with reading(held.path, kind=BundleError):
            return bytes(held.content()).decode("utf-8-sig")

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """Of a safetensors file."""
        held = self.held(name)
        return read_tensors(held.path, bytes(held.content()))

    def verify(self, hashes: FileHashes | None = None) -> None:
        """BundleError at the first file that is not what the manifest says; what was verified is held from then on.

        `hashes` are those that somebody began before.
        """
        from edgemm.bundle.held_file import FileHashes

        with hashes or FileHashes() as running:
            verify_files(self.path, self.manifest, running)
        for name in self.manifest.files:
            if held := running.held.get(self.path / name):
                self._held[name] = held

    def close(self) -> None:
        """Lets every file go."""
        self._held.clear()


def open_bundle(path: str | os.PathLike[str], verify: bool = True) -> Bundle:
    """Reads the manifest and, unless told otherwise, checks the size and hash of every file it lists."""
    with reading(path, kind=BundleError):
        bundle = _manifest_of(Path(path))
        if verify:
            bundle.verify()
        return bundle


def _other_folder(folder: Path) -> str:
    """What a folder is that is no bundle, and what to do with it."""
    named = shlex.quote(str(folder))
    if any((folder / name).is_file() for name in ("config.json", "model_index.json")):
        return (
            f"a checkpoint and no bundle; what it would become: edgemm inspect {named} --estimate; "
            f"to make that: edgemm export {named} --output NAME.bundle"
        )
    if (folder / "adapter_config.json").is_file():
        return "an adapter and no bundle; load its base's bundle, exported with --adapters, and give it as --adapter"
    return "no manifest.json: no bundle, or its export did not finish; export it again"


def _manifest_of(folder: Path) -> Bundle:
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise BundleError(f"{folder}: {problem}; a bundle is the folder that `edgemm export` writes")
    if not os.path.lexists(folder / "manifest.json"):
        raise BundleError(f"{folder}: {_other_folder(folder)}")
    manifest_path = resolve(folder, "manifest.json")
    if manifest_path.stat().st_size > LARGEST_MANIFEST_BYTES:
        raise BundleError(f"{manifest_path}: larger than {LARGEST_MANIFEST_BYTES} bytes, which no manifest is")
    content = manifest_path.read_bytes()
    manifest = Manifest.from_json(content, str(manifest_path))
    return Bundle(folder, manifest, hashlib.sha256(content).hexdigest())


def verify_files(path: str | os.PathLike[str], manifest: Manifest, hashes: FileHashes | None = None) -> None:
    """Raises BundleError at the first file that is missing or is not what the manifest says."""
    for problem in altered_files(path, manifest, hashes):
        raise BundleError(f"{problem}; copy or export the bundle again")


def altered_files(path: str | os.PathLike[str], manifest: Manifest, hashes: FileHashes | None = None) -> Iterator[str]:
    """One line a file that is not what it should be: all sizes first, because they cost nothing, then hashes.

    Several files are read side by side, the largest first.  `hashes` are those that somebody began before; they
    tell of whole files only.
    """
    from edgemm.bundle.held_file import FileHashes

    folder = Path(path)
    sound: dict[Path, FileRecord] = {}
    for name, record in manifest.files.items():
        if problem := size_problem(folder, name, record):
            yield problem
        else:
            sound[folder / name] = record
    total = sum(record.size_bytes for record in sound.values())
    with (
        progress.bar("hashing", total / 1e6, "MB") as bar,
        hashes or FileHashes(tell=lambda size: bar.update(size / 1e6)) as running,
    ):
        for file in sorted(sound, key=lambda file: -sound[file].size_bytes):
            running.begin(file)
        for file, record in sound.items():
            found = running.sha256(file)
            if hashes:
                bar.update(record.size_bytes / 1e6)
            if found != record.sha256:
                yield f"{file}: SHA-256 {found[:16]}..., the manifest says {record.sha256[:16]}..."


def size_problem(folder: Path, name: str, record: FileRecord) -> str:
    """What is wrong with a file before a byte of it is read, "" where nothing is."""
    try:
        file = resolve(folder, name)
    except BundleError as error:
        return str(error)
    size = file.lstat().st_size
    return "" if size == record.size_bytes else f"{file}: {size} bytes, the manifest says {record.size_bytes}"


def resolve(folder: Path, name: str) -> Path:
    """The path of a regular file inside the folder; every step on the way is looked at, and links are refused."""
    check_bundle_path(name, "a path of the bundle")
    current = folder
    parts = name.split("/")
    for part in parts:
        current = current / part
        try:
            mode = current.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleError(f"{folder / name}: missing") from error
        if stat.S_ISLNK(mode):
            raise BundleError(f"{current}: is a link; a bundle holds files only (copy it with links followed: cp -rL)")
    if not stat.S_ISREG(mode):
        raise BundleError(f"{current}: is not a regular file")
    return current


# A safetensors file as numpy arrays, in the library's own reader.  numpy has no bfloat16, so its numbers are widened.
# Neither is imported before somebody asks: manifests are read without them.

TENSOR_TYPES = {"F32": "float32", "F16": "float16", "I64": "int64", "BOOL": "bool", "BF16": "uint16"}


def read_tensors(path: Path, content: bytes | None = None) -> dict[str, np.ndarray]:
    """name -> array, each a copy of its own; `content` is the file's, where that was read already."""
    safetensors = library("safetensors", f"reading {path.name} needs safetensors: pip install safetensors")
    try:
        found = safetensors.deserialize(path.read_bytes() if content is None else content)
    except safetensors.SafetensorError as error:  # no ValueError
        raise BundleError(f"{path}: no whole safetensors file: {error}") from error
    return {name: _array(path, name, entry) for name, entry in found}


def _array(path: Path, name: str, entry: dict[str, Any]) -> np.ndarray:
    import numpy as np

    if entry["dtype"] not in TENSOR_TYPES:
        raise BundleError(f"{path}: tensor {name!r} is of {entry['dtype']}, expected one of {', '.join(TENSOR_TYPES)}")
    array = np.frombuffer(entry["data"], dtype=TENSOR_TYPES[entry["dtype"]]).reshape(entry["shape"])
    if entry["dtype"] == "BF16":  # the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array
