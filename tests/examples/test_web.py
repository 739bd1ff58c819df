"""examples/web in headless Chromium: it draws and says what the runtime does, and refuses what was altered."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemm
from edgemm.bundle.bundle import open_bundle
from edgemm.runtimes.schedule import initial_noise
from tests.export.nano import needs_opset_24
from tests.export.test_pages import snippets, with_programs

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = """
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";
const [url, spoiled, screenshot, questions] = process.argv.slice(2);
const quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath: "%s", args: ["--no-sandbox", ...quiet] });
const page = await browser.newPage();
page.setDefaultTimeout(600000);
const asked = [];
page.on("request", (request) => asked.push(request.url()));
await page.goto(url);
const said = await page.evaluate(async (questions) => {
  const { Bundle, device, threads, toSquare } = await import("./edgemm.js");
  const noises = await (await fetch("noise.json")).json(), drawn = {}, stepped = {}, shown = [], replies = [];
  const bundle = await Bundle.open("bundle");
  const preview = (image, step, steps) => shown.push([step, steps, image.width]);
  let heart;
  for (const [prompt, numbers] of Object.entries(noises)) {
    const noise = Float32Array.from(numbers), one = await bundle.draw(prompt, noise);
    heart ??= one.image;
    drawn[prompt] = Array.from(one.pixels);
    stepped[prompt] = Array.from((await bundle.draw(prompt, noise, preview)).pixels);
  }
  const [side, image] = [bundle.manifest.loops.text.image_size, await createImageBitmap(heart)];
  const pixels = toSquare(image, image.width, image.height, side, bundle.manifest.loops.text.background);
  for (const question of questions) {
    let reply = "";
    for await (const piece of bundle.ask(question, pixels)) reply += piece;
    replies.push(reply);
  }
  return { drawn, stepped, shown, replies, read: Array.from(pixels), threads, device, target: bundle.target };
}, JSON.parse(questions));
await page.click("#draw button");
await page.waitForFunction(() => document.getElementById("draw").dataset.ms);
await page.click("#ask button");
await page.waitForFunction(() => /^ready/.test(document.getElementById("status").textContent));
await page.screenshot({ path: screenshot });
const snippet = [];
page.on("console", (message) => snippet.push(message.text()));
page.on("pageerror", (error) => { throw error; });
await page.addScriptTag({ type: "module", content: `${readFileSync("snippet.js")}; console.log("to its end");` });
while (!snippet.includes("to its end")) await new Promise((done) => setTimeout(done, 100));
const heard = snippet.slice(0, snippet.indexOf("to its end"));
const refused = {};
for (const name of spoiled.split(",")) {
  await page.goto(`${url}?bundle=${name}`);
  await page.click("#draw button");
  await page.waitForFunction(() => document.getElementById("error").textContent);
  refused[name] = await page.evaluate(() => {
    const { width, height } = document.getElementById("picture");
    const paper = document.getElementById("picture").getContext("2d").getImageData(0, 0, width, height);
    return [document.getElementById("error").textContent, paper.data.some(Boolean)];
  });
}
console.log(JSON.stringify({ ...said, snippet: heard, refused, asked }));
await browser.close();
"""
PACKAGES = ROOT / "examples" / "web" / "node_modules"  # no test fetches them
pytestmark = [
    pytest.mark.slow,
    needs_opset_24,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(not (PACKAGES / "playwright-core").is_dir(), reason="(cd examples/web && npm install)"),
]


PROMPTS = {"red heart": 7, "dog face, noto style": 8, "yellow moon": 9}  # and the seed of its noise
QUESTIONS = ("What is this?", "Count from one to ten.", "Which letters do you see?")


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """The folder that docs/embedding-web.md makes and serves, and its address."""
    home = tmp_path_factory.mktemp("web")
    (home / "checkpoints").symlink_to(ROOT / "checkpoints")
    made = home / "examples" / "web"
    shutil.copytree(ROOT / "examples" / "web", made, ignore=shutil.ignore_patterns("node_modules", "vendor", "bundle"))
    (made / "node_modules").symlink_to(PACKAGES)
    npm = f'[ "$1" = install ] || exec {shutil.which("npm")} "$@"'  # what it installs is there
    given = with_programs(home, python3=f'exec {sys.executable} "$@"', npm=npm)
    with served(snippets("embedding-web.md", "sh")[0].replace("serve.py", "serve.py 0"), home, given) as url:
        yield made, url + "/index.html"


@contextmanager
def served(code: str, home: Path, given: dict[str, str]) -> Iterator[str]:
    """The first address that a page's commands print, while they run."""
    with (home / "told").open("wb") as told:
        shell = subprocess.Popen(
            ["bash", "-e", "-c", code], cwd=home, env=given, stdout=subprocess.PIPE, stderr=told, start_new_session=True
        )
    try:
        assert shell.stdout is not None
        lines = (line.decode().strip() for line in shell.stdout)
        url = next((line for line in lines if line.startswith("http://")), None)
        assert url, (home / "told").read_text()[-3000:]
        yield url
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait()


Change = Callable[[Path, dict[str, Any], dict[str, Any]], object]  # of a copy of the bundle, its manifest, a variant


def rewritten(path: str, content: bytes) -> Change:
    """`{data}` or `{graph}` with other bytes."""

    def change(bundle: Path, manifest: dict[str, Any], variant: dict[str, Any]) -> None:
        where = bundle / path.format(**variant)
        where.unlink()
        where.write_bytes(content)

    return change


def flipped(bundle: Path, manifest: dict[str, Any], variant: dict[str, Any]) -> None:
    content = bytearray((bundle / variant["data"]).read_bytes())
    content[len(content) // 2] ^= 1
    rewritten("{data}", bytes(content))(bundle, manifest, variant)


def cut_and_hashed(bundle: Path, manifest: dict[str, Any], variant: dict[str, Any]) -> None:
    """A graph that ends in its middle, as its manifest says."""
    content = (bundle / variant["graph"]).read_bytes()[:5000]
    rewritten("{graph}", content)(bundle, manifest, variant)
    manifest["files"][variant["graph"]] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


def moved(path: str) -> Change:
    """The weights are said to lie there, and there is a record of it."""

    def change(bundle: Path, manifest: dict[str, Any], variant: dict[str, Any]) -> None:
        whole = path.format(**variant)
        manifest["files"][whole] = manifest["files"][variant["data"]]
        variant["data"] = whole

    return change


REFUSED: dict[str, tuple[Change, str]] = {
    "flipped": (flipped, "data: was altered: its SHA-256 is not the manifest's"),
    "truncated": (rewritten("{data}", b"numbers"), "bytes, not "),
    "missing": (lambda bundle, _, variant: (bundle / variant["data"]).unlink(), "data: is not there (404)"),
    "version": (lambda _, manifest, __: manifest.update(schema_version=2), "schema_version is 2, this page reads 1"),
    "torn": (rewritten("manifest.json", b'{"schema'), "manifest.json: not the JSON object that was expected"),
    "digits": (
        lambda _, manifest, variant: manifest["files"][variant["data"]].update(sha256=66 * "0"),
        "its SHA-256 in the manifest has 66 digits, not 64",
    ),
    "cut": (cut_and_hashed, "components/transformer/"),
    "outside": (moved("../bundle/{data}"), "../bundle/components/transformer/"),
    "spelled": (moved("components/%2e%2e/%2e%2e/bundle/{data}"), "not in the bundle"),
    "folder": (moved("components/transformer/"), "components/transformer/: has "),
    "unlisted": (lambda _, manifest, variant: manifest["files"].pop(variant["data"]), "data: not in the bundle"),
    "hidden": (lambda _, __, variant: variant.update(data=None), "onnx.data"),  # the graph reads what nobody named
    "slots": (lambda _, manifest, __: manifest["limits"].update(max_context=1e300), "max_context is 1e+300, expected"),
    "steps": (
        lambda _, manifest, __: manifest["loops"]["denoise"].update(num_inference_steps=0),
        "steps is 0, expected",
    ),
    "sizes": (
        lambda _, manifest, variant: manifest["files"][variant["data"]].update(size_bytes=1e300),
        "bytes, not 1e+300",
    ),
    "nameless": (lambda _, manifest, __: manifest.pop("tokenizer"), "undefined: not in the bundle"),
}


def spoiled(page: Path, name: str) -> None:
    """A copy of the bundle in which one thing is wrong."""
    copy = page / name
    shutil.copytree(page / "bundle", copy, copy_function=os.link)
    before = (copy / "manifest.json").read_text()
    manifest = json.loads(before)
    variant = manifest["components"]["transformer"]["variants"][manifest["targets"]["web"]["transformer"]]
    REFUSED[name][0](copy, manifest, variant)
    if (copy / "manifest.json").read_text() == before:
        rewritten("manifest.json", json.dumps(manifest).encode())(copy, manifest, variant)


@pytest.fixture(scope="module")
def found(page, tmp_path_factory) -> dict[str, Any]:
    """What the browser says of all that is asked of it."""
    folder, url = page
    loop = open_bundle(folder / "bundle").manifest.loops.denoise
    assert loop is not None
    shape = loop.state_shape(loop.height, loop.width)
    noises = {prompt: initial_noise(seed, *shape).ravel().tolist() for prompt, seed in PROMPTS.items()}
    (folder / "noise.json").write_text(json.dumps(noises))
    (folder / "snippet.js").write_text(snippets("embedding-web.md", "js")[0])
    (folder / "driver.mjs").write_text(DRIVER % CHROMIUM)
    for name in REFUSED:
        spoiled(folder, name)
    screenshot = tmp_path_factory.mktemp("seen") / "page.png"
    words = ["node", "driver.mjs", url, ",".join(REFUSED), screenshot, json.dumps(QUESTIONS)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert screenshot.stat().st_size > 5000
    return json.loads(done.stdout)


def test_the_page_is_the_runtime(page, found):
    """In the 8 bits that `--target web` writes: pictures to 1e-2, in one call and step by step, and every reply."""
    with edgemm.load(page[0] / "bundle", device="cpu", threads=1) as runtime:
        for prompt, seed in PROMPTS.items():
            wanted = runtime.generate_image(prompt, num_inference_steps=4, seed=seed).pixels.ravel()
            for way in ("drawn", "stepped"):
                assert np.abs(np.array(found[way][prompt], dtype=np.float32) - wanted).max() <= 1e-2, (way, prompt)
        assert runtime.manifest.loops.text is not None
        side = runtime.manifest.loops.text.image_size
        read = np.array(found["read"], dtype=np.float32).reshape(3, side, side).transpose(1, 2, 0)
        picture = np.rint(read * 255).astype(np.uint8)
        replies = [runtime.generate_text(words, images=[picture], max_new_tokens=64).text for words in QUESTIONS]
    assert found["replies"] == replies
    assert found["shown"] == [[step, 4, 64] for step in (1, 2, 3)] * len(PROMPTS)
    assert (found["target"], found["device"]) == ("web", "wasm") and found["threads"] >= 1


def test_the_pages_snippet_runs(found):
    """Its picture in three previews, then the pieces of its reply."""
    assert found["snippet"][:3] == ["1 of 4", "2 of 4", "3 of 4"] and len(found["snippet"]) > 3


def test_a_spoiled_bundle_is_one_line_and_nothing_is_drawn(found):
    for name, (_, words) in REFUSED.items():
        said, drawn = found["refused"][name]
        assert words in said and "\n" not in said and not drawn, (name, said)


def test_nothing_is_fetched_from_elsewhere(found):
    assert all(address.startswith(("http://127.0.0.1", "blob:", "data:")) for address in found["asked"])
