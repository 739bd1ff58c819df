"""A server under load on loopback: what clients that read, look and draw get, and whether it is what they get alone.

    python benchmarks/serve_load.py sticker.bundle                  # about 17 minutes, 10 of them the soak
    python benchmarks/serve_load.py sticker.bundle --quick          # every part in less than two minutes

Starts `edgemm serve` itself.  Four parts, each of which `--only` names:
  mixed    1, 4, 16 and 64 clients; of four requests two are text, one shows a picture, one draws
  streams  eight streams of text against one, by turns; at least 2.5 times the tokens a second are expected
  soak     16 mixed clients for ten minutes: memory, and its slope over the second half
Every answer is compared with the same request alone: text is greedy or has a seed, pictures have seeds.  Tokens and
pictures are counted by the server (/metrics) between two moments at which all clients are at work.  CPU time is the
server's and the clients', who share the cores.  Clients are bare sockets: a Python client's own work would be measured,
too.  Prints tables, then one JSON line; ends with 7 where something expected is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
from PIL import Image

from edgemm.bench.conditions import machine_card

PROMPTS = ["Name a fruit.", "What is a dog?", "Write about the sea and the wind.", "Tell me about Paris, please."]
SAID = re.compile(rb'"content":"[^"]')
TIMES_ONE = 2.5  # so much more do eight streams have to say than one
FLAT = 0.01  # of its memory that a server may gain in the second half of a soak
DONE = b"data: [DONE]"
CHAT, DRAW = "/v1/chat/completions", "/v1/images/generations"


class Refused(Exception):
    """The queue is full; after so many seconds it may not be."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"refused, for {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Case:
    """A request that gets the same answer every time."""

    kind: str  # read, look or draw
    path: str
    body: dict[str, Any]


@dataclass
class Seen:
    """What the clients of one run saw."""

    first_s: list[float] = field(default_factory=list)
    whole_s: dict[str, list[float]] = field(default_factory=lambda: {"read": [], "look": [], "draw": []})
    refused: int = 0
    errors: list[str] = field(default_factory=list)
    different: int = 0


def noise_url(seed: int) -> str:
    pixels, file = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def text_case(index: int, tokens: int, picture: str | None = None) -> Case:
    """Every second one is drawn by lot, with a seed."""
    words = PROMPTS[index % len(PROMPTS)]
    content: Any = words
    if picture is not None:
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": words}]
    body = {"messages": [{"role": "user", "content": content}], "max_completion_tokens": tokens, "ignore_eos": True}
    body |= {"stream": True, "temperature": 0.8, "seed": index} if index % 2 else {"stream": True}
    return Case("read" if picture is None else "look", CHAT, body)


def mixed_cases(tokens: int) -> list[Case]:
    """Of four requests two are text, one shows a picture and one draws."""
    cases = []
    for index in range(4):
        cases += [text_case(index, tokens), text_case(index, tokens, noise_url(index)), text_case(index + 1, tokens)]
        cases.append(Case("draw", DRAW, {"prompt": f"{('red', 'blue')[index % 2]} heart", "seed": index}))
    return cases


async def ask(url: str, case: Case, number: str = "-") -> tuple[str, float]:
    """What was said or drawn, and the seconds to its first token; `number` is the request's in every log."""
    at, content = urllib.parse.urlsplit(url), json.dumps(case.body).encode()
    began, first, parts = time.perf_counter(), 0.0, []
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    try:
        head = f"POST {case.path} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\n"
        head += f"X-Request-Id: {number}\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
        while part := await reader.read(1 << 16):
            parts.append(part)
            if not first and SAID.search(part):
                first = time.perf_counter() - began
    finally:
        writer.close()
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head else 0
    if status == 429:
        found = re.search(rb"(?i)retry-after: (\d+)", head)
        raise Refused(float(found[1]) if found else 1.0)
    whole = dechunked(body) if b"chunked" in head.lower() else body
    if status != 200:
        raise ConnectionError(f"{status} {whole[:200].decode()}" if status else "hung up without a word")
    return (drawn(whole) if case.kind == "draw" else said(whole)), first


def dechunked(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16) if size else 0
        if not length:
            return b"".join(parts)
        if len(rest) < length:
            break
        parts.append(rest[:length])
        body = rest[length + 2 :]
    raise ConnectionError("the answer broke off")


def drawn(body: bytes) -> str:
    return json.loads(body)["data"][0]["b64_json"]


def said(body: bytes) -> str:
    """The text of a stream that came to its end."""
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    texts = []
    for event in map(json.loads, events):
        if "error" in event:
            raise ConnectionError(event["error"]["message"])
        texts += [choice["delta"].get("content") or "" for choice in event["choices"]]
    if DONE not in body[-40:]:
        raise ConnectionError("the stream broke off")
    return "".join(texts)


async def client(url: str, cases: list[Case], turn: int, until: threading.Event, alone: dict, seen: Seen) -> None:
    """Asks again as soon as it is answered."""
    while not until.is_set():
        case, turn, began = cases[turn % len(cases)], turn + 1, time.perf_counter()
        try:
            found, first = await ask(url, case)
        except Refused as refused:
            seen.refused += 1
            await asyncio.sleep(refused.retry_after_s)
            continue
        except (OSError, ValueError, KeyError, IndexError) as error:
            seen.errors.append(f"{case.kind}: {error}")
            await asyncio.sleep(0.1)
            continue
        seen.whole_s[case.kind].append(time.perf_counter() - began)
        if case.kind != "draw":
            seen.first_s.append(first)
        seen.different += alone[json.dumps(case.body)] != found


async def alone_first(url: str, cases: list[Case]) -> dict[str, str]:
    """Every answer without anybody else, which also warms the server up."""
    return {json.dumps(case.body): (await ask(url, case))[0] for case in cases}


@dataclass
class Counted:
    """What a server had done at a moment, and what it took."""

    at: float
    tokens: float
    pictures: float
    server_s: float  # CPU time
    clients_s: float

    @classmethod
    async def now(cls, url: str, server: psutil.Process) -> Counted:
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(f"{url}/metrics").read().decode())

        def total(name: str) -> float:
            return sum(map(float, re.findall(rf"^{name}\{{.*\}} (\S+)$", text, re.MULTILINE)))

        used, own = server.cpu_times(), psutil.Process().cpu_times()
        tokens, pictures = total("vllm:generation_tokens_total"), total("edgemm:pictures_total")
        return cls(time.perf_counter(), tokens, pictures, used.user + used.system, own.user + own.system)


async def load(
    url: str, server: psutil.Process, count: int, seconds: float, cases: list[Case], alone: dict, spread: int = 1
) -> tuple[Seen, dict[str, Any]]:
    """So many clients for so long; rates are of the time after the first tenth, in which all are at work."""
    seen, until = Seen(), threading.Event()
    clients = [asyncio.create_task(client(url, cases, spread * i, until, alone, seen)) for i in range(count)]
    await asyncio.sleep(seconds / 10)
    before = await Counted.now(url, server)
    await asyncio.sleep(0.9 * seconds)
    after = await Counted.now(url, server)
    until.set()
    await asyncio.gather(*clients)
    took, tokens = after.at - before.at, after.tokens - before.tokens
    row = {
        "clients": count,
        "tokens_per_s": round(tokens / took, 1),
        "ttft_p50_s": percentile(seen.first_s, 0.5),
        "ttft_p99_s": percentile(seen.first_s, 0.99),
        "pictures_per_s": round((after.pictures - before.pictures) / took, 2),
        "picture_s": percentile(seen.whole_s["draw"], 0.5),
        "answers": sum(map(len, seen.whole_s.values())),
        "refused": seen.refused,
        "errors": len(seen.errors),
        "different": seen.different,
        "server_cpu_ms_per_token": round(1e3 * (after.server_s - before.server_s) / tokens, 2) if tokens else None,
        "clients_cpu_ms_per_token": round(1e3 * (after.clients_s - before.clients_s) / tokens, 2) if tokens else None,
    }
    for error in sorted(set(seen.errors))[:5]:
        print(f"  error: {error}", file=sys.stderr)
    return seen, row


def percentile(values: list[float], part: float) -> float | None:
    return round(sorted(values)[min(int(part * len(values)), len(values) - 1)], 3) if values else None


class Table:
    """In Markdown; each row as soon as it is known."""

    def __init__(self, title: str) -> None:
        self._title: str | None = title

    def add(self, row: dict[str, Any]) -> None:
        if self._title is not None:
            names = [name.replace("_", " ") for name in row]
            print(f"\n{self._title}\n\n| {' | '.join(names)} |\n|{'---|' * len(row)}")
            self._title = None
        print(f"| {' | '.join('-' if value is None else str(value) for value in row.values())} |", flush=True)


def mixed(url: str, server: psutil.Process, alone: dict, args: argparse.Namespace) -> dict[str, Any]:
    table, rows = Table(f"Reading and drawing, {args.tokens} tokens a reply"), []
    for count in args.clients:
        rows.append(asyncio.run(load(url, server, count, args.seconds, mixed_cases(args.tokens), alone))[1])
        table.add(rows[-1])
    return {"rows": rows, "good": all(map(right, rows))}


def right(row: dict[str, Any]) -> bool:
    return not row["errors"] and not row["different"]


def streams(url: str, server: psutil.Process, alone: dict, args: argparse.Namespace) -> dict[str, Any]:
    """One and eight take turns, so that what disturbs one disturbs both."""
    cases, rows, table = [text_case(index, args.tokens) for index in range(4)], [], Table("Streams of text alone")
    cost = "server_cpu_ms_per_token"
    shown = ("clients", "tokens_per_s", "ttft_p50_s", "ttft_p99_s", "errors", "different", cost)
    for count in (1, 8) * args.rounds:
        rows.append(asyncio.run(load(url, server, count, args.seconds / 2, cases, alone))[1])
        table.add({name: rows[-1][name] for name in (*shown, "clients_cpu_ms_per_token")})
    pairs = list(zip(rows[::2], rows[1::2]))
    ratio = statistics.median(eight["tokens_per_s"] / max(one["tokens_per_s"], 1e-9) for one, eight in pairs)
    by_cpu = statistics.median((one[cost] or 0) / (eight[cost] or 1) for one, eight in pairs)
    print(f"\nEight streams write {ratio:.2f} times as much as one (at least {TIMES_ONE}); {by_cpu:.2f} by CPU time")
    good = ratio >= TIMES_ONE and all(map(right, rows))
    return {"rows": rows, "eight_to_one": round(ratio, 2), "by_cpu_time": round(by_cpu, 2), "good": good}


def soak(url: str, server: psutil.Process, alone: dict, args: argparse.Namespace) -> dict[str, Any]:
    """Memory is looked at every half second; its slope is that of the straight line nearest to the second half."""
    at, mb, over = [], [], threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            at.append(time.perf_counter())
            mb.append(server.memory_info().rss / 1e6)

    watching = threading.Thread(target=watch)
    watching.start()
    _, row = asyncio.run(load(url, server, 16, args.soak, mixed_cases(args.tokens), alone))
    over.set()
    watching.join()
    half = len(at) // 2
    slope = 60 * float(np.polyfit(at[half:], mb[half:], 1)[0])
    gained = slope * (at[-1] - at[half]) / 60 / mb[half]
    row = {**row, "rss_mb_middle": round(mb[half]), "rss_mb_last": round(mb[-1]), "mb_per_minute": round(slope, 2)}
    Table(f"Soak of {args.soak:g} s").add({name: value for name, value in row.items() if "cpu" not in name})
    return {**row, "good": (gained <= FLAT or args.quick) and right(row)}  # a short one has not come to rest


PARTS = {"mixed": mixed, "streams": streams, "soak": soak}


@contextlib.contextmanager
def serving(bundle: str, threads: int | None) -> Iterator[tuple[str, psutil.Process]]:
    """A server's address and process, as soon as it is ready."""
    words = [sys.executable, "-m", "edgemm", "serve", bundle, "--port", "0"]
    words += ["--threads", str(threads)] if threads else []
    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        found = next((hit for line in server.stderr if (hit := re.search(r"http://[\d.:]+", line))), None)
        if found is None:
            raise SystemExit("the server did not start: run `edgemm serve` to see why")
        threading.Thread(target=server.stderr.read, daemon=True).start()  # the log, or its pipe fills up
        yield found[0], psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--only", choices=list(PARTS), action="append", help="this part alone; more than once for more")
    parser.add_argument("--clients", type=lambda text: list(map(int, text.split(","))), default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=60, help="of each row; the rows of streams take half")
    parser.add_argument("--rounds", type=int, default=3, help="of one stream and eight")
    parser.add_argument("--soak", type=float, default=600, help="seconds")
    parser.add_argument("--tokens", type=int, default=64, help="of a reply")
    parser.add_argument("--threads", type=int, help="of the server")
    parser.add_argument("--quick", action="store_true", help="short rows and a soak of 20 seconds")
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.rounds, args.soak, args.tokens = 8, 1, 20, 24
    return args


def main() -> int:
    args = arguments()
    found: dict[str, Any] = {}
    with serving(args.bundle, args.threads) as (url, server):
        alone = asyncio.run(alone_first(url, [*mixed_cases(args.tokens), text_case(4, args.tokens)]))
        for name in args.only or PARTS:
            found[name] = PARTS[name](url, server, alone, args)
    card = machine_card()
    print()
    print(json.dumps({"bundle": args.bundle, "tokens": args.tokens, "quick": args.quick, **found, "card": card}))
    bad = [name for name, part in found.items() if not part["good"]]
    if bad:
        print(f"not as expected: {', '.join(bad)}", file=sys.stderr)
    return 7 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
