"""What `edgemm finetune` is told: which adapter, on which part.

No torch here: the command line answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgemm.errors import UsageError
from edgemm.train.recipe import Answering, Drawing

__all__ = ["METHODS", "PARTS", "FinetuneRecipe"]

METHODS = ("lora", "rslora", "dora", "qlora")
PARTS = ("transformer", "denoiser", "both")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(Drawing, Answering):
    """An adapter on a finished checkpoint, every weight of which stays as it is."""

    kind: ClassVar[str] = "finetune"
    verb: ClassVar[str] = "finetune"

    start: str  # checkpoint folder
    method: str = "lora"  # arXiv:2106.09685; "rslora" 2312.03732; "dora" 2402.09353; "qlora" 2305.14314
    parts: str = "denoiser"  # "denoiser": how it draws; "transformer": how it reads; "both"
    target_modules: tuple[str, ...] = ()  # linear layers by name; none: the usual ones of each part
    name: str = "adapter"  # the adapter's folder: output/adapters/NAME/{transformer,denoiser}
    steps: int = 300
    batch: int = 32
    warmup: int = 20
    ema: float = 0.98
    save_every: int = 50
    sample_every: int = 100
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_first_layer: int = 0  # of the transformer; 0: the first above those that the denoiser reads

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("method", METHODS), ("parts", PARTS), ("optimizer", ("adamw",))):
            self._one_of(name, allowed)
        if self.method == "qlora" and self.parts == "denoiser":
            raise UsageError("recipe: qlora keeps the transformer in nf4; for the denoiser alone take method lora")
        if not self.name or self.name.startswith(".") or set(self.name) & set("/\\"):
            raise UsageError(f"recipe: name is {self.name!r}, expected a folder's name")

    @property
    def draws(self) -> bool:
        return self.parts in ("denoiser", "both")

    @property
    def reads(self) -> bool:
        return self.parts in ("transformer", "both")
