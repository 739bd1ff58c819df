"""How each target's weights are quantized: by the caller's spec, or by what `--precision int8|fp8|...` means there.

CPUs' int8 rounds the inputs of products, so the transformer is smoothed for it by a page of shipped text, which takes
seconds and a fifth of the loss (docs/quantize.md).  Their int4 needs no data.  Where the model is of a family whose
transformer draws, too, both are quick_spec's (lower_cpu.py).
NVIDIA's targets get forms that their engines have kernels for: 8 bits a channel or 4 bits in blocks, without
zero-points, and int8 inputs of conditioner and denoiser by ranges seen while the shipped prompts were drawn; with fp8
all inputs are fp8, by ranges of shipped text and prompts.  ONNX Runtime CUDA multiplies int8 on the CPU only, so there
drawing stays in float16.  Neither is smoothed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgemm.export.targets import Plan
from edgemm.model.unified import Unified
from edgemm.quantize.quantization import quantize
from edgemm.quantize.recipe import FLOATS, QUICK
from edgemm.quantize.spec import Spec

__all__ = ["plan_specs"]

ORT_CUDA = {"int8": ("int8", "fp16"), "int4": ("int4", "fp16")}  # where engines have QUICK
METHODS = {"text": "", "draw": ""}  # rounded as the width suggests, without data
SMOOTHED = {"int8": {"text": "smoothquant", "draw": ""}}  # of CPUs
SAMPLES = 8  # shipped prompts, and pieces of text, for the ranges

Say = Callable[[str], None]


def plan_specs(
    model: Unified,
    plans: Sequence[Plan],
    given: Spec | None = None,
    checkpoint: tuple[str, str] = ("", ""),
    status: Say = lambda text: None,
    cache: str = "float",
) -> dict[str, Spec]:
    """target -> spec, for the targets that have one; plans that ask for the same share it.

    Smoothing is folded into `model` itself, which computes the same as before; what that changes for adapters is told
    by adapter_scales.py.  `cache` is that of keys and values on a CPU.
    """
    if given is not None:
        return {plan.target: given for plan in plans}
    made: dict[tuple[str, str, bool], Spec] = {}
    found = {}
    for plan in sorted(plans, key=lambda plan: plan.quantizes):  # what is folded, the later ones see
        if not plan.quantizes:
            known = model.config.family not in ("vq", "connector")
            if plan.precision in QUICK and (known or cache == "int8"):
                methods = SMOOTHED.get(plan.precision, METHODS) if known else METHODS
                found[plan.target] = quantize(
                    model, *QUICK[plan.precision], methods, checkpoint=checkpoint, status=status, cache=cache
                )
            continue
        portable = plan.target != "cuda"
        text, draw = (QUICK | FLOATS if portable else ORT_CUDA)[plan.precision]
        wish = (text, draw, portable)
        if wish not in made:
            made[wish] = quantize(
                model, text, draw, METHODS, samples=SAMPLES, portable=portable, checkpoint=checkpoint, status=status
            )
        found[plan.target] = made[wish]
    return found
