"""Read a safetensors file into numpy arrays: eight bytes of header length, a JSON header, then the numbers.

The format is https://github.com/huggingface/safetensors; a bundle and its adapters need five of its types, so the
runtime reads them itself and stays on numpy alone.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from edgemm.errors import BundleError
from edgemm.typed_json import parse

__all__ = ["read_tensors"]

DTYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "BOOL": np.bool_, "BF16": np.uint16}
LARGEST_HEADER_BYTES = 1_000_000


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """name -> array, each a copy of its own."""
    content = path.read_bytes()
    if len(content) < 8:
        raise BundleError(f"{path}: {len(content)} bytes, too short for a safetensors file")
    (header_bytes,) = struct.unpack("<Q", content[:8])
    if header_bytes > min(LARGEST_HEADER_BYTES, len(content) - 8):
        raise BundleError(f"{path}: a header of {header_bytes} bytes in a file of {len(content)}")
    header = parse(content[8 : 8 + header_bytes], str(path))
    numbers = content[8 + header_bytes :]
    return {name: _tensor(path, name, entry, numbers) for name, entry in header.items() if name != "__metadata__"}


def _tensor(path: Path, name: str, entry: object, numbers: bytes) -> np.ndarray:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]  # type: ignore[index]
        if not 0 <= start <= stop <= len(numbers):
            raise ValueError(f"bytes {start} to {stop} of {len(numbers)}")
        array = np.frombuffer(numbers[start:stop], dtype=DTYPES[dtype]).reshape(shape)
        if dtype == "BF16":  # the upper half of a float32
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.copy()
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: tensor {name!r} cannot be read: {error}") from error
