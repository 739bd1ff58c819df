"""Everything that a device can tell of a bundle, in one command and one file, within ten minutes.

    python benchmarks/device_check.py sticker.bundle --output check.json [--minutes 10] [--root FOLDER]

Says what is here (`edgemm doctor`), verifies the bundle, and for every target of it that runs here, the CPU first:
builds its engines, compares text and pictures with the answers that were recorded at export, and measures latency,
memory and joules (`edgemm bench`).  Each step is a process of its own with the time that is left: one that crashes is
an answer, with the last lines that it said.  The file is written after every step, so what was found before a crash of
the machine, Ctrl-C or a full disk is kept; an older file of that name is set aside.  Folders of whoever ran it and the
GPU's own number are left out.  With --root a recorded board's files are read instead, to try the script itself.
docs/devices.md says where to send the file.  Exit 7 when a step failed, 130 when it was interrupted, 5 when the disk is
full.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TAIL = 20  # lines of a step that failed
ENGINES = ("rtx", "jetson-orin-jp6", "jetson-orin", "jetson-thor")  # targets whose engines are built
NO_TIME = "no time was left"
LONGEST_MINUTES = 24 * 60
PR_SET_PDEATHSIG = 1


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
    if not 0 <= args.minutes <= LONGEST_MINUTES:
        parser.error(f"--minutes is {args.minutes:g}, expected 0 to {LONGEST_MINUTES}")
    check = Check(args.bundle, args.output, time.monotonic() + 60 * args.minutes)
    if problem := check.begin():
        print(f"{args.output}: {problem}; name another with --output", file=sys.stderr)
        return 5 if "space" in problem else 3
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        look(check, args.root)
        check.document["whole"] = True
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    return check.end()


def look(check: Check, root: Path) -> None:
    bundle = str(check.bundle)
    # NVIDIA's own number; the doctor tells the CUDA that it runs
    check.document["nvidia_driver"] = (
        content(root / "proc/driver/nvidia/version").decode(errors="replace").partition("\n")[0]
    )
    found = check.step("doctor", "doctor", bundle, "--json", "--root", str(root))
    fits = ((found or {}).get("bundle") or {}).get("each", ())
    # a doctor that found no words leaves all of them to be tried
    targets = [fit["target"] for fit in fits if not fit["problem"]] if found else check.offered()
    check.document["targets"] = targets
    check.step("verify", "verify", bundle, "--json", "--no-parity")
    for target in sorted(targets, key=lambda target: target != "cpu"):
        if target != "web" or "cpu" not in targets:  # both are the CPU's
            check_target(check, bundle, "cpu" if target == "web" else target, root)


def check_target(check: Check, bundle: str, device: str, root: Path) -> None:
    if device in ENGINES:
        check.step(f"{device}: build", "build", bundle, "--target", device, "--json")
    check.script(f"{device}: answers", bundle, "--compare", device)
    plan = ["-p", "32", "-n", "32", "-r", "5", "--warmup", "2", "--duration", "0", "--root", str(root)]
    check.step(f"{device}: bench", "bench", bundle, "--device", device, *plan, "-o", "json")


class Check:
    """Steps, and the file that tells of them from the first on."""

    def __init__(self, bundle: Path, output: Path, deadline_s: float) -> None:
        self.bundle, self.output, self.deadline_s = bundle, output, deadline_s
        self.steps: list[dict[str, Any]] = []
        self.unwritten = ""  # why the newest document is not in the file
        self.document: dict[str, Any] = {
            "device_check": 2,
            "whole": False,  # until all steps are over
            "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": commit(),
            "bundle": bundle.name,
            "manifest_sha256": hashlib.sha256(content(bundle / "manifest.json")).hexdigest(),
            "targets": [],
            "steps": self.steps,
        }
        self._own = [str(folder) + os.sep for folder in (bundle.absolute().parent, Path.home(), Path.cwd(), ROOT)]

    def begin(self) -> str:
        """Why the file cannot be written, before ten minutes are spent; an older one stays beside it."""
        if self.output.exists():
            with contextlib.suppress(OSError):
                os.replace(self.output, f"{self.output}.before")
        self.write()
        return self.unwritten

    def end(self) -> int:
        failed = [step["name"] for step in self.steps if step["code"]]
        self.write()
        print(f"{len(self.steps)} steps, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
        if self.unwritten:
            print(f"{self.output}: {self.unwritten}; its last lines are these:\n{json.dumps(self.document)}")
            return 5
        if any(NO_TIME in step["said"] for step in self.steps):
            print(
                "The time was too short for all of it: --minutes 30 gives more, and engines that were built are kept."
            )
        print(f"Wrote {self.output}: docs/devices.md says where to send it.")
        return 130 if not self.document["whole"] else 7 if failed else 0

    def offered(self) -> list[str]:
        """Targets of the bundle, by its manifest alone."""
        try:
            found = json.loads(content(self.bundle / "manifest.json"))["targets"]
            return [target for target in ("cpu", "web", "cuda", *ENGINES) if target in found]
        except (ValueError, KeyError, TypeError):
            return []

    def step(self, name: str, *words: str) -> dict[str, Any] | None:
        """A verb of edgemm; its document."""
        return self._run(name, [sys.executable, "-m", "edgemm", *words])

    def script(self, name: str, *words: str) -> dict[str, Any] | None:
        return self._run(name, [sys.executable, __file__, *words])

    def _run(self, name: str, command: list[str]) -> dict[str, Any] | None:
        began_s = time.monotonic()
        print(f"{name} ...", end="", flush=True)
        try:
            code, printed, said = run(command, self.deadline_s - began_s)
        except KeyboardInterrupt:
            self._add(name, 130, began_s, "it was interrupted", None)
            raise
        document = last_document(printed)
        self._add(name, code, began_s, said, document)
        return document

    def _add(self, name: str, code: int, began_s: float, said: str, document: dict[str, Any] | None) -> None:
        tail = [self._nameless(line) for line in said.strip().splitlines()[-TAIL:]] if code else []
        seconds = round(time.monotonic() - began_s, 1)
        self.steps.append(
            {"name": name, "code": code, "seconds": seconds, "said": tail, "document": self._nameless(document)}
        )
        print(
            f" {seconds} s, {f'failed ({code}): ' + (tail or ['it said nothing'])[-1] if code else 'done'}", flush=True
        )
        self.write()

    def _nameless(self, value: Any) -> Any:
        return nameless(value, self._own)

    def write(self) -> None:
        """Whole or not at all."""
        part = self.output.with_name(f".{self.output.name}.{os.getpid()}")
        try:
            with open(part, "w") as stream:
                stream.write(json.dumps(self.document, indent=1) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, self.output)
            self.unwritten = ""
        except OSError as error:
            self.unwritten = f"cannot be written: {os.strerror(error.errno or errno.EIO)}"
            with contextlib.suppress(OSError):
                part.unlink()


def run(command: list[str], left_s: float) -> tuple[int, str, str]:
    """Exit code, what was printed and what was said; nothing that it started is left."""
    if left_s <= 1:
        return 5, "", NO_TIME
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, preexec_fn=apart, **pipes)
    try:
        printed, said = child.communicate(timeout=left_s)
        return child.returncode, printed, said
    except subprocess.TimeoutExpired:
        end(child)
        printed, said = child.communicate()
        return 5, printed, f"{said.strip()}\nnot done after {left_s:.0f} s"
    finally:
        end(child)


def apart() -> None:
    """In the child: a group of its own, which ends with this script whatever ends that."""
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def commit() -> str | None:
    """Of this checkout, with a + where files of it were changed; edgemm itself may not be there to be asked."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=30).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def content(path: Path) -> bytes:
    """Of a plain file; nothing where there is none."""
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError:
        return b""


def last_document(text: str) -> dict[str, Any] | None:
    lines = text.strip().splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None


def nameless(value: Any, own: list[str] | None = None) -> Any:
    """Without the folders of whoever ran it, `own` first, whose names may hold blanks; and without what names a GPU."""
    if isinstance(value, str):
        for folder in own or ():
            value = value.replace(folder, "")
        return re.sub(r"(?<![\w.-])/[^\s:'\"]*/(?=[^\s/:'\"]*)", "", value)
    if isinstance(value, dict):
        return {key: nameless(inner, own) for key, inner in value.items() if key != "uuid"}
    return [nameless(inner, own) for inner in value] if isinstance(value, list) else value


def compare(path: Path, device: str) -> int:
    """Every loop with its recorded answers, on the device; the comparisons as one document."""
    import dataclasses

    import edgemm
    from edgemm.bundle.bundle import open_bundle
    from edgemm.verify.loops import compare_loops
    from edgemm.verify.parity import precision_of, read_recorded

    try:
        bundle = open_bundle(path, verify=False)
        with edgemm.load(path, device=device) as model:
            recorded = dataclasses.replace(
                read_recorded(bundle), precision=precision_of(bundle.manifest, model.choice.target)
            )
            comparisons = list(compare_loops(model, recorded))
    except edgemm.EdgemmError as error:
        print(f"edgemm: error: {error}", file=sys.stderr)
        return error.exit_code
    for comparison in comparisons:
        print(comparison.line())
    failed = [comparison.line() for comparison in comparisons if not comparison.passed]
    print(json.dumps({"runs_on": str(model.choice), "comparisons": [each.to_json() for each in comparisons]}))
    print("\n".join(failed), file=sys.stderr)
    return 7 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
