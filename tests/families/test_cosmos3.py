"""Cosmos3 Edge and Omni: what transformers read and diffusers drew of one folder, by the exported bundle."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import edgemm
from edgemm.bundle.bundle import open_bundle
from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.bundle.prompt import drawing_prompt, negative_drawing_prompt
from edgemm.cli.main import main
from edgemm.cli.verify import check_rules
from edgemm.families.cosmos3_layers import Generator
from edgemm.verify.export_foreign import export_foreign
from tests.engines.tiny_engines import build_for_rtx, needs_rtx
from tests.export.nano import needs_opset_24
from tests.families.golden import Cases, found_at, worst
from tests.families.oracle import check_batch
from tests.families.tiny.folders import write_folder

LOGITS, LATENTS, PIXELS = 1e-4, 1e-4, 5e-5
WHAT = "what?"  # was asked of every picture
CASES = {  # name -> what was asked otherwise than the usual
    "base": {},
    "seed": {},
    "prompt": {"prompt": "two blue dogs"},
    "unguided": {"guidance_scale": 1.0},
    "guidance": {"guidance_scale": 3.0},
    "negative": {"negative_prompt": "blurred"},
    "size": {"height": 48, "width": 80},
    "steps": {"num_inference_steps": 6},
}
USUAL = {"prompt": "a red cube", "guidance_scale": 6.0, "height": 64, "width": 96, "num_inference_steps": 4}


@pytest.fixture(scope="module", params=["edge", "omni"])
def cases(request):
    return Cases(f"cosmos3-{request.param}")


@pytest.fixture(scope="module")
def model(cases, tmp_path_factory):
    place = tmp_path_factory.mktemp("cosmos3") / "made.bundle"
    export_foreign(found_at(cases.folder / "checkpoint"), place)
    with edgemm.load(place, device="cpu", threads=1) as opened:
        yield opened


def picture(patches: np.ndarray, merge: int = 2, patch: int = 8) -> np.ndarray:
    """(3, S, S) in [0, 1] of a square's recorded patches, in blocks: row, column, colour, or colour first, twice."""
    blocks = round((len(patches) / merge**2) ** 0.5)
    grid = patches.reshape(blocks, blocks, merge, merge, -1)
    if grid.shape[-1] == 3 * patch**2:
        x = grid.reshape(*grid.shape[:4], patch, patch, 3).transpose(6, 0, 2, 4, 1, 3, 5)
    else:
        x = grid.reshape(*grid.shape[:4], 3, 2, patch, patch)[..., 0, :, :].transpose(4, 0, 2, 5, 1, 3, 6)
    return x.reshape(3, blocks * merge * patch, -1) / 2 + 0.5


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (1, 3)])
def test_the_last_patches_are_filled_up_with_zeros(height, width):
    patched, latents = SimpleNamespace(patch=2), torch.randn(2, 6, height, width)
    filled = torch.nn.functional.pad(latents, (0, -width % 2, 0, -height % 2))
    rows = filled.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 3, 5, 1).flatten(3)
    found = Generator.rows(patched, latents)
    assert torch.equal(found, rows) and torch.equal(Generator.latents(patched, rows, latents), latents)


@pytest.mark.parametrize("name", ["text", "other"])
def test_questions_about_a_square_and_without_are_answered_as_by_the_library(model, cases, name):
    loop, seen = model.manifest.loops.text, []
    if f"read/{name}/pixel_values" in cases:
        seen = [picture(cases.arrays[f"read/{name}/pixel_values"]).astype(np.float32)]
    prompt = chat_prompt(as_messages(WHAT, [None] * len(seen)), loop, model.tokenizer)
    np.testing.assert_array_equal(prompt.input_ids, cases.arrays[f"read/{name}/ids"])
    conversation = model._text.conversation()
    logits = conversation.prefill(prompt, model._text.reader.encode(seen, loop) if seen else None)
    assert worst(logits, cases.arrays[f"read/{name}/logits"][-1]) <= LOGITS
    said = [int(logits.argmax())]
    wanted = cases.arrays[f"read/{name}/reply"].tolist()
    while len(said) < len(wanted):
        said.append(int(conversation.step(said[-1]).argmax()))
    assert said == wanted


@pytest.mark.parametrize("name", CASES)
def test_pictures_are_drawn_as_by_the_library_step_by_step(model, cases, name):
    loop, asked, at = model.manifest.loops.denoise, USUAL | CASES[name], f"draw/{name}"
    size, negative = (asked["height"], asked["width"]), asked.get("negative_prompt", "")
    ids = drawing_prompt(asked["prompt"], loop.template, model.tokenizer, size=size).input_ids
    np.testing.assert_array_equal(ids, cases.arrays[f"{at}/ids"])
    if f"{at}/negative_ids" in cases:
        away = negative_drawing_prompt(negative, loop.negative_template, model.tokenizer, size=size).input_ids
        np.testing.assert_array_equal(away, cases.arrays[f"{at}/negative_ids"])
    prompt = asked.pop("prompt")
    *events, last = model.stream_image(prompt, noise=cases.arrays[f"{at}/noise"][0, :, 0], **asked)
    for event, wanted in zip(events, cases.arrays[f"{at}/latents"], strict=True):
        assert worst(event.latents, wanted[0, :, 0]) <= LATENTS
    assert worst(last.image.pixels.transpose(1, 2, 0), cases.arrays[f"{at}/pixels"]) <= PIXELS


def test_pictures_of_one_call_are_what_their_seeds_give_alone(model):
    check_batch(model, height=48, width=64)


@pytest.mark.slow
def test_what_was_never_recorded_is_drawn_as_by_the_installed_library(model, cases):
    check_drawn_as_by_diffusers(model, cases.folder / "checkpoint")


@pytest.mark.slow
def test_a_folder_of_other_sizes_is_read_and_drawn_as_by_the_installed_libraries(cases, tmp_path):
    pytest.importorskip("diffusers", reason="Python 3.10 has no diffusers")
    folder = write_folder("cosmos3", tmp_path / "other", recorded=cases.folder / "checkpoint")
    export_foreign(found_at(folder), tmp_path / "made.bundle")  # compares reading with transformers
    with edgemm.load(tmp_path / "made.bundle", device="cpu", threads=1) as opened:
        check_drawn_as_by_diffusers(opened, folder)


def check_drawn_as_by_diffusers(model, folder):
    diffusers = pytest.importorskip("diffusers", reason="Python 3.10 has no diffusers")
    grid = model.manifest.loops.denoise.latents
    asked = {"prompt": "a green boat on a lake", "negative_prompt": "dark"}
    asked |= {"height": 6 * grid.cell, "width": 2 * grid.cell, "num_inference_steps": 5, "guidance_scale": 4.0}
    noise = np.random.default_rng(7).normal(size=(grid.channels, 6, 2)).astype(np.float32)
    library = diffusers.Cosmos3OmniPipeline.from_pretrained(folder, dtype=torch.float32)
    library.set_progress_bar_config(disable=True)
    given = {"num_frames": 1, "latents": torch.from_numpy(noise)[None, :, None], "enable_safety_check": False}
    wanted = library(**asked, **given, output_type="np").video
    found = model.generate_image(noise=noise, **asked).pixels
    assert worst(found.transpose(1, 2, 0), wanted[0]) <= PIXELS


def test_the_model_is_told_the_recorded_times(model, cases):
    from edgemm.runtimes import schedule

    loop = model.manifest.loops.denoise
    for name in ("base", "steps"):
        wanted = cases.arrays[f"draw/{name}/timesteps"].tolist()
        levels = schedule.noise_levels(len(wanted), loop)
        assert [schedule.told(level, loop) for level in levels[:-1]] == wanted
        assert worst(levels, cases.arrays[f"draw/{name}/sigmas"]) <= 1e-6


@pytest.mark.slow
@needs_rtx
@needs_opset_24
def test_every_component_builds_for_an_rtx_device_that_is_not_here(cases, tmp_path):
    written = export_foreign(
        found_at(cases.folder / "checkpoint"), tmp_path / "made.bundle", target="rtx", max_context=256
    )
    names = {"image_encoder", "transformer", "conditioner", "denoiser", "image_decoder"}
    assert written.targets["rtx"].keys() == names
    assert build_for_rtx(tmp_path / "made.bundle", tmp_path / "engines") == names


@pytest.mark.slow
@needs_opset_24
@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_every_component_is_lowered_for_the_first_jetsons_and_keeps_their_rules(cases, tmp_path, precision):
    place = tmp_path / "made.bundle"
    folder, target = cases.folder / "checkpoint", "jetson-orin-jp6"
    written = export_foreign(found_at(folder), place, target=target, precision=precision, max_context=256)
    assert "denoiser" in written.targets[target]
    check_rules(open_bundle(place))


# Bad input: one line, exit 3, nothing left behind


def refusal(place, capsys) -> str:
    output = place.parent / "out.bundle"
    assert main(["export", str(place), "--output", str(output)]) == 3
    assert not output.exists()
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


@pytest.fixture
def copied(cases, tmp_path):
    place = shutil.copytree(cases.folder / "checkpoint", tmp_path / "copy")
    for path in place.rglob("*"):
        path.chmod(0o755)
    return place


def changed(path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_file_that_the_index_names_and_is_not_there_is_told(copied, capsys):
    (copied / "vision_encoder" / "model.safetensors").unlink()
    assert "1 of 2 files are missing, for example vision_encoder/model.safetensors" in refusal(copied, capsys)


def test_a_cut_autoencoder_and_other_sizes_are_told(copied, capsys):
    vae = copied / "vae" / "diffusion_pytorch_model.safetensors"
    whole = vae.read_bytes()
    vae.write_bytes(whole[: len(whole) // 2])
    assert "damaged or cut" in refusal(copied, capsys)
    vae.write_bytes(whole)
    changed(copied / "transformer" / "config.json", latent_channel=5)
    assert "an autoencoder of 6 latent channels, the generator draws 5" in refusal(copied, capsys)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("scheduler/scheduler_config.json", {"solver_order": 3}, "solver_order is 3, this export knows 2"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name is"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "many"}, "settings do not fit together"),
        ("transformer/config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected"),
        ("transformer/config.json", {"hidden_act": "gelu"}, "expected silu or relu2"),
        ("vae/config.json", {"is_residual": False}, "an autoencoder of Wan 2.1's shape"),
        ("model.safetensors.index.json", {"weight_map": 3}, "no index of weights"),
    ],
)
def test_settings_that_make_no_sense_are_told_before_anything_is_traced(copied, capsys, file, changes, message):
    changed(copied / file, **changes)
    assert message in refusal(copied, capsys)


def test_noise_that_would_rise_is_refused(copied, capsys):
    changed(copied / "scheduler" / "scheduler_config.json", use_karras_sigmas=True, sigma_min=None, sigma_max=None)
    changed(copied / "model_index.json", use_native_flow_schedule=True)
    assert "its noise would rise" in refusal(copied, capsys)
