"""From a checkpoint to a bundle: trace, lower, compare, write; all of it or nothing.

What a graph holds is in component_graphs.py, what a target wants in lower_*.py, what counts as equal in parity.py, what
the manifest says about the model in manifest.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.numpy import save

from edgemm import progress
from edgemm.bundle.bundle import UNCONDITIONAL, Bundle, BundleWriter, Manifest
from edgemm.bundle.manifest import ADAPTER_SCALES
from edgemm.device.threads import plan_threads
from edgemm.errors import MissingError, UsageError
from edgemm.export.adapter_points import ADAPTABLE, adapter_scales
from edgemm.export.lower_cuda import ADAPTER_RANK
from edgemm.export.manifest import CODE_IDS, id_table, manifest_of, papers_of, quick_to_open
from edgemm.export.specs import plan_specs
from edgemm.export.targets import Plan, read_plans
from edgemm.export.trace import OPSET, trace
from edgemm.export.variants import write_components
from edgemm.model import checkpoint
from edgemm.model.checkpoint import weights_hash
from edgemm.model.unified import Unified
from edgemm.quantize.simulated import check_layers
from edgemm.quantize.smoothing import fold_all
from edgemm.quantize.spec import JSON_FILE, Spec, read_spec
from edgemm.runtimes.backend.choice import Choice
from edgemm.runtimes.engines import Engines
from edgemm.runtimes.model import Model
from edgemm.verify.components import compare_component
from edgemm.verify.loops import compare_loops, precision_of
from edgemm.verify.parity import Comparison, require
from edgemm.verify.recorded import PARITY_FILE, PIXELS_FILE, Recorded, parity_document
from edgemm.verify.reference_backend import REFERENCE
from edgemm.verify.torch_answers import longest_prompt, torch_answers

__all__ = ["MAX_CONTEXT", "check_runtime", "different_plans", "export_bundle", "run_loops"]

MAX_CONTEXT = 2048  # cache slots when nobody says otherwise, where the transformer was trained for as many
MAX_NEW_TOKENS = 32  # of a recorded reply
LEAST_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "fp8": 1.0}  # a parameter; of all others half a byte


def export_bundle(
    source: Path,
    output: Path,
    target: str = "cpu",
    precision: str | None = None,
    overwrite: bool = False,
    max_context: int | None = None,
    quant: Path | None = None,
    adapters: tuple[str, ...] | None = None,
    adapter_rank: int = ADAPTER_RANK,
    prompt_lookup: bool = False,
    cache: str = "float",
) -> Manifest:
    """Write the bundle of the checkpoint folder `source` for one target or several, as targets.py reads the words.

    `adapters` names the linear layers that take low-rank adapters at run time, () all usual ones, None none; engines of
    NVIDIA take those of `adapter_rank` at most.
    With `prompt_lookup` the transformer checks several candidates in one run (`prompt_lookup_num_tokens`), on cpu.
    `quant` is a spec that `edgemm quantize` wrote; precision then speaks of what stays in float.
    `cache` "int8" keeps keys and values in 8 bits, on cpu in int8 or int4.

    Each comparison is told in a line (progress.py).  Raises CheckFailedError, and leaves nothing, when a component or
    a loop differs from torch.
    """
    plans = read_plans(target, precision)
    _check_adapters(adapters, adapter_rank)
    if prompt_lookup and any(plan.dialect != "cpu" for plan in plans):
        raise UsageError("--prompt-lookup is for target cpu alone: other runtimes step one token at a time")
    if quant and any(plan.precision not in ("fp32", "fp16") for plan in plans):
        raise UsageError("--precision int8, int4, fp8 and nvfp4 quantize by themselves: give that or --quant, not both")
    if quant and adapters is not None:
        raise UsageError("--quant and --adapters do not go together yet: give one of them")
    if cache == "int8" and (quant or adapters is not None or any(not _quantized_on_cpu(plan) for plan in plans)):
        raise UsageError(
            "--cache int8 is for target cpu in --precision int8 or int4, without --adapters; a spec says so itself: "
            "edgemm quantize --cache int8"
        )
    check_runtime()
    source = source.resolve()
    progress.status(f"loading {source.name}")
    model = checkpoint.load(source)
    spec = _read_quant(quant, model, source) if quant else None
    slots, new_tokens = _check_context(model, max_context)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    wanted = {plan.target: "as the spec says" if spec else plan.precision for plan in plans}
    asked = ", ".join(f"target {target}, {precision}" for target, precision in wanted.items())
    progress.line(f"{source.name}: family {model.config.family}, {parameters / 1e6:.1f}M parameters; {asked}")
    least_bytes = sum(LEAST_BYTES.get(precision, 0.5) for precision in set(wanted.values())) * parameters
    with BundleWriter(output, overwrite, int(least_bytes)) as writer, torch.no_grad():
        known = (source.name, weights_hash(source))
        specs = plan_specs(model, plans, spec, known, cache)
        options = (adapters, specs, adapter_rank, prompt_lookup, compare_component)
        written = write_components(model, writer, plans, slots, trace, *options)
        comparisons = written.comparisons
        require(comparisons, "the bundle differs from the model, and was not kept")
        manifest = manifest_of(model, source, written.components, written.targets, slots)
        writer.add_bytes(manifest.tokenizer, quick_to_open(model.tokenizer_json))
        for name, content in papers_of(source, manifest).items():
            writer.add_bytes(name, content)
        if spec:
            writer.add_bytes(JSON_FILE, spec.to_json().encode())
        if model.config.objective == "ar":
            writer.add_bytes(CODE_IDS, id_table(range(model.config.first_code, model.config.transformer.vocab_size)))
        else:
            writer.add_bytes(UNCONDITIONAL, stored_prefix(model, ""))
        scales = None if adapters is None else adapter_scales(model, specs.values())
        if scales:
            writer.add_bytes(ADAPTER_SCALES, scales)
        progress.status("loops: asking torch")
        recorded = torch_answers(model, precision_of(manifest, plans[0].target), new_tokens)
        for plan in different_plans(plans, manifest):
            progress.status(f"loops: comparing {plan.target}")
            for comparison in run_loops(Bundle(writer.folder, manifest), plan, recorded, len(plans) > 1):
                comparisons.append(comparison)
                progress.line(comparison.line())
        require(comparisons, "the bundle differs from the model, and was not kept")
        _write_recorded(recorded, comparisons, writer)
        progress.status("hashing")
        return writer.finish(manifest)


def _check_adapters(names: tuple[str, ...] | None, rank: int) -> None:
    if rank < 1:
        raise UsageError(f"adapter-rank is {rank}, expected 1 or more")
    known = sorted({name for layers in ADAPTABLE.values() for name in layers})
    for name in names or ():
        if name not in known:
            raise UsageError(f"adapters names {name!r}, expected some of: {', '.join(known)}")


def _quantized_on_cpu(plan: Plan) -> bool:
    return plan.dialect == "cpu" and plan.precision.startswith("int")


def check_runtime() -> None:
    """Every graph is run before it is shipped, so the ONNX Runtime that is here has to read them."""
    import onnxruntime

    from edgemm.device.providers import one_node_model

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(one_node_model(OPSET), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base but Exception
        raise MissingError(
            f"bundles are written in ONNX opset {OPSET}, which ONNX Runtime {onnxruntime.__version__} does not read: "
            "pip install 'onnxruntime>=1.30' (Python 3.11 or newer)"
        ) from error


def _read_quant(quant: Path, model: Unified, source: Path) -> Spec:
    """What it smooths is folded into `model`, which computes the same as before."""
    spec = read_spec(quant)
    spec.require_checkpoint(weights_hash(source), source.name)
    check_layers(model, spec)
    fold_all(model, spec)
    return spec


def _check_context(model: Unified, asked: int | None) -> tuple[int, int]:
    """Cache slots of the bundle, and how many tokens the recorded replies may then have."""
    most, prompts = model.config.transformer.max_context, longest_prompt(model)
    slots = min(MAX_CONTEXT, most) if asked is None else asked
    if not prompts < slots <= most:
        raise UsageError(
            f"max_context is {slots}, expected {prompts + 1} (the prompts that are compared) to {most} (the "
            "transformer's own limit)"
        )
    return slots, min(MAX_NEW_TOKENS, slots - prompts)


def different_plans(plans: tuple[Plan, ...], manifest: Manifest) -> list[Plan]:
    """One plan of those that share every graph."""
    graphs = {tuple(sorted(manifest.targets[plan.target].items())): plan for plan in reversed(plans)}
    return list(graphs.values())[::-1]


def run_loops(bundle: Bundle, plan: Plan, recorded: Recorded, named: bool) -> Iterator[Comparison]:
    """Whatever a target's own engine is, its graphs are ONNX, and ONNX Runtime's CPU says what they compute."""
    choice = Choice("cpu", REFERENCE, plan.target, "CPUExecutionProvider", "compared before it is shipped")
    precise = dataclasses.replace(recorded, precision=precision_of(bundle.manifest, plan.target))
    with Model(Engines(bundle, choice, plan_threads())) as runtime:
        for comparison in compare_loops(runtime, precise):
            what = f"{plan.target}: {comparison.what}" if named else comparison.what
            yield dataclasses.replace(comparison, what=what)


def stored_prefix(model: Unified, prompt: str) -> bytes:
    """The conditioner's outputs for a prompt, by torch, as a safetensors file."""
    prefix = model.prefix([prompt])
    tensors = {"prompt_vector": prefix.prompt_vector, "prefix_mask": prefix.mask}
    if prefix.layout.shape[-1]:
        tensors["layout"] = prefix.layout
    for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        tensors |= {f"prefix_key.{layer}": keys, f"prefix_value.{layer}": values}
    return save({name: tensor.contiguous().numpy() for name, tensor in tensors.items()})


def _write_recorded(recorded: Recorded, comparisons: list[Comparison], writer: BundleWriter) -> None:
    writer.add_bytes(PARITY_FILE, parity_document(recorded, comparisons).encode())
    writer.add_bytes(PIXELS_FILE, save({f"draw.{row}": pixels for row, pixels in enumerate(recorded.pixels)}))
