"""BAGEL: what its own code read, said, drew and edited, by our modules and by the exported bundle."""

from __future__ import annotations

import dataclasses
import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch

import edgemm
from edgemm.bundle.bundle import open_bundle
from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.bundle.manifest import TextLoop
from edgemm.cli.main import main
from edgemm.cli.verify import check_rules
from edgemm.families import bagel
from edgemm.families.bagel_answers import Context, guided
from edgemm.families.bagel_graphs import Denoiser, ImageDecoder, ImageEncoder, LatentEncoder, as_places, as_tokens
from edgemm.runtimes.denoise_loop import DrawEngines, draw
from edgemm.runtimes.draw import denoise_request
from edgemm.runtimes.image_call import DenoiseProgress, DrawingClock, DrawingOptions
from edgemm.verify.export_foreign import OWN_MODULES, export_foreign
from tests.engines.tiny_engines import build_for_rtx, needs_rtx
from tests.export.nano import needs_opset_24
from tests.families.golden import Cases, found_at, worst
from tests.families.oracle import check_batch
from tests.families.tiny.published import bagel_folder

DRAWN = ("draw0", "draw1", "edit0")
SLOTS = 128


@pytest.fixture(scope="module")
def cases():
    return Cases("bagel")


@pytest.fixture(scope="module")
def model(cases):
    torch.set_grad_enabled(False)
    yield bagel.open_model(found_at(cases.folder / "checkpoint"))
    torch.set_grad_enabled(True)


@pytest.fixture(scope="module")
def words(cases) -> tuple[int, int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cases.folder / "checkpoint")
    return tuple(tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"]))


def picture(cases, name: str) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return (cases.tensor(name)[None] + 1) / 2


def grid(rows: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Tokens (h w, p) as latents (1, p, h, w)."""
    return rows.T.reshape(1, -1, height, width)


@pytest.mark.parametrize("name", ["read0", "read1", "read2"])
def test_pictures_and_words_are_answered_as_recorded(cases, model, words, name):
    context = Context(model, SLOTS)
    if f"{name}.vit_pixels" in cases:
        pixels = picture(cases, f"{name}.vit_pixels")
        features = model.vit_model.vision_model(2 * pixels - 1)[0]
        assert worst(features, cases.tensor(f"{name}.vision_features")) <= 2e-5
        assert worst(ImageEncoder(model)(pixels)[0], cases.tensor(f"{name}.image_tokens")) <= 2e-5
        context.picture(pixels, *words)
    context.text(cases.tensor(f"{name}.text_ids").tolist())
    assert (context.used, context.place) == (cases.number(f"{name}.kv_len"), cases.number(f"{name}.next_position"))
    ids = cases.tensor(f"{name}.greedy_ids").tolist()
    logits = torch.stack([context.text([token]) for token in ids])
    assert worst(logits, cases.tensor(f"{name}.greedy_logits")) <= 5e-5
    assert logits.argmax(-1).tolist()[:-1] == ids[1:]


def contexts(cases, model, words, name: str) -> list[Context]:
    """With everything, without the text, and of an edit without the picture."""
    ids = cases.tensor(f"{name}.text_ids").tolist()
    made = [Context(model, SLOTS) for _ in range(3 if name.startswith("edit") else 2)]
    if name.startswith("edit"):
        mean, deviation = LatentEncoder(model)(picture(cases, f"{name}.vae_pixels"))
        (noise,) = as_tokens(cases.tensor(f"{name}.posterior_noise"), model.sizes.latent_patch)
        clean = mean + deviation * noise
        assert worst(as_places(clean, model.sizes.latent_patch), cases.tensor(f"{name}.vae_latent")) <= 5e-5
        for context in made[:2]:
            context.latents(clean, Denoiser(model, *words))
            context.picture(picture(cases, f"{name}.vit_pixels"), *words)
        assert made[1].used == cases.number(f"{name}.text_free_kv_len")
        assert made[1].place == cases.number(f"{name}.text_free_position")
        made[2].text(ids)
    made[0].text(ids)
    return made


@pytest.mark.parametrize("name", DRAWN)
def test_prompts_leave_the_recorded_keys_and_values(cases, model, words, name):
    context = contexts(cases, model, words, name)[0]
    assert (context.used, context.place) == (cases.number(f"{name}.kv_len"), cases.number(f"{name}.position"))
    for layer in range(model.sizes.depth):
        for part, cache in zip(("key", "value"), context.past[2 * layer : 2 * layer + 2]):
            kept = cache[0, :, : context.used].transpose(0, 1)  # (slots, g, d)
            assert worst(kept, cases.tensor(f"{name}.prefix_{part}.{layer}")) <= 5e-5


@pytest.mark.parametrize(
    ("name", "run"), [("draw0", "run0"), ("draw0", "run1"), ("draw0", "run2"), ("draw0", "run3"), ("draw1", "run0"),
                      ("draw1", "run1"), ("draw1", "run2"), ("draw1", "run3"), ("edit0", "run0")]
)  # fmt: skip
def test_latents_go_the_recorded_way(cases, model, words, name, run):
    made, at = contexts(cases, model, words, name), f"{name}.{run}"
    if f"{at}.t" not in cases:
        pytest.skip(f"{at} was not recorded")
    denoiser, prefixes = Denoiser(model, *words), [context.prefix() for context in made]
    height, width, _ = cases.tensor(f"{at}.image").shape
    size = height // model.sizes.cell, width // model.sizes.cell
    latents, bound = grid(cases.tensor(f"{name}.noise"), *size), 2e-4 if len(made) == 3 else 1e-4
    low, high = cases.tensor(f"{at}.cfg_interval").tolist()
    scales = (cases.number(f"{at}.cfg_text_scale"), cases.number(f"{at}.cfg_img_scale"))
    renorm, least = cases.text(f"{at}.cfg_renorm_type"), cases.number(f"{at}.cfg_renorm_min")
    times = torch.linspace(1, 0, int(cases.number(f"{at}.num_timesteps")))
    times = cases.number(f"{at}.timestep_shift") * times / (1 + (cases.number(f"{at}.timestep_shift") - 1) * times)
    assert worst(times[:-1], cases.tensor(f"{at}.t")) <= 1e-6
    for step, (now, later) in enumerate(pairwise(times)):
        found = [denoiser(latents, now[None], *prefix)[0][0].flatten(1).T for prefix in prefixes]
        assert worst(found[0], cases.tensor(f"{at}.v_cond")[step]) <= bound
        if low < now <= high and scales[0] > 1:
            assert worst(found[1], cases.tensor(f"{at}.v_text_free")[step]) <= bound
            if len(made) == 3:
                assert worst(found[2], cases.tensor(f"{at}.v_image_free")[step]) <= bound
            velocity = guided(found[0], found[1], found[2 if len(made) == 3 else 0], scales, renorm, least)
        else:
            velocity = found[0]
        latents = latents - (now - later) * grid(velocity, *size)
        assert worst(latents[0].flatten(1).T, cases.tensor(f"{at}.latents")[step]) <= bound
    pixels = ImageDecoder(model)(grid(cases.tensor(f"{at}.latents")[-1], *size))[0]
    if f"{at}.pixels" in cases:
        assert worst(2 * pixels - 1, cases.tensor(f"{at}.pixels")) <= 1e-5
    image = (pixels.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0)  # cut, not rounded
    assert np.abs(image.numpy().astype(int) - cases.tensor(f"{at}.image").numpy()).max() <= 1


# The same by the exported bundle.  Pictures were recorded in sizes that no rule of the model gives, so their tokens and
# latents come from our modules, which are held above; words, prefixes, rows of guidance and steps are the runtime's.


@pytest.fixture(scope="module")
def opened(cases, tmp_path_factory):
    place = tmp_path_factory.mktemp("bagel") / "made.bundle"
    export_foreign(found_at(cases.folder / "checkpoint"), place)
    with edgemm.load(place, device="cpu", threads=1) as runtime:
        yield runtime


def reading(opened, tokens: torch.Tensor | None) -> TextLoop:
    """How a picture of so many tokens (1, m, w) is read."""
    loop = opened.manifest.loops.text
    return loop if tokens is None else dataclasses.replace(loop, image_token_count=tokens.shape[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["read0", "read1", "read2"])
def test_the_bundle_answers_as_recorded(cases, model, opened, name):
    tokens, pictures = None, []
    if f"{name}.vit_pixels" in cases:
        tokens, pictures = ImageEncoder(model)(picture(cases, f"{name}.vit_pixels")), [np.zeros((8, 8, 3), np.uint8)]
    loop, said = reading(opened, tokens), cases.text(f"{name}.prompt")
    prompt = chat_prompt(as_messages(said, pictures), loop, opened.tokenizer)
    ids = cases.tensor(f"{name}.greedy_ids").tolist()
    assert len(prompt) == cases.number(f"{name}.kv_len") + 1 and prompt.input_ids[-1] == ids[0]
    conversation = opened._text.conversation()
    logits = conversation.prefill(prompt, None if tokens is None else tokens.numpy())
    for token, wanted in zip([*ids[1:], None], cases.tensor(f"{name}.greedy_logits")):
        assert worst(logits, wanted) <= 5e-5
        if token is not None:
            assert int(logits.argmax()) == token
            logits = conversation.step(token)
    if not pictures:
        reply = opened.generate_text(said, max_new_tokens=len(ids) - 1, ignore_eos=True)
        assert list(reply.token_ids) == ids[1:]


def check_events(cases, events, at: str, bound: float) -> None:
    """Latents after every step, and the picture of the last."""
    shown = [event.latents for event in events if isinstance(event, DenoiseProgress)]
    for latents, wanted in zip(shown, cases.tensor(f"{at}.latents"), strict=True):
        assert worst(latents.reshape(latents.shape[0], -1).T, wanted) <= bound
    drawn = (events[-1].image.pixels * 255).astype(int).transpose(1, 2, 0)  # cut there
    assert np.abs(drawn - cases.tensor(f"{at}.image").numpy()).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("run", ["run0", "run1", "run2"])
@pytest.mark.parametrize("name", ["draw0", "draw1"])
def test_the_bundle_draws_as_recorded(cases, opened, name, run):
    at = f"{name}.{run}"
    if f"{at}.t" not in cases:
        pytest.skip(f"{at} was not recorded")
    height, width, _ = cases.tensor(f"{at}.image").shape
    events = opened.stream_image(
        cases.text(f"{name}.prompt"),
        num_inference_steps=int(cases.number(f"{at}.num_timesteps")),
        guidance_scale=cases.number(f"{at}.cfg_text_scale"),
        image_guidance_scale=cases.number(f"{at}.cfg_img_scale"),
        noise=cases.tensor(f"{name}.noise").numpy(),
        height=height,
        width=width,
    )
    check_events(cases, list(events), at, 1e-4)


RENORM = {"global": "global", "channel": "token", "text_channel": "text_token"}  # theirs -> the manifest's


def events_of(cases, opened, at: str, reads: TextLoop | None = None, **read) -> list:
    """A recorded run with its own numbers in the loop."""
    loop, limits = opened.manifest.loops.denoise, opened.manifest.limits
    loop = dataclasses.replace(
        loop.editing if reads else loop,
        guidance_interval=tuple(cases.tensor(f"{at}.cfg_interval").tolist()),
        shift=cases.number(f"{at}.timestep_shift"),
        renorm=RENORM[cases.text(f"{at}.cfg_renorm_type")],
        renorm_min=cases.number(f"{at}.cfg_renorm_min"),
    )
    name, (height, width, _) = at.partition(".")[0], cases.tensor(f"{at}.image").shape
    options = DrawingOptions(
        num_inference_steps=int(cases.number(f"{at}.num_timesteps")),
        guidance_scale=cases.number(f"{at}.cfg_text_scale"),
        image_guidance_scale=cases.number(f"{at}.cfg_img_scale"),
        noise=cases.tensor(f"{name}.noise").numpy(),
        image="read by our modules" if reads else None,
        height=height,
        width=width,
    )
    request = denoise_request(options, cases.text(f"{name}.prompt"), loop, limits, opened.tokenizer, reads)
    request = dataclasses.replace(request, prompts=dataclasses.replace(request.prompts, **read))
    parts = ("transformer", "conditioner", "denoiser", "image_decoder")
    engines = DrawEngines(*(opened._engines.get(part) for part in parts), max_context=limits.max_context)
    return list(draw(request, loop, engines, lambda: False, DrawingClock()))


@pytest.mark.slow
def test_the_bundle_draws_without_renorm_and_shift_as_recorded(cases, opened):
    check_events(cases, events_of(cases, opened, "draw0.run3"), "draw0.run3", 1e-4)


@pytest.mark.slow
def test_the_bundle_edits_as_recorded(cases, model, opened):
    mean, deviation = LatentEncoder(model)(picture(cases, "edit0.vae_pixels"))
    (noise,) = as_tokens(cases.tensor("edit0.posterior_noise"), model.sizes.latent_patch)
    tokens = ImageEncoder(model)(picture(cases, "edit0.vit_pixels"))
    read = {"image_tokens": tokens.numpy(), "latents": (mean + deviation * noise).numpy()}
    events = events_of(cases, opened, "edit0.run0", reading(opened, tokens), **read)
    check_events(cases, events, "edit0.run0", 2e-4)


@pytest.mark.slow
def test_a_picture_is_edited_in_its_own_shape_whatever_that_is(opened):
    wide = np.random.default_rng(0).integers(0, 256, (70, 130, 3), dtype=np.uint8)
    options = {"image": wide, "num_inference_steps": 3, "seed": 1}
    edited = opened.generate_image("make it green", **options).image.pixels
    assert edited.shape == (3, 64, 128)
    other = opened.generate_image("make it green", **{**options, "image": wide[::-1].copy()}).image.pixels
    assert np.abs(edited - other).max() > 0.01, "the picture does not count"
    assert opened.generate_image("a dog", num_inference_steps=2, height=64, width=80).image.pixels.shape == (3, 64, 80)


@pytest.mark.slow
def test_pictures_and_edits_of_one_call_are_what_their_seeds_give_alone(opened):
    check_batch(opened, steps=3, image=np.eye(70, dtype=np.uint8)[..., None].repeat(3, -1) * 255)
    check_batch(opened, steps=3, height=64, width=80)


@pytest.mark.slow
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_an_empty_sheet_is_edited_as_by_our_modules(model, opened, grey):
    """A map without any variance is what ONNX Runtime's own group norm makes NaN of.  What rounding leaves in such a
    map is divided by the root of epsilon, 1e-3."""
    sheet = np.full((1, 3, 256, 256), grey / 255, dtype=np.float32)
    found = {name: np.zeros((1, model.sizes.latent_width, 16, 16), np.float32) for name in ("mean", "deviation")}
    opened._engines.get("latent_encoder").bind({"pixels": sheet}, found).run()
    for array, wanted in zip(found.values(), LatentEncoder(model)(torch.from_numpy(sheet))):
        assert worst(array, wanted) <= 1e-2


@pytest.mark.slow
def test_the_bundle_says_that_it_was_compared_with_our_modules(opened):
    assert OWN_MODULES in opened._engines.bundle.file("parity.json").read_text()


@pytest.mark.slow
@needs_rtx
@needs_opset_24
def test_every_component_builds_for_an_rtx_device_and_is_written_for_the_first_jetsons(cases, tmp_path):
    place = tmp_path / "made.bundle"
    export_foreign(found_at(cases.folder / "checkpoint"), place, target="rtx,jetson-orin-jp6")
    check_rules(open_bundle(place))
    assert build_for_rtx(place, tmp_path / "engines") == {
        "image_encoder", "transformer", "conditioner", "denoiser", "latent_encoder", "image_decoder",
    }  # fmt: skip


@pytest.mark.slow
def test_another_size_exports_reads_draws_and_edits(cases, tmp_path):
    """Compared whole with our modules by the export itself."""
    folder = bagel_folder(cases.folder / "checkpoint", tmp_path / "other")
    manifest = export_foreign(found_at(folder), tmp_path / "made.bundle")
    grid, text = manifest.loops.denoise.latents, manifest.loops.text
    assert (grid.channels, grid.cell, grid.height, grid.largest) == (16, 4, 48, 48)
    assert (text.image_size, text.image_token_count, manifest.loops.denoise.place_layer) == (112, 196, 2)


# Bad input: one line, exit 3, nothing left behind


def refusal(folder, capsys, code: int = 3) -> str:
    output = folder.parent / "out.bundle"
    assert main(["export", str(folder), "--output", str(output)]) == code
    assert not output.exists()
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def folder(cases, tmp_path):
    return shutil.copytree(cases.folder / "checkpoint", tmp_path / "copy", copy_function=shutil.copyfile)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("llm_config.json", "num_hidden_layers", 10**9, "num_hidden_layers is 1000000000, expected"),
        ("llm_config.json", "num_hidden_layers", 4, "are missing"),
        ("llm_config.json", "num_attention_heads", 5, "heads is 5, which does not divide 64"),
        ("llm_config.json", "hidden_size", None, "its configs do not fit together"),
        ("llm_config.json", "rope_scaling", {"rope_type": "linear", "factor": 2.0}, "rotary embedding 'linear'"),
        ("llm_config.json", "hidden_act", "gelu", "activation 'gelu'"),
        ("llm_config.json", "intermediate_size", 256, "has shape"),
        ("vit_config.json", "patch_size", 10**12, "patch_size is 1000000000000, expected"),
        ("vit_config.json", "num_hidden_layers", 2, "in no place that its configs know, for example"),
        ("llm_config.json", "num_hidden_layers", 2, "in no place that its configs know, for example"),
    ],
)
def test_configs_that_make_no_sense_are_told_before_anything_is_traced(folder, capsys, file, key, value, message):
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | {key: value}))
    assert message in refusal(folder, capsys)


def test_rotary_embedding_is_read_in_both_ways_that_configs_tell_it(folder, cases):
    path = folder / "llm_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rope_parameters": {"rope_type": "default", "rope_theta": 123.0}}))
    assert bagel.skeleton(found_at(folder)).sizes.rope_theta == 123.0
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "rope_theta"}))
    assert bagel.skeleton(found_at(folder)).sizes.rope_theta == 10_000.0  # the class's own


@pytest.mark.parametrize("file", ["ema.safetensors", "ae.safetensors", "llm_config.json", "vit_config.json"])
def test_a_file_that_is_missing_cut_or_a_pointer_is_named(folder, capsys, file):
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    assert file in (line := refusal(folder, capsys)) and ("damaged or cut" in line or "cannot be read" in line)
    if file.endswith("safetensors"):
        (folder / file).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        assert file in (line := refusal(folder, capsys)) and "a Git-LFS pointer" in line
    (folder / file).unlink()
    assert file in (line := refusal(folder, capsys)) and "No such file" in line
