"""One model by five ways: Python's loop, Python in one call, C, a browser's tab with threads and with one.

    python benchmarks/embedding.py BUNDLE [--c examples/c/edgemm_c] [--web examples/web] [--web-bundle BUNDLE]

BUNDLE was exported with `--one-call draw,read,tokenize`, that of the tab with `--target web --one-call draw,read`; C
wants EDGEMM_EXTENSIONS (docs/embedding-c.md), the tab `npm install && npm run build`.  A table, what the tab fetches
before its first picture, then one JSON line.  Times are medians after a first run; C's are of whole processes, which
hash and load the bundle each time, and its ms a token are what a reply of all its tokens takes longer than one of the
first.  Peak memory is the process's own (VmHWM; of a tab its renderer's), bytes are the files that the way opens.
Pixels and replies are compared with those of Python's loop over the same bundle, on the same noise and the same
picture.  Not run on a quiet machine yet.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import edgemm
from edgemm.bundle.bundle import open_bundle
from edgemm.runtimes.schedule import initial_noise

PROMPT, QUESTION, LONG, SEED, TOKENS = "red heart", "What is this?", "Count from one to ten.", 7, 16
PYTHON = """
import json, resource, sys, time
import numpy as np
import edgemm
path, one, repeat, prompt, question, long, noise, picture, tokens = json.loads(sys.argv[1])
noise = np.load(noise)
start = time.perf_counter()
with edgemm.load(path, device="cpu") as model:
    steps = model.manifest.one_call["draw"].num_inference_steps
    asked = {"num_inference_steps": steps, "noise": noise, "one_call": one}
    times = []
    for _ in range(repeat + 1):
        drawn = model.generate_image(prompt, **asked)
        times.append(1e3 * (time.perf_counter() - start))
        start = time.perf_counter()
    reply = model.generate_text(long, max_new_tokens=tokens, ignore_eos=True)
    said = model.generate_text(question, images=[picture], max_new_tokens=64).text.strip()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
np.save(sys.argv[2], drawn.pixels)
print(json.dumps({"first_ms": times[0], "picture_ms": sorted(times[1:])[repeat // 2], "said": said,
                  "token_ms": 1e3 / (reply.metrics.decode_tokens_per_s or 1e9), "peak_mb": peak}))
"""
TAB = """
import { chromium } from "playwright-core";
import { execSync } from "node:child_process";
const [url, repeat, prompt, question, long, tokens, executablePath] = JSON.parse(process.argv[2]);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu",
  "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"] });
const page = await browser.newPage();
page.setDefaultTimeout(600000);
const start = performance.now();
await page.goto(url);
await page.click("#draw button");
await page.waitForFunction(() => document.getElementById("draw").dataset.ms);
const first_ms = performance.now() - start;
const fetched = await page.evaluate(() => Object.fromEntries(performance.getEntriesByType("resource").map(
  (entry) => [new URL(entry.name).pathname, entry.decodedBodySize])));
const found = await page.evaluate(async ([repeat, prompt, question, long, tokens]) => {
  const { threads, toSquare } = await import("./edgemm.js");
  const bundle = await window.edgemm.bundle(), times = [];
  const noise = Float32Array.from(await (await fetch("noise.json")).json());
  let drawn;
  for (let i = 0; i <= repeat; i++) {
    const before = performance.now();
    drawn = await bundle.draw(prompt, noise, () => {}, 100);
    times.push(performance.now() - before);
  }
  const { image_size: side, background } = bundle.manifest.loops.text, gaps = [];
  const picture = await createImageBitmap(await (await fetch("picture.png")).blob());
  const pixels = toSquare(picture, picture.width, picture.height, side, background);
  let said = "", last = 0;
  for await (const piece of bundle.ask(question, pixels)) said += piece;
  for await (const _ of bundle.ask(long, pixels, tokens, [])) {
    if (last) gaps.push(performance.now() - last);
    last = performance.now();
  }
  const middle = (all) => all.toSorted((a, b) => a - b)[Math.floor(all.length / 2)] ?? null;
  const heard = { said: said.trim(), pixels: Array.from(drawn.pixels) };
  return { ...heard, picture_ms: middle(times.slice(1)), token_ms: middle(gaps), threads };
}, [repeat, prompt, question, long, tokens]);
const listed = execSync("ps -eo pid=,ppid=,args=").toString().trim().split("\\n");
const rows = listed.map((line) => /(\\d+)\\s+(\\d+)\\s+(.*)/.exec(line));
const ours = new Set([process.pid]);
for (let grown = 0; grown !== ours.size; ) {
  grown = ours.size;
  for (const [, pid, parent] of rows) if (ours.has(Number(parent))) ours.add(Number(pid));
}
const renderers = rows.filter(([, pid, , args]) => ours.has(Number(pid)) && args.includes("type=renderer"));
const peaks = renderers.map(([, pid]) => {
  try {
    return Number(/VmHWM:\\s+(\\d+)/.exec(execSync(`cat /proc/${pid}/status`).toString())[1]) / 1e3;
  } catch { return 0; }
});
console.log(JSON.stringify({ ...found, first_ms, fetched, peak_mb: Math.max(...peaks) }));
await browser.close();
"""
PARTS = {  # what the tab fetches before its first picture -> how its paths end
    "page": (".html", "/edgemm.js"),
    "onnxruntime-web": ("/ort.mjs", ".wasm", "threaded.mjs"),
    "tokenizers": ("/tokenizers.mjs",),
    "manifest and vocabulary": ("/manifest.json", "/tokenizer.json"),
    "graphs": (".onnx",),
    "weights": (".data",),
}
Row = dict[str, Any]


def python(bundle: Path, one: bool, repeat: int, work: Path) -> Row:
    told = [
        str(bundle),
        one,
        repeat,
        PROMPT,
        QUESTION,
        LONG,
        str(work / "noise.npy"),
        str(work / "picture.png"),
        TOKENS,
    ]
    words = [sys.executable, "-c", PYTHON, json.dumps(told), str(work / "drawn.npy")]
    row = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    return row | {"pixels": np.load(work / "drawn.npy")}


def c(program: Path, bundle: Path, repeat: int, work: Path) -> Row:
    def run(*words: object) -> tuple[float, float, str]:
        start = time.perf_counter()
        child = subprocess.Popen([program, bundle, *map(str, words)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{program} failed")
        return 1e3 * (time.perf_counter() - start), usage.ru_maxrss / 1e3, said.strip()

    drawn = [run("draw", PROMPT, work / "c.png", work / "noise.f32") for _ in range(repeat + 1)]
    asked = [[run("ask", work / "picture.png", QUESTION, most) for _ in range(repeat)] for most in (1, 64)]
    whole, first = (statistics.median(time for time, *_ in runs) for runs in asked[::-1])
    tokens = len(edgemm.load(bundle, device="cpu").tokenizer.encode(asked[1][0][2])) or 1
    return {
        "first_ms": drawn[0][0],
        "picture_ms": statistics.median(time for time, *_ in drawn[1:]),
        "token_ms": (whole - first) / tokens,
        "peak_mb": max(peak for _, peak, _ in [*drawn, *asked[0], *asked[1]]),
        "said": asked[1][0][2],
        "pixels": np.asarray(Image.open(work / "c.png"), dtype=np.float32).transpose(2, 0, 1) / 255,
    }


def tab(web: Path, bundle: Path, repeat: int, isolated: bool, work: Path) -> Row:
    """`web` has vendor/ and node_modules/ (npm install && npm run build)."""
    page = work / f"page-{isolated}"
    shutil.copytree(web, page, ignore=shutil.ignore_patterns("node_modules", "bundle"))
    (page / "node_modules").symlink_to((web / "node_modules").resolve())
    (page / "bundle").symlink_to(bundle.resolve())
    shutil.copy(work / "picture.png", page)
    (page / "noise.json").write_text(json.dumps(np.load(work / "noise.npy").ravel().tolist()))
    (page / "bench.mjs").write_text(TAB)
    plain = [sys.executable, "-um", "http.server", "0", "-b", "127.0.0.1"]
    words = [sys.executable, "serve.py", "0"] if isolated else plain
    server = subprocess.Popen(words, cwd=page, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        url = line.strip() if isolated else line.partition("(")[2].partition(")")[0].rstrip("/")
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        wish = json.dumps([f"{url}/index.html", repeat, PROMPT, QUESTION, LONG, TOKENS, chromium])
        said = subprocess.run(["node", "bench.mjs", wish], cwd=page, check=True, stdout=subprocess.PIPE).stdout
    finally:
        server.kill()
        server.wait()
    row = json.loads(said)
    fetched = row.pop("fetched") | {"/index.html": (page / "index.html").stat().st_size}
    parts = {part: sum(size for path, size in fetched.items() if path.endswith(ends)) for part, ends in PARTS.items()}
    return row | {"pixels": np.array(row["pixels"], dtype=np.float32), "parts": parts}


def shipped(bundle: Path) -> float:
    """MB of the graphs and weights of the first target, its loops as one graph included, and of the vocabulary."""
    manifest = open_bundle(bundle, verify=False).manifest
    variants = manifest.graphs_for(next(iter(manifest.targets))).values()
    paths = {path for each in variants for path in (each.graph, each.data, *each.shares) if path} | {manifest.tokenizer}
    return sum(manifest.files[path].size_bytes for path in paths) / 1e6


def prepare(bundle: Path, work: Path) -> None:
    """One noise for all, and one picture of the size that is read, so that nobody scales it."""
    loops = open_bundle(bundle, verify=False).manifest.loops
    assert loops.denoise and loops.text
    noise = initial_noise(SEED, *loops.denoise.state_shape(loops.denoise.height, loops.denoise.width))
    np.save(work / "noise.npy", noise)
    noise.tofile(work / "noise.f32")
    with edgemm.load(bundle, device="cpu") as model:
        pixels = model.generate_image(PROMPT, noise=noise).pixels  # (3, H, W)
    picture = Image.fromarray(np.rint(255 * pixels).astype(np.uint8).transpose(1, 2, 0))
    picture.resize((loops.text.image_size, loops.text.image_size)).save(work / "picture.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--c", type=Path)
    parser.add_argument("--web", type=Path)
    parser.add_argument("--web-bundle", type=Path, help="what the tab opens (default: BUNDLE)")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        work, size = Path(folder), shipped(args.bundle)
        prepare(args.bundle, work)
        for one in (False, True):
            name = f"Python, {'one call' if one else 'loop'}"
            rows[name] = python(args.bundle, one, args.repeat, work) | {"mb": size}
        same = rows["Python, loop"]
        ways = [(row, same) for row in rows.values()]
        if args.c:
            rows["C, whole process"] = c(args.c.resolve(), args.bundle.resolve(), args.repeat, work) | {"mb": size}
            ways.append((rows["C, whole process"], same))
        if args.web:
            bundle = args.web_bundle or args.bundle
            own = python(bundle, False, 1, work) if args.web_bundle else same
            for isolated in (True, False):
                row = tab(args.web.resolve(), bundle, args.repeat, isolated, work)
                row["mb"] = sum(row["parts"].values()) / 1e6
                rows[f"browser, {'threads' if isolated else 'one thread'}"] = row
                ways.append((row, own))
    for row, wanted in ways:
        row["pixels_off"] = float(np.abs(np.ravel(row["pixels"]) - np.ravel(wanted["pixels"])).max())
        row["reply_alike"] = row["said"] == wanted["said"]
    for row in rows.values():
        del row["pixels"]
    show(rows)
    print(json.dumps({"bundle": args.bundle.name, "cpus": os.cpu_count(), "repeat": args.repeat, "rows": rows}))


def show(rows: dict[str, Row]) -> None:
    columns = {
        "first_ms": "first ms",
        "picture_ms": "ms a picture",
        "token_ms": "ms a token",
        "peak_mb": "peak MB",
        "mb": "MB",
    }
    print(f"{'':20}" + "".join(f"{title:>14}" for title in columns.values()) + f"{'pixels off':>14}{'reply':>8}")
    for name, row in rows.items():
        cells = "".join(f"{'-' if row.get(key) is None else format(row[key], '.1f'):>14}" for key in columns)
        print(f"{name:20}{cells}{row['pixels_off']:14.1e}{'same' if row['reply_alike'] else 'other':>8}")
    for name, row in rows.items():
        if "parts" in row:
            told = ", ".join(f"{part} {size / 1e6:.2f}" for part, size in row["parts"].items())
            print(f"{name}: first picture from a cold load after {row['first_ms']:.0f} ms; MB fetched: {told}")


if __name__ == "__main__":
    main()
