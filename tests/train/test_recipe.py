"""Recipes: every slip is answered with the key's name, and before torch is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgemm.errors import InputError, UsageError
from edgemm.train.distill_recipe import DistillRecipe
from edgemm.train.finetune_recipe import FinetuneRecipe
from edgemm.train.recipe import Recipe, read_recipe, read_stages

ROOT = Path(__file__).resolve().parents[2]
WHOLE = 'task = "draw"\ndata = "d"\noutput = "o"\n'


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        (tmp_path / "recipe.toml").write_text(text)
        return tmp_path / "recipe.toml"

    return write


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid(path):
    if path.stem.startswith(("sticker-few", "micro-few", "sticker-nano-draw", "sticker-nano-read")):
        read_recipe(path, ["task=draw"], DistillRecipe)
    elif path.stem.endswith("-lora"):
        read_recipe(path, ["task=draw"], FinetuneRecipe)
    else:
        assert read_stages(path)


def test_what_a_recipe_leaves_out_has_its_default(write):
    assert read_recipe(write(WHOLE)) == Recipe(task="draw", data="d", output="o")


def test_overrides_win_and_have_the_fields_types(write):
    overrides = ["steps=7", "learning_rate=1e-4", "compile=true", "groups=a-b,c", "start=x=y", "lora_targets=k_proj"]
    recipe = read_recipe(write(WHOLE + "steps = 5\n"), overrides)
    assert (recipe.steps, recipe.learning_rate, recipe.compile, recipe.start) == (7, 1e-4, True, "x=y")
    assert (recipe.groups, recipe.lora_targets) == (("a-b", "c"), ("k_proj",))
    assert read_recipe(write(WHOLE), ['groups=["a-b", "c"]']).groups == ("a-b", "c")


def test_whole_numbers_may_stand_for_fractions_and_lists_for_tuples(write):
    recipe = read_recipe(write(WHOLE + 'clip = 2\nsplits = ["train", "scorer"]\n'))
    assert (recipe.clip, recipe.splits) == (2.0, ("train", "scorer"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stesp = 5", "unknown key 'stesp'; known: task, data"),
        ('steps = "many"', "steps is 'many', expected int"),
        ("steps = 1.5", "steps is 1.5, expected int"),
        ("steps = true", "steps is True, expected int"),
        ("data = 3", "data is 3, expected str"),
        ('groups = "food-drink"', "groups is 'food-drink', expected a list of strings"),
        ("groups = [1]", r"groups is \[1\], expected a list of strings"),
        ('learning_rate = "1e-3"', "learning_rate is '1e-3', expected float"),
        ("steps =", "not TOML"),
    ],
)
def test_a_wrong_line_is_refused_with_its_key(write, line, message):
    text = "\n".join(kept for kept in WHOLE.splitlines() if kept.split()[0] != line.split()[0])
    with pytest.raises(InputError, match=message) as refusal:
        read_recipe(write(f"{text}\n{line}\n"))
    assert "recipe.toml" in str(refusal.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("caption=noto style", r"caption is 'noto style', expected \{caption\} somewhere in it"),
        ("stesp=5", "--set stesp=5: expected key=value with a key of: task"),
        ("steps", "--set steps: expected key=value"),
        ("steps=many", "--set steps=many: expected int"),
        ("steps=1.5", "--set steps=1.5: expected int"),
        ("compile=yes", "--set compile=yes: expected bool"),
        ("learning_rate=fast", "--set learning_rate=fast: expected float"),
        ("task=sing", "task is 'sing', expected one of: draw, read, edit, joint, autoencode"),
        ("train=denoiser,eye", "train is denoiser, eye, expected some of: conditioner, denoiser"),
        ("flow_weight=-1", "flow_weight is -1"),
        ("optimizer=sgd", "optimizer is 'sgd', expected one of: adamw, muon"),
        ("precision=fp16", "precision is 'fp16', expected one of: auto, bf16, fp32"),
        ("steps=0", "steps is 0, expected 1 or more"),
        ("batch=-1", "batch is -1"),
        ("seed=-1", "seed is -1, expected 0 or more"),
        ("log_every=0", "log_every is 0"),
        ("drop_prompt=1.5", "drop_prompt is 1.5, expected 0 to 1"),
        ("ema=-0.1", "ema is -0.1, expected 0 to 1"),
        ("learning_rate=-1", "learning_rate is -1.0, expected 0 or more"),
        ("learning_rate=nan", "learning_rate is nan"),
        ("learning_rate=inf", "learning_rate is inf"),
        ("clip=0", "clip is 0.0"),
        ("noises=7", "batch is [0-9]+, expected a multiple of noises, 7"),
        ("loss_floor=0", "loss_floor is 0.0"),
        ("lora_rank=0", "lora_rank is 0"),
        ("lora_targets=q_proj,head", "lora_targets is q_proj, head, expected some of: q_proj, k_proj"),
        ("lora_targets=", "lora_targets is empty"),
        ("groups=[a", "--set groups=.a: expected tuple"),
    ],
)
def test_a_wrong_override_is_refused_with_its_key(write, override, message):
    with pytest.raises(UsageError, match=message):
        read_recipe(write(WHOLE), [override])


STAGES = """data = "d"
output = "o"
steps = 9
[[stages]]
name = "first"
task = "draw"
[[stages]]
name = "second"
task = "joint"
train = ["conditioner", "denoiser", "transformer"]
flow_weight = 2
"""


def test_stages_follow_one_another_and_overrides_reach_all_or_one(write):
    first, second = read_stages(write(STAGES), ["start=small", "second.steps=3", "batch=5"])
    assert (first.task, first.output, first.start, first.steps, first.batch) == ("draw", "o/first", "small", 9, 5)
    assert (second.task, second.output, second.start) == ("joint", "o/second", "o/first/checkpoint")
    assert (second.steps, second.batch, second.flow_weight) == (3, 5, 2.0)
    assert second.train == ("conditioner", "denoiser", "transformer")
    assert read_stages(write(STAGES), ["second.start=x"])[1].start == "x"
    assert read_stages(write(WHOLE)) == [read_recipe(write(WHOLE))]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "second"', 'name = "first"', "names of stages are"),
        ('name = "second"', "", "names of stages are"),
        ('name = "second"', 'name = "a/b"', "names of stages are"),
        ("flow_weight = 2", 'output = "x"', "second.output: a stage writes below the recipe's output"),
        ("flow_weight = 2", "stesp = 2", "unknown key 'stesp'"),
        (STAGES, WHOLE + "stages = 3\n", "stages is 3, expected tables"),
    ],
)
def test_a_wrong_stage_is_refused(write, old, new, message):
    with pytest.raises(InputError, match=message):
        read_stages(write(STAGES.replace(old, new)))


@pytest.mark.parametrize("key", ["task", "data", "output"])
def test_what_has_no_default_must_be_there(write, key):
    text = "\n".join(line for line in WHOLE.splitlines() if not line.startswith(key))
    with pytest.raises(InputError, match=f"{key} is missing"):
        read_recipe(write(text))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_recipe_that_cannot_be_read_is_refused_by_its_name(tmp_path, content):
    if content:
        (tmp_path / "recipe.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"recipe\.toml"):
        read_recipe(tmp_path / "recipe.toml")


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
