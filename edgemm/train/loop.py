"""One training loop for every task: step, log, save, sample, resume.

Run folder:
    log.jsonl            one JSON line a logged step
    state.pt             everything that a resume needs, and the recipe it began with; written beside and renamed
    samples/STEP.png     pictures to look at
    checkpoint/          the result, with averaged weights
A task gives parameters, a loss a step and samples; the loop knows nothing of pictures or prompts.  With several
processes (ranks.py) all of them run this loop and the first one alone writes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edgemm import progress
from edgemm.bundle.beside import only_writer, written_beside
from edgemm.bundle.files import reading
from edgemm.data.format import lines_sha256
from edgemm.errors import EdgemmError, InputError
from edgemm.model.feed_forward import watching
from edgemm.model.unified import Unified
from edgemm.train.optimizers import Average, make_optimizers, rate
from edgemm.train.ranks import Ranks, full, refusing_full_disk, refusing_out_of_memory, sharded_like
from edgemm.train.recipe import Recipe

__all__ = ["Step", "Task", "changed_lines", "logged", "run_loop"]

OF_NO_WEIGHT = ("output", "steps", "threads", "compile", "log_every", "save_every", "sample_every")  # lines of a recipe


class Task(Protocol):
    """What run_loop trains."""

    description: str

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...  # computed from the data once, kept for a resume
    def prepare(self) -> None: ...  # once, before the first step of a new run
    def loss(self, step: int) -> Tensor: ...
    def measures(self, step: int) -> dict[str, float]: ...
    def samples(self, model: Unified) -> Tensor | None: ...
    def save(self, path: Path) -> None: ...


class Step(nn.Module):
    """A task's loss as a module that holds every parameter: what DDP and FSDP wrap."""

    def __init__(self, model: Unified, task: Task) -> None:
        super().__init__()
        self.model = model
        self.task = task  # no module: its parameters are the model's

    def forward(self, step: int) -> Tensor:
        with watching(self) as routed:
            loss = self.task.loss(step)
        return loss + routed.loss()


def run_loop(
    model: Unified, task: Task, recipe: Recipe, ranks: Ranks | None = None, began_s: float | None = None
) -> None:
    """Train to recipe.steps, going on from the run folder's state if there is one.

    `began_s` is the process's own time (time.process_time) from which on it counts to the state's `core_s`; None: now.
    InputError where another run writes in the folder now."""
    ranks, began_s = ranks or Ranks(), time.process_time() if began_s is None else began_s
    with only_writer(Path(recipe.output), "another run") if ranks.is_first else nullcontext():
        _run(model, task, recipe, ranks, began_s)


def _run(model: Unified, task: Task, recipe: Recipe, ranks: Ranks, began_s: float) -> None:
    folder = Path(recipe.output)
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    if not (folder / "state.pt").exists():
        task.prepare()
    whole = Step(model, task)
    loss_of = ranks.wrap(whole)
    optimizers = make_optimizers(task.named_parameters(), recipe)
    average = Average(task.named_parameters(), recipe.ema)
    begun = _resume(folder / "state.pt", task, optimizers, average, recipe)
    start = begun.step
    ranks.check_same(start, str(folder / "state.pt"))
    progress.status("")
    told = _told(recipe)
    if ranks.is_first:
        _cut_log(folder / "log.jsonl", start)
        if start:
            progress.line(f"resuming at step {start} of {recipe.steps}")
            if changed := _changed(begun.recipe, told):
                after = "; its steps are done, so nothing new is learned" if start == recipe.steps else ""
                progress.line(f"{folder}: goes on with another recipe than it had: {changed}{after}")
    if start == recipe.steps:  # stopped after its last step, perhaps before its result was written
        _write_result(model, task, average, folder, start, ranks)
    precision = autocast(recipe.precision, ranks.device)
    clock, last_logged = time.perf_counter(), start
    with (
        progress.bar("training", recipe.steps, "steps", start) as bar,
        open(folder / "log.jsonl" if ranks.is_first else os.devnull, "ab", buffering=0) as log,
    ):
        for step in range(start, recipe.steps):
            share, done = rate(step, recipe), step + 1
            with refusing_out_of_memory(done, recipe.batch, ranks.share.count, ranks.device):
                with precision:
                    loss = loss_of(step)
                loss.backward()
            loss = ranks.mean(loss)
            norm = _clip(task, recipe.clip, done, loss)
            _update(optimizers, share)
            average.update(task.named_parameters(), step)
            bar.update(1)
            if done % recipe.log_every == 0 or done == recipe.steps:
                now = time.perf_counter()
                line: dict[str, Any] = {"step": done, "loss": loss.item(), "gradient_norm": norm, "rate": share}
                line["seconds_a_step"] = (now - clock) / (done - last_logged)
                with precision:
                    line |= _measures(whole, step, ranks)
                text = json.dumps({key: _short(value) for key, value in line.items()}) + "\n"
                with refusing_full_disk(folder / "log.jsonl", done, len(text)):
                    log.write(text.encode())
                note = f"loss {line['loss']:.4f}, {line['seconds_a_step']:.3g} s/step"
                bar.update(0, note)
                if done == recipe.steps and ranks.is_first:
                    progress.line(f"step {done} of {recipe.steps}: {note}")
                clock, last_logged = time.perf_counter(), done
            paused = time.perf_counter()
            if done % recipe.save_every == 0 or done == recipe.steps:
                took_s = begun.core_s + time.process_time() - began_s
                where = {"step": done, "task": recipe.kind, "core_s": took_s, "recipe": told}
                _save_state(folder / "state.pt", where, task, optimizers, average, ranks)
            if done % recipe.sample_every == 0 or done == recipe.steps:
                _write_result(model, task, average, folder, done, ranks)
            clock += time.perf_counter() - paused  # writing is not part of a step
    ranks.wait()


def _update(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """One step by the gradients that are there, with `share` of each group's peak rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _measures(whole: Step, step: int, ranks: Ranks) -> dict[str, float]:
    """What the task and its mixtures of experts measure at a step, means over all processes."""
    with ranks.whole(), watching(whole) as routed:
        measured = whole.task.measures(step)
        measured |= routed.measures()
        return {name: ranks.mean(torch.tensor(value)).item() for name, value in measured.items()}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The precision of a recipe; "auto" is bfloat16 only where the device has instructions for it.

    A CPU without them takes four to five times as long for a bfloat16 product as for a float32 one (measured, AVX-512
    VNNI only).
    """
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = device.type != "cuda" or torch.cuda.is_bf16_supported()
    if precision == "bf16" or (precision == "auto" and fast):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def _write_result(model: Unified, task: Task, average: Average, folder: Path, step: int, ranks: Ranks) -> None:
    """Samples and checkpoint, with averaged weights."""
    progress.status("drawing samples and writing the checkpoint")
    average.swap(task.named_parameters())
    with ranks.whole():
        if ranks.is_first:
            pictures = task.samples(model)
            if pictures is not None:
                grid = folder / "samples" / f"{step:06d}.png"
                with refusing_full_disk(grid, step, pictures.numel()):
                    _write_grid(pictures.cpu(), grid)
            task.save(folder / "checkpoint")
    average.swap(task.named_parameters())
    progress.status("")


def _clip(task: Task, largest: float, step: int, loss: Tensor) -> float:
    named = [(name, p) for name, p in task.named_parameters() if p.grad is not None]
    gradients = [p.grad for _, p in named if p.grad is not None]
    norm = full(torch.nn.utils.get_total_norm(gradients))
    if not (math.isfinite(norm.item()) and math.isfinite(loss.item())):
        bad = [
            name for (name, _), gradient in zip(named, gradients, strict=True) if not full(gradient).isfinite().all()
        ]
        raise EdgemmError(
            f"step {step}: the loss is {loss.item():.6g}, the gradient's norm {norm.item():.6g}, first not finite: "
            f"{bad[0] if bad else 'the sum'}; lower learning_rate or clip; the last state was kept"
        )
    torch.nn.utils.clip_grads_with_norm_([p for _, p in named], largest, norm)
    return norm.item()


def logged(path: Path) -> list[tuple[int, str]]:
    """Step and line of all that a run wrote; a last line that a kill cut short is left out.

    InputError where other lines stand there: the file is somebody's own, and a run that goes on rewrites its log."""
    lines = []
    with reading(path):
        told = path.read_text(encoding="utf-8").splitlines() if os.path.lexists(path) else []
    for number, line in enumerate(told, start=1):
        try:
            lines.append((int(json.loads(line)["step"]), line))
        except (ValueError, KeyError, TypeError):
            if number < len(told):
                raise InputError(f"{path}: line {number} is no run's, so it will not be written over") from None
    return lines


def _told(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe shapes the weights, and a hash of the dataset's own lines; plain values, for a state."""
    told = {key: value for key, value in dataclasses.asdict(recipe).items() if key not in OF_NO_WEIGHT}
    return told | {"data_sha256": lines_sha256(recipe.data)}


def changed_lines(path: Path, recipe: Recipe) -> str:
    """How a recipe differs from the one that the state at `path` was made with; "" where it does not, where there is no
    state, or one from before recipes were kept."""
    return _changed(_read_state(path, mmap=True).get("recipe", {}), _told(recipe)) if path.exists() else ""


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """How two recipes differ, as _told gives them; a line that only one has is no difference."""
    changed = {key: (before[key], now[key]) for key in before if key in now and before[key] != now[key]}
    found = [f"{key} was {was!r}, is {new!r}" for key, (was, new) in changed.items() if key != "data_sha256"]
    if "data_sha256" in changed and "data" not in changed:
        found.append(f"{now['data']} was made again since, and is another dataset")
    return ", ".join(found)


def _cut_log(path: Path, start: int) -> None:
    """Leave out the lines of steps that a killed run had logged and that will be done again."""
    if path.exists():
        kept = [line + "\n" for step, line in logged(path) if step <= start]
        with written_beside(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def _save_state(
    path: Path,
    where: dict[str, Any],  # the step, its kind of task, what all processes of the run took so far, and the recipe
    task: Task,
    optimizers: list[torch.optim.Optimizer],
    average: Average,
    ranks: Ranks,
) -> None:
    state = {
        **where,
        "parameters": full({name: parameter.detach() for name, parameter in task.named_parameters()}),
        "buffers": full(dict(task.named_buffers())),
        "average": full(average.tensors),
        "optimizers": full([optimizer.state_dict() for optimizer in optimizers]),
    }
    if not ranks.is_first:
        return
    needed = 4 * sum(p.numel() * p.element_size() for p in state["parameters"].values())  # with AdamW's two moments
    with refusing_full_disk(path, where["step"], needed), written_beside(path) as temporary:
        torch.save(state, temporary)


def _read_state(path: Path, mmap: bool = False) -> dict[str, Any]:
    with reading(path, "cannot be read; delete it to start again"):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


@dataclass(frozen=True)
class _Begun:
    """What a state says beside its numbers; the defaults are those of a new run, and of states from before they were
    kept."""

    step: int = 0
    core_s: float = 0.0  # processor time of all processes up to the step
    recipe: dict[str, Any] = field(default_factory=dict)  # as _told gives it


def _resume(
    path: Path, task: Task, optimizers: list[torch.optim.Optimizer], average: Average, recipe: Recipe
) -> _Begun:
    """Fills the task, its optimizers and the average from a state, if there is one."""
    if not path.exists():
        return _Begun()
    state = _read_state(path)
    parameters, buffers = dict(task.named_parameters()), dict(task.named_buffers())
    same_task = isinstance(state, dict) and state.get("task") == recipe.kind
    if not same_task or state["parameters"].keys() != parameters.keys():
        raise InputError(f"{path}: belongs to another run; delete it or choose another output")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != state["parameters"][name].shape:
                raise InputError(f"{path}: {name} has another shape; delete it or choose another output")
            parameter.copy_(sharded_like(state["parameters"][name], parameter))
            average.tensors[name].copy_(sharded_like(state["average"][name], parameter))
        for name, buffer in state.get("buffers", {}).items():
            buffers[name].copy_(buffer)
    try:
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            peaks = [group["peak"] for group in optimizer.param_groups]
            optimizer.load_state_dict(kept)
            for parameter, values in optimizer.state.items():  # the moments, cut as their parameter is
                values.update({name: sharded_like(value, parameter) for name, value in values.items()})
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak"] = peak  # the recipe's rate, so that it can be changed between runs
    except ValueError as error:
        raise InputError(f"{path}: was made with another optimizer; delete it or choose another output") from error
    if state["step"] > recipe.steps:
        raise InputError(f"{path}: is at step {state['step']}, the recipe ends at {recipe.steps}; raise steps")
    return _Begun(int(state["step"]), float(state.get("core_s", 0.0)), state.get("recipe", {}))


def _write_grid(pictures: Tensor, path: Path) -> None:
    """(count, 3, H, W) in [0, 1] as one PNG, 8 a row."""
    from PIL import Image

    rows = pictures[: len(pictures) // 8 * 8].unflatten(0, (-1, 8))  # (rows, 8, 3, H, W)
    grid = rows.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    Image.fromarray((grid * 255).round().byte().numpy()).save(path)


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
