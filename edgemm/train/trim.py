"""A checkpoint with a smaller vocabulary (model/vocabulary.py): what its texts need, and the commonest other tokens.

Texts say what has to be read and said in the tokens that the model was taught: files, and datasets with all that is
asked, answered and drawn there.  The shipped page, the prompts' own words and those that visual words are spelled with
are always among them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgemm.bundle.files import read_text
from edgemm.data.format import read_dataset
from edgemm.errors import InputError, UsageError
from edgemm.families.fewer_tokens import cut_folder
from edgemm.families.folder import find_foreign
from edgemm.model import checkpoint
from edgemm.model.vocabulary import cut_vocabulary
from edgemm.quantize.calibration import frequent_tokens, read_calibration
from edgemm.train.merge import stored_dtype

__all__ = ["trim"]


def trim(source: Path, output: Path, size: int, texts: Sequence[Path] = (), name: str = "") -> None:
    """Write `output`: a checkpoint, or a text model's Hugging Face folder, with `size` tokens, in its precision.

    UsageError where the texts need more, InputError for a text that is not there, a model that cannot be cut, and an
    output that is the source or no model's folder.
    """
    checkpoint.check_model_output(output, source, *texts)
    alone = [text for place in texts for text in _said(place)]
    said = [*alone, *(f" {text}" for text in alone)]  # behind a word of a template, too
    if (found := find_foreign(source)) is not None:
        if name:
            raise UsageError("--name is for edgemm's own checkpoints; a folder of others has its folder's name")
        cut_folder(found, output, size, said)
        return
    model = checkpoint.load(source)
    needed = set(frequent_tokens(model, read_calibration(None, model)).nonzero().flatten().tolist())
    for text in said:
        needed.update(model.encode(text, special=False))
    smaller = cut_vocabulary(model, sorted(needed), size)
    smaller.config = dataclasses.replace(smaller.config, name=name or output.name)
    checkpoint.save(smaller, output, stored_dtype(source))


def _said(place: Path) -> Iterator[str]:
    if not place.is_dir():
        if not place.is_file():
            raise InputError(f"{place}: no such file or dataset folder")
        yield read_text(place)
        return
    dataset = read_dataset(place)
    for sample in dataset.samples:
        yield from (sample.label, *sample.tags, *sample.captions)
    for question in dataset.questions:
        yield from (question.question, question.answer, *(question.choices or ()))
    yield from (edit.instruction for edit in dataset.edits)
