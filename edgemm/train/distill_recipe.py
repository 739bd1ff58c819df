"""What `edgemm distill` adds to a recipe: who teaches, what the student is, and what it is asked to copy.

No torch here: the command line answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgemm.errors import UsageError
from edgemm.train.recipe import PROJECTIONS, Recipe

__all__ = ["DistillRecipe"]


@dataclass(frozen=True)
class DistillRecipe(Recipe):
    """A smaller student, or one that draws in few steps; the second may start from the first's checkpoint."""

    teacher: str = ""  # checkpoint folder
    student: str = ""  # "nano", a config.json, or a checkpoint to go on from; "": the teacher itself (few steps only)
    name: str = ""  # of the result; "": the output folder's
    parts: str = "both"  # which half learns: "denoiser" draws, "transformer" reads
    guidance: float = 0.0  # of the teacher's drawings, baked into the student (arXiv:2210.03142); 0: the teacher's own
    steps: int = 1000
    # a smaller student
    transformer_layers: int = 0  # 0: as many as the student asks for
    denoiser_layers: int = 0
    temperature: float = 2.0  # of the teacher's words (arXiv:1503.02531)
    top_words: int = 64  # of the teacher's distribution that are kept on disk; the rest is one word
    data_weight: float = 0.2  # of the losses against the data itself, beside those against the teacher
    feature_weight: float = 0.5  # of the last features' angle to the teacher's
    other_prompts: float = (
        0.0  # share of the drawing steps' prompts that belong to another picture: the teacher alone judges
    )
    on_policy: float = 0.0  # share of the reading steps in which the student answers by itself (arXiv:2306.13649)
    lora_rank: int = 64  # of the adapter that heals the upper layers; the teacher's own is kept in it
    lora_alpha: int = 128
    lora_targets: tuple[str, ...] = PROJECTIONS
    # few steps
    few: tuple[str, ...] = ()  # numbers of steps that the student shall draw well in; each divides the largest
    teacher_steps: int = 48  # of the teacher's drawings; a multiple of the largest of `few`
    trajectories: int = 2048  # drawings of the teacher to learn from, made once

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.teacher:
            raise UsageError("recipe: teacher is missing, expected a checkpoint folder")
        if self.parts not in ("transformer", "denoiser", "both"):
            raise UsageError(f"recipe: parts is {self.parts!r}, expected one of: transformer, denoiser, both")
        ranges = {"top_words": 1, "trajectories": 1, "transformer_layers": 0, "denoiser_layers": 0, "temperature": 0.01}
        for field, low in {**ranges, "guidance": 0, "data_weight": 0, "feature_weight": 0}.items():
            if not low <= getattr(self, field) < float("inf"):
                raise UsageError(f"recipe: {field} is {getattr(self, field)}, expected {low} or more")
        for field in ("on_policy", "other_prompts"):
            if not 0 <= getattr(self, field) <= 1:
                raise UsageError(f"recipe: {field} is {getattr(self, field)}, expected 0 to 1")
        largest = max(self.step_counts, default=1)
        if any(count < 1 or largest % count for count in self.step_counts) or self.teacher_steps % largest:
            raise UsageError(
                f"recipe: steps {', '.join(self.few)} of a teacher's {self.teacher_steps}: each must divide the "
                "largest, and the largest the teacher's"
            )
        if not self.student and not self.few:
            raise UsageError("nothing to distil: give --student nano, --steps 4,2,1, or one after the other")

    @property
    def step_counts(self) -> tuple[int, ...]:
        try:
            return tuple(int(count) for count in self.few)
        except ValueError as error:
            raise UsageError(f"recipe: few is {', '.join(self.few)}, expected whole numbers such as 4,2,1") from error
