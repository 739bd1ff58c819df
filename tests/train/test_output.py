"""What stands at `--output`: a verb that writes a folder replaces its own kind alone, and nothing that it reads.

It asks before it works: nothing here is a model, and nothing is loaded.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from edgemm.cli import data as data_verb
from edgemm.cli.main import main
from edgemm.errors import InputError, ResourceError
from edgemm.families import fewer_tokens
from edgemm.model import checkpoint
from edgemm.train import distill
from edgemm.train.adapters import save_adapter
from edgemm.train.stores import TeacherCache
from edgemm.train.tasks.align import kept_features
from tests.model.tiny import micro, random_micro
from tests.train.conftest import EMOJI, ROOT

DISTILL = ["distill", "--data", str(EMOJI), "--teacher"]
TRAIN = ["train", "--config", str(ROOT / "recipes" / "micro-shapes.toml"), "--data", str(EMOJI)]
STAGES = '[[stages]]\nname = "draw"\nkind = "draw"\n[[stages]]\nname = "read"\nkind = "read"\n'

# verb -> its words, and what it replaces below `--output`; {model}, {adapter} and {photos} are folders
VERBS: dict[str, tuple[list[str], str]] = {
    "merge": (["merge", "{model}", "{adapter}", "--output", "{out}"], ""),
    "join": (["join", "--drawing", "{model}", "--reading", "{model}", "--output", "{out}"], ""),
    "trim": (["trim", "{model}", "--vocabulary", "900", "--output", "{out}"], ""),
    "trim a text model": (["trim", "{llama}", "--vocabulary", "900", "--output", "{out}"], ""),
    "train": ([*TRAIN, "--output", "{out}"], "checkpoint"),
    "train in stages": (["train", "--config", "{stages}", "--output", "{out}"], "read/checkpoint"),
    "distill": ([*DISTILL, "{model}", "--student", "nano", "--output", "{out}"], "checkpoint"),
    "distill --few": ([*DISTILL, "{model}", "--few", "2,1", "--output", "{out}"], "checkpoint"),
    "finetune": (["finetune", "{model}", "--data", str(EMOJI), "--output", "{out}"], "adapters/adapter"),
    "quantize": (["quantize", "{model}", "--bitsandbytes", "int8", "--overwrite", "--output", "{out}"], ""),
    "data": (["data", "shapes", "--force", "--output", "{out}"], ""),
}
READS_IT: dict[str, list[str]] = {
    "merge": ["merge", "{model}", "{adapter}", "--output", "{model}"],
    "merge, its own adapter": ["merge", "{copy}", "{model}/transformer_adapter", "--output", "{model}"],
    "join, drawing": ["join", "--drawing", "{model}", "--reading", "{copy}", "--output", "{model}"],
    "join, reading": ["join", "--drawing", "{copy}", "--reading", "{model}", "--output", "{model}"],
    "trim": ["trim", "{model}", "--vocabulary", "900", "--output", "{model}"],
    "trim, through a link": ["trim", "{link}", "--vocabulary", "900", "--output", "{model}"],
    "train": [*TRAIN, "--set", "start={model}", "--output", "{run}"],
    "distill, teacher": [*DISTILL, "{model}", "--student", "nano", "--output", "{run}"],
    "distill, student": [*DISTILL, "{copy}", "--student", "{model}", "--output", "{run}"],
    "quantize": ["quantize", "{model}", "--bitsandbytes", "int8", "--overwrite", "--output", "{model}"],
    "data pictures": ["data", "pictures", "--source", "{model}/photos", "--force", "--output", "{model}"],
}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Folders that look like what verbs are given; whoever begins to work with one fails."""
    model = tmp_path / "run" / "checkpoint"
    model.mkdir(parents=True)
    (model / "config.json").write_text((ROOT / "checkpoints" / "micro-shapes" / "config.json").read_text())
    for name in ("model.safetensors", "tokenizer.json", "dataset.json"):
        (model / name).write_text("mine")
    (model / "photos").mkdir()
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    (tmp_path / "adapter" / "denoiser").mkdir(parents=True)
    (tmp_path / "stages.toml").write_text(f'data = "{EMOJI}"\nstart = "micro"\nsteps = 1\n{STAGES}')
    shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "link").symlink_to(model)

    def works(*_: object, **__: object) -> None:
        raise AssertionError("the verb began to work")

    for module, name in (
        (checkpoint, "load"),
        (checkpoint, "build"),
        (fewer_tokens, "open_checkpoint"),
        (distill, "run_loop"),
        (data_verb, "_build"),
    ):
        monkeypatch.setattr(module, name, works)
    names = ("adapter", "llama", "copy", "link", "run", "out")
    return {name: str(tmp_path / name) for name in names} | {
        "model": str(model),
        "stages": str(tmp_path / "stages.toml"),
    }


def files(folder: str) -> dict[str, str]:
    return {str(path): path.read_text() for path in Path(folder).rglob("*") if path.is_file()}


def told(words: list[str], places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of error of a refused command."""
    code = main([word.format(**places) for word in words])
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert code == 3 and len(lines) == 1, (code, lines)
    return lines[0]


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_of_something_else_is_kept(verb, places, capsys):
    words, result = VERBS[verb]
    photos = Path(places["out"], result)
    photos.mkdir(parents=True)
    (photos / "config.json").write_text("of my camera")
    before = files(places["out"])
    line = told(words, places, capsys)
    assert f"{photos}: exists and holds no " in line and "so it will not be replaced; choose another name" in line
    assert files(places["out"]) == before


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_is_kept(verb, places, capsys):
    words, result = VERBS[verb]
    place = Path(places["out"], result)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("mine")
    assert main([word.format(**places) for word in words]) in (2, 3)
    assert str(place) in capsys.readouterr().err and place.read_text() == "mine"


@pytest.mark.parametrize("verb", READS_IT)
def test_what_is_read_is_kept(verb, places, capsys):
    if verb.startswith("merge, "):
        Path(places["model"], "transformer_adapter").mkdir()
    before = files(places["run"])
    line = told(READS_IT[verb], places, capsys)
    assert f"{places['model']}: " in line and "is read from there and stays as it is; choose another name" in line
    assert files(places["run"]) == before


@pytest.mark.parametrize("holds", [[], ["config.json", "model.safetensors"]], ids=["empty", "a model"])
def test_a_model_may_take_the_place_of_a_model(tmp_path, holds):
    model = random_micro(micro())
    for name in holds:
        (tmp_path / name).write_text("old")
    checkpoint.save(model, tmp_path)
    assert checkpoint.load(tmp_path).config == model.config


def test_whoever_saves_without_asking_is_told_too(tmp_path):
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no model"):
        checkpoint.save(random_micro(micro()), tmp_path)
    with pytest.raises(InputError, match="holds no adapter"):
        save_adapter({}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


@pytest.mark.parametrize("what", ["features", "a teacher's answer", "an adapter"])
def test_whoever_fills_the_disk_is_told_what_was_needed_and_leaves_nothing_half_written(tmp_path, monkeypatch, what):
    class Adapted(torch.nn.Linear):
        def save_pretrained(self, folder: str) -> None:
            Path(folder).mkdir()
            safetensors.torch.save_file(dict(self.state_dict()), Path(folder, "adapter_model.safetensors"))

    def filled(tensors, path, metadata=None):
        Path(path).write_bytes(b"the first part")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", filled)
    numbers = torch.zeros(250)
    with pytest.raises(ResourceError, match=r"disk full: needs 1000 bytes, \d+ are free") as full:
        if what == "features":
            kept_features(tmp_path / "x", "key", lambda: numbers)
        elif what == "an adapter":
            save_adapter({"denoiser": Adapted(250, 1, bias=False)}, tmp_path / "x")  # type: ignore[dict-item]
        else:
            TeacherCache(tmp_path, {}).get("x", lambda: {"numbers": numbers})
    assert str(full.value).startswith(str(tmp_path / "x"))
    assert {path.name for path in tmp_path.iterdir()} <= {"teacher.json"}
