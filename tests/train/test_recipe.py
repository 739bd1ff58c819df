"""Recipes: every slip is answered with the key's name, and before torch is loaded."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgemm.errors import InputError, UsageError
from edgemm.train.recipe import DrawRecipe, JointRecipe, ReadRecipe, Stage
from edgemm.train.recipe_file import KINDS, DistillRecipe, FinetuneRecipe, read_recipe, read_stages

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
VERBS = {"train": Stage, "distill": DistillRecipe, "finetune": FinetuneRecipe}
WHOLE = 'kind = "draw"\ndata = "d"\noutput = "o"\n'


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        (tmp_path / "recipe.toml").write_text(text)
        return tmp_path / "recipe.toml"

    return write


def read(path: Path, overrides: Sequence[str] = ()) -> DrawRecipe:
    return read_recipe(path, overrides, DrawRecipe)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid_and_goes_to_the_verb_that_its_comments_name(path):
    text = path.read_text()
    if "[[stages]]" in text:
        assert read_stages(path)
        return
    kind = KINDS[re.search(r'^kind = "(.+)"$', text, re.MULTILINE)[1]]
    assert read_recipe(path, ["start=x"] if kind.verb != "distill" else [], VERBS[kind.verb])
    for verb in VERBS.keys() - {kind.verb}:
        with pytest.raises(InputError, match=rf"{path.name} is for `edgemm {kind.verb}`: its kind is {kind.kind}"):
            read_recipe(path, [], VERBS[verb])
    told = re.findall(r"edgemm (\w+) .*--config recipes/" + re.escape(path.name), text)
    assert set(told) <= {kind.verb}


def test_every_kind_reads_its_own_lines_and_no_kind_those_of_others(write):
    """Each key of each kind, given to every kind: taken where the dataclass has it, else refused with its name."""
    needed = {"data": "d", "output": "o", "start": "s", "teacher": "t", "student": "nano", "few": ["4"]}
    every = {field.name: field for kind in KINDS.values() for field in dataclasses.fields(kind)}
    for name, kind in KINDS.items():
        own = {field.name for field in dataclasses.fields(kind)}
        lines = [f'kind = "{name}"', *(f"{k} = {json.dumps(v)}" for k, v in needed.items() if k in own)]
        assert read_recipe(write("\n".join(lines)), [], kind).kind == name
        for key in every.keys() - own:
            with pytest.raises(InputError, match=f"of kind {name}: {key}: unknown field, expected one of: .*data"):
                read_recipe(write("\n".join([*lines, f"{key} = 1"])), [], kind)


def test_a_kind_has_no_line_that_only_another_needs():
    keys = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in KINDS.items()}
    assert not keys["draw"] & {"views", "lora_rank", "flow_weight", "teacher", "perceptual_weight", "few"}
    assert not keys["read"] & {"noises", "time_mean", "caption", "flow_weight", "compile"}
    assert not keys["autoencode"] & {"drop_prompt", "views", "train", "lora_rank"}
    assert not keys["few-steps"] & {"temperature", "lora_rank", "parts", "start"}
    assert not keys["finetune"] & {"align_steps", "train", "experts", "teacher"}
    folders = {"more", "more_captions"}  # other pictures to draw; reading has one set of questions
    assert folders <= keys["student"] and not folders & keys["read"]
    assert keys["joint"] == keys["draw"] | keys["read"] | {"flow_weight", "draw_data"}


def test_what_a_recipe_leaves_out_has_its_default(write):
    assert read(write(WHOLE)) == DrawRecipe(data="d", output="o")


def test_a_file_name_means_nothing(tmp_path):
    (tmp_path / "sticker-lora.txt").write_text("\ufeff" + WHOLE, encoding="utf-8")
    assert read(tmp_path / "sticker-lora.txt").kind == "draw"


def test_overrides_win_and_have_the_fields_types(write):
    overrides = ["steps=7", "learning_rate=1e-4", "clip=.5", "compile=true", "groups=a-b,c", "start=x=y"]
    recipe = read(write(WHOLE + "steps = 5\n"), overrides)
    assert (recipe.steps, recipe.learning_rate, recipe.clip, recipe.compile) == (7, 1e-4, 0.5, True)
    assert (recipe.start, recipe.groups) == ("x=y", ("a-b", "c"))
    assert read(write(WHOLE), ['groups=["a-b", "c"]']).groups == ("a-b", "c")
    assert read_recipe(write(WHOLE), ["kind=joint", "lora_targets=k_proj"], Stage).kind == "joint"


def test_whole_numbers_may_stand_for_fractions_and_lists_for_tuples(write):
    recipe = read(write(WHOLE + 'clip = 2\nsplits = ["train", "scorer"]\n'))
    assert (recipe.clip, recipe.splits) == (2.0, ("train", "scorer"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('task = "draw"\ndata = "d"\n', 'task is called kind now: kind = "draw"'),
        ('data = "d"\nmethod = "lora"\n', 'kind is missing; its lines fit: kind = "finetune"$'),
        ('teacher = "t"\nfew = ["4"]\n', 'kind is missing; its lines fit: kind = "few-steps"$'),
        ('teacher = "t"\non_policy = 0.5\n', 'kind is missing; its lines fit: kind = "student"$'),
        ('kind = "sing"\n', "kind is 'sing', expected one of: draw, edit, read"),
        ('data = "d"\n[[stages]]\nname = "a"\ntask = "read"\n', 'task is called kind now: kind = "read"'),
        ('data = "d"\noutput = "o"\n[[stages]]\nname = "a"\nkind = "student"\n', "is for `edgemm distill`"),
    ],
)
def test_a_recipe_of_before_is_told_what_to_change(write, text, message):
    with pytest.raises(InputError, match=message) as refusal:
        read_stages(write(text))
    assert "recipe.toml" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stesp = 5", "of kind draw: stesp: unknown field, expected one of: data, output, steps"),
        ("views = 5", "of kind draw: views: unknown field"),
        ('steps = "many"', "steps: 'many', expected a whole number"),
        ("steps = 1.5", "steps: 1.5, expected a whole number"),
        ("steps = true", "steps: true, expected a whole number"),
        ("data = 3", "data: 3, expected a string"),
        ('groups = "food-drink"', "groups: 'food-drink', expected a list"),
        ("groups = [1]", r"groups\[0\]: 1, expected a string"),
        ('learning_rate = "1e-3"', "learning_rate: '1e-3', expected a number"),
        ("learning_rate = nan", "learning_rate: NaN, expected a finite number"),
        ("steps =", "not TOML"),
    ],
)
def test_a_wrong_line_is_refused_with_its_key(write, line, message):
    text = "\n".join(kept for kept in WHOLE.splitlines() if kept.split()[0] != line.split()[0])
    with pytest.raises(InputError, match=message) as refusal:
        read(write(f"{text}\n{line}\n"))
    assert "recipe.toml" in str(refusal.value)


@pytest.mark.parametrize("splits", ['["train", "tset"]', "[]"])
def test_a_split_that_no_dataset_can_have_is_refused(write, splits):
    with pytest.raises(UsageError, match=r"splits is .*, expected some of: train, held-out-style"):
        read(write(f"{WHOLE}splits = {splits}\n"))


def test_shares_of_a_batch_are_no_more_than_one(write):
    lines = WHOLE.replace("draw", "read") + "caption_share = 0.6\nreply_share = 0.5\n"
    read_recipe(write(lines), (), Stage)  # replies is 0
    with pytest.raises(UsageError, match=r"reply_share 0\.5 and caption_share 0\.6 are more than a batch"):
        read_recipe(write(f"{lines}replies = 2\n"), (), Stage)


def test_a_key_of_many_parts_is_refused_before_it_is_read(write):
    with pytest.raises(InputError, match="a line with more than 100 dots"):
        read(write("a." * 50_000 + "b = 1\n"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("caption=noto style", r"caption is 'noto style', expected \{caption\} somewhere in it"),
        ("stesp=5", "stesp=5: kind joint has no stesp, it has: data, output"),
        ("steps", "--set steps: expected KEY=VALUE"),
        ("steps=many", "--set steps=many: steps: 'many', expected a whole number"),
        ("steps=1.5", "--set steps=1.5: steps: '1.5', expected a whole number"),
        ("compile=yes", "--set compile=yes: compile: 'yes', expected true or false"),
        ("learning_rate=fast", "--set learning_rate=fast: learning_rate: 'fast', expected a number"),
        ("train=denoiser,eye", "train is denoiser, eye, expected some of: conditioner, denoiser"),
        ("flow_weight=-1", "flow_weight is -1"),
        ("optimizer=sgd", "optimizer is 'sgd', expected one of: adamw, muon"),
        ("precision=fp16", "precision is 'fp16', expected one of: auto, bf16, fp32"),
        ("steps=0", "steps is 0, expected 1 or more"),
        ("batch=-1", "batch is -1"),
        ("seed=-1", "seed is -1, expected 0 or more"),
        (f"seed={10**30}", "seed is 1[0]{30}, expected 0 to 9223372036854775807"),
        ("threads=100000", "threads is 100000, expected 0 to 1024"),
        (f"batch={10**12}", "batch is 1[0]{12}, expected 1 to 2147483647"),
        ("lora_rank=5000", "lora_rank is 5000, expected 1 to 4096"),
        ("output=", "output is empty, expected a folder"),
        ("log_every=0", "log_every is 0"),
        ("drop_prompt=1.5", "drop_prompt is 1.5, expected 0 to 1"),
        ("ema=-0.1", "ema is -0.1, expected 0 to 1"),
        ("learning_rate=-1", "learning_rate is -1.0, expected 0 or more"),
        ("learning_rate=nan", "learning_rate: NaN, expected a finite number"),
        ("learning_rate=inf", "learning_rate: Infinity, expected a finite number"),
        ("clip=0", "clip is 0.0"),
        ("noises=7", "batch is [0-9]+, expected a multiple of noises, 7"),
        ("loss_floor=0", "loss_floor is 0.0"),
        ("lora_rank=0", "lora_rank is 0"),
        ("lora_targets=q_proj,head", "lora_targets is q_proj, head, expected some of: q_proj, k_proj"),
        ("lora_targets=", "lora_targets is empty"),
        ("groups=[a", r"--set groups=\[a: groups: '\[a', expected a list"),
        ("start=a\0b", "start holds a NUL character"),
    ],
)
def test_a_wrong_override_is_refused_with_its_key(write, override, message):
    with pytest.raises(UsageError, match=message):
        read_recipe(write(WHOLE.replace("draw", "joint")), [override], Stage)


STAGES = """data = "d"
output = "o"
steps = 9
[[stages]]
name = "first"
kind = "draw"
noises = 1
[[stages]]
name = "second"
kind = "joint"
train = ["conditioner", "denoiser", "transformer"]
flow_weight = 2
"""


def test_stages_follow_one_another_and_overrides_reach_all_or_one(write):
    first, second = read_stages(write(STAGES), ["start=small", "second.steps=3", "batch=5"])
    assert (first.kind, first.output, first.start, first.steps, first.batch) == ("draw", "o/first", "small", 9, 5)
    assert (second.kind, second.output, second.start) == ("joint", "o/second", "o/first/checkpoint")
    assert (second.steps, second.batch, second.flow_weight) == (3, 5, 2.0)
    assert second.train == ("conditioner", "denoiser", "transformer")
    assert read_stages(write(STAGES), ["second.start=x"])[1].start == "x"
    assert read_stages(write(WHOLE)) == [read(write(WHOLE))]


def test_a_line_above_the_stages_goes_to_those_that_have_it(write):
    first, second = read_stages(write("views = 7\n" + STAGES), ["reply_tokens=8", "noises=2", "batch=4"])
    assert (second.views, second.reply_tokens, second.noises, first.noises) == (7, 8, 2, 2)
    with pytest.raises(UsageError, match="perceptual_weight=1: kind draw has no perceptual_weight"):
        read_stages(write(STAGES), ["perceptual_weight=1"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "second"', 'name = "first"', "names of stages are"),
        ('name = "second"', "", "names of stages are"),
        ('name = "second"', 'name = "a/b"', "names of stages are"),
        ("flow_weight = 2", 'output = "x"', "second.output: a stage writes below the recipe's output"),
        ("flow_weight = 2", "stesp = 2", "stesp: unknown field"),
        (STAGES, WHOLE + "stages = 3\n", "stages is 3, expected tables"),
    ],
)
def test_a_wrong_stage_is_refused(write, old, new, message):
    with pytest.raises(InputError, match=message):
        read_stages(write(STAGES.replace(old, new)))


@pytest.mark.parametrize("key", ["kind", "data", "output"])
def test_what_has_no_default_must_be_there(write, key):
    text = "\n".join(line for line in WHOLE.splitlines() if not line.startswith(key))
    with pytest.raises(InputError, match=f"{key} is missing"):
        read(write(text))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_recipe_that_cannot_be_read_is_refused_by_its_name(tmp_path, content):
    if content:
        (tmp_path / "recipe.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"recipe\.toml"):
        read(tmp_path / "recipe.toml")


@pytest.mark.parametrize(("line", "code"), [("stesp = 5", 3), ("steps = 0", 2)])
def test_a_mistyped_recipe_is_answered_before_torch_is_loaded(write, line, code):
    words = ["train", "--config", str(write(f"{WHOLE}{line}\n"))]
    program = f"""
import sys
from edgemm.cli.main import main
code = main({words})
sys.exit(99 if "torch" in sys.modules else code)
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == code, ran.stderr
    assert line.split()[0] in ran.stderr
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "train", "message"),
    [
        ("read", ["denoiser"], "train is denoiser, and kind read teaches projection, transformer"),
        ("read", ["conditioner", "queries"], "train is conditioner, queries, and kind read teaches"),
        (
            "draw",
            ["projection"],
            "train is projection, and kind draw teaches conditioner, denoiser, queries, transformer",
        ),
        ("graph", ["transformer"], "train is transformer, and kind graph chooses its parts itself"),
    ],
)
def test_parts_of_which_a_kind_teaches_none_are_refused(write, kind, train, message):
    with pytest.raises(UsageError, match=message):
        read_recipe(write(f'kind = "{kind}"\ndata = "d"\noutput = "o"\ntrain = {json.dumps(train)}'), [], Stage)


def test_some_that_it_does_not_teach_are_known_by_name():
    assert ReadRecipe(data="d", output="o", train=("denoiser", "transformer")).idle == ("denoiser",)
    assert JointRecipe(data="d", output="o", train=("denoiser", "projection")).idle == ()


@pytest.mark.parametrize(
    ("verb", "kind", "lines", "message"),
    [
        (
            Stage,
            "read",
            ["train=projection", "train_projection=false"],
            "train names the projection, and train_projection",
        ),
        (Stage, "graph", ["pictures=8"], "pictures is 8, and all graphs of the splits are asked about: leave"),
        (Stage, "graph", ["groups=a"], "groups is .*, and all graphs of the splits are asked about: leave"),
        (FinetuneRecipe, "finetune", ["parts=transformer", "caption={caption}, x"], "caption is .*only reading learns"),
        (FinetuneRecipe, "finetune", ["parts=denoiser", "replies=4"], "replies is 4, and only drawing learns"),
        (DistillRecipe, "student", ["parts=transformer", "more=a"], "more is .*only reading learns"),
        (DistillRecipe, "student", ["parts=denoiser", "blend=0.5"], "blend is 0.5, and only drawing learns"),
    ],
)
def test_lines_that_nothing_would_come_of_are_refused(verb, kind, lines, message):
    needed = {Stage: [], FinetuneRecipe: ["start=s"], DistillRecipe: ["teacher=t", "student=nano"]}[verb]
    common = ["data=d", "output=o", *needed]
    with pytest.raises(UsageError, match=message):
        read_recipe(None, [*common, *lines], verb, kind)
    both = ["parts=both", *lines[1:]] if lines[0].startswith("parts") else lines[1:]
    assert read_recipe(None, [*common, *both], verb, "read" if verb is Stage and kind == "graph" else kind)
