# mypy: ignore-errors
"""Triton kernels from the frame updates on that candidates.py weighs against those of sana_kernels."""

import triton
import triton.language as tl
from candidate_kernels import await_former, invite, norm_queries

from sana_kernels.tiles import (
    load_inverse,
    load_weight,
    locate,
    operand,
    product,
    saturated,
    turned,
)


@triton.jit
def advance(state, erase, kept, write, p: tl.constexpr):
    """The state after a frame."""
    return kept * (state - product(operand(state, p), erase, p)) + write


@triton.jit
def advance_normaliser(state, erase, kept, write):
    # erase is symmetric, so the sum may run over either side; this one leaves the state in the layout it came in.
    return kept * (state - tl.sum(erase.to(tl.float32) * state[:, None], axis=0)) + write


@triton.jit
def scan_matrix(
    erase_kv, write_kv, decay, state_kv, history_kv, final_kv,
    p: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """ROWS value rows of one chain of the matrix state; the loop's own stages copy all that it loads ahead."""
    stream, later = tl.program_id(0), tl.program_id(2)
    size: tl.constexpr = p.value_pad * p.key_pad
    rows, keys = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, p.key_pad)
    padded = rows[:, None] * p.key_pad + keys[None, :]
    square = keys[:, None] * p.key_pad + keys[None, :]
    exact = (stream * p.value_dim + rows)[:, None] * p.key_dim + keys[None, :]
    inside = (rows < p.value_dim * (1 - later))[:, None] & (keys < p.key_dim)[None, :]
    history_kv += (later * p.all_frames).to(tl.int64) * size
    kv = tl.full((ROWS, p.key_pad), 0.0, tl.float32)
    if p.carried:
        kv = tl.load(state_kv + exact, mask=inside, other=0.0)
    for step in tl.range(p.frames, num_stages=STAGES):
        frame = stream * p.frames + step + later * (p.frames - 1 - 2 * step)
        erase = operand(tl.load(erase_kv + frame * p.key_pad * p.key_pad + square), p)
        write, kept = tl.load(write_kv + frame * size + padded), tl.load(decay + frame)
        if later == 1:
            tl.store(history_kv + frame * size + padded, kv.to(history_kv.dtype.element_ty))
        kv = advance(kv, erase, kept, write, p)
        if later == 0:
            tl.store(history_kv + frame * size + padded, kv.to(history_kv.dtype.element_ty))
    tl.store(final_kv + exact, kv, mask=inside)


@triton.jit
def scan_normaliser(
    erase_z, write_z, decay, state_z, history_z, final_z, p: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """One chain of the normaliser."""
    stream, later = tl.program_id(0), tl.program_id(2)
    keys = tl.arange(0, p.key_pad)
    square = keys[:, None] * p.key_pad + keys[None, :]
    history_z += later * p.all_frames * p.key_pad
    inside = keys < p.key_dim * (1 - later)
    z = tl.full((p.key_pad,), 0.0, tl.float32)
    if p.carried:
        z = tl.load(state_z + stream * p.key_dim + keys, mask=inside, other=0.0)
    for step in tl.range(p.frames, num_stages=STAGES):
        frame = stream * p.frames + step + later * (p.frames - 1 - 2 * step)
        erase = tl.load(erase_z + frame * p.key_pad * p.key_pad + square)
        write, kept = tl.load(write_z + frame * p.key_pad + keys), tl.load(decay + frame)
        if later == 1:
            tl.store(history_z + frame * p.key_pad + keys, z)
        z = advance_normaliser(z, erase, kept, write)
        if later == 0:
            tl.store(history_z + frame * p.key_pad + keys, z)
    tl.store(final_z + stream * p.key_dim + keys, z, mask=inside)


@triton.jit
def scan_matrix_joined(
    erase_kv, write_kv, decay, state_kv, history_kv, final_kv,
    p: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """ROWS value rows of both chains of at most three frames: the only product of the later one comes in order."""
    stream = tl.program_id(0)
    size: tl.constexpr = p.value_pad * p.key_pad
    rows, keys = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, p.key_pad)
    padded = rows[:, None] * p.key_pad + keys[None, :]
    square = keys[:, None] * p.key_pad + keys[None, :]
    exact = (stream * p.value_dim + rows)[:, None] * p.key_dim + keys[None, :]
    inside = (rows < p.value_dim)[:, None] & (keys < p.key_dim)[None, :]
    history_kv += stream * p.frames * size + padded
    kv = tl.full((ROWS, p.key_pad), 0.0, tl.float32)
    if p.carried:
        kv = tl.load(state_kv + exact, mask=inside, other=0.0)
    last = tl.load(write_kv + (stream * p.frames + p.frames - 1) * size + padded)
    for t in tl.range(p.frames, num_stages=STAGES):
        frame = stream * p.frames + t
        erase = operand(tl.load(erase_kv + frame * p.key_pad * p.key_pad + square), p)
        write, kept = tl.load(write_kv + frame * size + padded), tl.load(decay + frame)
        before, kv = kv, advance(kv, erase, kept, write, p)
        if p.frames == 3:
            later = advance(last, erase, kept, write, p)
        if t == p.frames - 1:
            tl.store(history_kv + t * size, kv.to(history_kv.dtype.element_ty))
        elif t == p.frames - 2:
            tl.store(history_kv + t * size, (kv + last).to(history_kv.dtype.element_ty))
            if p.frames == 3:
                tl.store(history_kv, (before + later).to(history_kv.dtype.element_ty))
    tl.store(final_kv + exact, kv, mask=inside)


@triton.jit
def scan_normaliser_joined(
    erase_z, write_z, decay, state_z, history_z, final_z, p: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """Both chains of the normaliser, in the same way."""
    stream, keys = tl.program_id(0), tl.arange(0, p.key_pad)
    square = keys[:, None] * p.key_pad + keys[None, :]
    history_z += stream * p.frames * p.key_pad + keys
    z = tl.full((p.key_pad,), 0.0, tl.float32)
    if p.carried:
        z = tl.load(state_z + stream * p.key_dim + keys, mask=keys < p.key_dim, other=0.0)
    last = tl.load(write_z + (stream * p.frames + p.frames - 1) * p.key_pad + keys)
    for t in tl.range(p.frames, num_stages=STAGES):
        frame = stream * p.frames + t
        erase = tl.load(erase_z + frame * p.key_pad * p.key_pad + square)
        write, kept = tl.load(write_z + frame * p.key_pad + keys), tl.load(decay + frame)
        before, z = z, advance_normaliser(z, erase, kept, write)
        if p.frames == 3:
            later = advance_normaliser(last, erase, kept, write)
        if t == p.frames - 1:
            tl.store(history_z + t * p.key_pad, z)
        elif t == p.frames - 2:
            tl.store(history_z + t * p.key_pad, z + last)
            if p.frames == 3:
                tl.store(history_z, before + later)
    tl.store(final_z + stream * p.key_dim + keys, z, mask=keys < p.key_dim)


@triton.jit
def scan(
    erase_kv, erase_z, write_kv, write_z, decay, state_kv, state_z, q, inverse_q, history_kv, history_z, final_kv,
    final_z, epsilon: tl.constexpr, p: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, COUNT: tl.constexpr,
    JOINED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """sana_kernels.scan, joined: of the sum of past and later. Grid: streams (B h), tiles, {past, later} or {both}.

    Behind the tiles may be programs that norm COUNT rows of q each, while the memory has nothing else to do.
    """
    tiles: tl.constexpr = p.value_pad // ROWS
    invite(EARLY)
    if tl.program_id(1) > tiles:
        first = (tl.program_id(1) - tiles - 1) * p.streams + tl.program_id(0)
        norm_queries(q, inverse_q, first, epsilon, p, COUNT)
    else:
        await_former(EARLY)
        if tl.program_id(1) < tiles:
            if JOINED:
                scan_matrix_joined(erase_kv, write_kv, decay, state_kv, history_kv, final_kv, p, ROWS, STAGES)
            else:
                scan_matrix(erase_kv, write_kv, decay, state_kv, history_kv, final_kv, p, ROWS, STAGES)
        elif JOINED:
            scan_normaliser_joined(erase_z, write_z, decay, state_z, history_z, final_z, p, STAGES)
        else:
            scan_normaliser(erase_z, write_z, decay, state_z, history_z, final_z, p, STAGES)


@triton.jit
def silu(x):
    # A division takes six instructions, the square of a root of the inverse two.
    root = tl.rsqrt(1.0 + tl.exp2(-1.4426950408889634 * x))
    return x * root * root


@triton.jit
def load_rows(ptr, rows, columns, stride: tl.constexpr, width: tl.constexpr, p: tl.constexpr):
    """A tile as it is stored, zero past the frame's tokens and `width` columns."""
    inside = (rows < p.tokens)[:, None] & (columns < width)[None, :]
    return tl.load(ptr + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def readout(
    q, inverse_q, q_weight, rope, gate, history_kv, history_z, factor, out,
    epsilon: tl.constexpr, p: tl.constexpr, TOKENS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """sana_kernels.readout of fused operands and one state per frame. Grid: frames (B h T), blocks of TOKENS tokens."""
    invite(EARLY)
    frame = tl.program_id(0)
    first, column, _ = locate(frame, p)
    keys, values = tl.arange(0, p.key_pad), tl.arange(0, p.value_pad)
    rows = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    now = first if p.own_angles else frame % p.frames * p.tokens
    # Before the wait, what no kernel in front of this one writes.
    weight = load_weight(q_weight, column, keys, 1.0, p)
    queries = load_rows(q + first * p.rows.q + column, rows, keys, p.rows.q, p.key_dim, p)
    angles = load_rows(rope + now * p.key_dim, rows, keys, p.key_dim, p.key_dim, p)
    opening = load_rows(gate + first * p.rows.gate + column, rows, values, p.rows.gate, p.value_dim, p)
    await_former(EARLY)
    square = values[:, None] * p.key_pad + keys[None, :]
    state = tl.load(history_kv + frame * p.value_pad * p.key_pad + square)
    z = tl.load(history_z + frame * p.key_pad + keys)
    small = epsilon / load_inverse(inverse_q, first, rows, p)
    plain = tl.maximum(queries.to(tl.float32) * weight[None, :], 0.0)
    rotated = turned(plain, angles.to(tl.float32))
    scale = 1.0 / (tl.sum(plain * z[None, :], axis=1) + small)
    opening = silu(opening.to(tl.float32)) * scale[:, None]
    result = tl.trans(product(state, tl.trans(operand(rotated, p)), p)) * opening
    at = rows[:, None] * p.hidden + values[None, :]
    inside = (rows < p.tokens)[:, None] & (values < p.value_dim)[None, :]
    if factor is not None:
        result = saturated(result * tl.load(factor))
    tl.store(out + first * p.hidden + column + at, result.to(out.dtype.element_ty), mask=inside)
