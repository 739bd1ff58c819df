"""Distillation: a smaller student cut from its teacher, or one that draws in few steps; or the second from the first.

Run folder, beside what train/loop.py writes:
    start/     the student as it was cut, before its first step
    teacher/   what the teacher said and drew
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgemm import progress
from edgemm.bundle.adapter_config import FILES
from edgemm.data.format import lines_sha256
from edgemm.errors import CheckpointError, InputError, UsageError
from edgemm.model import checkpoint
from edgemm.model.config import ModelConfig
from edgemm.model.unified import Unified
from edgemm.model.vocabulary import with_tokens_of
from edgemm.train.loop import run_loop
from edgemm.train.ranks import Ranks, Share
from edgemm.train.recipe import PROJECTIONS
from edgemm.train.recipe_file import DistillRecipe, FewStepsRecipe, StudentRecipe
from edgemm.train.samples import load_pictures, pick_samples
from edgemm.train.shrink import block_influence, nano_depths, shrink, spread_over, student_expert
from edgemm.train.stores import TeacherCache
from edgemm.train.tasks.distill import DistillDraw, DistillRead
from edgemm.train.tasks.draw import FITTED
from edgemm.train.tasks.few_steps import FewStepTask, record
from edgemm.train.tasks.joint import TwoTasks

__all__ = ["distill", "healing_adapter"]

QUESTIONS = 64  # that the influence of layers is measured on


def distill(recipe: DistillRecipe) -> None:
    """Train the student to the end; the result is recipe.output/checkpoint."""
    start = getattr(recipe, "student", "") or recipe.teacher
    checkpoint.check_model_output(Path(recipe.output) / "checkpoint", recipe.teacher, start, recipe.data)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    ranks = Ranks()
    ranks.share.of(recipe.batch)  # refuses a batch that cannot be shared, before anything is computed
    family = ModelConfig.read(Path(recipe.teacher) / "config.json").family
    if family != "mot":
        raise CheckpointError(f"{recipe.teacher}: its family is {family}; students are built for mot only")
    progress.status("preparing")
    if isinstance(recipe, FewStepsRecipe):
        _few_steps(recipe, ranks)
    elif isinstance(recipe, StudentRecipe):
        _smaller(recipe, ranks)


def _few_steps(recipe: FewStepsRecipe, ranks: Ranks) -> None:
    start = recipe.student or recipe.teacher
    if not Path(start).is_dir():
        raise UsageError(f"--few goes on from a checkpoint: distil --student {start} first, then give its checkpoint")
    teacher = checkpoint.load(recipe.teacher).requires_grad_(False).to(ranks.device)
    asked = ("data", "splits", "groups", "pictures", "caption", "seed")
    asked += ("guidance", "few", "teacher_steps", "trajectories")
    with ranks.accelerator.main_process_first():  # it draws what the others then read
        taught = record(teacher, recipe, _cache(recipe, asked))
    del teacher
    model = checkpoint.load(start).requires_grad_(False).to(ranks.device)
    model.config = dataclasses.replace(model.config, name=recipe.name or Path(recipe.output).name)
    torch.manual_seed(recipe.seed)
    task = FewStepTask(model, recipe, taught, ranks.share)
    if ranks.is_first:
        progress.line(f"distill: {task.description}; {recipe.output}")
    run_loop(model, task, recipe, ranks)


def _smaller(recipe: StudentRecipe, ranks: Ranks) -> None:
    teacher = checkpoint.load(recipe.teacher).requires_grad_(False)
    if teacher.config.denoiser.step_size:
        raise CheckpointError(f"{recipe.teacher}: draws in few steps; cut a student from its own teacher instead")
    recipe.refuse("a student's adapter begins above what its denoiser reads", "lora_first_layer")
    recipe.refuse("a student's replies weigh as its answers do", "reply_weight")
    goes_on = (Path(recipe.student) / "config.json").is_file()
    start = Path(recipe.student) if goes_on else Path(recipe.output) / "start"
    with ranks.accelerator.main_process_first():
        if not start.is_dir():
            _cut(teacher, recipe, start)
        else:
            _check_cut(start, recipe, goes_on)
    reads = recipe.parts in ("transformer", "both")
    student = checkpoint.load(start, merge=not reads).requires_grad_(False).to(ranks.device)
    if goes_on:
        teacher = _as_taught_before(teacher, student, start)
    student.config = dataclasses.replace(student.config, name=recipe.name or Path(recipe.output).name)
    torch.manual_seed(recipe.seed)
    with ranks.accelerator.main_process_first():  # it keeps what the eye sees in a file that the others then read
        task = StudentTask(student, teacher.to(ranks.device), _as_started(student, recipe), ranks.share)
    if ranks.is_first:
        progress.line(f"distill: {task.description}; {recipe.output}")
    run_loop(student, task, recipe, ranks)


class StudentTask(TwoTasks):
    """What the loop trains; see train/loop.py for the interface."""

    def __init__(self, student: Unified, teacher: Unified, recipe: StudentRecipe, share: Share | None = None) -> None:
        if recipe.parts in ("denoiser", "both"):
            self.drawing = DistillDraw(student, teacher, recipe, share)
        if recipe.parts in ("transformer", "both"):
            asked = ("data", "splits", "groups", "pictures", "seed", "batch", "views", "temperature", "top_words")
            asked += ("replies", "reply_tokens", "reply_share", "caption_share", "label_share", "cut_share", "blend")
            self.reading = DistillRead(student, teacher, recipe, _cache(recipe, asked), share)
        config = student.config
        self.description = (
            f"student of {config.transformer.depth} + {config.denoiser.depth} layers, teacher of "
            f"{teacher.config.transformer.depth} + {teacher.config.denoiser.depth}; "
            + "; ".join(task.description for task in self.tasks)
        )

    def save(self, path: Path) -> None:
        (self.reading or self.tasks[0]).save(path)  # either stores the whole model, reading its adapter too


def _as_taught_before(teacher: Unified, student: Unified, folder: Path) -> Unified:
    """The teacher, with the words of a checkpoint that goes on learning, perhaps from another teacher than before.  It
    has to know the same pictures, and no other words."""
    teacher = with_tokens_of(teacher, student).requires_grad_(False)
    if _student_config(folder / "config.json", teacher.config).denoiser.step_size:
        raise CheckpointError(f"{folder}: draws in few steps; go on from what it was made of")
    return teacher


def _student_config(path: Path, teacher: ModelConfig) -> ModelConfig:
    wanted = ModelConfig.read(path)
    same = dataclasses.replace(wanted.transformer, depth=teacher.transformer.depth)
    if same != teacher.transformer or wanted.image_tokens != teacher.image_tokens:
        raise CheckpointError(f"{path}: only depth and denoiser may differ from the teacher's config")
    return wanted


def _cut(teacher: Unified, recipe: StudentRecipe, start: Path) -> None:
    """Choose the student's layers and write it as a checkpoint."""
    config = teacher.config
    if recipe.student == "nano":
        depth, blocks = nano_depths(teacher)
        expert = student_expert(config, recipe.denoiser_layers or blocks)
    elif Path(recipe.student).is_file():
        wanted = _student_config(Path(recipe.student), config)
        depth, expert = wanted.transformer.depth, wanted.denoiser
    else:
        raise UsageError(
            f"--student {recipe.student}: expected nano, a config.json, or a checkpoint folder to go on from"
        )
    captions, influence = _calibrate(teacher, recipe)
    name = recipe.name or Path(recipe.output).name
    student, kept = shrink(teacher, recipe.transformer_layers or depth, expert, influence, captions, name)
    scale = recipe.guidance or config.sampler.guidance_scale
    if scale != 1:  # the targets are guided
        student.config = dataclasses.replace(
            student.config, sampler=dataclasses.replace(config.sampler, guidance_scale=1.0)
        )
    with tempfile.TemporaryDirectory() as folder:
        adapter = None
        if teacher.adapter and config.base:
            adapter = Path(folder)
            first = sum(layer <= max(config.denoiser.prefix_layers) for layer in kept)
            healing_adapter(student, teacher.adapter, kept, first, recipe, adapter)
        checkpoint.save(student, start, torch.bfloat16, adapter=adapter)
    shown = ", ".join(f"{layer}{'' if layer in kept else '-'} {value:.3f}" for layer, value in enumerate(influence))
    progress.line(f"distill: keeps layers {', '.join(map(str, kept))}; influence (- goes): {shown}")


def _check_cut(start: Path, recipe: StudentRecipe, goes_on: bool) -> None:
    """InputError where the student has other depths, from an earlier run or because it is a checkpoint that goes on."""
    config = ModelConfig.read(start / "config.json")
    cut = {"transformer_layers": config.transformer.depth, "denoiser_layers": config.denoiser.depth}
    for line, found in cut.items():
        if getattr(recipe, line) not in (0, found):
            cure = "leave it out" if goes_on else f"delete {recipe.output} or choose another output"
            raise InputError(f"{start}: was cut to {line} {found}, the recipe asks for {getattr(recipe, line)}; {cure}")


def _calibrate(teacher: Unified, recipe: StudentRecipe) -> tuple[list[str], list[float]]:
    """Captions of the data to fit the whitening to, and each layer's influence on questions about it."""
    dataset, samples = pick_samples(recipe.data, recipe.splits, recipe.groups, recipe.pictures, recipe.caption)
    row_of = {sample.id: row for row, sample in enumerate(samples)}
    asked = [question for question in dataset.questions if question.sample in row_of]
    if not asked:
        raise UsageError(f"{recipe.data}: no question is about the pictures of splits {list(recipe.splits)}")
    asked = [asked[row] for row in spread_over(min(QUESTIONS, len(asked)), len(asked))]
    pictures = [samples[row_of[question.sample]] for question in asked]
    pixels = load_pictures(Path(recipe.data), pictures, teacher.config.vision.image_size).float() / 255
    influence = block_influence(teacher, [q.question for q in asked], [q.answer for q in asked], pixels)
    captions = sorted({caption for sample in samples for caption in sample.captions})
    return [captions[row] for row in spread_over(min(FITTED, len(captions)), len(captions))], influence


def healing_adapter(
    student: Unified, source: Path, kept: list[int], first: int, recipe: StudentRecipe, output: Path
) -> None:
    """The teacher's adapter on the layers that were kept, under their new numbers, with room to learn.

    It gets the recipe's rank and target layers where those are more: what is new adds nothing yet.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    config, known = checkpoint.read_adapter(source)
    rank = max(recipe.lora_rank, *(len(tensor) for key, tensor in known.items() if key.endswith(".lora_A.weight")))
    alpha = max(1, round(rank * recipe.lora_alpha / recipe.lora_rank))
    targets = {name for name in PROJECTIONS if any(f".{name}." in key for key in known)} | set(recipe.lora_targets)
    random, found = torch.Generator().manual_seed(recipe.seed), {}
    for number, layer in enumerate(kept[first:], first):
        for name, module in student.transformer.layers[number].named_modules():
            if name.rpartition(".")[2] in targets and isinstance(module, nn.Linear):
                down = torch.randn(rank, module.in_features, generator=random) * module.in_features**-0.5
                up = torch.zeros(module.out_features, rank)
                stem = f"base_model.model.layers.{layer}.{name}"
                if f"{stem}.lora_A.weight" in known:
                    old = len(known[f"{stem}.lora_A.weight"])
                    down[:old] = known[f"{stem}.lora_A.weight"].float()
                    scale = config.scale(f"layers.{layer}.{name}", old) * rank / alpha
                    up[:, :old] = known[f"{stem}.lora_B.weight"].float() * scale
                stem = f"base_model.model.layers.{number}.{name}"
                found |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    names = "|".join(name for name in PROJECTIONS if name in targets)
    layers = "|".join(map(str, range(first, len(kept))))
    LoraConfig(r=rank, lora_alpha=alpha, target_modules=rf"layers\.({layers})\.\w+\.({names})").save_pretrained(
        str(output)
    )
    save_file(found, output / FILES[1], metadata={"format": "pt"})


def _as_started(student: Unified, recipe: StudentRecipe) -> StudentRecipe:
    """The recipe with the adapter that the student came with, or a new one above what its denoiser reads."""
    first = max(student.config.denoiser.prefix_layers) + 1
    if student.adapter is None:
        return dataclasses.replace(recipe, lora_first_layer=first)
    config, tensors = checkpoint.read_adapter(student.adapter)
    numbers = sorted({int(name.partition("layers.")[2].partition(".")[0]) for name in tensors})
    return dataclasses.replace(
        recipe,
        lora_rank=config.document["r"],
        lora_alpha=config.document["lora_alpha"],
        lora_first_layer=numbers[0],
        lora_targets=tuple(name for name in PROJECTIONS if any(f".{name}." in key for key in tensors)),
    )


def _cache(recipe: DistillRecipe, asked: tuple[str, ...]) -> TeacherCache:
    """The teacher's answers to this recipe, known by the teacher's weights, the lines that shape the questions, and
    what the dataset says: another one may stand in its place."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(Path(recipe.teacher).rglob("*.safetensors")):
        digest.update(path.read_bytes())
    key: dict[str, Any] = {"teacher": digest.hexdigest(), "data_sha256": lines_sha256(recipe.data)}
    for line in asked:
        value = getattr(recipe, line)
        key[line] = list(value) if isinstance(value, tuple) else value  # as JSON gives it back
    return TeacherCache(Path(recipe.output) / "teacher", key)
