"""Bundles on disk: written whole or not at all, opened only when every file is what it should be."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import edgemm
from edgemm.bundle import writer as bundle_writer
from edgemm.bundle.bundle import Manifest, altered_files, open_bundle
from edgemm.bundle.writer import BundleWriter
from edgemm.errors import BundleError, InputError, ResourceError
from tests.heard import hearing
from tests.runtimes.tiny_bundle import build

ROOT = Path(__file__).resolve().parent.parent
GRAPH = "components/denoiser/cpu-fp32.onnx"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return build(tmp_path_factory.mktemp("bundles") / "tiny.bundle")


@pytest.fixture
def bundle(whole, tmp_path):
    """A copy to be spoiled."""
    return Path(shutil.copytree(whole, tmp_path / "spoiled.bundle"))


def change(bundle, *path, to):
    """Sets one field of manifest.json."""
    document = json.loads((bundle / "manifest.json").read_text())
    field = document
    for step in path[:-1]:
        field = field[step]
    if to is None and path[-1] in field:
        del field[path[-1]]
    else:
        field[path[-1]] = to
    (bundle / "manifest.json").write_text(json.dumps(document))


def refuse(bundle, message, **options):
    with pytest.raises(BundleError, match=message):
        edgemm.load(bundle, device="cpu", **options)


# Opening


def test_a_whole_bundle_opens(whole):
    manifest = open_bundle(whole).manifest
    assert list(altered_files(whole, manifest)) == []
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_progress_reaches_every_byte(whole):
    with hearing() as heard:
        bundle = open_bundle(whole)
        edgemm.load(whole, device="cpu").close()
    size_mb = sum(record.size_bytes for record in bundle.manifest.files.values()) / 1e6
    assert [(bar.what, bar.unit, bar.total) for bar in heard.bars] == 2 * [("hashing", "MB", size_mb)]
    assert [bar.done for bar in heard.bars] == pytest.approx([size_mb, size_mb]) and not heard.open


def test_a_missing_bundle_is_named(tmp_path):
    refuse(tmp_path / "none.bundle", r"none\.bundle: does not exist; a bundle is the folder")


def test_a_file_is_no_bundle(tmp_path):
    (tmp_path / "file").write_text("x")
    refuse(tmp_path / "file", "is not a folder")


def test_a_half_written_bundle_has_no_manifest(bundle):
    (bundle / "manifest.json").unlink()
    refuse(bundle, "no manifest.json: no bundle, or its export did not finish")


def test_a_flipped_bit_is_found_and_its_file_named(bundle):
    data = bundle / f"{GRAPH}.data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    refuse(bundle, r"denoiser/cpu-fp32\.onnx\.data: SHA-256 .*, the manifest says")


def test_a_flipped_bit_is_not_looked_for_when_hashes_are_skipped(bundle):
    (bundle / "NOTICE").write_bytes(b"made by a TEST\n")
    refuse(bundle, "NOTICE: SHA-256")
    edgemm.load(bundle, device="cpu", verify=False).close()


def test_sizes_are_looked_at_before_anything_is_hashed(bundle, monkeypatch):
    data = bundle / f"{GRAPH}.data"
    data.write_bytes(data.read_bytes()[:-1])
    monkeypatch.setattr("edgemm.bundle.held_file.HeldFile.sha256", None)  # hashing would fail
    refuse(bundle, r"cpu-fp32\.onnx\.data: \d+ bytes, the manifest says \d+")


def test_a_missing_file_is_named(bundle):
    (bundle / "tokenizer.json").unlink()
    refuse(bundle, r"tokenizer\.json: missing")


@pytest.mark.parametrize("version", [2, 0, "1", None, True, 1.5])
def test_another_schema_version_is_refused_first(bundle, version):
    change(bundle, "components", to="nonsense")
    change(bundle, "schema_version", to=version)
    refuse(bundle, "schema_version is .*, this edgemm reads 1")


def test_a_link_is_refused_wherever_it_leads(bundle, tmp_path):
    shutil.move(bundle / "NOTICE", tmp_path / "NOTICE")
    (bundle / "NOTICE").symlink_to(tmp_path / "NOTICE")
    refuse(bundle, "NOTICE: is a link")


def test_a_folder_that_is_a_link_is_refused(bundle, tmp_path):
    shutil.move(bundle / "components", tmp_path / "components")
    (bundle / "components").symlink_to(tmp_path / "components")
    refuse(bundle, "components: is a link")


def test_a_manifest_that_is_a_link_is_refused(bundle, tmp_path):
    shutil.move(bundle / "manifest.json", tmp_path / "manifest.json")
    (bundle / "manifest.json").symlink_to(tmp_path / "manifest.json")
    refuse(bundle, "manifest.json: is a link")


def test_a_pipe_is_refused_and_not_waited_for(bundle):
    (bundle / "NOTICE").unlink()
    os.mkfifo(bundle / "NOTICE")
    refuse(bundle, "NOTICE: is not a regular file")


def rehash(bundle):
    """Makes the manifest agree with the files again, as somebody with bad intentions would."""
    writer = BundleWriter(bundle)
    files = {name: dataclasses.asdict(record) for name, record in writer.inventory().items()}
    change(bundle, "files", to=files)


@pytest.mark.parametrize("location", ["../../../secret.data", "/etc/passwd", "other.data"])
def test_a_graph_that_reads_weights_from_elsewhere_is_refused_though_its_hash_is_right(bundle, location):
    import onnx

    model = onnx.load(str(bundle / GRAPH), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (bundle / GRAPH).write_bytes(model.SerializeToString())
    rehash(bundle)
    open_bundle(bundle)
    refuse(bundle, f"reads weights from '{location}', the manifest allows only 'cpu-fp32.onnx.data'")


VARIANT = ("components", "denoiser", "variants", "cpu-fp32")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("name",), None, "manifest.json: name: missing"),
        (("name",), 3, "name: 3, expected a string"),
        (("colour",), "red", "colour: unknown field, expected one of: name, family"),
        (("limits", "max_context"), "many", "limits.max_context: 'many', expected a whole number"),
        (("limits", "max_context"), 0, "limits.max_context is 0, expected 1 to"),
        (("limits", "max_steps"), True, "limits.max_steps: true, expected a whole number"),
        (("loops", "denoise", "shift"), 0, "loops.denoise.shift is 0, expected"),
        (("loops", "denoise", "prediction"), "v", "loops.denoise.prediction is 'v', this edgemm knows: x, velocity"),
        (("loops", "denoise", "guidance_interval"), [0.9, 0.1], "guidance_interval is 0.9 to 0.1, expected 0 <= low"),
        (("loops", "denoise", "guidance_interval"), [0.0], "guidance_interval: a list of 1, expected 2 entries"),
        (("loops", "denoise", "prefix_layers"), [0, 1, 1], r"prefix_key of layers \[0, 1\], expected \[0, 1, 2\]"),
        (("loops", "text", "background"), [0, 0, 256], "loops.text.background is 256, expected 0 to 255"),
        (("loops", "text", "stop_token_ids"), ["x"], r"stop_token_ids\[0\]: 'x', expected a whole number"),
        (("loops",), {}, "loops is empty, expected text, denoise, image_tokens or several"),
        (("components", "upscaler"), {"variants": {}}, "components.upscaler.variants is empty"),
        (("components", "conditioner"), None, "targets.cpu.conditioner: no such component"),
        (("targets", "cpu", "conditioner"), None, "targets.cpu: component 'conditioner' is missing, the loops need it"),
        (("targets", "cpu", "denoiser"), "int8", "targets.cpu.denoiser is 'int8', expected one of: cpu-fp32"),
        (("targets",), {}, "targets is empty"),
        ((*VARIANT, "graph"), "../x.onnx", "graph is '../x.onnx', expected a path that stays inside the bundle"),
        ((*VARIANT, "graph"), "/x.onnx", "graph is '/x.onnx', expected a relative path"),
        ((*VARIANT, "data"), "x.data", "data is 'x.data', expected it beside graph"),
        (
            (*VARIANT, "data"),
            f"{GRAPH}.other",
            "data: 'components/denoiser/cpu-fp32.onnx.other' is not listed in files",
        ),
        (("tokenizer",), "a\\b", "expected a relative path with forward slashes"),
        (
            ("files", "../x"),
            {"sha256": "0" * 64, "size_bytes": 1},
            "files is '../x', expected a path that stays inside",
        ),
        (("files", "NOTICE", "sha256"), "0" * 63, "files.NOTICE.sha256 is .*, expected 64 hexadecimal digits"),
        (
            ("files", "prefix/unconditional.safetensors"),
            None,
            "'prefix/unconditional.safetensors' is not listed in files",
        ),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_with_the_fields_name(bundle, path, value, message):
    change(bundle, *path, to=value)
    refuse(bundle, message)


def test_an_unknown_component_is_refused_by_name(bundle):
    document = json.loads((bundle / "manifest.json").read_text())
    change(bundle, "components", "upscaler", to=document["components"]["denoiser"])
    refuse(bundle, "components.upscaler is unknown, this edgemm runs: image_encoder, transformer")


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_component_with_other_tensors_is_refused(bundle, side):
    tensors = json.loads((bundle / "manifest.json").read_text())["components"]["denoiser"]["variants"]["cpu-fp32"][side]
    change(bundle, *VARIANT, side, to=[*tensors, {"name": "odd", "dtype": "float32", "shape": ["b"]}])
    refuse(bundle, f"denoiser.variants.cpu-fp32.{side}: unknown tensor 'odd'")
    change(bundle, *VARIANT, side, to=tensors[1:])
    missing = (
        f"'{tensors[0]['name']}' is missing" if side == "outputs" else "neither 'noisy_tokens' nor 'latents' is there"
    )
    refuse(bundle, f"denoiser.variants.cpu-fp32.{side}: {missing}")
    change(bundle, *VARIANT, side, to=[{**tensors[0], "dtype": "int64"}, *tensors[1:]])
    refuse(bundle, f"{side}: '{tensors[0]['name']}' is int64 of rank 3, expected float32 of rank 3")
    change(bundle, *VARIANT, side, to=[{**tensors[0], "dtype": "float16"}, *tensors[1:]])
    refuse(bundle, f"{side}: '{tensors[0]['name']}' is float16 of rank 3, expected float32 of rank 3")
    change(bundle, *VARIANT, side, to=[{**tensors[0], "dtype": "float64"}, *tensors[1:]])
    refuse(bundle, "is 'float64', expected one of: float32, float16, int64, int8, bool")


def in_half(tensors, stem):
    return [{**spec, "dtype": "float16"} if spec["name"].startswith(stem) else spec for spec in tensors]


def test_keys_and_values_may_be_half_on_both_sides_of_a_hand_over_only(bundle):
    components = json.loads((bundle / "manifest.json").read_text())["components"]
    denoiser = components["denoiser"]["variants"]["cpu-fp32"]["inputs"]
    change(bundle, *VARIANT, "inputs", to=in_half(denoiser, "prefix_key"))
    refuse(bundle, "'prefix_key.0' is float32 in conditioner and float16 in denoiser")
    conditioner = ("components", "conditioner", "variants", "cpu-fp32")
    given = components["conditioner"]["variants"]["cpu-fp32"]["outputs"]
    change(bundle, *conditioner, "outputs", to=in_half(given, "prefix_key"))
    open_bundle(bundle, verify=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not the JSON"),
        ("[]", "holds a list, expected an object"),
        ('{"a": 1, "a": 2}', "field 'a' stands twice"),
        ('{"schema_version": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "not the JSON"),
    ],
)
def test_a_manifest_that_is_no_json_is_refused(bundle, text, message):
    (bundle / "manifest.json").write_text(text)
    refuse(bundle, message)


# Writing


def manifest_of(bundle) -> Manifest:
    return open_bundle(bundle, verify=False).manifest


def copy_into(writer, whole):
    for name in manifest_of(whole).files:
        writer.add_file(name, whole / name)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_is_written_whole(whole, tmp_path):
    with BundleWriter(tmp_path / "new.bundle") as writer:
        copy_into(writer, whole)
        assert left(tmp_path) != ["new.bundle"]  # not under its name yet
        written = writer.finish(dataclasses.replace(manifest_of(whole), files={}))
    assert left(tmp_path) == ["new.bundle"]
    assert open_bundle(tmp_path / "new.bundle").manifest == written == manifest_of(whole)
    assert (tmp_path / "new.bundle").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_nothing_is_left_when_writing_fails(tmp_path, error):
    with pytest.raises(type(error)):
        with BundleWriter(tmp_path / "new.bundle") as writer:
            writer.add_bytes("NOTICE", b"x")
            raise error
    assert left(tmp_path) == []


def test_leaving_without_a_manifest_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(BundleError, match="before the manifest was written"):
        with BundleWriter(tmp_path / "new.bundle") as writer:
            writer.add_bytes("NOTICE", b"x")
    assert left(tmp_path) == []


def test_a_manifest_that_names_a_file_nobody_wrote_is_refused(whole, tmp_path):
    with pytest.raises(BundleError, match=r"tokenizer: 'tokenizer\.json' is not listed in files"):
        with BundleWriter(tmp_path / "new.bundle") as writer:
            writer.finish(manifest_of(whole))
    assert left(tmp_path) == []


def test_an_existing_bundle_is_replaced_only_when_asked(whole, bundle, tmp_path):
    (bundle / "extra").write_text("of the old one")
    with pytest.raises(InputError, match=r"spoiled\.bundle: exists already; .*--overwrite"):
        BundleWriter(bundle).__enter__()
    with BundleWriter(bundle, overwrite=True) as writer:
        copy_into(writer, whole)
        assert (bundle / "extra").exists()  # the old one stands until the new one is whole
        writer.finish(manifest_of(whole))
    assert not (bundle / "extra").exists()
    assert left(tmp_path) == ["spoiled.bundle"]


def test_a_failed_replacement_keeps_the_old_bundle(whole, bundle, tmp_path, monkeypatch):
    rename = os.rename

    def fail(source, destination):
        if str(source).endswith(".partial"):
            raise OSError(errno.EIO, "the disk is tired")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="tired"):
        with BundleWriter(bundle, overwrite=True) as writer:
            copy_into(writer, whole)
            writer.finish(manifest_of(whole))
    open_bundle(bundle)
    assert left(tmp_path) == ["spoiled.bundle"]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="is no bundle, so it will not be replaced"):
        BundleWriter(tmp_path / "photos", overwrite=True).__enter__()


def test_names_that_leave_the_bundle_are_refused(tmp_path):
    with pytest.raises(BundleError):
        with BundleWriter(tmp_path / "new.bundle") as writer:
            writer.add_bytes("../escaped", b"x")
    assert left(tmp_path) == []


def test_a_bundle_that_cannot_fit_is_refused_before_the_work(tmp_path):
    with pytest.raises(ResourceError, match=r"needs \d+ bytes, \d+ are free"):
        BundleWriter(tmp_path / "new.bundle", expected_bytes=2**60).__enter__()
    assert left(tmp_path) == []


def test_a_disk_that_fills_up_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(self, name, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    monkeypatch.setattr(bundle_writer.BundleWriter, "add_bytes", full)
    with pytest.raises(ResourceError, match=r"the disk is full: needs more than \d+ bytes, \d+ were free after \d+"):
        with BundleWriter(tmp_path / "new.bundle") as writer:
            writer.add_bytes("NOTICE", b"x")
    assert left(tmp_path) == []


def test_a_disk_that_is_really_full_leaves_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        with pytest.raises(ResourceError, match="the disk is full"):
            with BundleWriter(disk / "new.bundle") as writer:
                writer.add_bytes("large", bytes(1_000_000))
        assert left(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_ctrl_c_while_writing_leaves_nothing(tmp_path):
    code = (
        "import sys, time; from edgemm.bundle.writer import BundleWriter\n"
        f"with BundleWriter({str(tmp_path / 'new.bundle')!r}) as writer:\n"
        "    writer.add_bytes('NOTICE', b'x'); print('writing', flush=True); time.sleep(100_000)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    assert left(tmp_path) == []
