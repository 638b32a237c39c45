# mypy: ignore-errors
"""Triton kernel of attention from every token to the few keys of a prompt (spec 3.9)."""

import triton
import triton.language as tl

from sana_kernels.rows import store_both


@triton.jit
def load_keys(ptr, rows, columns, p: tl.constexpr):
    """A block of one head's keys or values (L, d), zero beyond."""
    inside = (rows < p.keys)[:, None] & (columns < p.head)[None, :]
    return tl.load(ptr + rows[:, None] * p.head + columns[None, :], mask=inside, other=0.0)


@triton.jit
def cross_attention(
    q, inverse, k, v, bias, used, plain, fp8, factor,
    p: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """softmax(q k^T inverse / sqrt(d) + bias) v. Grid: blocks of QUERIES tokens, heads, batch rows.

    q (B, N, C) lacks the factor 1 / rms of its row, `inverse` (B N,); its norm's weight is in the keys (B, h, L, d).
    Of these, only the first used (B,) are read: behind them is the padding of the prompt.
    """
    head, stream = tl.program_id(1), tl.program_id(2)
    queries, columns = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, p.pad)
    first = (stream * p.tokens).to(tl.int64)
    at = (first + queries)[:, None] * (p.heads * p.head) + head * p.head + columns[None, :]
    inside = (queries < p.tokens)[:, None] & (columns < p.head)[None, :]
    query = tl.load(q + at, mask=inside, other=0.0)
    # Powers of two are what the hardware computes.
    to_base_2: tl.constexpr = 1.4426950408889634
    steep = tl.load(inverse + first + queries, mask=queries < p.tokens, other=0.0) * (p.scale * to_base_2)
    own = (stream * p.heads + head).to(tl.int64) * p.keys * p.head
    largest = tl.full((QUERIES,), -1e30, tl.float32)
    total = tl.full((QUERIES,), 0.0, tl.float32)
    result = tl.full((QUERIES, p.pad), 0.0, tl.float32)
    for start in range(0, tl.load(used + stream), KEYS):
        rows = start + tl.arange(0, KEYS)
        key, value = load_keys(k + own, rows, columns, p), load_keys(v + own, rows, columns, p)
        added = tl.load(bias + stream * p.keys + rows, mask=rows < p.keys, other=-1e30).to(tl.float32) * to_base_2
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * steep[:, None] + added[None, :]
        higher = tl.maximum(largest, tl.max(scores, axis=1))
        weights, kept = tl.exp2(scores - higher[:, None]), tl.exp2(largest - higher)
        total = total * kept + tl.sum(weights, axis=1)
        result = tl.dot(weights.to(value.dtype), value, result * kept[:, None], input_precision="ieee")
        largest = higher
    store_both(plain, fp8, result / total[:, None], factor, at, inside)
