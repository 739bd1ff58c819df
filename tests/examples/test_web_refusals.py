"""What examples/web/edgemm.js cannot draw or say it refuses, before it opens a graph: Node, without its libraries."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[2] / "examples" / "web"
ASKED = """
globalThis.self = {}, globalThis.navigator ??= {};
const { Bundle } = await import("./edgemm.js"), bundle = new Bundle(), template = { open: "", close: "" };
const text = { template: {}, image_token_count: 20 }, told = (error) => console.log(error.message);
bundle.manifest = { limits: { max_context: 8 }, loops: { denoise: { template }, text } };
bundle.ids = (piece = "") => [...piece].map(() => 1); // a token a letter
for (const seed of [-1, 1.5, 2 ** 53]) await bundle.draw("a", seed).catch(told);
await bundle.draw("a long prompt", 1).catch(told);
await bundle.ask("?", null).next().catch(told);
template.joined = true;
await bundle.draw("a", 1).catch(told);
try { bundle.drawn({ data: [0, NaN], dims: [1, 3, 1, 1] }); } catch (error) { told(error); }
"""


def test_what_cannot_be_drawn_or_said_is_one_line(tmp_path):
    if shutil.which("node") is None:
        pytest.skip("needs node")
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "tokenizers.mjs").write_text("export class Tokenizer {}")
    (tmp_path / "vendor" / "ort.mjs").write_text("export const env = { wasm: {} };")
    for name in ("edgemm.js", "package.json"):  # which says that .js are modules
        shutil.copy(WEB / name, tmp_path)
    (tmp_path / "asked.mjs").write_text(ASKED)
    ran = subprocess.run(["node", tmp_path / "asked.mjs"], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "seed is -1, expected 0 to 2^53 - 1",
        "seed is 1.5, expected 0 to 2^53 - 1",
        "seed is 9007199254740992, expected 0 to 2^53 - 1",
        "the prompt takes 14 tokens, this bundle holds at most 8; shorten it",
        "the prompt takes 21 tokens, this bundle holds at most 8; shorten it",
        "this page draws with models whose pieces are tokenized alone",
        "pixels: not all from 0 to 1",
    ]
