"""A folder that is whole or not there, and a bundle written so.

    with whole_folder(Path("runs/x/checkpoint"), may_replace) as folder:
        ...                                                      # everything goes to `folder`

It is written under another name beside its destination and renamed when the block ends.  Whatever goes wrong in the
block, Ctrl-C included, what stood there before stands there still, and nothing else is left; what a kill leaves is in
beside.py.  What may be replaced, and what to say of a full disk, is each caller's own; most have the rule of
check_replaceable, and ask it before they work as well.

    with BundleWriter("sticker.bundle", overwrite=True) as writer:
        onnx.save_model(..., writer.file("components/denoiser/cpu-int8.onnx"))   # or any tool that takes a path
        writer.add_bytes("NOTICE", notice)
        writer.add_file("tokenizer.json", checkpoint / "tokenizer.json")
        writer.finish(manifest)          # its `files` are filled in here, and it is written last
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from edgemm.bundle.beside import beside, lock, new_folder, put_in_order
from edgemm.bundle.components import check_bundle_path
from edgemm.bundle.files import is_disk_full
from edgemm.bundle.manifest import FileRecord, Manifest
from edgemm.errors import BundleError, InputError, ResourceError

__all__ = ["BundleWriter", "check_replaceable", "telling_name", "whole_folder"]

STAGES = ("codes", "autoencode", "read", "draw", "edit", "joint")  # what recipes call theirs


def telling_name(folder: Path) -> str:
    """What tells a checkpoint from others: "style" of runs/style/checkpoint, "a-draw" of runs/a/draw/checkpoint."""
    path = Path(os.path.abspath(folder))
    if path.name == "checkpoint" and path.parent.name:
        path = path.parent
        if path.name in STAGES and path.parent.name:
            return f"{path.parent.name}-{path.name}"
    return path.name


def check_replaceable(
    output: Path, is_ours: Callable[[Path], bool], what: str, sources: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """InputError where `output` may not be replaced: it holds something that is not `is_ours` (a word for that is
    `what`), or one of `sources`, which are read, or is no folder.  An empty one may."""
    if not os.path.lexists(output):
        return
    if output.is_symlink() or not output.is_dir():
        raise InputError(f"{output}: exists and is no folder, so it will not be replaced")
    for source in map(Path, sources):
        if source.exists() and source.resolve().is_relative_to(output.resolve()):
            raise InputError(f"{output}: {source} is read from there and stays as it is; choose another name")
    if any(output.iterdir()) and not is_ours(output):
        raise InputError(f"{output}: exists and holds no {what}, so it will not be replaced; choose another name")


def _any_folder(path: Path) -> None:
    """The rule of those who write into a folder of their own."""


@contextmanager
def whole_folder(path: str | os.PathLike[str], may_replace: Callable[[Path], None] = _any_folder) -> Iterator[Path]:
    """A folder to fill.  `may_replace` is called with what stands there, before the work and after it, and raises its
    own error where that is to stay; links and files always do."""
    destination = Path(os.path.abspath(path))
    put_in_order(destination)
    _check(destination, may_replace)
    destination.parent.mkdir(parents=True, exist_ok=True)
    folder, held = new_folder(destination, ".partial")
    try:
        yield folder
        mode = folder.stat().st_mode & 0o666  # as the umask has it; some libraries write their files 0600
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(mode)
        _check(destination, may_replace)
        _take_the_name(folder, destination)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _check(destination: Path, may_replace: Callable[[Path], None]) -> None:
    if not os.path.lexists(destination):
        return
    may_replace(destination)
    if destination.is_symlink() or not destination.is_dir():
        raise InputError(f"{destination}: exists and is no folder, so it will not be replaced")


def _take_the_name(folder: Path, destination: Path) -> None:
    if not os.path.lexists(destination):
        os.rename(folder, destination)
        return
    aside, held = beside(destination, ".old"), lock(destination)
    try:
        os.rename(destination, aside)
        os.rename(folder, destination)
    finally:
        if os.path.lexists(destination):
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, destination)
        if held is not None:
            os.close(held)


class BundleWriter:
    """A context manager; leaving it without `finish` leaves nothing on disk."""

    def __init__(self, path: str | os.PathLike[str], overwrite: bool = False, expected_bytes: int = 0) -> None:
        self.path = Path(os.path.abspath(path))
        self.overwrite = overwrite
        self.expected_bytes = expected_bytes  # what the caller thinks it will write: refused early when it cannot fit
        self.folder = self.path  # where files go until finish; a temporary folder once entered
        self.finished = False
        self._whole = whole_folder(self.path, self._may_replace)

    def __enter__(self) -> BundleWriter:
        self.folder = self._whole.__enter__()
        free = shutil.disk_usage(self.folder).free
        if self.expected_bytes > free:
            self._give_up(
                ResourceError(f"{self.path}: needs {self.expected_bytes} bytes, {free} are free on that disk")
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and not self.finished:
            self._give_up(
                BundleError(f"{self.path}: the export ended before the manifest was written; nothing was kept")
            )
        written, free = _size_of(self.folder), shutil.disk_usage(self.folder).free
        try:
            self._whole.__exit__(kind, error, traceback)
            _flush(self.path.parent)
        except OSError as failure:
            error = failure
            if not is_disk_full(failure):
                raise
        if is_disk_full(error):
            needed = max(self.expected_bytes, written + 1)
            raise ResourceError(
                f"{self.path}: the disk is full: needs more than {needed} bytes, {free} were free after {written}; "
                "nothing was kept"
            ) from error

    def _give_up(self, error: Exception) -> None:
        self._whole.__exit__(type(error), error, None)
        raise error

    def file(self, name: str) -> Path:
        """Where to write the file that will be `name` in the bundle; its folder exists."""
        check_bundle_path(name, "name")
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add_bytes(self, name: str, content: bytes) -> None:
        self.file(name).write_bytes(content)

    def add_file(self, name: str, source: str | os.PathLike[str]) -> None:
        """Copies a file of somewhere else; a link is followed."""
        shutil.copyfile(source, self.file(name))

    def inventory(self) -> dict[str, FileRecord]:
        """Size and SHA-256 of everything written so far, except manifest.json."""
        records: dict[str, FileRecord] = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise BundleError(f"{name}: a bundle holds regular files only")
            if path.is_file() and name != "manifest.json":
                records[name] = FileRecord(_sha256(path), path.stat().st_size)
        return records

    def finish(self, manifest: Manifest) -> Manifest:
        """Hashes every file, writes the manifest last, and makes all durable; the name comes when the block ends."""
        whole = dataclasses.replace(manifest, files=self.inventory())
        whole.check_files()
        self.add_bytes("manifest.json", whole.to_json().encode())
        for path in sorted(self.folder.rglob("*"), reverse=True):
            _flush(path)
        _flush(self.folder)
        self.finished = True
        return whole

    def _may_replace(self, path: Path) -> None:
        if not self.overwrite:
            raise InputError(f"{path}: exists already; choose another name or ask to overwrite it (--overwrite)")
        if path.is_symlink() or not (path / "manifest.json").is_file():
            raise InputError(f"{path}: exists and is no bundle, so it will not be replaced")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
