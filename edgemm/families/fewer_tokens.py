"""A text model's Hugging Face folder with a smaller vocabulary (model/vocabulary.py): another folder that the library
opens, and that `edgemm export` takes.

Rows of the embedding and of the head are left out, tokens are numbered anew, and so are the ids in its configs.  What
is written is opened again by the library and compared: the same tokens of the same texts, and their logits.
Axes: v tokens kept, w width.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgemm.bundle.files import read_text
from edgemm.bundle.writer import whole_folder
from edgemm.errors import CheckFailedError, CheckpointError
from edgemm.families.folder import Found
from edgemm.families.hf_checkpoint import OFFLINE, Checkpoint, open_checkpoint, rendered
from edgemm.families.table import FAMILIES
from edgemm.model.checkpoint import check_model_output
from edgemm.model.pretrained import token_ids
from edgemm.model.vocabulary import cut_tokenizer
from edgemm.quantize.calibration import shipped_text

__all__ = ["cut_folder"]

BESIDE = ("*.jinja", "special_tokens_map.json", "LICENSE*", "LICENCE*", "NOTICE*")  # said in words, so still right
IDS = re.compile(r"(^|_)(token|words)(_id|_ids|_index)$|^(begin_)?suppress_tokens$")
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hi"}]
PROBE = 64  # tokens that are compared


def cut_folder(found: Found, output: Path, size: int, texts: Iterable[str]) -> None:
    """Write `output`; `texts`, the shipped page and the words around a conversation stay as many tokens as they are.

    CheckpointError for what is no plain text model, UsageError for a size that cannot be, CheckFailedError, and nothing
    is left, where the new folder says something else than the old one.
    """
    if FAMILIES.get(found.architecture) != "edgemm.families.llama" or not found.folder.is_dir() or found.packed:
        raise CheckpointError(
            f"{found.folder}: holds {found.architecture}; vocabularies are cut of plain folders of text models as "
            "Llama is one, and of edgemm's own checkpoints"
        )
    checkpoint = open_checkpoint(found)
    document = json.loads(checkpoint.tokenizer_json)
    page = shipped_text("calibration.txt")
    needed = {token for text in (page, f" {page}", *texts) for token in _ids_of(checkpoint, text)}
    if checkpoint.tokenizer.chat_template:
        needed |= set(_ids_of(checkpoint, rendered(checkpoint.tokenizer, TALK, found.folder)))
    model = _as_stored(found.folder)
    rows = len(model.get_input_embeddings().weight)
    configs = [model.config, model.generation_config]
    needed |= {token for config in configs for token in _ids_in(config.to_dict())} & set(token_ids(document).values())
    cut, kept = cut_tokenizer(document, sorted(needed), size)
    if kept[-1] >= rows:
        raise CheckpointError(f"{found.folder}: its tokenizer has token {kept[-1]}, its embedding {rows} rows")
    probe = torch.tensor([_ids_of(checkpoint, page)[:PROBE]])
    with torch.no_grad():
        wanted = checkpoint.model(probe).logits[0]
    number = {old: new for new, old in enumerate(kept)}
    _cut_rows(model, kept)
    for config in configs:
        for name, value in config.to_dict().items():
            if IDS.search(name) and value is not None:
                setattr(config, name, _renumbered(value, number))
    with whole_folder(output, check_model_output) as folder:
        model.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(json.dumps(cut, ensure_ascii=False), encoding="utf-8")
        _copy_words(found.folder, folder, number)
        _compare(folder, checkpoint, page, probe, wanted, kept)


def _as_stored(folder: Path) -> Any:
    """The library's model in the precision that it is stored in."""
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    return load(folder, dtype="auto", **OFFLINE)


def _ids_of(checkpoint: Checkpoint, text: str) -> list[int]:
    return checkpoint.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def _ids_in(config: Mapping[str, Any]) -> set[int]:
    return {token for name, value in config.items() if IDS.search(name) for token in _flat(value)}


def _flat(value: Any) -> list[int]:
    """The ids in a list, in lists of lists (of words that are banned), or the one."""
    if isinstance(value, list):
        return [token for inner in value for token in _flat(inner)]
    return [] if value is None else [value]


def _renumbered(value: Any, number: Mapping[int, int]) -> Any:
    """Ids that no token had stay what they were: nobody's."""
    return [_renumbered(one, number) for one in value] if isinstance(value, list) else number.get(value, value)


def _cut_rows(model: Any, kept: list[int]) -> None:
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    table = nn.Embedding.from_pretrained(model.get_input_embeddings().weight[kept].detach().clone())
    head = model.get_output_embeddings()
    weight = table.weight if tied else nn.Parameter(head.weight[kept].detach().clone(), requires_grad=False)
    model.set_input_embeddings(table)
    head.weight, head.out_features = weight, len(kept)
    if head.bias is not None:
        head.bias = nn.Parameter(head.bias[kept].detach().clone(), requires_grad=False)
    model.config.vocab_size = model.vocab_size = len(kept)


def _copy_words(source: Path, folder: Path, number: Mapping[int, int]) -> None:
    """What else the tokenizer is described by; lists of tokens that stood beside tokenizer.json are not written."""
    for path in {path for pattern in BESIDE for path in source.glob(pattern) if path.is_file()}:
        shutil.copyfile(path, folder / path.name)
    if (source / "tokenizer_config.json").is_file():
        told = json.loads(read_text(source / "tokenizer_config.json"))
        if "added_tokens_decoder" in told:
            old = {int(token): said for token, said in told["added_tokens_decoder"].items()}
            told["added_tokens_decoder"] = {str(number[token]): said for token, said in old.items() if token in number}
        text = json.dumps(told, ensure_ascii=False, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _compare(
    folder: Path, before: Checkpoint, page: str, probe: torch.Tensor, wanted: torch.Tensor, kept: list[int]
) -> None:
    """By the library, of what was written."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, **OFFLINE)
    old, new = before.tokenizer.backend_tokenizer, tokenizer.backend_tokenizer
    if [new.id_to_token(token) for token in new.encode(page, add_special_tokens=False).ids] != [
        old.id_to_token(token) for token in old.encode(page, add_special_tokens=False).ids
    ]:
        raise CheckFailedError(f"{folder.name}: the cut tokenizer has other tokens of the shipped page")
    if before.tokenizer.chat_template:
        talks = [rendered(one, TALK, before.folder) for one in (before.tokenizer, tokenizer)]
        if talks[0] != talks[1]:
            raise CheckFailedError(f"{folder.name}: the cut tokenizer writes another conversation")
    number = {token: row for row, token in enumerate(kept)}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **OFFLINE).eval()
    with torch.no_grad():
        found = model(torch.tensor([[number[token] for token in probe[0].tolist()]])).logits[0]
    far = (found - wanted[:, kept]).abs().max() / wanted.abs().max()
    if not far < 1e-4:
        raise CheckFailedError(f"{folder.name}: the cut model's logits are {far:.2g} of the largest off")
