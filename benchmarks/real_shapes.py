"""Published shapes with random weights: what an export, and then one process that reads and draws, take of memory.

    python benchmarks/real_shapes.py janusflow --work build/real-shapes               # 4 GB folder, int4
    python benchmarks/real_shapes.py cosmos3-edge --work build/real-shapes            # 8 GB folder, int4
    python benchmarks/real_shapes.py showo2 --layers 0.25                             # a quarter of the layers

Folders are those of published_shapes.py.  Memory is the sum of a process and all its children, looked at twenty times
a second; "anonymous" leaves out pages of files, which the system may take back at any time.  Peaks are told by stage,
as the command itself names what it does.  The bundle is used without a limit, and with one of its own size (--limit),
below which components take turns (docs/performance.md).  What was finished is not done again: with --keep a run that
was stopped goes on.  Nothing here judges answers: the export itself does.  Prints a table and, as its last line, one
JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.published_shapes import MODELS  # noqa: E402

BARS_GB = {"janusflow": 5.0, "cosmos3-edge": 8.0}  # of an export to int4
NVIDIA_ASKS = {"cosmos3-edge": 32}  # GB, for two containers, one that reads and one that draws
IN_USE = 1.3  # times the bundle: one process that reads and draws
USE = """
import json, sys, numpy as np, edgemm
limit = float(sys.argv[4]) or None
with edgemm.load(sys.argv[1], device="cpu", threads=int(sys.argv[2]), memory_limit_mb=limit) as model:
    loop = model.manifest.loops.text
    picture = np.full((loop.image_size, loop.image_size, 3), 127, np.uint8)
    said = model.generate_text("What is this?", images=[picture], max_new_tokens=8)
    words = "a red heart on a green hill under a wide sky, drawn with broad and quiet strokes "
    while len(model.tokenizer.encode(words)) < 300:
        words += words[:30]
    size = {} if sys.argv[3] == "0" else {"height": int(sys.argv[3]), "width": int(sys.argv[3])}
    drawn = model.generate_image(words, num_inference_steps=2, seed=1, **size)
    m = drawn.metrics
    read_ms = m.prefill_ms + m.conditioner_ms
    print(json.dumps({"tokens": len(said.token_ids), "pixels": list(drawn.pixels.shape), "prompt": m.prompt_tokens,
        "read_ms": read_ms, "step_ms": m.step_ms, "total_ms": m.total_ms,
        "read_again": (read_ms + m.step_ms) / m.step_ms}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--work", type=Path, default=Path("build/real-shapes"))
    parser.add_argument("--layers", type=float, default=1.0, help="this share of every tower's layers")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--side", type=int, default=0, help="pixels of the picture that is drawn (default: the model's)"
    )
    parser.add_argument("--limit", type=float, default=1.0, help="memory_limit_mb of a second use, in bundles")
    parser.add_argument("--keep", action="store_true", help="leave folder and bundle there")
    args = parser.parse_args()
    home = args.work / f"{args.model}-{args.layers:g}-{args.precision}"
    home.mkdir(parents=True, exist_ok=True)
    folders = once(home / "folders.json", lambda: apart(MODELS[args.model], home / "checkpoint", args.layers))
    folder_bytes = once(home / "folder_bytes.json", lambda: size_of(home))
    bundle = home / "made.bundle"
    words = ["export", folders[0], "--output", str(bundle), "--precision", args.precision, *folders[1:], "--overwrite"]
    made = once(home / "export.json", lambda: watched([sys.executable, "-m", "edgemm", *words], home / "export.log"))
    document: dict[str, Any] = {"benchmark": "real_shapes", "model": args.model, "layers": args.layers}
    document |= {"limit": args.limit, "precision": args.precision, "folder_bytes": folder_bytes, "export": made}
    if made["code"] == 0:
        document["bundle_bytes"] = size_of(bundle)
        for name, limit_mb in (("use", 0.0), ("use_in_turns", args.limit * document["bundle_bytes"] / 1e6)):
            words = [str(bundle), str(args.threads), str(args.side), str(limit_mb)]
            document[name] = watched([sys.executable, "-c", USE, *words], home / f"{name}.log")
    show(document)
    if not args.keep:
        shutil.rmtree(home)
    from edgemm.bench.conditions import machine_card

    print(json.dumps(document | {"card": machine_card(), "nvidia_asks_gb": NVIDIA_ASKS.get(args.model)}))
    return int(made["code"] != 0 or document["use"]["code"] != 0 or document["use_in_turns"]["code"] != 0)


def apart(make: Callable[..., Any], *args: Any) -> Any:
    """In a process of its own, which takes gigabytes with it when it ends."""
    with ProcessPoolExecutor(1) as pool:
        return pool.submit(make, *args).result()


def once(path: Path, make: Callable[[], Any]) -> Any:
    """What an earlier run has made, or this one; a command that failed is run again."""
    if path.exists():
        return json.loads(path.read_text())
    made = make()
    if not (isinstance(made, dict) and made["code"]):
        path.write_text(json.dumps(made))
    return made


def show(document: dict[str, Any]) -> None:
    gb = 1e9
    made, bar = document["export"], BARS_GB.get(document["model"])
    print(f"{document['model']}, {document['layers']:g} of its layers, {document['precision']}")
    print(f"  folder           {document['folder_bytes'] / gb:6.2f} GB")
    told = f"{made['peak_bytes'] / gb:6.2f} GB, {made['anonymous_bytes'] / gb:.2f} anonymous, {made['seconds']:.0f} s"
    print(f"  export, peak     {told}" + (f"   (bar for the whole model: {bar:g} GB)" if bar else ""))
    for stage, peak in made["stages"].items():
        print(f"    {peak / gb:6.2f} GB  {stage}")
    if made["code"]:
        print(f"  the export ended with {made['code']}: {made['said']}")
        return
    bundle = document["bundle_bytes"]
    print(f"  bundle           {bundle / gb:6.2f} GB")
    for what, used in (("reads and draws", document["use"]), ("in turns", document["use_in_turns"])):
        print(
            f"  {what:15}  {used['peak_bytes'] / gb:6.2f} GB, {used['anonymous_bytes'] / gb:.2f} anonymous, "
            f"{used['peak_bytes'] / bundle:.2f} of the bundle (bar: {IN_USE}), {used['cpu_seconds']:.0f} s of processor"
        )
        if used["code"]:
            print(f"  it ended with {used['code']}: {used['said']}")
    if asks := NVIDIA_ASKS.get(document["model"]):
        print(f"  NVIDIA asks for  {asks:6.2f} GB, for two containers, one that reads and one that draws")
    if not document["use"]["code"]:
        said = json.loads(document["use"]["said"])
        print(f"  a step that read its {said['prompt']} tokens of prompt again: {said['read_again']:.2f} times as long")


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# One command, watched.


def watched(command: list[str], log: Path) -> dict[str, Any]:
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        peak: dict[str, Any] = {"peak_bytes": 0, "anonymous_bytes": 0, "stages": {}}
        ended = threading.Event()
        thread = threading.Thread(target=follow, args=(process.pid, log, peak, ended))
        thread.start()
        _, status, spent = os.wait4(process.pid, 0)
        ended.set()
        thread.join()
    code = process.returncode = os.waitstatus_to_exitcode(status)
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    took = {"seconds": round(time.monotonic() - start, 1), "cpu_seconds": round(spent.ru_utime + spent.ru_stime, 1)}
    return {"code": code, **took, "said": lines[-1][-300:], **peak}


def follow(pid: int, log: Path, peak: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(0.05):
        whole = anonymous = 0
        for one in family_of(pid):
            mine = memory_of(one)
            whole, anonymous = whole + mine[0], anonymous + mine[1]
        peak["peak_bytes"] = max(peak["peak_bytes"], whole)
        peak["anonymous_bytes"] = max(peak["anonymous_bytes"], anonymous)
        stage = stage_in(log)
        peak["stages"][stage] = max(peak["stages"].get(stage, 0), whole)


def stage_in(log: Path) -> str:
    """What the command said last that it does, without the time that it told."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 400))
        said = re.split(r"[\r\n]", file.read().decode(errors="replace"))
    doing = [re.sub(r" \(\d+ s\)$", "", line.strip()) for line in said]
    return next(
        (line for line in reversed(doing) if re.match(r"[\w][^:]*(:|$)", line) and not line.startswith("-[")), ""
    )


def family_of(pid: int) -> Iterator[int]:
    """A process and all that it started."""
    yield pid
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield from family_of(int(child))
    except OSError:  # it ended meanwhile
        return


def memory_of(pid: int) -> tuple[int, int]:
    """Resident bytes, and those that are no file's."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    told = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if line.startswith(("VmRSS", "RssAnon"))}
    return int(told.get("VmRSS", 0)) * 1024, int(told.get("RssAnon", 0)) * 1024


if __name__ == "__main__":
    sys.exit(main())
