"""Other people's layouts of pictures and words, read one entry at a time.

    a folder       metadata.jsonl or metadata.csv beside the pictures, with `file_name` (Hugging Face's ImageFolder);
                   or cat.jpg with its words in cat.txt; or cats/1.jpg, where the folder's name is the label;
                   train/, validation/ and test/ above a picture are splits, whatever layout
    .tar shards    WebDataset: 0001.jpg, 0001.txt and 0001.json are one entry; read in order, never unpacked
    save_to_disk   a Hugging Face `datasets` folder, when that library is installed

Words are UTF-8, with or without a mark in front; files and folders whose names begin with a dot, as macOS and notebooks
leave them, are passed over.
What becomes of the fields is in collect.py.  A tar is read as a stream and a path of a metadata file may not leave its
folder, so data from strangers is data.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from edgemm import progress
from edgemm.bundle.files import check_is_file, pillow, reading
from edgemm.bundle.picture import FORMATS, open_picture
from edgemm.errors import InputError, MissingError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Entry", "is_listed", "read_entries"]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".jfif", ".svg", ".psd", ".dng")  # pictures that edgemm does not read
WORDS = (".txt", ".caption")
SPLIT_FOLDERS = {"train": "train", "validation": "test", "valid": "test", "val": "test", "dev": "test", "test": "test"}
LARGEST_WORDS = 1 << 20  # bytes of an entry's text


@dataclass(frozen=True)
class Entry:
    """One picture and what its owner wrote about it."""

    where: str  # for messages: file, or shard and member
    picture: Callable[[], Image]  # opened when asked; InputError where it is broken
    fields: dict[str, Any]  # caption, label, questions, ...
    split: str


def read_entries(source: Path) -> Iterator[Entry]:
    """Every entry below `source`, in a fixed order. Raises InputError naming the file that cannot be used."""
    if source.suffix == ".tar" and source.is_file():
        return _tar(source, "train")
    if not source.is_dir():
        raise InputError(f"{source}: no folder and no .tar; give a folder of pictures, of .tar shards or of `datasets`")
    if _is_saved_dataset(source):
        return _saved_dataset(source)
    shards = _below(source, "*.tar")
    if shards:
        return (entry for shard in shards for entry in _tar(shard, _split_of_shard(shard.relative_to(source))))
    return _folder(source)


def is_listed(source: Path) -> bool:
    """Whether its entries are told without reading their pictures: of a folder that holds neither shards nor a saved
    dataset."""
    return source.is_dir() and not _is_saved_dataset(source) and not _below(source, "*.tar")


def _is_saved_dataset(source: Path) -> bool:
    return (source / "dataset_dict.json").is_file() or (source / "state.json").is_file()


def _below(source: Path, pattern: str) -> list[Path]:
    """What fits, in a fixed order; nothing whose name, or whose folder's below `source`, begins with a dot."""
    found = source.rglob(pattern)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(source).parts))


def _split_of(folders: Collection[str]) -> str:
    return next((SPLIT_FOLDERS[name.lower()] for name in folders if name.lower() in SPLIT_FOLDERS), "train")


def _split_of_shard(path: Path) -> str:
    """A shard's own name says it as well: "train-0001.tar"."""
    return _split_of([*path.parent.parts, path.stem.split("-")[0]])


def _tell_left_out(source: Path, files: Collection[Path], why: str) -> None:
    """Pictures that nobody asked to leave out are told, not lost in silence."""
    if files:
        ends = Counter(file.suffix.lower() for file in files)
        counts = ", ".join(f"{count} {end}" for end, count in ends.most_common())
        progress.line(f"{source}: left out {counts}: {why}; the first: {min(files).relative_to(source)}")


def _folder(source: Path) -> Iterator[Entry]:
    files = [file for file in _below(source, "*") if file.is_file()]
    unread = [file for file in files if file.suffix.lower() in UNREAD]
    _tell_left_out(source, unread, "not read; save them as PNG or JPEG")
    tables = _below(source, "metadata.jsonl") + _below(source, "metadata.csv")
    if tables:
        tables.sort()
        for table, other in itertools.pairwise(tables):
            if table.parent == other.parent:
                raise InputError(f"{table.parent}: holds {table.name} and {other.name}, expected one of them")
        named: set[str] = set()
        for table in tables:
            yield from _table(source, table, named)
        pictures = [file for file in files if file.suffix.lower() in PICTURES]
        unnamed = [file for file in pictures if os.path.realpath(file) not in named]
        _tell_left_out(source, unnamed, "no metadata.jsonl or .csv names them")
        return
    written = {(file.with_suffix(""), file.suffix.lower()): file for file in files if file.suffix.lower() in WORDS}
    for file in files:
        if file.suffix.lower() not in PICTURES:
            continue
        above = file.relative_to(source).parts[:-1]
        words = next(filter(None, (written.get((file.with_suffix(""), end)) for end in WORDS)), None)
        folders = [name for name in above if name.lower() not in SPLIT_FOLDERS]
        if words is not None:
            fields = {"text": _text(words.read_bytes(), str(words))}
        elif folders:
            fields = {"label": _text(os.fsencode(folders[-1]), f"{file}: its folder's name").replace("_", " ")}
        else:
            raise InputError(
                f"{file}: no words; expected metadata.jsonl with file_name, {file.stem}.txt beside it, or a folder "
                "named like its label"
            )
        yield Entry(str(file), partial(open_picture, file), fields, _split_of(above))


def _table(source: Path, table: Path, named: set[str]) -> Iterator[Entry]:
    """The rows' entries; `named` gets the pictures' real paths.  A row without a split has that of the folders above
    its picture."""
    for number, fields in _rows(table):
        name = fields.pop("file_name", None)
        if not isinstance(name, str) or "\0" in name:
            found = "" if name else f" among {', '.join(map(str, fields))}"
            raise InputError(f"{table}, line {number}: file_name is {name!r}{found}, expected a path beside the table")
        file = Path(os.path.realpath(table.parent / name))  # Path.resolve() has no answer for links in a circle
        if table.parent.resolve() not in file.parents:
            raise InputError(f"{table}, line {number}: file_name {name!r} leaves the folder")
        named.add(os.fspath(file))
        folders = [*table.relative_to(source).parts[:-1], *Path(os.path.normpath(name)).parts[:-1]]
        split = _split_said(fields, _split_of(folders))
        yield Entry(f"{table}, line {number}", partial(open_picture, file), fields, split)


def _split_said(fields: dict[str, Any], otherwise: str) -> str:
    """The entry's own word; null is none."""
    said = fields.pop("split", None)
    return otherwise if said is None else str(said)


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = _text(check_is_file(table, "a table").read_bytes(), str(table))
    lines = io.StringIO(text, newline="")
    if table.suffix == ".csv":
        delimiter = max(",;\t", key=text.partition("\n")[0].count)  # Excel's is a semicolon in half of the world
        with reading(table, "not CSV"):
            rows = list(csv.DictReader(lines, delimiter=delimiter, strict=True))  # an open quote takes the rest
        for number, row in enumerate(rows, start=2):
            if more := row.pop(None, None):  # type: ignore[call-overload]
                raise InputError(
                    f"{table}, row {number}: {len(row) + len(more)} cells under {len(row)} names; put a text with "
                    f"{delimiter!r} in it in quotes"
                )
            yield number, {key: value for key, value in row.items() if key and value}
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _object(line, f"{table}, line {number}")


def _tar(shard: Path, split: str) -> Iterator[Entry]:
    """Members that share everything before the first dot of their name are one entry; they stand side by side."""
    with reading(shard, "not a whole tar"):
        with tarfile.open(check_is_file(shard, "a tar"), "r|*") as members:
            key, group = None, {}
            for member in members:
                path = PurePosixPath(member.name)
                stem, _, end = path.name.partition(".")
                if not member.isreg() or not end or path.name.startswith("."):
                    continue
                here = str(path.with_name(stem))
                if here != key and group:
                    yield _grouped(shard, key, group, split)
                    group = {}
                key = here
                data = members.extractfile(member)
                is_picture = f".{end.lower()}" in PICTURES
                if data is not None and (is_picture or member.size <= LARGEST_WORDS):
                    group["picture" if is_picture else end.lower()] = data.read()
            if group:
                yield _grouped(shard, key, group, split)


def _grouped(shard: Path, key: str | None, group: dict[str, bytes], split: str) -> Entry:
    where = f"{shard}: {key}"
    if "picture" not in group:
        raise InputError(f"{where} has no picture; an entry is a picture with words of the same name")
    fields: dict[str, Any] = {}
    words = {end: _text(group[end], f"{where}.{end}") for end in ("json", "txt", "caption", "cls") if end in group}
    if "json" in words:
        fields |= _object(words["json"], where)
    if text := words.get("txt", words.get("caption")):
        fields["text"] = text
    if "cls" in words:
        fields.setdefault("label", words["cls"].strip())
    return Entry(where, partial(_decoded, group["picture"], where), fields, _split_said(fields, split))


def _decoded(data: bytes, where: str) -> Image:
    with reading(where, "not a picture that edgemm reads"):
        picture = pillow().open(io.BytesIO(data), formats=FORMATS)
    try:
        return open_picture(picture)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _saved_dataset(source: Path) -> Iterator[Entry]:
    try:
        import datasets  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingError(f"{source} is a Hugging Face dataset: pip install datasets") from error
    with reading(source, "not a dataset of the library `datasets`"):
        loaded = datasets.load_from_disk(str(source))
    parts = loaded.items() if isinstance(loaded, dict) else [("train", loaded)]
    for name, part in parts:
        picture = next((key for key, kind in part.features.items() if isinstance(kind, datasets.Image)), None)
        if picture is None:
            raise InputError(f"{source}: {name} has no column of pictures; columns: {', '.join(part.features)}")
        named = {key: kind for key, kind in part.features.items() if isinstance(kind, datasets.ClassLabel)}
        for number, row in enumerate(part):
            fields = {key: named[key].int2str(value) if key in named else value for key, value in row.items()}
            where = f"{source}: {name}, row {number}"
            split = _split_said(fields, _split_of([str(name)]))
            yield Entry(where, partial(open_picture, fields.pop(picture)), fields, split)


def _object(text: str, where: str) -> dict[str, Any]:
    with reading(where, "not JSON"):
        document = json.loads(text)
        try:
            json.dumps(document, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where}: half of a surrogate pair, {error.object[error.start]!a}: no letter") from error
    if not isinstance(document, dict):
        raise InputError(f"{where}: holds a {type(document).__name__}, expected an object")
    return document


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
