# mypy: ignore-errors
"""Triton kernels before the scan that candidates.py weighs against those of sana_kernels."""

import triton
import triton.language as tl

from sana_kernels.summaries import (
    frame_decay,
    load_angles,
    load_groups,
    load_roots,
    sum_squares,
)
from sana_kernels.tiles import (
    load_factors,
    load_inverse,
    load_plain,
    load_tile,
    load_weight,
    locate,
    operand,
    product,
    sigmoid,
    store_matrix,
    turned,
)


@triton.jit
def invite(EARLY: tl.constexpr):
    """Let the next kernel begin, which waits where it reads what this one writes."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def await_former(EARLY: tl.constexpr):
    """Wait until the kernel in front has ended."""
    if EARLY:
        tl.extra.cuda.gdc_wait()


@triton.jit
def store_groups(ptr, x, groups, p: tl.constexpr):
    at = groups[:, None] * p.lanes + tl.arange(0, p.lanes)[None, :]
    tl.store(ptr + at, x.to(ptr.dtype.element_ty), mask=(groups < p.groups)[:, None])


@triton.jit
def store_keys(keys, keys_rot, weighted, x, roots, angles, row, groups, p: tl.constexpr):
    """Rotated keys times sqrt(b); where asked for, plain ones times sqrt(b), and rotated times b."""
    rotated = turned(x, angles) * roots
    store_groups(keys_rot + row * p.hidden, rotated, groups, p)
    if keys is not None:
        store_groups(keys + row * p.hidden, x * roots, groups, p)
    if weighted is not None:
        store_groups(weighted + row * p.hidden, rotated * roots, groups, p)


@triton.jit
def prepare_keys(
    k, beta, k_weight, rope, inverse_k, root, keys, keys_rot, weighted, row, epsilon: tl.constexpr, p: tl.constexpr
):
    """Keys of a token, normed and past ReLU; the factor that norms them; and sqrt(b) of its heads."""
    heads, left, right = tl.arange(0, p.head_pad), tl.arange(0, p.piece), p.piece + tl.arange(0, p.rest)
    raw = tl.load(beta + heads, mask=heads < p.heads, other=0.0).to(tl.float32)
    first, second = load_groups(k, left, p), load_groups(k, right, p)
    weights = load_groups(k_weight, left, p), load_groups(k_weight, right, p)
    roots = load_roots(beta, left, p), load_roots(beta, right, p)
    angles = load_angles(rope, left, p), load_angles(rope, right, p)
    factor = tl.rsqrt((sum_squares(first) + sum_squares(second)) / p.hidden + epsilon) * p.key_scale
    tl.store(root + heads * p.all_tokens + row, tl.sqrt(sigmoid(raw)), mask=heads < p.heads)
    tl.store(inverse_k + row, factor)
    first, second = tl.maximum(first * weights[0], 0.0) * factor, tl.maximum(second * weights[1], 0.0) * factor
    store_keys(keys, keys_rot, weighted, first, roots[0], angles[0], row, left, p)
    store_keys(keys, keys_rot, weighted, second, roots[1], angles[1], row, right, p)


@triton.jit
def row_squares(q, rows, start: tl.constexpr, groups: tl.constexpr, p: tl.constexpr):
    channels = start * p.lanes + tl.arange(0, groups * p.lanes)
    inside = (rows < p.all_tokens)[:, None] & (channels < p.hidden)[None, :]
    x = tl.load(q + rows[:, None] * p.rows.q + channels[None, :], mask=inside, other=0.0).to(tl.float32)
    return tl.sum(x * x, axis=1)


@triton.jit
def norm_queries(q, inverse_q, first, epsilon: tl.constexpr, p: tl.constexpr, COUNT: tl.constexpr):
    """inverse_q, 1 / rms of COUNT rows of q from the first on."""
    rows = first.to(tl.int64) * COUNT + tl.arange(0, COUNT)
    squares = (row_squares(q, rows, 0, p.piece, p) + row_squares(q, rows, p.piece, p.rest, p)) / p.hidden
    tl.store(inverse_q + rows, tl.rsqrt(squares + epsilon), mask=rows < p.all_tokens)


@triton.jit
def prepare(
    q, k, beta, k_weight, rope, inverse_q, inverse_k, root, keys, keys_rot, weighted,
    epsilon: tl.constexpr, p: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """sana_kernels.prepare that leaves rotated keys, and the others if they are given. Grid: tokens, {k, q} or {k}."""
    invite(EARLY)
    row = tl.program_id(0).to(tl.int64)
    if tl.program_id(1) == 0:
        now = row if p.own_angles else row % (p.frames * p.tokens)
        prepare_keys(
            k + row * p.rows.k, beta + row * p.rows.beta, k_weight, rope + now * p.key_dim, inverse_k, root,
            keys, keys_rot, weighted, row, epsilon, p,
        )  # fmt: skip
    else:
        norm_queries(q, inverse_q, row, epsilon, p, 1)


@triton.jit
def load_tokens(ptr, rows, columns, stride: tl.constexpr, width: tl.constexpr, p: tl.constexpr):
    """A tile as it is stored, zero past the frame's tokens and `width` columns."""
    inside = (rows < p.tokens)[:, None] & (columns < width)[None, :]
    return tl.load(ptr + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def load_root(root, beta, first, head, rows, p: tl.constexpr):
    """sqrt(b) of each token."""
    return load_factors(root, first, head, rows, p) if p.fused else tl.sqrt(load_factors(beta, first, head, rows, p))


@triton.jit
def load_rotated_keys(keys_rot, k_rot, beta, first, column, head, rows, p: tl.constexpr):
    """Rotated keys times sqrt(b)."""
    columns = tl.arange(0, p.key_pad)
    if p.fused:
        tile = load_tokens(keys_rot + first * p.hidden + column, rows, columns, p.hidden, p.key_dim, p)
    else:
        factor = load_root(None, beta, first, head, rows, p)
        tile = load_tile(k_rot + first * p.key_dim, rows, columns, p.key_dim, p.tokens, p.key_dim) * factor[:, None]
    return operand(tile, p)


@triton.jit
def load_plain_keys(k, weight, inverse_k, root, first, column, rows, p: tl.constexpr):
    """Keys before rotation, times sqrt(b)."""
    tile = load_plain(k + first * p.rows.k + column, weight, rows, tl.arange(0, p.key_pad), p.rows.k, p)
    return tile * (load_inverse(inverse_k, first, rows, p) * root)[:, None]


@triton.jit
def sum_rotated(keys_rot, k_rot, beta, erase_kv, p: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr):
    """erase_kv = k_rot^T b k_rot of a frame (dk, dk): both sides of the product are one tensor."""
    frame = tl.program_id(0)
    first, column, head = locate(frame, p)
    total = tl.full((p.key_pad, p.key_pad), 0.0, tl.float32)
    for start in tl.range(0, p.tokens, TOKENS, num_stages=STAGES):
        keys = load_rotated_keys(keys_rot, k_rot, beta, first, column, head, start + tl.arange(0, TOKENS), p)
        total += product(tl.trans(keys), keys, p)
    store_matrix(erase_kv + frame * p.key_pad * p.key_pad, total)


@triton.jit
def sum_plain(
    keys, k, k_weight, inverse_k, root, beta, erase_z, p: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """erase_z = k^T b k of a frame (dk, dk)."""
    frame, columns = tl.program_id(0), tl.arange(0, p.key_pad)
    first, column, head = locate(frame, p)
    weight = load_weight(k_weight, column, columns, 1.0, p)
    total = tl.full((p.key_pad, p.key_pad), 0.0, tl.float32)
    for start in tl.range(0, p.tokens, TOKENS, num_stages=STAGES):
        rows = start + tl.arange(0, TOKENS)
        if keys is not None:
            tile = load_tokens(keys + first * p.hidden + column, rows, columns, p.hidden, p.key_dim, p)
        else:
            factor = load_root(root, beta, first, head, rows, p)
            tile = operand(load_plain_keys(k, weight, inverse_k, factor, first, column, rows, p), p)
        total += product(tl.trans(tile), tile, p)
    store_matrix(erase_z + frame * p.key_pad * p.key_pad, total)


@triton.jit
def sum_normaliser(
    k, k_weight, inverse_k, root, beta, write_z, p: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """write_z = b k of a frame (dk,)."""
    frame, columns = tl.program_id(0), tl.arange(0, p.key_pad)
    first, column, head = locate(frame, p)
    weight = load_weight(k_weight, column, columns, 1.0, p)
    total = tl.full((TOKENS, p.key_pad), 0.0, tl.float32)
    for start in tl.range(0, p.tokens, TOKENS, num_stages=STAGES):
        rows = start + tl.arange(0, TOKENS)
        factor = load_root(root, beta, first, head, rows, p)
        total += load_plain_keys(k, weight, inverse_k, factor, first, column, rows, p) * factor[:, None]
    tl.store(write_z + frame * p.key_pad + columns, tl.sum(total, axis=0))


@triton.jit
def sum_written(
    keys_rot, weighted, k_rot, v, root, beta, write_kv, p: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """write_kv = v^T b k_rot of a frame (dv, dk); without weighted keys, the values have a sqrt(b) of their own."""
    frame, columns = tl.program_id(0), tl.arange(0, p.value_pad)
    first, column, head = locate(frame, p)
    total = tl.full((p.value_pad, p.key_pad), 0.0, tl.float32)
    for start in tl.range(0, p.tokens, TOKENS, num_stages=STAGES):
        rows = start + tl.arange(0, TOKENS)
        values = load_tokens(v + first * p.rows.v + column, rows, columns, p.rows.v, p.value_dim, p)
        if weighted is None:
            keys = load_rotated_keys(keys_rot, k_rot, beta, first, column, head, rows, p)
            values = values.to(tl.float32) * load_root(root, beta, first, head, rows, p)[:, None]
        else:
            keys = load_rotated_keys(weighted, k_rot, beta, first, column, head, rows, p)
        total += product(tl.trans(operand(values, p)), keys, p)
    store_matrix(write_kv + frame * p.value_pad * p.key_pad, total)


@triton.jit
def summaries(
    keys, keys_rot, weighted, k, k_rot, v, k_weight, inverse_k, beta, root, rate, rate_bias, a_log,
    erase_kv, erase_z, write_kv, write_z, decay,
    p: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Sum a frame's tokens into its update of the state. Grid: frames (B h T), {write_kv, erase_z, erase_kv, the rest}.

    At most one product each, so that two programs fit on a multiprocessor; the longest go first.
    """
    invite(EARLY)
    await_former(EARLY)
    part = tl.program_id(1)
    if part == 0:
        sum_written(keys_rot, weighted, k_rot, v, root, beta, write_kv, p, TOKENS, STAGES)
    elif part == 1:
        sum_plain(keys, k, k_weight, inverse_k, root, beta, erase_z, p, TOKENS, STAGES)
    elif part == 2:
        sum_rotated(keys_rot, k_rot, beta, erase_kv, p, TOKENS, STAGES)
    else:
        sum_normaliser(k, k_weight, inverse_k, root, beta, write_z, p, TOKENS, STAGES)
        first, _, head = locate(tl.program_id(0), p)
        tl.store(decay + tl.program_id(0), frame_decay(rate, rate_bias, a_log, first, head, p, p.rate_block))
