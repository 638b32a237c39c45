# mypy: ignore-errors
"""Triton kernels that candidates.py weighs against those of sana_kernels."""

import triton
import triton.language as tl

from sana_kernels.cross import load_keys
from sana_kernels.rows import store_both

TO_BASE_2 = tl.constexpr(1.4426950408889634)


@triton.jit
def load_piece(k, v, start: tl.constexpr, columns, p: tl.constexpr, KEYS: tl.constexpr):
    rows = start + tl.arange(0, KEYS)
    return tl.trans(load_keys(k, rows, columns, p)), load_keys(v, rows, columns, p)


@triton.jit
def cross_on_chip(
    q, inverse, k, v, bias, plain, fp8, factor,
    p: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """sana_kernels.cross with all keys of a head on chip, while a program goes through its share of the queries.

    Grid: GROUPS shares of blocks of QUERIES tokens, heads, batch rows.
    """
    head, stream = tl.program_id(1), tl.program_id(2)
    columns = tl.arange(0, p.pad)
    own = (stream * p.heads + head).to(tl.int64) * p.keys * p.head
    pieces = (load_piece(k + own, v + own, 0, columns, p, KEYS),)
    for i in tl.static_range(1, (p.keys + KEYS - 1) // KEYS):
        pieces += (load_piece(k + own, v + own, i * KEYS, columns, p, KEYS),)
    first = (stream * p.tokens).to(tl.int64)
    for start in range(tl.program_id(0) * QUERIES, p.tokens, GROUPS * QUERIES):
        queries = start + tl.arange(0, QUERIES)
        at = (first + queries)[:, None] * (p.heads * p.head) + head * p.head + columns[None, :]
        inside = (queries < p.tokens)[:, None] & (columns < p.head)[None, :]
        query = tl.load(q + at, mask=inside, other=0.0)
        steep = tl.load(inverse + first + queries, mask=queries < p.tokens, other=0.0) * (p.scale * TO_BASE_2)
        largest = tl.full((QUERIES,), -1e30, tl.float32)
        total = tl.full((QUERIES,), 0.0, tl.float32)
        result = tl.full((QUERIES, p.pad), 0.0, tl.float32)
        for i in tl.static_range((p.keys + KEYS - 1) // KEYS):
            # Read again each time: all of it in registers at once would spill.
            keys = i * KEYS + tl.arange(0, KEYS)
            added = tl.load(bias + stream * p.keys + keys, mask=keys < p.keys, other=-1e30).to(tl.float32) * TO_BASE_2
            scores = tl.dot(query, pieces[i][0], input_precision="ieee") * steep[:, None] + added[None, :]
            higher = tl.maximum(largest, tl.max(scores, axis=1))
            weights, kept = tl.exp2(scores - higher[:, None]), tl.exp2(largest - higher)
            total = total * kept + tl.sum(weights, axis=1)
            result = tl.dot(weights.to(query.dtype), pieces[i][1], result * kept[:, None], input_precision="ieee")
            largest = higher
        store_both(plain, fp8, result / total[:, None], factor, at, inside)
