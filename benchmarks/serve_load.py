"""A server under load on loopback: clients that read and draw, and what each of them gets.

    python benchmarks/serve_load.py sticker.bundle --clients 1,4,8,16 --seconds 20
    python benchmarks/serve_load.py sticker.bundle --clients 8 --draw 2          # two of them draw

Starts `edgemm serve` itself, warms it up, and lets every client ask again as soon as it is answered.  Prints a table,
then one line of JSON.  Text is greedy and pictures have seeds: each answer is compared with the same request alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import httpx

PROMPTS = ["Name a fruit.", "What is a dog?", "Write about the sea and the wind.", "Tell me about Paris, please."]


@dataclass
class Seen:
    """What the clients of one run saw."""

    first_s: list[float] = field(default_factory=list)
    tokens: int = 0
    pictures_s: list[float] = field(default_factory=list)
    refused: int = 0
    errors: int = 0
    different: int = 0


async def read(client: httpx.AsyncClient, prompt: str, tokens: int) -> tuple[str, float, int]:
    """(text, seconds to the first token, tokens)."""
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_completion_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, first, text, count = time.perf_counter(), 0.0, "", 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            said = json.loads(line[6:])
            if "error" in said:
                raise RuntimeError(said["error"]["message"])
            first = first or time.perf_counter() - began
            text += "".join(choice["delta"].get("content") or "" for choice in said["choices"])
            count = (said.get("usage") or {}).get("completion_tokens", count)
    return text, first, count


async def draw(client: httpx.AsyncClient, seed: int) -> str:
    answer = await client.post("/v1/images/generations", json={"prompt": "red heart", "seed": seed})
    answer.raise_for_status()
    return answer.json()["data"][0]["b64_json"]


async def ask(client, seen: Seen, alone: dict, number: int, draws: bool, tokens: int) -> None:
    key = ("draw", number % 4) if draws else PROMPTS[number % len(PROMPTS)]
    began = time.perf_counter()
    try:
        if draws:
            found = await draw(client, number % 4)
            seen.pictures_s.append(time.perf_counter() - began)
        else:
            found, first, count = await read(client, key, tokens)
            seen.first_s.append(first)
            seen.tokens += count
    except httpx.HTTPStatusError as error:
        seen.refused += error.response.status_code == 429
        seen.errors += error.response.status_code != 429
        await asyncio.sleep(float(error.response.headers.get("retry-after", 1)))
        return
    seen.different += alone.setdefault(key, found) != found


async def load(url: str, count: int, drawing: int, seconds: float, tokens: int, alone: dict) -> tuple[Seen, float]:
    seen, end = Seen(), time.perf_counter() + seconds

    async def client(number: int) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=600) as own:
            turn = number
            while time.perf_counter() < end:
                await ask(own, seen, alone, turn, number < drawing, tokens)
                turn += 1

    began = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(count)))
    return seen, time.perf_counter() - began


async def alone_first(url: str, tokens: int, drawing: int) -> dict:
    """Every answer without anybody else, which also warms it up."""
    alone: dict = {}
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        for prompt in PROMPTS:
            alone[prompt] = (await read(client, prompt, tokens))[0]
        for seed in range(4 if drawing else 0):
            alone["draw", seed] = await draw(client, seed)
    return alone


def percentile(values: list[float], part: float) -> float | None:
    return round(sorted(values)[min(int(part * len(values)), len(values) - 1)], 3) if values else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--clients", default="1,4,8")
    parser.add_argument("--draw", type=int, default=0, help="so many of them draw")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    words = [sys.executable, "-m", "edgemm", "serve", args.bundle, "--port", "0"]
    words += ["--threads", str(args.threads)] if args.threads else []
    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        found = re.search(r"http://[\d.:]+", server.stderr.readline())
        assert found, "the server did not start"
        url, rows = found[0], []
        threading.Thread(target=server.stderr.read, daemon=True).start()  # the log, or its pipe fills up
        alone = asyncio.run(alone_first(url, args.tokens, args.draw))
        print(f"{'clients':>8} {'tokens/s':>9} {'TTFT p50':>9} {'p99':>7} {'s/picture':>10} refused errors different")
        for count in map(int, args.clients.split(",")):
            seen, took = asyncio.run(load(url, count, min(args.draw, count), args.seconds, args.tokens, alone))
            row = {
                "clients": count,
                "tokens_per_s": round(seen.tokens / took, 1),
                "ttft_p50_s": percentile(seen.first_s, 0.5),
                "ttft_p99_s": percentile(seen.first_s, 0.99),
                "picture_s": round(statistics.median(seen.pictures_s), 3) if seen.pictures_s else None,
                "refused": seen.refused,
                "errors": seen.errors,
                "different": seen.different,
            }
            rows.append(row)
            print(" ".join(f"{value!s:>9}" for value in row.values()), flush=True)
        print(json.dumps({"bundle": args.bundle, "tokens": args.tokens, "draw": args.draw, "rows": rows}))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
