"""What the library itself reads, says and draws; its one random step can be made the runtime's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoProcessor

from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.runtimes.model import Model

__all__ = ["check_batch", "check_reading", "drawn_by_lot", "library_of"]


def library_of(folder: Path, architecture: str) -> tuple[Any, Any]:
    model = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def check_reading(
    model: Model,
    library: Any,
    inputs: dict[str, torch.Tensor],
    prompt: str,
    pictures: list[np.ndarray],
    count: int = 16,
) -> None:
    """Prompt ids, the logits after them, and the likeliest reply are the library's."""
    loop = model.manifest.loops.text
    ids = inputs["input_ids"][0].tolist()
    tokens = chat_prompt(as_messages(prompt, pictures), loop, model.tokenizer)
    assert tokens.input_ids.tolist() == ids
    said = library.generate(**inputs, max_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=0)
    wanted = said[0, len(ids) :].tolist()
    reply = model.generate_text(prompt, images=pictures, max_new_tokens=count, ignore_eos=True)
    assert list(reply.token_ids) == wanted
    assert len(set(wanted)) > 3, "weights that always say the same prove nothing"
    with torch.no_grad():
        logits = library(**inputs).logits[0, -1].numpy()
    read, image_tokens = model._text.reader.read(tokens, [model._text.picture(picture) for picture in pictures], loop)
    found = model._text.conversation().prefill(read, image_tokens)
    heard = np.isfinite(found)  # the others are silent here and as low as numbers go in the library
    assert (logits[~heard] < -1e30).all()
    assert np.abs(found - logits)[heard].max() <= 1e-4 * max(1, np.abs(logits[heard]).max())


def check_batch(model: Model, steps: int = 2, **asked: Any) -> None:
    """Two pictures of one call are what their seeds give alone, and another one each."""
    asked |= {"prompt": "a red heart", "num_inference_steps": steps}
    first, second = model.generate_image(seed=4, num_images=2, **asked).images
    for seed, found in ((4, first), (5, second)):
        assert np.abs(found.pixels - model.generate_image(seed=seed, **asked).pixels).max() <= 1e-6
    assert np.abs(first.pixels - second.pixels).max() > 0.01


@contextlib.contextmanager
def drawn_by_lot(*seeds: int, order: list[int] | None = None) -> Iterator[None]:
    """torch.multinomial as the runtime draws: one number of PCG64(seed) a row, in the order of codes.

    `order` gives the token id of each code, where codes are tokens of the vocabulary.
    """
    generators = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]

    def multinomial(probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        assert num_samples == 1 and len(probabilities) == len(generators)
        chosen = []
        for row, generator in zip(probabilities.double().numpy(), generators):
            ids = np.arange(len(row)) if order is None else np.array(order)
            sums = np.cumsum(row[ids])
            place = np.searchsorted(sums, generator.random() * sums[-1], side="right").clip(0, len(ids) - 1)
            chosen.append(int(ids[place]))
        return torch.tensor(chosen)[:, None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "multinomial", multinomial)
        yield
