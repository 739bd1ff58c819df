"""The tiny bundle's mathematics once more, in plain numpy with no cache: the oracle for graphs and loops.

Axes: s tokens, w width, g/h heads, d head width, t prefix slots, n image tokens, p numbers in one.
"""

from __future__ import annotations

import numpy as np

from tests.runtimes.tiny_weights import TINY, Weights


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rms(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale


def rotate(x, positions):  # (heads, s, d)
    half = TINY.head_width // 2
    angles = positions[:, None] / 10_000 ** (np.arange(half) / half)  # (s, d/2)
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def heads(x, count):  # (s, count * d) -> (count, s, d)
    return x.reshape(len(x), count, -1).transpose(1, 0, 2)


def transformer(weights: Weights, ids, image_index, attention_limit, image_tokens):
    """Logits (s, v) of every position, and each layer's keys and values (g, s, d)."""
    x = weights["embed"][np.asarray(ids)]
    rows = np.asarray(image_index)
    if image_tokens is not None:
        x = np.where((rows >= 0)[:, None], image_tokens[np.maximum(rows, 0)], x)
    s = len(x)
    mask = np.where(np.arange(s)[None] <= np.asarray(attention_limit)[:, None], 0.0, -np.inf)
    cache = []
    for layer in range(TINY.layers):
        w = weights.layer(layer)
        y = rms(x, w["norm"])
        q = rotate(heads(y @ w["q"], TINY.heads), np.arange(s))
        k = rotate(heads(y @ w["k"], TINY.kv_heads), np.arange(s))
        v = heads(y @ w["v"], TINY.kv_heads)
        cache.append((k, v))
        repeat = TINY.heads // TINY.kv_heads
        scores = q @ k.repeat(repeat, 0).transpose(0, 2, 1) / np.sqrt(TINY.head_width) + mask
        attended = softmax(scores) @ v.repeat(repeat, 0)  # (h, s, d)
        x = x + attended.transpose(1, 0, 2).reshape(s, -1) @ w["o"]
        x = x + np.tanh(rms(x, w["ffn_norm"]) @ w["up"]) @ w["down"]
    return rms(x, weights["final_norm"]) @ weights["embed"].T, cache


def greedy(weights: Weights, prompt, image_tokens, count):
    """`count` likeliest tokens after a prompt, the whole text read anew for each."""
    ids, rows, limits = prompt.input_ids.tolist(), prompt.image_index.tolist(), prompt.attention_limit.tolist()
    for _ in range(count):
        logits, _ = transformer(weights, ids, rows, limits, image_tokens)
        limits.append(len(ids))
        ids.append(int(logits[-1].argmax()))
        rows.append(-1)
    return ids[len(prompt) :]


def image_encoder(weights: Weights, pixels):  # (3, S, S) -> (m, w)
    side, patch = TINY.read_size // TINY.read_patch, TINY.read_patch
    patches = pixels.reshape(3, side, patch, side, patch).transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
    return patches @ weights["patch"]


def conditioner(weights: Weights, cache, users_own, skip):
    """keys and values (h, t, d) a layer, prompt_vector (c), layout (n, l)."""
    keys, values, flat = [], [], []
    for index, layer in enumerate(TINY.prefix_layers):
        k, v = (part[:, skip:].transpose(1, 0, 2).reshape(part.shape[1] - skip, -1) for part in cache[layer])
        keys.append(heads(k @ weights[f"prefix_key.{index}"], TINY.draw_heads))
        values.append(heads(v @ weights[f"prefix_value.{index}"], TINY.draw_heads))
        flat.append(v)
    own = np.asarray(users_own)[skip:]
    pooled = own @ flat[-1] / max(own.sum(), 1)
    vector = pooled @ weights["prompt_vector"]
    layout = (pooled @ weights["layout"]).reshape(TINY.token_count, TINY.layout_width)
    return keys, values, vector, layout


def denoiser(weights: Weights, noisy, time, keys, values, vector, layout):  # (n, p)
    x = (
        noisy @ weights["draw_in"]
        + time * weights["time"]
        + vector @ weights["vector_in"]
        + layout @ weights["layout_in"]
    )
    for index in range(TINY.draw_layers):
        q, k, v = (heads(x @ weights[f"draw_{part}.{index}"], TINY.draw_heads) for part in "qkv")
        k, v = np.concatenate([keys[index], k], 1), np.concatenate([values[index], v], 1)
        attended = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(TINY.draw_head_width)) @ v
        x = x + np.tanh(attended.transpose(1, 0, 2).reshape(len(x), -1) @ weights[f"draw_o.{index}"])
    return x @ weights["draw_out"]


def image_decoder(tokens):  # (n, p) -> (3, H, W)
    side, patch = TINY.draw_size // TINY.draw_patch, TINY.draw_patch
    pixels = tokens.reshape(side, side, 3, patch, patch).transpose(2, 0, 3, 1, 4).reshape(3, TINY.draw_size, -1)
    return 1 / (1 + np.exp(-pixels))


def prefix(weights: Weights, prompt, skip, image_tokens=None):
    _, cache = transformer(weights, prompt.input_ids, prompt.image_index, prompt.attention_limit, image_tokens)
    return conditioner(weights, cache, prompt.users_own, skip)


def draw(weights: Weights, prompt, empty, skip, noise, steps, scale, interval, shift, image_tokens=None):
    """Pixels (3, H, W), straight from the formulas of docs/bundle.md."""
    conditional, unconditional = prefix(weights, prompt, skip, image_tokens), prefix(weights, empty, skip)
    x = noise.astype(np.float64)
    for k in range(steps):
        now, later = (u / (u + shift * (1 - u)) for u in (k / steps, (k + 1) / steps))
        clean = denoiser(weights, x, now, *conditional)
        if scale != 1 and interval[0] <= now <= interval[1]:
            free = denoiser(weights, x, now, *unconditional)
            clean = free + scale * (clean - free)
        x = clean if k == steps - 1 else x + (later - now) * (clean - x) / (1 - now)
    return image_decoder(x)
