"""examples/web in headless Chromium: it draws and says what the runtime does, and refuses what was altered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.export.nano import needs_opset_24

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = """
import { chromium } from "playwright-core";
const [url, spoiled, screenshot] = process.argv.slice(2);
const quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath: "%s", args: ["--no-sandbox", ...quiet] });
const page = await browser.newPage();
page.setDefaultTimeout(600000);
const asked = [];
page.on("request", (request) => asked.push(request.url()));
await page.goto(url);
const said = await page.evaluate(async () => {
  const { Bundle, device, threads, toSquare } = await import("./edgemm.js");
  const noise = Float32Array.from(await (await fetch("noise.json")).json());
  const bundle = await Bundle.open("bundle");
  const drawn = await bundle.draw("red heart", noise), shown = [];
  const stepped = await bundle.draw("red heart", noise, (image, step, steps) => shown.push([step, steps, image.width]));
  const [side, image] = [bundle.manifest.loops.text.image_size, await createImageBitmap(drawn.image)];
  const pixels = toSquare(image, image.width, image.height, side, bundle.manifest.loops.text.background);
  let reply = "";
  for await (const piece of bundle.ask("What is this?", pixels)) reply += piece;
  const plain = await (await Bundle.open("bundle", undefined, "cpu")).draw("red heart", noise);
  const lists = { plain: Array.from(plain.pixels), drawn: Array.from(drawn.pixels) };
  Object.assign(lists, { stepped: Array.from(stepped.pixels), read: Array.from(pixels) });
  return { ...lists, shown, reply, threads, device, target: bundle.target };
});
await page.click("#draw button");
await page.waitForFunction(() => document.getElementById("draw").dataset.ms);
await page.click("#ask button");
await page.waitForFunction(() => /^ready/.test(document.getElementById("status").textContent));
await page.screenshot({ path: screenshot });
const refused = {};
for (const name of spoiled.split(",")) {
  await page.goto(`${url}?bundle=${name}`);
  await page.click("#draw button");
  await page.waitForFunction(() => document.getElementById("error").textContent);
  refused[name] = await page.evaluate(() => document.getElementById("error").textContent);
}
console.log(JSON.stringify({ ...said, refused, asked }));
await browser.close();
"""
PACKAGES = ROOT / "examples" / "web" / "node_modules"  # no test fetches them
pytestmark = [
    pytest.mark.slow,
    needs_opset_24,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(not (PACKAGES / "playwright-core").is_dir(), reason="(cd examples/web && npm install)"),
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    import edgemm
    from edgemm.verify.export_native import export_bundle

    path = tmp_path_factory.mktemp("web") / "bundle"
    wanted = {"target": "cpu,web", "precision": "cpu=fp32", "one_call": ("draw", "read"), "steps": 4}
    export_bundle(ROOT / "checkpoints" / "sticker-nano", path, **wanted)
    with edgemm.load(path, device="cpu", threads=1) as runtime:
        yield path, runtime


def spoiled(bundle: Path, name: str) -> None:
    """A copy in which one thing is wrong."""
    copy = bundle.with_name(name)
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    data = copy / manifest["one_call"]["draw"]["variants"]["web"]["shares"][0]
    if name == "flipped":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif name == "missing":
        data.unlink()
    else:
        (copy / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 2}))


def test_the_page_is_the_runtime(opened, tmp_path):
    from edgemm.runtimes.schedule import initial_noise

    bundle, runtime = opened
    page = tmp_path / "page"
    shutil.copytree(ROOT / "examples" / "web", page, ignore=shutil.ignore_patterns("node_modules", "vendor", "bundle"))
    (page / "bundle").symlink_to(bundle)
    said = {"flipped": "was altered", "missing": "is not there", "version": "schema_version is 2, this page reads 1"}
    for name in said:
        spoiled(bundle, name)
        (page / name).symlink_to(bundle.with_name(name))
    (page / "node_modules").symlink_to(PACKAGES)
    subprocess.run(["npm", "run", "build", "--silent"], cwd=page, check=True)
    (page / "driver.mjs").write_text(DRIVER % CHROMIUM)
    server = subprocess.Popen(
        [sys.executable, page / "serve.py", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().decode().strip() + "/index.html"
        loop = runtime.manifest.loops.denoise
        noise = initial_noise(7, *loop.state_shape(loop.height, loop.width))
        (page / "noise.json").write_text(json.dumps(noise.ravel().tolist()))
        words = ["node", "driver.mjs", url, ",".join(said), tmp_path / "page.png"]
        done = subprocess.run(words, cwd=page, capture_output=True, text=True, timeout=1800, env=os.environ)
    finally:
        server.kill()
        server.wait()
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    wanted = runtime.generate_image("red heart", num_inference_steps=4, seed=7).pixels
    assert np.abs(np.array(found["plain"], dtype=np.float32) - wanted.ravel()).max() <= 1e-2
    for way in ("drawn", "stepped"):  # in 8 bits, beside float32
        assert np.square(np.array(found[way], dtype=np.float32) - wanted.ravel()).mean() < 1e-3, f"{way}: below 30 dB"
    assert found["shown"] == [[step, 4, 64] for step in (1, 2, 3)]
    assert (found["target"], found["device"]) == ("web", "wasm") and found["threads"] >= 1
    assert (tmp_path / "page.png").stat().st_size > 5000
    side = runtime.manifest.loops.text.image_size
    read = np.array(found["read"], dtype=np.float32).reshape(3, side, side).transpose(1, 2, 0)
    picture = np.rint(read * 255).astype(np.uint8)
    assert found["reply"] == runtime.generate_text("What is this?", images=[picture], max_new_tokens=64).text
    assert all(words in found["refused"][name] for name, words in said.items()), found["refused"]
    assert all(address.startswith(("http://127.0.0.1", "blob:", "data:")) for address in found["asked"])
