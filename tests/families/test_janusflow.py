"""JanusFlow: what was recorded from its own code is read, said and drawn by the bundle, guidance on, off and strong."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import edgemm
from edgemm.bundle.bundle import open_bundle
from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.bundle.prompt import drawing_prompt
from edgemm.cli.main import main
from edgemm.cli.verify import check_rules
from edgemm.errors import UsageError
from edgemm.families import janusflow
from edgemm.families.autoencoder_kl import open_autoencoder
from edgemm.runtimes.image_call import DenoiseProgress
from edgemm.verify.export_foreign import OWN_MODULES, export_foreign
from tests.engines.tiny_engines import build_for_rtx, needs_rtx
from tests.export.nano import needs_opset_24
from tests.families.golden import GOLDEN, answers, found_at, worst
from tests.families.tiny.janusflow import folder, other_autoencoder

CHECKPOINT, VAE = GOLDEN / "janusflow" / "checkpoint", GOLDEN / "janusflow" / "vae"
PIXELS = 1e-5  # what the README of the recorded answers asks for
FEATURES, LOGITS = 2e-5, 5e-4
LATENTS = {1.0: 1e-4, 2.0: 1e-4, 5.0: 1e-3}  # by guidance: it multiplies what float32 rounds away


@pytest.fixture(scope="module")
def recorded():
    return answers("janusflow")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    place = tmp_path_factory.mktemp("janusflow") / "made.bundle"
    export_foreign(found_at(CHECKPOINT, vae=VAE), place)
    return place


@pytest.fixture(scope="module")
def model(bundle):
    with edgemm.load(bundle, device="cpu", threads=1) as opened:
        yield opened


def text_of(array: np.ndarray) -> str:
    return bytes(array).decode()


def question(recorded, case: str) -> tuple[str, list[np.ndarray]]:
    """What the user says in a recorded prompt, and the pictures beside it."""
    said = text_of(recorded[f"{case}.prompt"]).split("User: ")[1].removesuffix("\n\nAssistant:")
    if "<image_placeholder>\n" not in said:
        return said, []
    return said.replace("<image_placeholder>\n", ""), [recorded[f"{case}.picture"]]


@pytest.mark.parametrize("case", ["read0", "read1", "read2"])
def test_questions_about_pictures_and_without_are_answered_as_recorded(model, recorded, case):
    loop = model.manifest.loops.text
    said, pictures = question(recorded, case)
    prompt = chat_prompt(as_messages(said, pictures), loop, model.tokenizer)
    np.testing.assert_array_equal(prompt.input_ids, recorded[f"{case}.input_ids"][0])
    seen = [model._text.reader.picture(picture, loop) for picture in pictures]
    if pictures:
        np.testing.assert_array_equal(prompt.image_index >= 0, recorded[f"{case}.images_seq_mask"][0])
        np.testing.assert_array_equal((seen[0] - 0.5) / 0.5, recorded[f"{case}.pixel_values"][0, 0])
    prompt, tokens = model._text.reader.read(prompt, seen, loop)
    if pictures:
        assert worst(tokens[:, 1:], recorded[f"{case}.aligned"]) <= FEATURES
    conversation, wanted = model._text.conversation(), recorded[f"{case}.greedy_ids"].tolist()
    logits = conversation.prefill(prompt, tokens)
    assert worst(logits, recorded[f"{case}.logits"]) <= LOGITS
    for token, expected in zip(wanted, recorded[f"{case}.greedy_logits"], strict=True):
        assert worst(logits, expected) <= LOGITS
        assert int(logits.argmax()) == token
        logits = conversation.step(token)
    reply = model.generate_text(said, images=pictures, max_new_tokens=len(wanted), ignore_eos=True)
    assert list(reply.token_ids) == wanted


@pytest.mark.parametrize("run", ["run0", "run1", "run2"])
@pytest.mark.parametrize("case", ["draw0", "draw1"])
def test_pictures_are_drawn_as_recorded_step_by_step(model, recorded, case, run):
    prompt, name = text_of(recorded[f"{case}.prompt"]), f"{case}.{run}"
    template = model.manifest.loops.denoise.template
    ids = drawing_prompt(prompt, template, model.tokenizer).input_ids
    np.testing.assert_array_equal(ids, recorded[f"{case}.input_ids"][:-1])  # the time token takes the last one's place
    guidance, steps = float(recorded[f"{name}.guidance"]), int(recorded[f"{name}.steps"])
    events = list(
        model.stream_image(prompt, num_inference_steps=steps, guidance_scale=guidance, noise=recorded[f"{case}.noise"])
    )
    for event, wanted in zip(events[:-1], recorded[f"{name}.latents"], strict=True):
        assert worst(event.latents, wanted) <= LATENTS[guidance]
    picture = events[-1].image
    assert worst(picture.pixels, (recorded[f"{name}.pixels"] / 2 + 0.5).clip(0, 1)) <= PIXELS
    assert worst(picture.to_array(), recorded[f"{name}.image"]) <= 1  # cut there, rounded here


def test_pixels_of_the_recorded_latents_are_the_recorded_ones(model, recorded):
    decoder, latents = model._engines.get("image_decoder"), recorded["draw1.run2.latents"][-1:]
    pixels = np.zeros((1, 3, 64, 64), dtype=np.float32)
    decoder.bind({"latents": latents}, {"pixels": pixels}).run()
    assert worst(2 * pixels[0] - 1, recorded["draw1.run2.pixels"]) <= PIXELS


def test_previews_seeds_batches_and_the_end_in_the_middle(model):
    events = list(model.stream_image("a red heart", num_inference_steps=3, num_images=2, seed=4, preview=True))
    shown = [event for event in events[:-1] if isinstance(event, DenoiseProgress)]
    assert [(event.index, event.step) for event in shown] == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]
    assert all((event.preview is None) == (event.step == 3) for event in shown)
    first, second = events[-1].images
    again = model.generate_image("a red heart", num_inference_steps=3, seed=5)
    assert np.array_equal(second.pixels, again.pixels) and worst(first.pixels, second.pixels) > 0.05
    stream = model.stream_image("a red heart", num_inference_steps=3)
    next(stream)
    model.cancel()
    *_, last = stream
    assert last.finish_reason == "cancelled" and last.metrics.steps == 1 and len(last.images) == 1


def test_a_negative_prompt_takes_the_place_of_the_masked_row(model):
    def drawn(**options):
        return model.generate_image("a red heart", num_inference_steps=2, guidance_scale=4, **options).pixels

    assert worst(drawn(), drawn(negative_prompt="blue")) > 0.02
    same = drawn(negative_prompt="a red heart")
    alone = model.generate_image("a red heart", num_inference_steps=2, guidance_scale=1).pixels
    assert worst(same, alone) < 1e-4  # away from itself leads nowhere


def test_only_its_own_square_is_drawn(model):
    assert model.generate_image("x", num_inference_steps=1, width=64, height=64).pixels.shape == (3, 64, 64)
    with pytest.raises(UsageError, match="width is 128, this bundle draws pictures of 64 x 64 only"):
        model.generate_image("x", width=128)


def test_weights_that_reading_and_drawing_share_lie_there_once(bundle, model):
    components = model.manifest.components
    (transformer,), (denoiser,) = (components[name].variants.values() for name in ("transformer", "denoiser"))
    assert transformer.data == denoiser.data
    whole = sum(path.stat().st_size for path in bundle.rglob("*.data"))
    angles = 4 * model.manifest.limits.max_context * 16  # sines and cosines of every position, heads are 16 wide
    assert whole <= 4 * model_numbers() + angles


def model_numbers() -> int:
    """Numbers of the checkpoint that are used, each once."""
    opened = janusflow.skeleton(found_at(CHECKPOINT, vae=VAE))
    return sum(parameter.numel() for parameter in opened.parameters())


def test_the_bundle_says_what_it_was_compared_with(bundle):
    document = json.loads((bundle / "parity.json").read_text())
    assert document["compared_with"] == OWN_MODULES
    loops = [entry for entry in document["comparisons"] if entry["what"].startswith("denoise loop")]
    assert len(loops) == 2 and all(entry["passed"] for entry in loops)


@pytest.mark.slow
def test_another_size_is_exported_and_compared_whole(tmp_path):
    path, vae = folder(tmp_path / "other")
    export_foreign(found_at(path, vae=vae), tmp_path / "made.bundle")
    with edgemm.load(tmp_path / "made.bundle", device="cpu", threads=1) as model:
        first, second = (model.generate_image(text, num_inference_steps=2).pixels for text in ("a boat", "a heart"))
        assert first.shape == (3, 48, 48) and worst(first, second) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "psnr"), [("int8", 35), ("int4", 30)])
def test_rounded_weights_are_shared_too_and_draw_nearly_the_same(tmp_path, model, precision, psnr):
    place = tmp_path / "made.bundle"
    export_foreign(found_at(CHECKPOINT, vae=VAE), place, precision=precision, max_context=512)
    with edgemm.load(place, device="cpu", threads=1) as rounded:
        components = rounded.manifest.components
        files = [next(iter(components[name].variants.values())).data for name in ("transformer", "denoiser")]
        assert files[0] == files[1] and (place / files[0]).stat().st_size < 1_845_376 / 3  # of the same in float32
        options = {"num_inference_steps": 3, "guidance_scale": 3.0, "seed": 2}
        wanted, found = (each.generate_image("a red heart", **options).pixels for each in (model, rounded))
    assert -10 * np.log10(np.square(found - wanted).mean()) >= psnr


@needs_rtx
@needs_opset_24
@pytest.mark.slow
def test_every_component_builds_for_an_rtx_device_and_is_written_for_the_first_jetsons(tmp_path):
    place = tmp_path / "made.bundle"
    export_foreign(found_at(CHECKPOINT, vae=VAE), place, target="rtx,jetson-orin-jp6", max_context=256)
    assert build_for_rtx(place, tmp_path / "engines") == {
        "image_encoder", "transformer", "conditioner", "denoiser", "image_decoder",
    }  # fmt: skip
    check_rules(open_bundle(place))


@pytest.mark.parametrize("make", [lambda path: VAE, other_autoencoder], ids=["recorded", "other"])
def test_the_autoencoders_decoder_is_that_of_diffusers(tmp_path, make):
    diffusers = pytest.importorskip("diffusers", reason="Python 3.10 has no diffusers")
    place = make(tmp_path / "vae")
    ours = open_autoencoder(place)
    theirs = diffusers.AutoencoderKL(**diffusers.AutoencoderKL.load_config(place)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    latents = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = theirs.decode(latents / ours.scale + ours.shift).sample
        assert worst(ours(latents), wanted) <= 2e-6 * float(wanted.abs().max())


# Bad input: one line, exit 3, nothing left behind


def refusal(place, capsys, *words: str, code: int = 3) -> str:
    output = place.parent / "out.bundle"
    assert main(["export", str(place), "--output", str(output), *words]) == code
    assert not output.exists()
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


def test_a_missing_autoencoder_is_named_and_how_to_give_it(capsys):
    line = refusal(CHECKPOINT, capsys)
    assert "holds no vae" in line and "stabilityai/sdxl-vae" in line and "--vae FOLDER" in line


def test_a_component_that_the_model_does_not_have_is_refused(capsys):
    line = refusal(CHECKPOINT, capsys, "--component", f"clip={VAE}", code=2)
    assert "names 'clip'" in line and "vae" in line
    assert "expected NAME=FOLDER" in refusal(CHECKPOINT, capsys, "--component", "vae", code=2)
    assert "no folder, and vae" in refusal(CHECKPOINT, capsys, "--vae", str(VAE / "none"))


def spoiled(tmp_path, **changes):
    """The recorded checkpoint with other numbers in its config."""
    place = tmp_path / "spoiled"
    shutil.copytree(CHECKPOINT, place)
    config = json.loads((place / "config.json").read_text())
    for path, value in changes.items():
        *steps, last = path.split("__")
        section = config
        for step in steps:
            section = section[step]
        section[last] = value
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language_config__num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected"),
        ({"vision_gen_enc_config__params__layers_in_middle": 10**9}, "layers_in_middle is 1000000000"),
        ({"language_config__intermediate_size": "many"}, "its configs do not fit together"),
        ({"vision_gen_dec_config": {}}, "no vision_gen_dec_config in config.json, so no JanusFlow"),
        ({"language_config__hidden_size": 32}, "has shape"),
        ({"vision_und_enc_config__params__image_size": 80}, "has shape"),
    ],
)
def test_configs_that_make_no_sense_are_told_before_anything_is_traced(tmp_path, capsys, changes, message):
    assert message in refusal(spoiled(tmp_path, **changes), capsys, "--vae", str(VAE))


def test_an_autoencoder_of_another_width_is_refused(tmp_path, capsys):
    other = other_autoencoder(tmp_path / "vae", latent_channels=8)
    line = refusal(shutil.copytree(CHECKPOINT, tmp_path / "copy"), capsys, "--vae", str(other))
    assert "an autoencoder of 8 latent channels" in line and "draws 4" in line


def test_cut_weights_and_pointers_to_weights_are_told(tmp_path, capsys):
    place = shutil.copytree(CHECKPOINT, tmp_path / "copy")
    whole = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "damaged or cut" in refusal(place, capsys, "--vae", str(VAE))
    (place / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "a Git-LFS pointer" in refusal(place, capsys, "--vae", str(VAE))
    (place / "model.safetensors").unlink()
    assert "no weights" in refusal(place, capsys, "--vae", str(VAE))
