"""Would a small draft head pay? What it guesses right, what a pass of several tokens costs, and what both come to.

    edgemm export checkpoints/sticker-small --output lookup.bundle --prompt-lookup
    python benchmarks/draft_head.py checkpoints/sticker-small lookup.bundle --groups 3 --epochs 6

The head is EAGLE's (arXiv:2401.15077) without attention: the last hidden state and the embedding of the token that was
chosen give a guess at the next hidden state, by one layer, and the embedding's rows of the most frequent tokens make a
token of it (FR-Spec, arXiv:2502.14856); the guess is its own next input.  It begins as the linear map that fits best
and learns the model's own distributions on the model's own replies.  Held-out replies are to other things, half of them
to other kinds of question.  Everything runs on one thread; times are processor time, least of many rounds in turns.
Axes: n positions, w width, f the head's hidden width, v frequent tokens, r tokens a pass.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import edgemm
from edgemm.bench.conditions import machine_card
from edgemm.bundle.prompt import Prompt
from edgemm.model.checkpoint import load
from edgemm.model.codes import BatchDecode
from edgemm.model.prompts import read_prompt, stop_ids
from edgemm.model.unified import Unified
from edgemm.quantize.spec import Layer
from edgemm.search.measured import _product
from edgemm.train.samples import TEMPLATES

OTHER = ("Write a letter to the mayor about {}.", "List the steps to explain {} to a beginner.")
BATCH, ROWS, NEW_TOKENS, FREQUENT, DEPTH = 512, 64, 128, 6144, 3
PASSES, CONTEXT, ROUNDS = (1, 2, 3, 4, 5, 6, 8), 128, 40
Said = tuple[Tensor, Tensor, list[int]]  # hidden states (n, w) and the tokens (n) chosen after them; tokens a reply


def messages(templates: Sequence[str], held_out: bool, count: int, seed: int) -> list[str]:
    """About things by their names in Unicode; every tenth is held out."""
    signs = (chr(code) for code in range(0x1F300, 0x1FB00))
    names = sorted({name.lower() for sign in signs if (name := unicodedata.name(sign, ""))})
    names = [name for place, name in enumerate(names) if (place % 10 == 0) == held_out]
    chosen = np.random.default_rng(seed).choice(names, count)
    return [templates[place % len(templates)].format(name) for place, name in enumerate(chosen)]


@torch.no_grad()
def replies(model: Unified, asked: Sequence[str]) -> Said:
    """Greedy ones."""
    states, tokens, lengths = [], [], []
    stops = torch.tensor(stop_ids(model.config, model.tokenizer))
    for start in range(0, len(asked), ROWS):
        prompts = [read_prompt(model.config, model.tokenizer, text, pictures=0) for text in asked[start : start + ROWS]]
        decode = BatchDecode(model, prompts, NEW_TOKENS)
        chosen, steps = None, []
        for _ in range(NEW_TOKENS):
            hidden = decode.step(chosen)
            chosen = model.transformer.logits(hidden).argmax(-1)
            steps.append((hidden, chosen))
        every, said = (torch.stack(side, 1) for side in zip(*steps, strict=True))  # (rows, s, w), (rows, s)
        ended = torch.isin(said, stops).int().cumsum(1)
        for row, length in enumerate((ended == 0).sum(1).add(1).clamp(max=NEW_TOKENS).tolist()):
            states.append(every[row, :length])
            tokens.append(said[row, :length])
            lengths.append(length)
    return torch.cat(states), torch.cat(tokens), lengths


class Head(nn.Module):
    embedding: Tensor

    def __init__(self, embedding: Tensor, hidden_width: int) -> None:
        super().__init__()
        w = embedding.shape[1]
        self.register_buffer("embedding", embedding / embedding.std())
        self.join = nn.Linear(2 * w, w)
        self.gate, self.up = (nn.Linear(w, hidden_width, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden_width, w, bias=False)
        nn.init.zeros_(self.down.weight)
        self.scale = nn.Parameter(torch.ones(w))

    def inputs(self, state: Tensor, token: Tensor) -> Tensor:
        return torch.cat((state, self.embedding[token].to(state.dtype)), -1)  # (n, 2 w)

    def forward(self, state: Tensor, token: Tensor) -> Tensor:
        """The next hidden state (n, w), after the final norm."""
        joined = self.join(self.inputs(state, token))
        normed = nn.functional.rms_norm(joined, joined.shape[-1:])
        return (joined + self.down(nn.functional.silu(self.gate(normed)) * self.up(normed))) * self.scale


def starts(lengths: Sequence[int], behind: int) -> Tensor:
    """Positions with so many more of the same reply behind them."""
    ends = np.cumsum(lengths)
    ranges = [np.arange(end - length, end - behind) for end, length in zip(ends, lengths, strict=True)]
    return torch.from_numpy(np.concatenate(ranges))


@torch.no_grad()
def fit(head: Head, said: Said) -> None:
    """The linear map of least squares."""
    states, tokens, lengths = said
    at = starts(lengths, 1)
    x = nn.functional.pad(head.inputs(states[at], tokens[at]), (0, 1), value=1.0)
    products = x.T @ x + 300 * torch.eye(x.shape[1])
    solved = torch.linalg.solve(products, x.T @ states[at + 1])  # (2 w + 1, w)
    head.join.weight.copy_(solved[:-1].T)
    head.join.bias.copy_(solved[-1])


def train(head: Head, said: Said, rows: Tensor, epochs: int, rate: float) -> None:
    """`rows` (v, w) are the frequent tokens' of the model's head; two guesses in a row, the second with half weight."""
    states, tokens, lengths = said
    at, step = starts(lengths, 2), 0
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    steps = epochs * (len(at) // BATCH)
    for _ in range(epochs):
        order = at[torch.randperm(len(at))]
        for batch in order[: len(at) // BATCH * BATCH].split(BATCH):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 15) * (1 - step / steps)
            guess, loss = states[batch], torch.zeros(())
            with torch.autocast("cpu", dtype=torch.bfloat16):
                for place in range(2):
                    guess = head(guess, tokens[batch + place])
                    wanted = (states[batch + place + 1] @ rows.T).float().softmax(-1)
                    loss = loss + 0.5**place * nn.functional.cross_entropy((guess @ rows.T).float(), wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            step += 1


@torch.no_grad()
def acceptance(head: Head, said: Said, rows: Tensor, frequent: Tensor) -> list[float]:
    """How often the first guess is what the model says; the second, where the first was; ..."""
    states, tokens, lengths = said
    at = starts(lengths, DEPTH + 1)
    guess, right, found = states[at], torch.ones(len(at), dtype=torch.bool), []
    for place in range(DEPTH):
        guess = head(guess, tokens[at + place])
        before = int(right.sum())
        right &= frequent[(guess @ rows.T).argmax(-1)] == tokens[at + place + 1]
        found.append(int(right.sum()) / max(1, before))
    return found


def pass_costs(bundle: Path) -> dict[int, float]:
    """Milliseconds of a pass of r tokens behind CONTEXT others."""
    random, took = np.random.default_rng(0), {r: float("inf") for r in PASSES}
    with edgemm.load(bundle, device="cpu", threads=1) as model:
        transformer = model._text.conversation()
        ids, place = random.integers(1000, 40000, CONTEXT), np.arange(CONTEXT)
        transformer.prefill(Prompt(ids, np.full(CONTEXT, -1), place, np.ones(CONTEXT, dtype=np.float32)))
        for _ in range(ROUNDS):
            for r in PASSES:
                began = time.process_time()
                transformer.step(5) if r == 1 else transformer.read_candidates(list(range(5, 5 + r)))
                took[r] = min(took[r], (time.process_time() - began) * 1e3)
                transformer.rewind(CONTEXT)
    return took


def head_cost(width: int, hidden_width: int) -> float:
    """Milliseconds of one guess: its products in 8 bits, in blocks of 32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    took = 0.0
    for k, n in ((2 * width, width), (width, 2 * hidden_width), (hidden_width, width), (width, FREQUENT)):
        graph = _product(n, k, Layer(8, 32, activations="block")).SerializeToString()
        session, least = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]), float("inf")
        for _ in range(ROUNDS):
            began = time.process_time()
            session.run(None, {"x": np.ones((1, k), np.float32)})
            least = min(least, (time.process_time() - began) * 1e3)
        took += least
    return took


def gain(accepted: Sequence[float], costs: dict[int, float], guess: float) -> float:
    """Tokens a time, against one a pass, with as many guesses a pass as there are rates."""
    tokens = 1 + float(np.cumprod(accepted).sum())
    return tokens * costs[1] / (costs[len(accepted) + 1] + len(accepted) * guess)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path, help="with --prompt-lookup")
    parser.add_argument("--groups", type=int, default=3, help=f"of {ROWS} replies to learn from; 0: costs alone")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = load(args.checkpoint)
    model.eval()
    config = model.config.transformer
    costs, guess = pass_costs(args.bundle), head_cost(config.width, config.ffn_width)
    print("tokens a pass, of one's time:", {r: round(took / costs[1], 3) for r, took in costs.items()})
    print(f"a guess: {guess / costs[1]:.3f}")
    rates = np.arange(0.2, 0.85, 0.1).round(1).tolist()
    table = {rate: [round(gain([rate] * k, costs, guess), 2) for k in range(1, DEPTH + 1)] for rate in rates}
    print(f"if each guess is right so often: tokens a time with 1 to {DEPTH} guesses a pass", table, sep="\n")
    report = {"benchmark": "draft_head", "card": machine_card(), "pass_ms": costs, "guess_ms": guess, "gain": table}
    if args.groups:
        learned, held = (
            replies(model, messages(templates, held_out, count * ROWS, seed))
            for templates, held_out, count, seed in (
                (TEMPLATES, False, args.groups, 0),
                (TEMPLATES + OTHER * 4, True, 1, 1),
            )
        )
        embedding = model.transformer.embed_tokens.weight.detach().float()
        seen = torch.unique(learned[1])
        others = torch.arange(FREQUENT)  # ids of byte-pair vocabularies are in order of how often they are
        frequent = torch.cat((seen, others[~torch.isin(others, seen)]))[:FREQUENT]
        head, rows = Head(embedding, config.ffn_width), embedding[frequent]
        fit(head, learned)
        for name in ("the linear map", f"{args.epochs} epochs more"):
            accepted = acceptance(head, held, rows, frequent)
            gains = [round(gain(accepted[:k], costs, guess), 2) for k in range(1, DEPTH + 1)]
            print(f"{name}: right {[round(rate, 3) for rate in accepted]}, tokens a time {gains}", flush=True)
            report[name] = {"accepted": accepted, "gains": gains}
            if name == "the linear map":
                train(head, learned, rows, args.epochs, args.rate)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
