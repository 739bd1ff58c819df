"""Which file knows an architecture: config.json's `architectures` -> family.  Read by `edgemm export` and `inspect`.

A family is one module with the names that family.py lists; docs/families.md shows how to write one.  No torch here.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from edgemm.errors import CheckpointError, MissingError, UsageError
from edgemm.families.folder import Found

__all__ = ["FAMILIES", "NOT_BUILT", "load_family"]

FAMILIES = {  # architecture -> module
    "LlamaForCausalLM": "edgemm.families.llama",
    "MistralForCausalLM": "edgemm.families.llama",
    "Qwen2ForCausalLM": "edgemm.families.llama",
    "Qwen3ForCausalLM": "edgemm.families.llama",
    "LlavaForConditionalGeneration": "edgemm.families.llava",
    "JanusForConditionalGeneration": "edgemm.families.janus",
    "ChameleonForConditionalGeneration": "edgemm.families.chameleon",
    "Emu3ForConditionalGeneration": "edgemm.families.emu3",
    "FuyuForCausalLM": "edgemm.families.fuyu",
    "Qwen3VLForConditionalGeneration": "edgemm.families.qwen3_vl",
    "MultiModalityCausalLM": "edgemm.families.janusflow",
    "Showo2Qwen2_5": "edgemm.families.showo2",
    "BagelForConditionalGeneration": "edgemm.families.bagel",
    "mobileoForInferenceLM": "edgemm.families.mobileo",
    "Cosmos3OmniForConditionalGeneration": "edgemm.families.cosmos3",
    "Cosmos3EdgeForConditionalGeneration": "edgemm.families.cosmos3",
}

NOT_BUILT = {  # known, and what is in the way
    "GlmImageForConditionalGeneration": "the folder holds only what says the codes; pixels come from a diffusion "
    "transformer of another library, so its bundle could neither draw nor talk",
}

HOW = "docs/families.md shows how to write one"


def load_family(found: Found) -> ModuleType:
    """Raises CheckpointError with the list of families where none knows this architecture."""
    name, where = found.architecture, found.folder
    if (packed := found.packed) not in (None, "bitsandbytes"):
        raise CheckpointError(
            f"{where}: its weights are packed by {packed}, which edgemm cannot read, whatever is installed; export the "
            "float folder that it was made from, with --precision int8 or int4 to make it small"
        )
    if name in NOT_BUILT:
        raise CheckpointError(f"{where}: {name} is known but not built: {NOT_BUILT[name]}; {HOW}")
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise CheckpointError(f"{where}: no family knows the architecture {name}; known: {known}; {HOW}")
    try:
        family = importlib.import_module(FAMILIES[name])
    except ImportError as error:
        raise MissingError(f"{name} needs {error.name or error}: pip install 'edgemm[families,ort]'") from error
    known = getattr(family, "NEEDS", {})
    if unknown := sorted(found.others.keys() - known.keys()):
        has = f"what it can be told: {', '.join(known)}" if known else "it is whole"
        raise UsageError(f"--component names {unknown[0]!r}, which {name} does not have; {has}")
    return family
