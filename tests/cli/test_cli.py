"""The command line: one line and the right exit code for whatever goes wrong, and no half result."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError

import edgemm
from edgemm.bundle.bundle import open_bundle
from edgemm.bundle.manifest import Limits
from edgemm.cli import main as cli
from edgemm.cli.inspect import describe
from edgemm.cli.main import VERBS, Verb, main
from tests.runtimes.test_memory import limit_mb
from tests.runtimes.tiny_bundle import build

ROOT = Path(__file__).resolve().parent.parent
PROMPT = ["--prompt", "a red heart"]
BUSY_S = 600  # a machine that trains at the same time
FULL = "Error while serializing: I/O error: No space left on device (os error 28)"  # safetensors'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    limits = Limits(max_context=600, max_image_pixels=1_000_000, max_steps=10_000_000)
    return build(tmp_path_factory.mktemp("bundles") / "tiny.bundle", limits=limits)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "seen.png"
    Image.fromarray(np.full((8, 8, 3), 200, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def fails(capsys):
    """Runs a command that has to fail with one line, and gives that line."""

    def run(code, *words):
        assert main([str(word) for word in words]) == code
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("edgemm: error: "), lines
        return lines[0]

    return run


def start(*words, **options):
    command = [sys.executable, "-m", "edgemm", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


# Verbs


def test_chat_prints_the_reply_and_nothing_else(bundle, picture, capsys):
    words = ["chat", str(bundle), "--prompt", "what?", "--image", str(picture), "--max-new-tokens", "9"]
    assert main(words) == 0
    printed = capsys.readouterr()
    with edgemm.load(bundle, device="cpu") as model:
        expected = model.generate_text("what?", images=[picture], max_new_tokens=9)
    assert (printed.out, printed.err) == (expected.text + "\n", "")
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["token_ids"] == list(expected.token_ids)
    assert document["metrics"]["new_tokens"] == 9


def test_flags_may_have_underscores(bundle, capsys):
    assert main(["chat", str(bundle), "--prompt", "a_b", "--max_new_tokens=3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["new_tokens"] == 3


def test_chat_takes_the_prompt_from_a_pipe(bundle, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main(["chat", str(bundle), "--max-new-tokens", "5", "--json"]) == 0
    piped = json.loads(capsys.readouterr().out)
    assert main(["chat", str(bundle), "--prompt", "hello", "--max-new-tokens", "5", "--json"]) == 0
    assert piped["token_ids"] == json.loads(capsys.readouterr().out)["token_ids"]


def test_chat_converses_on_a_terminal(bundle, picture):
    here, there = pty.openpty()
    process = start("chat", bundle, "--max-new-tokens", 4, stdin=there)
    os.close(there)
    os.write(here, f"/image {picture}\nhello\n/image none.png\nwhat?\nagain\n/reset\nhello\n/quit\n".encode())
    out, err = process.communicate(timeout=BUSY_S)
    os.close(here)
    assert process.returncode == 0
    assert out.count(b"> ") == 8
    assert b"none.png: cannot be read" in err
    assert b"Traceback" not in err


def test_a_message_that_memory_does_not_hold_ends_no_conversation(bundle):
    here, there = pty.openpty()
    limit = limit_mb(bundle, 300)
    process = start("chat", bundle, "--max-new-tokens", 4, "--memory-limit-mb", limit, stdin=there)
    os.close(there)
    os.write(here, f"hello\n{'y' * 400}\nagain\n/quit\n".encode())
    out, err = process.communicate(timeout=BUSY_S)
    os.close(here)
    assert (process.returncode, out.count(b"> ")) == (0, 4), err
    assert err.count(b"edgemm: ") == 1 and b"Traceback" not in err


def test_draw_writes_the_picture_of_the_seed(bundle, tmp_path, capsys):
    output = tmp_path / "heart.png"
    output.write_bytes(b"an old file")
    assert main(["draw", str(bundle), *PROMPT, "--output", str(output), "--seed", "5"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith(f"Wrote {output} (4 x 4, 4 steps in ")
    with edgemm.load(bundle, device="cpu") as model, Image.open(output) as drawn:
        assert np.array_equal(np.asarray(drawn), model.generate_image("a red heart", seed=5).image.to_array())


def test_draw_numbers_many_pictures(bundle, tmp_path, capsys):
    words = [*PROMPT, "--num-images", "2", "--json", "--num-inference-steps", "3", "--guidance-scale", "1"]
    assert main(["draw", str(bundle), "--output", str(tmp_path / "x.png"), *words]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["files"] == [str(tmp_path / "x-0.png"), str(tmp_path / "x-1.png")]
    assert document["seeds"] == [0, 1]
    assert document["metrics"]["steps"] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-0.png", "x-1.png"]


def test_draw_shows_progress_when_asked(bundle, tmp_path, capsys):
    assert main(["draw", str(bundle), *PROMPT, "--output", str(tmp_path / "x.png"), "--show-progress"]) == 0
    assert " 4/4 " in capsys.readouterr().err


def test_inspect_says_what_is_inside(bundle, capsys):
    assert main(["inspect", str(bundle)]) == 0
    page = capsys.readouterr().out
    assert "tiny: family mot" in page
    assert "draws 4 x 4 px in 4 steps" in page
    assert main(["inspect", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tiny"


def test_columns_stay_apart_where_a_dialect_is_long(bundle):
    opened = open_bundle(bundle)
    found = {
        name: replace(
            component, variants={v: replace(x, dialect="opset24+com.microsoft") for v, x in component.variants.items()}
        )
        for name, component in opened.manifest.components.items()
    }
    page = "\n".join(describe(replace(opened, manifest=replace(opened.manifest, components=found))))
    head, *rows = page.split("\n\n")[1].splitlines()
    assert head.split() == ["component", "variant", "dialect", "precision", "size"]
    assert rows and all(row.split()[2:4] == ["opset24+com.microsoft", "fp32"] for row in rows)


def test_verify_says_what_was_checked(bundle, capsys):
    assert main(["verify", str(bundle), "--no-parity"]) == 0
    assert "12 files and 5 graphs are as exported; what they compute was not compared" in capsys.readouterr().out
    assert main(["verify", str(bundle), "--no-parity", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 12


def test_verify_asks_the_exporter_what_the_graphs_compute(bundle, capsys, monkeypatch):
    from edgemm.cli import verify as verify_verb

    monkeypatch.setattr(verify_verb, "PARITY", ("tests.cli.test_cli", "parity_of"))
    monkeypatch.setitem(sys.modules, "tests.cli.test_cli", sys.modules[__name__])
    assert main(["verify", str(bundle)]) == 0
    assert "all values close for tiny" in capsys.readouterr().out


def parity_of(opened):
    return [f"-[✓] all values close for {opened.manifest.name}"]


def test_verify_fails_with_every_altered_file_by_name(bundle, tmp_path, fails):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.bundle"))
    (copy / "NOTICE").write_bytes(b"made by a TEST\n")
    (copy / "tokenizer.json").unlink()
    line = fails(7, "verify", copy)
    assert "2 of 12 files are not as exported" in line
    assert "NOTICE: SHA-256" in line and "tokenizer.json: missing" in line


# What goes wrong


def test_an_unknown_verb_gets_a_suggestion(fails):
    assert "unknown verb 'drow'; did you mean 'draw'?" in fails(2, "drow")
    assert "expected one of: data, train" in fails(2, "xyz")


def test_nothing_at_all_shows_the_verbs(capsys):
    assert main([]) == 2
    assert "draw a picture" in capsys.readouterr().err
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"  {name} " in page for name in VERBS)


def test_a_wrong_flag_is_one_line(bundle, fails):
    assert "--colour" in fails(2, "draw", bundle, *PROMPT, "--output", "x.png", "--colour", "red")
    assert "--output" in fails(2, "draw", bundle, *PROMPT)
    assert "invalid int value: 'many'" in fails(2, "chat", bundle, "--max-new-tokens", "many")


def test_a_flag_with_two_values_is_refused_and_one_that_is_repeated_is_not(bundle, tmp_path, fails):
    """argparse takes the last and says nothing."""
    for said, words in (
        ("--video: b.mp4, where given before a.mp4", ["chat", bundle, "--video", "a.mp4", "--video", "b.mp4"]),
        ("--seed: 2, where given before 1", ["data", "shapes", "--output", tmp_path / "x", "--seed", 1, "--seed", 2]),
        ("--splits: ['b'], where given before ['a']", ["eval", "x", "--data", "y", "--splits", "a", "--splits", "b"]),
        ("--json: json, where -o gave csv", ["bench", bundle, "-o", "csv", "--json"]),
        (
            "lookup: False, where --prompt-lookup gave",
            ["export", "x", "--output", "y", "--prompt-lookup", "--no-prompt-lookup"],
        ),
        ("--backend names denoiser twice", ["chat", bundle, "--prompt", "x", "--backend", "denoiser=a,denoiser=b"]),
    ):
        assert said in fails(2, *words)
    same = ["--seed", "5", "--seed", "5", "--output", str(tmp_path / "x.png")]
    assert main(["draw", str(bundle), *PROMPT, *same]) == 0


def test_a_missing_extra_is_named_with_its_cure(fails, monkeypatch):
    monkeypatch.setitem(VERBS, "chat", Verb("tests.needs_torch", "train", ""))
    import types

    module = types.ModuleType("tests.needs_torch")
    module.add_arguments = lambda parser: None
    module.run = lambda args: __import__("a_library_nobody_has")
    monkeypatch.setitem(sys.modules, "tests.needs_torch", module)
    assert fails(4, "chat").endswith("`edgemm chat` needs a_library_nobody_has: pip install 'edgemm[train]'")


def test_a_verb_that_is_not_installed_says_so(fails, monkeypatch):
    monkeypatch.setitem(VERBS, "eval", Verb("edgemm.nowhere.verb", "train", ""))
    assert "has no edgemm.nowhere.verb" in fails(4, "eval")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 5, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), 5, "the disk is full"),
        (SafetensorError(FULL), 5, f"the disk is full: {FULL}"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 3, "/x: Permission denied"),
        (ZeroDivisionError("oh"), 1, "a bug: ZeroDivisionError: oh (--debug shows where)"),
        (edgemm.CheckFailedError("worse\nthan before"), 7, "worse than before"),
    ],
)
def test_every_failure_is_one_line_with_its_code(fails, monkeypatch, error, code, message):
    def run(words):
        raise error

    monkeypatch.setattr(cli, "_run", run)
    assert fails(code, "chat") == f"edgemm: error: {message}"


def test_debug_shows_the_traceback(capsys):
    assert main(["inspect", "none", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_bad_input_is_told_with_its_name_and_its_code(bundle, tmp_path, fails):
    output = ["--output", tmp_path / "x.png"]
    (tmp_path / "odd.png").write_text("hello")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    for name in ("d.png", "d-1.png"):
        (tmp_path / name).mkdir()
    asked = ["chat", bundle, "--prompt"]
    drawn = ["draw", bundle, *PROMPT, *output]
    for code, message, words in (
        (3, "none.bundle: does not exist", ["chat", tmp_path / "none.bundle", "--prompt", "x"]),
        (3, "odd.png: not a picture", [*asked, "x", "--image", tmp_path / "odd.png"]),
        (3, "no.png: cannot be read", [*asked, "x", "--image", tmp_path / "no.png"]),
        (3, "100000000 pixels, at most 1000000", [*asked, "x", "--image", tmp_path / "huge.png"]),
        (2, "prompt is empty", [*asked, ""]),
        (3, "takes 1019 tokens, this bundle holds at most 600", [*asked, "x" * 1000]),
        (2, "temperature is -1.0", [*asked, "x", "--temperature", "-1"]),
        (2, "9 is too large a number", [*asked, "x", "--seed", "9" * 400]),
        (2, "inf is too large a number", [*asked, "x", "--memory-limit-mb", "inf"]),
        (2, "prompt is empty", ["draw", bundle, "--prompt", " ", *output]),
        (2, "num_inference_steps is 0", [*drawn, "--num-inference-steps", 0]),
        (2, "seed is -1", [*drawn, "--seed", -1]),
        (2, "guidance_scale is nan", [*drawn, "--guidance-scale", "nan"]),
        (2, "no picture format ends in '.xyz'", ["draw", bundle, *PROMPT, "--output", tmp_path / "x.xyz"]),
        (3, "there is no folder", ["draw", bundle, *PROMPT, "--output", tmp_path / "no" / "x.png"]),
        (3, "d.png: is a folder", ["draw", "none", *PROMPT, "--output", tmp_path / "d.png"]),
        (3, "d-1.png: is a folder", ["draw", "none", *PROMPT, "--num-images", 2, "--output", tmp_path / "d.png"]),
        (4, "pip install 'edgemm[cuda]'", [*drawn, "--device", "cuda"]),
        (2, "device is 'abacus'", [*drawn, "--device", "abacus"]),
        (5, "--timeout-s 1e-09 ran out", [*drawn, "--timeout-s", "1e-9"]),
    ):
        assert message in fails(code, *words)
    assert not (tmp_path / "x.png").exists()


def test_a_full_disk_leaves_the_old_picture(bundle, tmp_path, fails, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    output = tmp_path / "x.png"
    output.write_bytes(b"the old one")
    monkeypatch.setattr(os, "fsync", full)
    assert "the disk is full" in fails(5, "draw", bundle, *PROMPT, "--output", output)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert output.read_bytes() == b"the old one"


def test_ctrl_c_is_one_line_130_and_no_half_picture(bundle, tmp_path):
    steps = ["--num-inference-steps", 500_000, "--show-progress"]  # minutes
    process = start("draw", bundle, *PROMPT, "--output", tmp_path / "x.png", *steps)
    assert process.stderr is not None
    while b"drawing" not in process.stderr.read(64):
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=BUSY_S)
    assert process.returncode == 130
    assert out == b""
    assert err.splitlines()[-1].endswith(b"edgemm: interrupted")
    assert b"Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_nobody_reading_is_quiet(bundle):
    process = start("inspect", bundle)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=BUSY_S) == 141
    assert process.stderr.read() == b""


def test_stdin_that_is_no_utf_8_is_the_inputs_fault(bundle, monkeypatch, fails):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert "standard input: cannot be read: not UTF-8" in fails(3, "chat", bundle)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_output_that_lacks_a_letter_says_it_as_json_does(monkeypatch, encoding):
    text = "caf\u00e9 \U0001f496 \u2603"
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
    monkeypatch.setattr(cli, "_run", lambda words: print(json.dumps({"text": text}, ensure_ascii=False)) or 0)
    assert main(["chat"]) == 0
    assert json.loads(written.getvalue().decode(encoding)) == {"text": text}


def test_an_empty_path_is_no_folder_where_one_stands(fails, tmp_path):
    """As from a shell's variable that is not set."""
    said = fails(2, "data", "pictures", "--source", "", "--output", tmp_path / "set")
    assert "--source: an empty path" in said


def test_a_path_with_a_nul_in_it_is_the_inputs_fault(bundle, fails, tmp_path):
    assert "null byte" in fails(3, "draw", bundle, *PROMPT, "--output", tmp_path / "a\0b.png")
    assert "a\\0b.txt" in fails(3, "chat", bundle, "--prompt", "x", "--grammar", "a\0b.txt")
