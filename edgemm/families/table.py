"""Which file knows an architecture: config.json's `architectures` -> family.  Read by `edgemm export` and `inspect`.

A family is one module with the names that family.py lists; docs/families.md shows how to write one.  No torch here.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from edgemm.errors import CheckpointError, MissingError, UsageError
from edgemm.families.folder import PIPELINE, Found

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

_KNOWN = (  # what people call it, names by which its configs tell it, and what is in the way
    (
        "GLM-Image",
        ("GlmImageForConditionalGeneration", "GlmImagePipeline"),
        "its language model gives picture codes alone; pixels come from a diffusion transformer with a text encoder of "
        "its own, so its bundle could neither draw nor talk",
    ),
    (
        "Ovis-U1",
        ("OvisU1", "ovis_u1"),
        "its prompt runs through the diffusion transformer (MMDiT) beside the picture and changes at every step, so "
        "there is no prefix to compute once",
    ),
    (
        "OmniGen2",
        ("OmniGen2Pipeline",),
        "its prompt runs through the diffusion transformer beside the picture and changes at every step, so there is "
        "no prefix to compute once",
    ),
    (
        "UniWorld",
        ("UnivaQwen2p5VLForConditionalGeneration",),
        "FLUX draws for it, whose prompt changes beside the picture at every step, so there is no prefix to compute "
        "once",
    ),
    (
        "Harmon",
        ("HarmonModel", "harmon"),
        "it fills a masked picture in an order drawn by lot, each place by a small diffusion of its own (MAR), which "
        "none of the runtime's three loops does",
    ),
    (
        "MMaDA",
        ("MMadaModelLM", "mmada"),
        "its text is unmasked in any order, as its pictures are, which none of the runtime's three loops does",
    ),
    (
        "Lumina-DiMOO",
        ("LLaDAForMultiModalGeneration",),
        "its text is unmasked in any order, as its pictures are, which none of the runtime's three loops does",
    ),
    (
        "Show-o",
        ("Showo",),
        "its picture codes are unmasked in any order, which none of the runtime's three loops does; Show-o2 is built",
    ),
    (
        "HunyuanImage 3",
        ("HunyuanImage3ForCausalMM",),
        "a mixture of 64 experts and 80 billion numbers, for no device that edgemm knows",
    ),
)
NOT_BUILT = {name: (title, why) for title, names, why in _KNOWN for name in names}

HOW = "docs/families.md shows how to write one"


def load_family(found: Found) -> ModuleType:
    """Raises CheckpointError with the list of families where none knows this architecture."""
    name, where = found.architecture, found.folder
    if (packed := found.packed) not in (None, "bitsandbytes"):
        raise CheckpointError(
            f"{where}: its weights are packed by {packed}, which edgemm cannot read, whatever is installed; export the "
            "float folder that it was made from, with --precision int8 or int4 to make it small"
        )
    if known := next((NOT_BUILT[told] for told in found.names if told in NOT_BUILT), None):
        raise CheckpointError(f"{where}: {known[0]} is known but not built: {known[1]}; {HOW}")
    if found.pipeline:
        raise CheckpointError(
            f"{where}: no config.json but {PIPELINE}, so a pipeline of diffusers ({name}); no family knows it; {HOW}"
        )
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise CheckpointError(f"{where}: no family knows the architecture {name}; known: {known}; {HOW}")
    try:
        family = importlib.import_module(FAMILIES[name])
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "edgemm":
            raise  # a bug of ours, and nothing to install
        raise MissingError(f"{name} needs {error.name or error}: pip install 'edgemm[families,ort]'") from error
    known = getattr(family, "NEEDS", {})
    if unknown := sorted(found.others.keys() - known.keys()):
        has = f"what it can be told: {', '.join(known)}" if known else "it is whole"
        raise UsageError(f"--component names {unknown[0]!r}, which {name} does not have; {has}")
    return family
