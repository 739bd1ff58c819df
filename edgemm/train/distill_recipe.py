"""What `edgemm distill` is told: who teaches, what the student is, and what it is asked to copy.

No torch here: the command line answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgemm.errors import UsageError
from edgemm.train.recipe import PROJECTIONS, Drawing, Reading, Recipe, check_caption

__all__ = ["DistillRecipe", "FewStepsRecipe", "StudentRecipe"]


@dataclass(frozen=True, kw_only=True)
class DistillRecipe(Recipe):
    """What both kinds share; the second may start from the first's checkpoint."""

    verb: ClassVar[str] = "distill"

    teacher: str  # checkpoint folder
    name: str = ""  # of the result; "": the output folder's
    guidance: float = 0.0  # of the teacher's drawings, baked into the student (arXiv:2210.03142); 0: the teacher's own


@dataclass(frozen=True, kw_only=True)
class StudentRecipe(Drawing, Reading, DistillRecipe):
    """A smaller student, cut from its teacher."""

    kind: ClassVar[str] = "student"

    student: str  # "nano", or a config.json of another depth
    parts: str = "both"  # which half learns: "denoiser" draws, "transformer" reads
    transformer_layers: int = 0  # 0: as many as the student asks for
    denoiser_layers: int = 0
    temperature: float = 2.0  # of the teacher's words (arXiv:1503.02531)
    top_words: int = 64  # of the teacher's distribution that are kept on disk; the rest is one word
    data_weight: float = 0.2  # of the losses against the data itself, beside those against the teacher
    feature_weight: float = 0.5  # of the last features' angle to the teacher's
    other_prompts: float = 0.0  # share of the drawing prompts that are another picture's: the teacher alone judges
    on_policy: float = 0.0  # share of the reading steps in which the student answers by itself (arXiv:2306.13649)
    lora_rank: int = 64  # of the adapter that heals the upper layers; the teacher's own is kept in it
    lora_alpha: int = 128
    lora_targets: tuple[str, ...] = PROJECTIONS

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("parts", ("transformer", "denoiser", "both"))


@dataclass(frozen=True, kw_only=True)
class FewStepsRecipe(DistillRecipe):
    """A student of its teacher's shape that draws in few steps, without guidance."""

    kind: ClassVar[str] = "few-steps"

    few: tuple[str, ...]  # numbers of steps that the student shall draw well in; each divides the largest
    student: str = ""  # checkpoint folder to go on from; "": the teacher itself
    teacher_steps: int = 48  # of the teacher's drawings; a multiple of the largest of `few`
    trajectories: int = 2048  # drawings of the teacher to learn from, made once
    caption: str = ""  # what pictures are said to be, as in drawing
    compile: bool = False  # torch.compile the denoiser

    def __post_init__(self) -> None:
        super().__post_init__()
        check_caption(self.caption)
        largest = max(self.step_counts, default=0)
        if not largest or any(count < 1 or largest % count for count in self.step_counts):
            raise UsageError(f"recipe: few is {', '.join(self.few) or 'empty'}: each must divide the largest")
        if self.teacher_steps < 1 or self.teacher_steps % largest:
            raise UsageError(
                f"recipe: few is {', '.join(self.few)} of a teacher's {self.teacher_steps} steps: the largest must "
                "divide the teacher's"
            )

    @property
    def step_counts(self) -> tuple[int, ...]:
        try:
            return tuple(int(count) for count in self.few)
        except ValueError as error:
            raise UsageError(f"recipe: few is {', '.join(self.few)}, expected whole numbers such as 4,2,1") from error
