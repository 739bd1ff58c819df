"""One model by five ways: Python's loop, Python in one call, C, a browser's tab with threads and with one.

    (cd examples/web && npm install); make -C examples/c headers        # once
    python benchmarks/embedding.py [CHECKPOINT] [--bundle DIR] [--web-bundle DIR] [--repeat 3]

Without bundles it exports sticker-nano's, `--one-call draw,read,tokenize` for cpu and `--target web --one-call
draw`, a minute each; C and the page are built from examples/, and a way whose tools lack is left out in one line.
A table, what the tab fetches before its first picture, then one JSON line.  Times are medians after a first run.  C's
pictures are whole processes, which hash and load the bundle each time; its ms a token are the gaps between what it
prints.  Peak memory is the process's own (VmHWM; of a tab its renderer's), bytes are the files that the way opens.
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
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import edgemm
from edgemm.bundle.bundle import open_bundle
from edgemm.runtimes.schedule import initial_noise

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HEADERS = ("/usr/include/cjson/cJSON.h", "/usr/include/png.h", "/usr/include/openssl/evp.h")
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


def c(bundle: Path, repeat: int, work: Path) -> Row:
    """Builds examples/c in `work` and runs it."""
    folder = work / "c"
    shutil.copytree(EXAMPLES / "c", folder, ignore=shutil.ignore_patterns("*.so*", "edgemm_c"))
    words = ["make", "-C", str(folder), f"PYTHON={sys.executable}", "edgemm_c", "extensions.so"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    given = os.environ | {"EDGEMM_EXTENSIONS": str(folder / "extensions.so")}

    def run(*words: object) -> tuple[float, float, str, list[float]]:
        start = time.perf_counter()
        words = (folder / "edgemm_c", bundle, *words)
        child = subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, env=given)
        assert child.stdout is not None
        pieces, times = [], []
        while piece := os.read(child.stdout.fileno(), 1 << 16):
            pieces.append(piece)
            times.append(1e3 * (time.perf_counter() - start))
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit("examples/c failed")
        gaps = [later - one for one, later in pairwise(times[:-1])]  # the last piece is the line's end
        return 1e3 * (time.perf_counter() - start), usage.ru_maxrss / 1e3, b"".join(pieces).decode().strip(), gaps

    drawn = [run("draw", PROMPT, work / "c.png", work / "noise.f32") for _ in range(repeat + 1)]
    asked = [run("ask", work / "picture.png", QUESTION) for _ in range(repeat)]
    gaps = [gap for *_, some in asked for gap in some]
    return {
        "first_ms": drawn[0][0],
        "picture_ms": statistics.median(run[0] for run in drawn[1:]),
        "token_ms": statistics.median(gaps) if gaps else None,
        "peak_mb": max(run[1] for run in [*drawn, *asked]),
        "said": asked[0][2],
        "pixels": np.asarray(Image.open(work / "c.png"), dtype=np.float32).transpose(2, 0, 1) / 255,
    }


def tab(bundle: Path, repeat: int, isolated: bool, work: Path) -> Row:
    page = work / f"page-{isolated}"
    shutil.copytree(EXAMPLES / "web", page, ignore=shutil.ignore_patterns("node_modules", "bundle", "vendor"))
    (page / "node_modules").symlink_to(EXAMPLES / "web" / "node_modules")
    subprocess.run(["npm", "run", "build", "--silent"], cwd=page, check=True)
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
        wish = json.dumps([f"{url}/index.html", repeat, PROMPT, QUESTION, LONG, TOKENS, CHROMIUM])
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


def lacks() -> dict[str, str]:
    """way -> what it wants and this machine has not."""
    tools = [name for name in ("gcc", "make") if shutil.which(name) is None]
    tools += [f"{name} (libcjson-dev, libpng-dev, libssl-dev)" for name in HEADERS if not Path(name).exists()]
    tools += [] if find_spec("onnxruntime_extensions") else ["pip install 'edgemm[tokenizer-graph]'"]
    tools += [] if (EXAMPLES / "c" / "include").is_dir() else ["make -C examples/c headers"]
    pages = [] if (EXAMPLES / "web" / "node_modules").is_dir() else ["(cd examples/web && npm install)"]
    pages += [] if CHROMIUM else ["chromium"]
    return {way: ", ".join(lacking) for way, lacking in (("C", tools), ("browser", pages)) if lacking}


def exported(checkpoint: Path, output: Path, *words: str) -> Path:
    """The bundle, by the command that the pages give."""
    told = ["export", str(checkpoint), "--output", str(output), "--steps", "4", *words]
    subprocess.run([sys.executable, "-m", "edgemm", *told], check=True, stdout=sys.stderr)
    return output


def measured(bundle: Path, web_bundle: Path | None, repeat: int, work: Path) -> dict[str, Row]:
    """way -> its row; without `web_bundle` the tab is left out."""
    missing, size = lacks(), shipped(bundle)
    for way, what in missing.items():
        print(f"{way}: left out, it needs {what}")
    prepare(bundle, work)
    rows = {
        f"Python, {'one call' if one else 'loop'}": python(bundle, one, repeat, work) | {"mb": size}
        for one in (False, True)
    }
    if "C" not in missing:
        rows["C, whole process"] = c(bundle, repeat, work) | {"mb": size}
    compare(rows, rows["Python, loop"])
    if web_bundle and "browser" not in missing:
        own = python(web_bundle, False, repeat, work) | {"mb": shipped(web_bundle)}
        tabs = {"Python, loop, web's": own}
        for isolated in (True, False):
            row = tab(web_bundle, repeat, isolated, work)
            tabs[f"browser, {'threads' if isolated else 'one thread'}"] = row | {"mb": sum(row["parts"].values()) / 1e6}
        compare(tabs, own)
        rows |= tabs
    return rows


def compare(rows: dict[str, Row], wanted: Row) -> None:
    pixels, said = np.ravel(wanted["pixels"]), wanted["said"]
    for row in rows.values():
        row["pixels_off"] = float(np.abs(np.ravel(row.pop("pixels")) - pixels).max())
        row["reply_alike"] = row["said"] == said


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=ROOT / "checkpoints" / "sticker-nano")
    parser.add_argument("--bundle", type=Path, help="for cpu, with --one-call draw,read,tokenize")
    parser.add_argument("--web-bundle", type=Path, help="for web, with --one-call draw")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work, web = Path(folder), args.web_bundle
        bundle = args.bundle or exported(args.checkpoint, work / "cpu.bundle", "--one-call", "draw,read,tokenize")
        if web is None and "browser" not in lacks():
            web = exported(args.checkpoint, work / "web.bundle", "--target", "web", "--one-call", "draw")
        rows = measured(bundle.resolve(), web and web.resolve(), args.repeat, work)
    show(rows)
    told = {"checkpoint": args.checkpoint.name, "cpus": os.cpu_count(), "load": os.getloadavg(), "repeat": args.repeat}
    print(json.dumps(told | {"rows": rows}))


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
