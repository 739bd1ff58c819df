"""An adapter's config of a stranger: refused by the key's name, at once, whatever it holds."""

from __future__ import annotations

import json
import os
import pickle
import struct
import time

import numpy as np
import pytest
from safetensors.numpy import save

from edgemm.bundle.adapter_config import FILES, AdapterConfig
from edgemm.bundle.components import ADAPTER_PREFIX, TensorSpec
from edgemm.errors import InputError
from edgemm.runtimes.adapters import Adapters

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 8}
LONG = "a" * 200 + "!"


def changed(**fields: object) -> bytes:
    return json.dumps({**PLAIN, **fields}).encode()


REFUSED = {
    "a pattern that is none": changed(alpha_pattern={"(": 3}),
    "a pattern without end": changed(alpha_pattern={"(a+)+$": 3}),
    "a rank's pattern without end": changed(rank_pattern={r"(\w+\s?)*$": 3}),
    "a pattern with a look behind": changed(alpha_pattern={"(?<=a)b": 3}),
    "a pattern of a million letters": changed(alpha_pattern={"a" * 10**6: 3}),
    "a list of patterns": changed(alpha_pattern=["a"]),
    "a text for patterns": changed(rank_pattern="a"),
    "a text for alpha": changed(lora_alpha="8"),
    "null for alpha": changed(lora_alpha=None),
    "true for alpha": changed(lora_alpha=True),
    "a large alpha": changed(lora_alpha=10**400),
    "a list for the rank": changed(r=[8]),
    "a rank of 0": changed(r=0),
    "a rank of -1": changed(r=-1),
    "NaN": b'{"peft_type": "LORA", "lora_alpha": NaN}',
    "1e999": b'{"peft_type": "LORA", "lora_alpha": 1e999}',
    "a field twice": b'{"peft_type": "LORA", "r": 1, "r": 2}',
    "a list": b"[]",
    "null": b"null",
    "nothing": b"",
    "100,000 brackets": b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000,
    "no UTF-8": b"\xff\xfe{}",
    "half of a letter": b'{"peft_type": "LORA", "revision": "\\ud800"}',
    "another kind": changed(peft_type="LOHA"),
    "a key of tomorrow": changed(use_tomorrow=True),
    "code": changed(auto_mapping={"base_model_class": "os"}, use_dora=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_at_once(tmp_path, name):
    (tmp_path / FILES[0]).write_bytes(REFUSED[name])
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        AdapterConfig.read(tmp_path).scale(LONG, 8)
    assert time.monotonic() - began < 20 and "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_pipes_and_devices_are_refused_and_never_waited_for(tmp_path, file, put):
    (tmp_path / FILES[0]).write_bytes(changed())
    (tmp_path / file).unlink(missing_ok=True)
    put(tmp_path / file)
    with pytest.raises(InputError, match="not a file"):
        AdapterConfig.read(tmp_path)


OF_NOTHING = {"dtype": "F32", "shape": [10**9, 0], "data_offsets": [0, 0]}
FACTORS = {
    "a rank of 10^9 of no numbers": lambda a, b: header({a: OF_NOTHING, b: {**OF_NOTHING, "shape": [0, 10**9]}}),
    "a rank of 100,000": lambda a, b: save({a: np.ones((100_000, 8), "f"), b: np.ones((6, 100_000), "f")}),
    "numbers alone": lambda a, b: save({a: np.array(1, "f"), b: np.array(1, "f")}),
    "three axes": lambda a, b: save({a: np.ones((8, 8, 1), "f"), b: np.ones((6, 8), "f")}),
    "no numbers": lambda a, b: save({a: np.full((8, 8), np.nan, "f"), b: np.ones((6, 8), "f")}),
    "a pickle": lambda a, b: pickle.dumps({a: 1}),
    "a header of 2^62": lambda a, b: struct.pack("<Q", 1 << 62) + b"{}",
    "100,000 letters for a module": lambda a, b: save({a.replace("proj", "x" * 100_000): np.ones((8, 8), "f")}),
}


def header(entries: dict[str, object]) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize("name", FACTORS)
def test_factors_that_fit_nothing_are_refused_at_once(tmp_path, name):
    specs = (TensorSpec(f"{ADAPTER_PREFIX}proj.a", "float32", (8, "r")),)
    specs += (TensorSpec(f"{ADAPTER_PREFIX}proj.b", "float32", ("r", 6)),)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / FILES[0]).write_bytes(changed())
    content = FACTORS[name]("base_model.model.proj.lora_A.weight", "base_model.model.proj.lora_B.weight")
    (tmp_path / "transformer" / FILES[1]).write_bytes(content)
    with pytest.raises(InputError) as caught:
        Adapters({"transformer": specs}).load("stranger", tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("pattern", ["a.a.a.a.a.a.a.a.a.a", r"layers\.0\.q_proj", "^layers.0.q_proj$"])
def test_names_of_modules_are_matched_in_no_time(tmp_path, pattern):
    (tmp_path / FILES[0]).write_bytes(changed(alpha_pattern={pattern: 3}))
    began = time.monotonic()
    for _ in range(1000):
        AdapterConfig.read(tmp_path).alpha(LONG)
    assert time.monotonic() - began < 60
