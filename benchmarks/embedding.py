"""One bundle by four ways: Python's loop, Python in one call, C, a browser's tab with threads and with one.

    python benchmarks/embedding.py BUNDLE [--c examples/c/edgemm_c] [--web examples/web] [--repeat 5]

BUNDLE was exported with `--one-call draw,read,tokenize`.  A table, then one JSON line.  Times are medians after a first
run; C's are of whole processes, which hash and load the bundle each time.  Peak memory is the
process's own (VmHWM, of a tab its renderer's).  Not run on a quiet machine yet.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT, QUESTION, SEED, TOKENS = "red heart", "Count from one to ten.", 7, 16
PYTHON = """
import json, resource, sys, time
import edgemm
path, one, repeat, prompt, question, seed, tokens = json.loads(sys.argv[1])
with edgemm.load(path, device="cpu") as model:
    steps = model.manifest.one_call["draw"].num_inference_steps
    asked = {"num_inference_steps": steps, "seed": seed, "one_call": one}
    times = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        model.generate_image(prompt, **asked)
        times.append(1e3 * (time.perf_counter() - start))
    reply = model.generate_text(question, max_new_tokens=tokens, ignore_eos=True)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
print(json.dumps({"first_ms": times[0], "picture_ms": sorted(times[1:])[repeat // 2],
                  "token_ms": 1e3 / (reply.metrics.decode_tokens_per_s or 1e9), "peak_mb": peak}))
"""
TAB = """
import { chromium } from "playwright-core";
import { execSync } from "node:child_process";
const [url, repeat, prompt, question, tokens, chromiumPath] = JSON.parse(process.argv[2]);
const browser = await chromium.launch({ executablePath: chromiumPath, args: ["--no-sandbox", "--disable-gpu",
  "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"] });
const page = await browser.newPage();
page.setDefaultTimeout(600000);
await page.goto(url);
const found = await page.evaluate(async ([repeat, prompt, question, tokens]) => {
  const { Bundle, threads, normal } = await import("./edgemm.js");
  const start = performance.now(), bundle = await Bundle.open("bundle");
  await bundle.draw(prompt, 7);
  const first_ms = performance.now() - start, times = [];
  for (let i = 0; i < repeat; i++) {
    const before = performance.now();
    await bundle.draw(prompt, 7);
    times.push(performance.now() - before);
  }
  const side = bundle.manifest.loops.text.image_size, gaps = [];
  let last = 0;
  for await (const piece of bundle.ask(question, new Float32Array(3 * side * side), tokens)) {
    if (last) gaps.push(performance.now() - last);
    last = performance.now();
  }
  const middle = (all) => all.sort((a, b) => a - b)[Math.floor(all.length / 2)] ?? null;
  return { first_ms, picture_ms: middle(times), token_ms: middle(gaps), threads };
}, [repeat, prompt, question, tokens]);
const ids = execSync("pgrep -f type=renderer").toString().trim().split("\\n");
const peaks = ids.map((id) => {
  try {
    return Number(/VmHWM:\\s+(\\d+)/.exec(execSync(`cat /proc/${id}/status`).toString())[1]) / 1e3;
  } catch { return 0; }
});
console.log(JSON.stringify({ ...found, peak_mb: Math.max(...peaks) }));
await browser.close();
"""


def python(bundle: Path, one: bool, repeat: int) -> dict[str, float]:
    wish = json.dumps([str(bundle), one, repeat, PROMPT, QUESTION, SEED, TOKENS])
    return json.loads(subprocess.run([sys.executable, "-c", PYTHON, wish], check=True, capture_output=True).stdout)


def c(program: Path, bundle: Path, repeat: int) -> dict[str, float]:
    times, peak = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeat + 1):
            start = time.perf_counter()
            child = subprocess.Popen(
                [program, bundle, "draw", PROMPT, f"{folder}/c.png", str(SEED)], stdout=subprocess.DEVNULL
            )
            _, status, usage = os.wait4(child.pid, 0)
            if status:
                raise SystemExit(f"{program} failed")
            times.append(1e3 * (time.perf_counter() - start))
            peak = max(peak, usage.ru_maxrss / 1e3)
    return {"first_ms": times[0], "picture_ms": statistics.median(times[1:]), "peak_mb": peak}


def tab(web: Path, repeat: int, isolated: bool) -> dict[str, float]:
    """`web` has vendor/ and bundle (npm install && npm run build)."""
    (web / "bench.mjs").write_text(TAB)
    words = (
        [sys.executable, "serve.py", "0"]
        if isolated
        else [sys.executable, "-um", "http.server", "0", "-b", "127.0.0.1"]
    )
    server = subprocess.Popen(words, cwd=web, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        url = line.strip() if isolated else line.partition("(")[2].partition(")")[0].rstrip("/")
        wish = json.dumps([f"{url}/index.html", repeat, PROMPT, QUESTION, TOKENS, "/usr/bin/chromium"])
        return json.loads(subprocess.run(["node", "bench.mjs", wish], cwd=web, check=True, capture_output=True).stdout)
    finally:
        server.kill()
        server.wait()
        (web / "bench.mjs").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--c", type=Path)
    parser.add_argument("--web", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    shipped = sum(path.stat().st_size for path in args.bundle.rglob("*") if path.is_file()) / 1e6
    rows = {f"Python, {'one call' if one else 'loop'}": python(args.bundle, one, args.repeat) for one in (False, True)}
    if args.c:
        rows["C, whole process"] = c(args.c.resolve(), args.bundle.resolve(), args.repeat)
    if args.web:
        for isolated in (True, False):
            rows[f"browser, {'threads' if isolated else 'one thread'}"] = tab(args.web, args.repeat, isolated)
    print(f"{'':24}{'first ms':>10}{'ms a picture':>14}{'ms a token':>12}{'peak MB':>9}   bundle {shipped:.0f} MB")
    for name, row in rows.items():
        cells = [row.get(key) for key in ("first_ms", "picture_ms", "token_ms", "peak_mb")]
        print(
            f"{name:24}"
            + "".join(f"{'-' if x is None else format(x, '.0f'):>{w}}" for x, w in zip(cells, (10, 14, 12, 9)))
        )
    print(json.dumps({"bundle": str(args.bundle), "bundle_mb": shipped, "cpus": os.cpu_count(), "rows": rows}))


if __name__ == "__main__":
    main()
