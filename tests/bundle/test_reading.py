"""One boundary: whatever a library raises about a stranger's file becomes one line that names it, and its exit code."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import jinja2
import pytest
import tokenizers
from safetensors import SafetensorError, safe_open

import edgemm
from edgemm.bundle.files import OF_ANYBODY, OF_CODE, check_is_file, read_text, reading
from edgemm.errors import BundleError, InputError, MissingError, ResourceError, UsageError

FILE = "some/file"


def panic(tmp_path):
    """The real thing: a precompiled map that is no map makes the tokenizers library panic."""
    document = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    document["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    tokenizers.Tokenizer.from_str(json.dumps(document))


def cut(tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(struct.pack("<Q", 1000) + b"{")
    safe_open(path, "np")


def strict(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(hidden_size="wide")


FAULTS = [
    panic,
    cut,
    strict,
    lambda tmp_path: jinja2.Environment().from_string("{% if %}"),
    lambda tmp_path: struct.unpack("<Q", b"abc"),
    lambda tmp_path: b"\xff".decode(),
    lambda tmp_path: json.loads("[" * 200_000),
    lambda tmp_path: json.loads("{"),
    lambda tmp_path: {}["model"],
    lambda tmp_path: json.loads("null")["model"],
    lambda tmp_path: (tmp_path / "a\0b").read_bytes(),
    lambda tmp_path: (tmp_path / "none").read_bytes(),
    lambda tmp_path: tmp_path.read_bytes(),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_every_librarys_error_is_one_line_with_the_files_name(fault, tmp_path):
    with pytest.raises(BundleError) as told, reading(FILE, "not what it should be", BundleError):
        fault(tmp_path)
    assert str(told.value).startswith(f"{FILE}: not what it should be: ") and "\n" not in str(told.value)
    assert len(str(told.value)) < 450 and told.value.__cause__ is not None


def test_those_libraries_do_raise_what_nobody_expects(tmp_path):
    """Or the test above is about nothing: a panic is no Exception, and these two are no ValueError."""
    with pytest.raises(BaseException, match="charsmap") as told:
        panic(tmp_path)
    assert not isinstance(told.value, Exception)
    with pytest.raises(SafetensorError):
        cut(tmp_path)
    assert not issubclass(SafetensorError, ValueError)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (ImportError("GPTQ needs gptqmodel: pip install gptqmodel"), MissingError),
        (MemoryError(), ResourceError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 99 bytes"), ResourceError),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ResourceError),
        (TimeoutError("too long"), ResourceError),
        (UsageError("ours"), UsageError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(3), SystemExit),
    ],
)
def test_what_lacks_what_ends_and_what_is_ours_stay_what_they_are(fault, kind):
    with pytest.raises(kind), reading(FILE):
        raise fault


def test_a_pipe_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(InputError, match="not a file; expected a picture"):
            check_is_file(path, "a picture")


def test_the_mark_that_excel_puts_before_a_text_is_none_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfheart")
    assert read_text(tmp_path / "a.txt") == "heart"


def own_line(text):
    """A line as if it stood in the package."""
    return compile(text, str(Path(edgemm.__file__).parent / "families" / "made_up.py"), "exec")


@pytest.mark.parametrize(
    ("text", "bugs", "raised"),
    [
        ("not_there", OF_ANYBODY, NameError),
        ("assert False", OF_ANYBODY, AssertionError),
        ("None.shape", OF_CODE, AttributeError),
        ("None.shape", OF_ANYBODY, InputError),  # of a document nobody knows: its null may be why
        ("import json; json.loads(5)", OF_CODE, InputError),  # a library's line raised it
        ("raise ValueError('no')", OF_CODE, InputError),
    ],
)
def test_a_bug_of_ours_is_not_the_files_fault(text, bugs, raised):
    with pytest.raises(raised) as told, reading(FILE, bugs=bugs):
        exec(own_line(text))
    assert isinstance(told.value, InputError) == (raised is InputError)
