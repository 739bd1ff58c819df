"""What `edgemm finetune` adds to a recipe: which adapter, on which part.

No torch here: the command line answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgemm.errors import UsageError
from edgemm.train.recipe import Recipe

__all__ = ["METHODS", "PARTS", "FinetuneRecipe"]

METHODS = ("lora", "rslora", "dora", "qlora")
PARTS = ("transformer", "denoiser", "both")


@dataclass(frozen=True)
class FinetuneRecipe(Recipe):
    """An adapter on a finished checkpoint, every weight of which stays as it is."""

    method: str = (
        "lora"  # arXiv:2106.09685; "rslora" arXiv:2312.03732; "dora" arXiv:2402.09353; "qlora" arXiv:2305.14314
    )
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
        for field, allowed in (("method", METHODS), ("parts", PARTS), ("optimizer", ("adamw",))):
            if getattr(self, field) not in allowed:
                raise UsageError(f"recipe: {field} is {getattr(self, field)!r}, expected one of: {', '.join(allowed)}")
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
