"""Students: the smaller one comes nearer to its teacher, and the fast one lands where its teacher arrives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgemm.cli.main import main
from edgemm.errors import CheckpointError, InputError, UsageError
from edgemm.model import checkpoint
from edgemm.train.distill import distill, healing_adapter
from edgemm.train.recipe_file import DistillRecipe, read_recipe
from edgemm.train.stores import TeacherCache
from edgemm.train.tasks.distill import DistillDraw
from edgemm.train.tasks.few_steps import tell_step_size
from tests.model.tiny import random_micro, tokens_of
from tests.train.conftest import EMOJI, read_log

PROMPTS = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "square")]


def settings(teacher: Path, output: Path, **changes) -> DistillRecipe:
    given = {"teacher": teacher, "data": EMOJI, "output": output, "threads": 1, "batch": 8, "views": 1, "log_every": 1}
    given |= {"warmup": 2, "ema": 0.9, "pictures": 32, "lora_rank": 8, "lora_alpha": 16, "precision": "fp32"}
    if "few" in changes:  # what only a smaller student has
        given = {key: value for key, value in given.items() if key not in ("views", "lora_rank", "lora_alpha")}
    words = [f"{key}={value}" for key, value in {**given, **changes}.items()]
    return read_recipe(None, words, DistillRecipe, "few-steps" if "few" in changes else "student")


@pytest.fixture(scope="module")
def nano(teacher, tmp_path_factory) -> Path:
    """The run folder of a student of both halves, stopped after 10 steps and gone on with."""
    output = tmp_path_factory.mktemp("runs") / "nano"
    for steps in (10, 30):
        recipe = settings(
            teacher, output, student="nano", transformer_layers=4, steps=steps, decay=0, learning_rate=3e-3
        )
        distill(recipe)
    return output


def few(teacher: Path, shapes: Path, output: Path, **changes) -> Path:
    """The run folder of a micro that learned to draw in 4, 2 and 1 steps what its teacher draws in guided ones."""
    given = {"few": "4,2,1", "guidance": 2.0, "data": shapes, "pictures": 0, "learning_rate": 2e-3, **changes}
    distill(settings(teacher, output, **given))
    return output


@pytest.fixture(scope="module")
def fast(drawn, shapes, tmp_path_factory) -> Path:
    """Long enough to see the error fall on what it was taught, no longer."""
    output = tmp_path_factory.mktemp("runs") / "fast"
    return few(drawn / "checkpoint", shapes, output, teacher_steps=8, trajectories=32, steps=25, batch=16)


@pytest.mark.parametrize("measure", ["loss", "from_teacher_drawing", "from_teacher_reading"])
def test_a_student_comes_nearer_to_its_teacher(nano, measure):
    values = [line[measure] for line in read_log(nano)]
    assert len(values) == 30 and np.mean(values[-5:]) < 0.85 * np.mean(values[:5])


def test_a_student_is_a_checkpoint_with_fewer_layers_that_reads_and_draws(nano, teacher):
    student, whole = checkpoint.load(nano / "checkpoint"), checkpoint.load(teacher)
    assert (student.config.transformer.depth, student.config.denoiser.depth) == (4, 2)
    assert student.config.name == "nano" and student.config.sampler.guidance_scale == 1.0
    assert len(student.config.denoiser.prefix_layers) == 2 and max(student.config.denoiser.prefix_layers) < 3
    assert student.draw(PROMPTS[:2], tokens_of(student, 2)).std() > 0.01
    ids, _ = student.generate("What is this?", torch.rand(1, 3, 32, 32), 4, stop=False)
    assert len(ids) == 4
    assert torch.equal(
        student.transformer.embed_tokens.weight, whole.transformer.embed_tokens.weight.bfloat16().float()
    )


def test_what_the_teacher_said_is_on_disk_once_a_step_and_is_not_asked_for_again(nano, teacher, monkeypatch):
    files = sorted((nano / "teacher").glob("reading-*.safetensors"))
    assert len(files) == 30
    assert set(load_file(files[0])) == {"words", "log_probabilities", "features"}
    times = [file.stat().st_mtime_ns for file in files]
    monkeypatch.setattr("edgemm.train.tasks.distill.kept_words", None)  # it would be called to ask the teacher
    distill(settings(teacher, nano, student="nano", transformer_layers=4, steps=30, decay=0, learning_rate=3e-3))
    assert [file.stat().st_mtime_ns for file in files] == times
    with pytest.raises(InputError, match="holds answers of another teacher or recipe"):
        distill(settings(teacher, nano, student="nano", transformer_layers=4, steps=31, temperature=1.0))


def test_what_other_prompts_draw_is_the_teachers_word_alone(teacher, tmp_path):
    """The picture is then no answer, and leaves the data's own loss; its own prompt brings it back."""

    def loss(**changes) -> float:
        recipe = settings(teacher, tmp_path, student="nano", parts="denoiser", data_weight=1.0, **changes)
        return DistillDraw(checkpoint.load(teacher), checkpoint.load(teacher), recipe).loss(0).item()

    assert loss(other_prompts=1, guidance=1) == pytest.approx(0, abs=1e-5)  # a student who is its teacher
    assert loss(other_prompts=1) != loss(other_prompts=0.5) != loss() > 0.01


def test_a_student_goes_on_from_a_checkpoint(teacher, nano, fast, tmp_path):
    """What learned before is not cut again."""
    before, output = nano / "checkpoint", tmp_path / "run"
    distill(settings(teacher, output, student=before, parts="denoiser", steps=1, warmup=0))
    old, new = (load_file(folder / "model.safetensors") for folder in (before, output / "checkpoint"))
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert {"conditioner", "denoiser"} <= changed <= {"conditioner", "denoiser", "transformer"}  # an adapter is merged
    assert not (output / "start").exists()
    assert json.loads((output / "checkpoint" / "config.json").read_text())["name"] == "run"
    with pytest.raises(CheckpointError, match="draws in few steps; go on from what it was made of"):
        distill(settings(teacher, tmp_path / "other", student=fast / "checkpoint", parts="denoiser"))


def test_a_student_may_draw_further_datasets(teacher, tmp_path):
    def captions(**changes) -> set[str]:
        recipe = settings(teacher, tmp_path, student="nano", parts="denoiser", **changes | {"pictures": 4})
        return set(DistillDraw(checkpoint.load(teacher), checkpoint.load(teacher), recipe).captions)

    assert captions() < captions(more=EMOJI, more_captions=1)


@pytest.mark.parametrize("alpha", [16, 4])
def test_an_adapter_keeps_what_it_says_of_the_layers_that_stay_and_gets_room(teacher, tmp_path, alpha):
    from peft import LoraConfig, get_peft_model

    from edgemm.train.shrink import shrink, student_expert

    model = checkpoint.load(teacher)
    before = {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}
    config = LoraConfig(r=2, lora_alpha=3, use_rslora=True, target_modules=r"layers\.[45]\.\w+\.(q_proj|down_proj)")
    peft = get_peft_model(model.transformer, config)
    for index, (name, parameter) in enumerate(peft.named_parameters()):
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.1
    peft.save_pretrained(tmp_path / "old")
    merged = peft.merge_and_unload().state_dict()
    plain = checkpoint.load(teacher)
    expert = student_expert(plain.config, 2)
    student, kept = shrink(plain, 4, expert, [0.9, 0.1, 0.1, 0.6, 0.1, 0.5], PROMPTS, "cut")
    assert kept[-1] == 5 and 4 not in kept
    first = len([layer for layer in kept if layer <= 3])
    recipe = settings(teacher, tmp_path / "run", student="nano", lora_rank=8, lora_alpha=alpha)
    healing_adapter(student, tmp_path / "old", kept, first, recipe, tmp_path)
    checkpoint.merge_adapter(student, tmp_path)
    ours = student.transformer.state_dict()
    last = len(kept) - 1
    for name in ("self_attn.q_proj", "mlp.down_proj", "mlp.up_proj"):
        found, wanted = ours[f"layers.{last}.{name}.weight"], merged[f"layers.5.{name}.weight"]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.equal(merged["layers.5.mlp.down_proj.weight"], before["layers.5.mlp.down_proj.weight"])
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == alpha
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 2 * 7 * (len(kept) - first)


def test_a_cut_short_answer_is_never_taken_for_a_whole_one(tmp_path):
    cache = TeacherCache(tmp_path, {"a": 1})
    with pytest.raises(KeyboardInterrupt):
        cache.get("one", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.json"]
    assert cache.get("one", lambda: {"x": torch.ones(2)})["x"].tolist() == [1, 1]
    assert cache.get("one", lambda: {"x": torch.zeros(2)})["x"].tolist() == [1, 1]


def test_answers_about_another_dataset_in_the_same_place_are_not_taken(teacher, tmp_path):
    data = shutil.copytree(EMOJI, tmp_path / "data")
    student = {"data": data, "student": "nano", "parts": "transformer", "views": 1}
    drawing = {"data": data, "few": "2,1", "teacher_steps": 2, "trajectories": 4}
    for kind, lines in (("reading", student), ("drawing", drawing)):
        output = tmp_path / kind
        distill(settings(teacher, output, steps=1, **lines))
        distill(settings(teacher, output, steps=2, **lines))
        changed = {"reading": {"label_share": 0.9}, "drawing": {"caption": "{caption}, noto style"}}[kind]
        with pytest.raises(InputError, match="holds answers of another teacher or recipe"):
            distill(settings(teacher, output, steps=3, **lines, **changed))
    questions = data / "questions.jsonl"
    questions.write_text("".join(reversed(questions.read_text().splitlines(keepends=True))))
    for kind, lines in (("reading", student), ("drawing", drawing)):
        with pytest.raises(InputError, match="holds answers of another teacher or recipe"):
            distill(settings(teacher, tmp_path / kind, steps=3, **lines))


def test_answers_from_before_the_key_knew_more_are_taken_as_they_are(tmp_path):
    TeacherCache(tmp_path, {"teacher": "a", "few": ["4", "1"]})
    TeacherCache(tmp_path, {"teacher": "a", "few": ["4", "1"], "data_sha256": "b"})
    with pytest.raises(InputError, match="another teacher"):
        TeacherCache(tmp_path, {"teacher": "a", "few": ["4", "1"], "data_sha256": "c"})


def test_a_student_that_was_cut_to_another_depth_is_not_gone_on_with(teacher, nano):
    with pytest.raises(InputError, match="was cut to transformer_layers 4, the recipe asks for 5"):
        distill(settings(teacher, nano, student="nano", transformer_layers=5, steps=31))


def test_a_checkpoint_that_goes_on_learning_has_the_depth_that_it_has(teacher, nano, tmp_path):
    changes = {"student": nano / "checkpoint", "steps": 1}
    with pytest.raises(InputError, match="was cut to transformer_layers 4, the recipe asks for 5; leave it out"):
        distill(settings(teacher, tmp_path, transformer_layers=5, **changes))


@pytest.mark.parametrize("line", ["lora_first_layer", "reply_weight"])
def test_what_a_student_has_no_choice_of_is_refused(teacher, tmp_path, line):
    with pytest.raises(UsageError, match=f"recipe: {line} is 3"):
        distill(settings(teacher, tmp_path, student="nano", steps=1, **{line: 3}))


@pytest.mark.slow
def test_few_steps_come_nearer_to_fifty_guided_ones_than_as_many_of_the_teachers_own(drawn, shapes, tmp_path):
    """Prompts the student was taught, noise that it never saw."""
    longer = {"teacher_steps": 12, "trajectories": 1024, "steps": 200, "batch": 32, "log_every": 50}
    fast = few(drawn / "checkpoint", shapes, tmp_path / "fast", **longer)
    teacher, student = checkpoint.load(drawn / "checkpoint"), checkpoint.load(fast / "checkpoint")
    noise = tokens_of(teacher, len(PROMPTS), seed=99)

    def drawing(model, steps: int, guidance: float) -> torch.Tensor:
        return model.draw(PROMPTS, noise, model.with_sampler(num_inference_steps=steps, guidance_scale=guidance))

    wanted = drawing(teacher, 50, 2.0)

    def distance(model, steps: int, guidance: float) -> float:
        return (drawing(model, steps, guidance) - wanted).square().mean().item()

    assert distance(student, 4, 1.0) < 0.8 * distance(teacher, 4, 1.0)  # as many evaluations of the network
    assert distance(student, 2, 1.0) < distance(teacher, 2, 2.0)  # half as many
    assert distance(student, 1, 1.0) < 0.7 * distance(teacher, 1, 2.0)


@pytest.mark.parametrize("count", [4, 2, 1])
def test_a_fast_student_walks_ever_nearer_to_where_its_teacher_arrived(fast, count):
    values = [line[f"from_teacher_in_{count}"] for line in read_log(fast)]
    assert np.mean(values[-3:]) < 0.8 * values[0]


def test_a_fast_student_says_how_it_is_to_be_run(fast):
    config = checkpoint.load(fast / "checkpoint").config
    assert (config.sampler.num_inference_steps, config.sampler.guidance_scale) == (4, 1.0)
    assert config.denoiser.step_size and config.name == "fast"


def test_a_fast_student_is_no_start_for_other_training(fast, shapes, tmp_path, capsys):
    words = ["--data", str(shapes), "--output", str(tmp_path / "run")]
    assert main(["finetune", str(fast / "checkpoint"), *words]) == 3
    assert "fast draws in few steps and learns from its teacher only" in capsys.readouterr().err
    assert main(["distill", "--teacher", str(fast / "checkpoint"), "--student", "nano", *words]) == 3
    assert "cut a student from its own teacher instead" in capsys.readouterr().err


def test_telling_the_step_size_changes_nothing_at_first():
    model = random_micro()
    noise, sampler = tokens_of(model, 2), model.with_sampler(num_inference_steps=3, guidance_scale=1.0)
    before = model.draw(PROMPTS[:2], noise, sampler)
    tell_step_size(model, 4)
    assert torch.equal(model.draw(PROMPTS[:2], noise, sampler), before)


@pytest.mark.slow
def test_a_smaller_student_becomes_a_fast_one_and_a_bundle(nano, teacher, tmp_path, capsys):
    """Both jobs, one after the other, from the command line; export's own parity check judges the bundle."""
    run, bundle = str(tmp_path / "fast"), tmp_path / "fast.bundle"
    words = ["distill", "--teacher", str(teacher), "--student", str(nano / "checkpoint"), "--few", "2,1"]
    words += ["--data", str(EMOJI), "--output", run, "--steps", "2", "--set", "trajectories=8"]
    assert main([*words, "--set", "teacher_steps=4", "--set", "batch=4", "--set", "threads=1"]) == 0
    assert f"Wrote {run}/checkpoint; export it: edgemm export" in capsys.readouterr().out
    assert main(["export", f"{run}/checkpoint", "--output", str(bundle), "--precision", "fp32"]) == 0
    manifest = json.loads((bundle / "manifest.json").read_text())
    loop = manifest["loops"]["denoise"]
    assert (loop["num_inference_steps"], loop["guidance_scale"]) == (2, 1.0)
    assert loop["prefix_layers"] == list(checkpoint.load(nano / "checkpoint").config.denoiser.prefix_layers)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "nothing to distil: give --student nano, --few 4,2,1"),
        (["--student", "giant"], 2, "--student giant: expected nano, a config.json, or a checkpoint folder"),
        (["--few", "4,3"], 2, "each must divide the largest"),
        (["--few", "4,x"], 2, "few is 4, x, expected whole numbers"),
        (["--few", "5"], 2, "a teacher's 48"),
        (["--student", "nano", "--few", "4"], 2, "distil --student nano first, then give its checkpoint"),
        (["--student", "nano", "--transformer-layers", "1"], 2, "a student of 1 transformer layers: expected 2 to 6"),
        (["--student", "nano", "--set", "other_prompts=1.5"], 2, "other_prompts is 1.5, expected 0 to 1"),
        (["--student", "nano", "--denoiser-layers", "5"], 2, "a student of 5 denoiser layers: expected 1 to 4"),
    ],
)
def test_what_cannot_be_distilled_is_one_line(teacher, tmp_path, capsys, words, code, message):
    given = ["distill", "--teacher", str(teacher), "--data", str(EMOJI), "--output", str(tmp_path / "run"), *words]
    assert main([*given, "--set", "threads=1", "--set", "pictures=8"]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1 and message in errors[0]
