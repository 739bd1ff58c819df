"""Everything that a device can tell of a bundle, in one command and one file, within ten minutes.

    python benchmarks/device_check.py sticker.bundle --output check.json [--minutes 10] [--root FOLDER]

Says what is here (`edgemm doctor`), verifies the bundle, and for every target of it that runs here: builds its engines,
compares text and pictures with the answers that were recorded at export, and measures latency, memory and joules
(`edgemm bench`).  Each step is a process of its own with the time that is left: one that crashes is an answer, with
the last lines that it said.  Folders of whoever ran it are left out.  With --root a recorded board's files are read
instead, to try the script itself.  docs/devices.md says where to send the file.  Exit 7 when a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TAIL = 20  # lines of a step that failed
ENGINES = ("rtx", "jetson-orin-jp6", "jetson-orin", "jetson-thor")  # targets whose engines are built


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--output", type=Path, default=Path("device-check.json"), metavar="FILE.json")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all of it (10)")
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="FOLDER", help="of a recorded machine")
    parser.add_argument("--compare", metavar="DEVICE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compare:
        return compare(args.bundle, args.compare)
    check = Check(time.monotonic() + 60 * args.minutes)
    found = check.step("doctor", "doctor", str(args.bundle), "--json", "--root", str(args.root))
    targets = [fit["target"] for fit in ((found or {}).get("bundle") or {}).get("each", ()) if not fit["problem"]]
    check.step("verify", "verify", str(args.bundle), "--json", "--no-parity")
    for target in targets:
        check_target(check, args.bundle, target, args.root)
    document = {"device_check": 1, "bundle": args.bundle.name, "targets": targets, "steps": check.steps}
    args.output.write_text(json.dumps(document, indent=1) + "\n")
    failed = [step["name"] for step in check.steps if step["code"]]
    print(f"{len(check.steps)} steps, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    print(f"Wrote {args.output}: docs/devices.md says where to send it.")
    return 7 if failed else 0


def check_target(check: Check, bundle: Path, target: str, root: Path) -> None:
    if target in ENGINES:
        check.step(f"{target}: build", "build", str(bundle), "--target", target, "--json")
    check.script(f"{target}: answers", str(bundle), "--compare", target)
    plan = ["-p", "32", "-n", "32", "-r", "5", "--warmup", "2", "--duration", "0", "--root", str(root)]
    check.step(f"{target}: bench", "bench", str(bundle), "--device", target, *plan, "-o", "json")


class Check:
    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.steps: list[dict[str, Any]] = []

    def step(self, name: str, *words: str) -> dict[str, Any] | None:
        """A verb of edgemm; its document."""
        return self._run(name, [sys.executable, "-m", "edgemm", *words])

    def script(self, name: str, *words: str) -> dict[str, Any] | None:
        return self._run(name, [sys.executable, __file__, *words])

    def _run(self, name: str, command: list[str]) -> dict[str, Any] | None:
        left_s, began_s = self.deadline_s - time.monotonic(), time.monotonic()
        print(f"{name} ...", flush=True)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path}
        code, said, document = 5, "no time was left", None
        if left_s > 1:
            try:
                done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=left_s)
                code, said, document = done.returncode, done.stderr, last_document(done.stdout)
            except subprocess.TimeoutExpired:
                said = f"not done after {left_s:.0f} s"
        tail = [nameless(line) for line in said.strip().splitlines()[-TAIL:]] if code else []
        seconds = round(time.monotonic() - began_s, 1)
        self.steps.append(
            {"name": name, "code": code, "seconds": seconds, "said": tail, "document": nameless(document)}
        )
        return document


def last_document(text: str) -> dict[str, Any] | None:
    lines = text.strip().splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None


def nameless(value: Any) -> Any:
    """Without the folders of whoever ran it."""
    if isinstance(value, str):
        return re.sub(r"/[^\s:'\"]*/(?=[^\s/:'\"]*)", "", value)
    if isinstance(value, dict):
        return {key: nameless(inner) for key, inner in value.items()}
    return [nameless(inner) for inner in value] if isinstance(value, list) else value


def compare(path: Path, device: str) -> int:
    """Every loop with its recorded answers, on the device; the comparisons as one document."""
    import dataclasses

    import edgemm
    from edgemm.bundle.bundle import open_bundle
    from edgemm.verify.loops import compare_loops
    from edgemm.verify.parity import precision_of, read_recorded

    bundle = open_bundle(path, verify=False)
    with edgemm.load(path, device=device) as model:
        recorded = dataclasses.replace(read_recorded(bundle), precision=precision_of(bundle.manifest, device))
        comparisons = list(compare_loops(model, recorded))
    for comparison in comparisons:
        print(comparison.line())
    failed = [comparison.line() for comparison in comparisons if not comparison.passed]
    print(json.dumps({"runs_on": str(model.choice), "comparisons": [each.to_json() for each in comparisons]}))
    print("\n".join(failed), file=sys.stderr)
    return 7 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
