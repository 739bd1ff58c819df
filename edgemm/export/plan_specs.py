"""How each target's weights are quantized: by the caller's spec, or by what `--precision int8|int4` means there.

NVIDIA's targets get forms that their engines have kernels for: 8 bits a channel or 4 bits in blocks, without
zero-points, and int8 inputs of conditioner and denoiser by ranges seen while the shipped prompts were drawn.  ONNX
Runtime CUDA multiplies int8 on the CPU only, so there drawing stays in float16.  Nothing is smoothed: the model stays
as it is.  What `--precision` means on a CPU is quick_spec's (lower_cpu.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgemm.export.targets import Plan
from edgemm.model.unified import Unified
from edgemm.quantize.quantization import quantize
from edgemm.quantize.recipe import QUICK
from edgemm.quantize.spec import Spec

__all__ = ["plan_specs"]

ORT_CUDA = {"int8": ("int8", "fp16"), "int4": ("int4", "fp16")}  # where engines have QUICK
METHODS = {"text": "", "draw": ""}  # rounded as the width suggests, without data
PROMPTS = 8  # of the shipped ones, for the ranges

Say = Callable[[str], None]


def plan_specs(
    model: Unified,
    plans: Sequence[Plan],
    given: Spec | None = None,
    checkpoint: tuple[str, str] = ("", ""),
    status: Say = lambda text: None,
) -> dict[str, Spec]:
    """target -> spec, for the targets that have one; plans that ask for the same share it."""
    if given is not None:
        return {plan.target: given for plan in plans}
    made: dict[tuple[str, str, bool], Spec] = {}
    found = {}
    for plan in plans:
        if not plan.quantizes:
            continue
        portable = plan.target != "cuda"
        text, draw = (QUICK if portable else ORT_CUDA)[plan.precision]
        wish = (text, draw, portable)
        if wish not in made:
            made[wish] = quantize(
                model, text, draw, METHODS, samples=PROMPTS, portable=portable, checkpoint=checkpoint, status=status
            )
        found[plan.target] = made[wish]
    return found
