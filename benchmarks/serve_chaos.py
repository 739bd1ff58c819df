"""Two replicas behind nginx, as examples/serve has them, while one is killed, one is told to end, and both are full.

    python benchmarks/serve_chaos.py sticker.bundle

Clients read, look and draw without a pause, and ask again where an answer breaks off.  Then
  kill -9   of a replica: whom it was answering are the only ones who notice; nginx asks the other replica where nothing
            was answered yet, the client does where a stream broke off; it is started again, as systemd would do
  SIGTERM   of the other: nobody notices
  a burst   of more than both take: what is not answered is refused with 429, and never with 5xx
and every answer is the one that its request gets alone.  Prints what happened, then one JSON line; ends with 7 where
it is not so.  Without nginx (Debian: apt install nginx-light) it says so in one line and ends with 4.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_load import Case, Refused, alone_first, ask, mixed_cases, text_case

SHIPPED = Path(__file__).parents[1] / "examples/serve/nginx.conf"
MAIN = """
daemon off;
master_process off;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 1024; }}
http {{
    log_format asked '$http_x_request_id $status $upstream_addr';
    access_log access.log asked;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {server}
}}
"""
MAX_QUEUE = 24  # of a replica: what both take together, one has to take while the other is gone
CLIENTS = 12
BURST = 120
TRIES = 5


@dataclass
class Seen:
    """Numbers of the requests that broke off, each with the moment, and what became of all."""

    broken: list[tuple[str, float, str]] = field(default_factory=list)
    answered: int = 0
    different: int = 0
    given_up: int = 0


class Replica:
    """A server on a port of its own, which is started again as often as it ends."""

    def __init__(self, bundle: str, port: int) -> None:
        self.port, self.address = port, f"127.0.0.1:{port}"
        self._words = [sys.executable, "-m", "edgemm", "serve", bundle, "--port", str(port)]
        self._words += ["--max-queue", str(MAX_QUEUE), "--threads", "1"]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._words, stderr=subprocess.DEVNULL)

    def wait_ready(self) -> None:
        for _ in range(1200):
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"http://{self.address}/readyz").status == 200:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise SystemExit("a replica did not start: run `edgemm serve` to see why")

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(120)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in taken]


@contextlib.contextmanager
def balanced(nginx: str, port: int, replicas: list[Replica]) -> Iterator[Path]:
    """The shipped configuration on other ports, and its log."""
    server = SHIPPED.read_text()
    changes = {"listen 80;": f"listen 127.0.0.1:{port};"}
    changes |= {f"127.0.0.1:{8001 + i} ": f"{replica.address} " for i, replica in enumerate(replicas)}
    for before, after in changes.items():
        assert before in server, before
        server = server.replace(before, after)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "nginx.conf").write_text(MAIN.format(server=server))
        running = subprocess.Popen([nginx, "-p", folder, "-c", f"{folder}/nginx.conf", "-e", "error.log"])
        try:
            yield Path(folder) / "access.log"
        finally:
            running.terminate()
            running.wait()


async def client(url: str, cases: list[Case], own: int, until: threading.Event, alone: dict, seen: Seen) -> None:
    turn = own
    while not until.is_set():
        case, turn = cases[turn % len(cases)], turn + 1
        for attempt in range(TRIES):
            number = f"c{own}.{turn}.{attempt}"
            try:
                found, _ = await ask(url, case, number)
            except Refused as refused:
                await asyncio.sleep(refused.retry_after_s)
            except (OSError, ValueError, KeyError, IndexError) as error:
                seen.broken.append((number, time.monotonic(), f"{case.kind}: {error}"))
            else:
                seen.answered += 1
                seen.different += alone[json.dumps(case.body)] != found
                break
        else:
            seen.given_up += 1


async def trouble(replicas: list[Replica], seconds: float) -> tuple[float, int]:
    """Kills one and ends the other under load; the moment of the SIGTERM, and what that one left with."""
    await asyncio.sleep(seconds)
    first, second = replicas
    await asyncio.to_thread(first.end, signal.SIGKILL)
    first.start()
    await asyncio.to_thread(first.wait_ready)
    await asyncio.sleep(seconds)
    at, left_with = time.monotonic(), await asyncio.to_thread(second.end, signal.SIGTERM)
    second.start()
    await asyncio.to_thread(second.wait_ready)
    await asyncio.sleep(seconds)
    return at, left_with


async def run(url: str, replicas: list[Replica], args: argparse.Namespace) -> tuple[Seen, float, int]:
    cases = mixed_cases(args.tokens)
    alone = await alone_first(url, cases)
    seen, until = Seen(), threading.Event()
    clients = [asyncio.create_task(client(url, cases, i, until, alone, seen)) for i in range(CLIENTS)]
    try:
        at, left_with = await trouble(replicas, args.seconds)
    finally:
        until.set()
        await asyncio.gather(*clients)
    return seen, at, left_with


async def burst(url: str, tokens: int) -> dict[str, int]:
    """More at once than both replicas take."""

    async def one(index: int) -> str:
        try:
            await ask(url, text_case(index, tokens), f"b{index}")
        except Refused:
            return "refused"
        except (OSError, ValueError) as error:
            return str(error)
        return "answered"

    said = await asyncio.gather(*map(one, range(BURST)))
    return {word: said.count(word) for word in sorted(set(said))}


def judged(seen: Seen, asked: dict[str, list[str]], killed: str, at: float, left_with: int) -> dict[str, Any]:
    """`asked` has the replicas that nginx asked, by the number of the request."""
    own = [number for number, when, _ in seen.broken if when < at and asked.get(number, [""])[-1] == killed]
    others = [said for number, when, said in seen.broken if when < at and number not in own]
    passed_on = [number for number, whom in asked.items() if number[0] == "c" and len(whom) > 1]
    return {
        "answered": seen.answered,
        "broke_off_at_the_kill": len(own),
        "broke_off_elsewhere": others,
        "passed_on_by_nginx": len(passed_on),
        "broke_off_at_sigterm": [said for _, when, said in seen.broken if when >= at],
        "sigterm_left_with": left_with,
        "different": seen.different,
        "given_up": seen.given_up,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--seconds", type=float, default=10, help="of load before, between and after")
    parser.add_argument("--tokens", type=int, default=48, help="of a reply")
    args = parser.parse_args()
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        print("no nginx here: apt install nginx-light", file=sys.stderr)
        return 4
    port, *ports = free_ports(3)
    replicas = [Replica(args.bundle, each) for each in ports]
    try:
        for replica in replicas:
            replica.wait_ready()
        with balanced(nginx, port, replicas) as log:
            url = f"http://127.0.0.1:{port}"
            seen, at, left_with = asyncio.run(run(url, replicas, args))
            lines = [line.split(" ", 2) for line in log.read_text().splitlines()]
            asked = {number: whom.split(", ") for number, _, whom in lines}
            found = judged(seen, asked, replicas[0].address, at, left_with)
            found["burst"] = asyncio.run(burst(url, args.tokens))
    finally:
        for replica in replicas:
            replica.process.kill()
            replica.process.wait()
    for name, value in found.items():
        print(f"{name.replace('_', ' '):24} {value}")
    print(json.dumps(found))
    bad = [name for name in ("broke_off_elsewhere", "broke_off_at_sigterm", "different", "given_up") if found[name]]
    bad += ["burst"] * bool(found["burst"].keys() - {"answered", "refused"}) + ["sigterm"] * bool(left_with)
    if bad:
        print(f"not as expected: {', '.join(bad)}", file=sys.stderr)
    return 7 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
