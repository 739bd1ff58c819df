"""PEFT's adapter_config.json of a LoRA (arXiv:2106.09685): what it asks for, and whether that can be had.

Every key of PEFT 0.21 is read here, is known to change nothing once an adapter is trained, or is refused by its name.
The tensors say which modules there are, so patterns of module names are never followed.  The runtime, `edgemm merge`
and checkpoints all read an adapter through this; it knows no torch and no PEFT.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemm.bundle.files import check_is_file, parse, reading
from edgemm.errors import BundleError, InputError

__all__ = ["FILES", "KEYS", "AdapterConfig"]

FILES = ("adapter_config.json", "adapter_model.safetensors")
READ = ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
HARMLESS = (  # how it was trained, on what, and which modules were looked for
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "ensure_weight_tying"),
    *("lora_dropout", "runtime_config", "velora_config", "megatron_core", "qalora_group_size"),
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),  # of init_lora_weights, which is judged below
)
# What is more than two factors a linear layer but comes out of PEFT's own merge right (train/adapters.py).
MERGED = {
    "use_dora": "DoRA sets magnitudes",
    "bias": "it brings biases of the base",
    "lora_bias": "its factors have biases",
    "modules_to_save": "it brings whole modules",
}
REFUSED = {
    "fan_in_fan_out": "is for weights that lie the other way round",
    "layer_replication": "it has other layers than its base",
    "trainable_token_indices": "it brings rows of the embedding, which is the output head as well",
    "target_parameters": "its factors are not those of linear layers",
    "alora_invocation_tokens": "it acts only behind these tokens",
    "use_qalora": "its factors are for groups of a quantized base",
    "use_bdlora": "its factors are blocks",
    "arrow_config": "it is a choice among adapters",
    "kasa_config": "it took singular values from its base",
    "monteclora_config": "it draws its weights anew each time",
    "megatron_config": "its layers are Megatron's",
}
INIT = "init_lora_weights"
KEYS = (*READ, *HARMLESS, *MERGED, *REFUSED, INIT)
KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # ways to begin that leave the base as it is
FOUND_AGAIN = ("pissa", "olora")  # ways that take something from the base, which the base gives a second time
NAME = re.compile(r"\^?([\w-]|\\?\.)+\$?")
LONGEST = 512


@dataclass(frozen=True)
class AdapterConfig:
    """One part's config, judged."""

    path: Path
    document: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, merging: bool = False) -> AdapterConfig:
        """Raises InputError naming the key that cannot be had; `merging` lets in what PEFT's own merge gets right."""
        path = folder / FILES[0]
        with reading(path):
            text = check_is_file(path).read_bytes()
        try:
            document = parse(text, str(path))
        except BundleError as error:  # an adapter is no bundle: who asked for it says what it is part of
            raise InputError(str(error)) from error
        if (folder / FILES[1]).exists():
            check_is_file(folder / FILES[1])  # a library would wait for a pipe
        config = cls(path, document)
        config._check_read()
        config._check_rest(merging)
        return config

    @property
    def beyond_factors(self) -> dict[str, str]:
        """The keys that ask for more than two factors a linear layer, and what; of such an adapter there is no half."""
        keys = {key: why for key, why in MERGED.items() if _is_on(key, self.document.get(key))}
        taken = self.document.get(INIT, True) not in KEEPS_BASE
        return keys | ({INIT: "its first factors were taken from the base"} if taken else {})

    def alpha(self, module: str) -> float:
        """InputError where two patterns say different ones: PEFT sorts them when it saves, and the first counted."""
        known = self._of("alpha_pattern", module, "lora_alpha")
        if len(known) > 1:
            raise InputError(f"{self.path}: alpha_pattern says {known} of {module}, and not which; write one pattern")
        return float(known[0])

    def scale(self, module: str, rank: int) -> float:
        """What B A is multiplied with; divided by the rank's root where the adapter asks for that (arXiv:2312.03732).

        `rank` is that of the module's factors; InputError where the config says another.
        """
        known = self._of("rank_pattern", module, "r")
        if rank not in known:
            raise InputError(f"{self.path}: says rank {known[0]} of {module}, its factors have {rank}")
        return self.alpha(module) / (math.sqrt(rank) if self.document.get("use_rslora") else rank)

    def _of(self, patterns: str, module: str, otherwise: str) -> list[Any]:
        """The values of all patterns that fit, as PEFT's re.match(rf"(.*\\.)?({pattern})$", module) has it."""
        fitting = {v for pattern, v in (self.document.get(patterns) or {}).items() if _fits(pattern, module)}
        return sorted(fitting) or [self.document[otherwise]]

    def _check_read(self) -> None:
        document = self.document
        if document.get("peft_type") != "LORA":
            raise InputError(f"{self.path}: peft_type is {document.get('peft_type')!r}, expected 'LORA'")
        document.setdefault("r", 8)  # PEFT's defaults
        document.setdefault("lora_alpha", 8)
        self._check_number("r", document["r"], whole=True)
        self._check_number("lora_alpha", document["lora_alpha"])
        if document.get("use_rslora") not in (None, False, True):
            raise InputError(f"{self.path}: use_rslora is {document['use_rslora']!r}, expected true or false")
        for key in ("rank_pattern", "alpha_pattern"):
            patterns = document.get(key) or {}
            if not isinstance(patterns, dict):
                raise InputError(f"{self.path}: {key} is {patterns!r}, expected an object")
            for name, value in patterns.items():
                if len(name) > LONGEST or not NAME.fullmatch(name):
                    raise InputError(
                        f"{self.path}: {key} has {name[:80]!r}; edgemm follows no regular expressions out of a file: "
                        "write the names of modules out"
                    )
                self._check_number(f"{key} of {name}", value, whole=key == "rank_pattern")

    def _check_number(self, what: str, value: Any, whole: bool = False) -> None:
        kinds = (int,) if whole else (int, float)
        if type(value) not in kinds or not (value > 0 or not whole) or abs(value) > 1e9:
            expected = "a whole number above 0" if whole else "a number"
            raise InputError(f"{self.path}: {what} is {value!r}, expected {expected}")

    def _check_rest(self, merging: bool) -> None:
        for key, value in self.document.items():
            if key in REFUSED and _is_on(key, value):
                raise InputError(f"{self.path}: {key} is {_short(value)}, which edgemm cannot apply: {REFUSED[key]}")
            if key not in KEYS and _is_on(key, value):
                raise InputError(f"{self.path}: {key} is {_short(value)}, a key that this edgemm does not know")
        first = self.document.get(INIT, True)
        again = "save it with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        if first not in (*KEEPS_BASE, *FOUND_AGAIN):
            raise InputError(f"{self.path}: {INIT} is {_short(first)}: it changed the base it was trained on; {again}")
        for key, why in () if merging else self.beyond_factors.items():
            cure = "merge it before you export: edgemm merge" + (f"; or {again}" if key == INIT else "")
            raise InputError(f"{self.path}: {key} is {_short(self.document[key])}: {why}; {cure}")


def _is_on(key: str, value: Any) -> bool:
    return value not in (None, False, [], {}, "none" if key == "bias" else None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fits(pattern: str, module: str) -> bool:
    letters = pattern.removeprefix("^").removesuffix("$").replace("\\.", "\0")  # \0: a dot; a dot: any character
    start = len(module) - len(letters)
    if start < 0 or (start and (pattern.startswith("^") or module[start - 1] != ".")):
        return False
    return all(want in (has, ".") or (want == "\0" and has == ".") for want, has in zip(letters, module[start:]))
