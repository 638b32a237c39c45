# mypy: ignore-errors
"""Triton kernels from the frame updates on: the scan that leaves the state of every frame, and the readout (spec 3.7).

`p` is the Problem, a compile-time constant. Matrices between the phases are padded with zeros to powers of two.
"""

import triton
import triton.language as tl

from sana_kernels.tiles import (
    load_inverse,
    load_plain,
    load_rotated,
    load_tile,
    load_weight,
    locate,
    operand,
    product,
    saturated,
    silu,
)


@triton.jit
def scan_matrix(erase_kv, write_kv, decay, state_kv, history_kv, final_kv, p: tl.constexpr, ROWS: tl.constexpr):
    """Scan ROWS value rows of the matrix state: kv <- decay (kv - kv erase) + write."""
    stream, later = tl.program_id(0), tl.program_id(2)
    rows, keys = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, p.key_pad)
    padded = rows[:, None] * p.key_pad + keys[None, :]
    square = tl.arange(0, p.key_pad)[:, None] * p.key_pad + keys[None, :]
    exact = (stream * p.value_dim + rows)[:, None] * p.key_dim + keys[None, :]
    # Only the past has a carried and a final state.
    inside = (rows < p.value_dim * (1 - later))[:, None] & (keys < p.key_dim)[None, :]
    history_kv += (later * p.all_frames + stream * p.frames).to(tl.int64) * p.value_pad * p.key_pad
    kv = tl.full((ROWS, p.key_pad), 0.0, tl.float32)
    if p.carried:
        kv = tl.load(state_kv + exact, mask=inside, other=0.0)
    for step in range(p.frames):
        t = step + later * (p.frames - 1 - 2 * step)
        frame = stream * p.frames + t
        out = history_kv + t * p.value_pad * p.key_pad + padded
        if later == 1:
            tl.store(out, kv.to(history_kv.dtype.element_ty))
        erase = tl.load(erase_kv + frame * p.key_pad * p.key_pad + square)
        kv = tl.load(decay + frame) * (kv - product(operand(kv, p), operand(erase, p), p))
        kv += tl.load(write_kv + frame * p.value_pad * p.key_pad + padded)
        if later == 0:
            tl.store(out, kv.to(history_kv.dtype.element_ty))
    tl.store(final_kv + exact, kv, mask=inside)


@triton.jit
def scan_normaliser(erase_z, write_z, decay, state_z, history_z, final_z, p: tl.constexpr):
    """Scan the normaliser: z <- decay (z - erase z) + write."""
    stream, later = tl.program_id(0), tl.program_id(2)
    keys = tl.arange(0, p.key_pad)
    square = keys[:, None] * p.key_pad + keys[None, :]
    history_z += (later * p.all_frames + stream * p.frames) * p.key_pad
    inside = keys < p.key_dim * (1 - later)
    z = tl.full((p.key_pad,), 0.0, tl.float32)
    if p.carried:
        z = tl.load(state_z + stream * p.key_dim + keys, mask=inside, other=0.0)
    for step in range(p.frames):
        t = step + later * (p.frames - 1 - 2 * step)
        frame = stream * p.frames + t
        if later == 1:
            tl.store(history_z + t * p.key_pad + keys, z)
        # erase is symmetric, so the sum may run over either side; this one leaves z in the layout it came in.
        erase = tl.load(erase_z + frame * p.key_pad * p.key_pad + square).to(tl.float32)
        erased = tl.sum(erase * z[:, None], axis=0)
        z = tl.load(decay + frame) * (z - erased) + tl.load(write_z + frame * p.key_pad + keys)
        if later == 0:
            tl.store(history_z + t * p.key_pad + keys, z)
    tl.store(final_z + stream * p.key_dim + keys, z, mask=inside)


@triton.jit
def scan(
    erase_kv, erase_z, write_kv, write_z, decay, state_kv, state_z, history_kv, history_z, final_kv, final_z,
    p: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What each frame reads, with the state on chip from frame to frame. Grid: streams (B h), tiles, {past, later}.

    Value rows of the matrix state never mix, so a tile is ROWS of them; the last tile is the normaliser. The past
    starts from the carried state and includes the frame, what comes later starts from zero and does not.
    """
    if tl.program_id(1) * ROWS < p.value_pad:
        scan_matrix(erase_kv, write_kv, decay, state_kv, history_kv, final_kv, p, ROWS)
    else:
        scan_normaliser(erase_z, write_z, decay, state_z, history_z, final_z, p)


@triton.jit
def readout(
    q, q_rot, inverse_q, q_weight, rope, gate, history_kv, history_z, factor, out,
    epsilon: tl.constexpr, p: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Query past and later together: out = kv q_rot / (z q + epsilon), fused times silu(gate).

    With a `factor` (1,), out is E4M3 of that many times the result. Grid: frames (B h T), SPLITS shares of the frame's
    blocks of TOKENS tokens.
    """
    frame = tl.program_id(0)
    first, column, _ = locate(frame, p)
    keys, values = tl.arange(0, p.key_pad), tl.arange(0, p.value_pad)
    size: tl.constexpr = p.value_pad * p.key_pad
    out_stride: tl.constexpr = p.hidden if p.fused else p.value_dim
    square = values[:, None] * p.key_pad + keys[None, :]
    past = tl.load(history_kv + frame * size + square)
    later = tl.load(history_kv + (p.all_frames + frame) * size + square)
    if p.precision != "bf16":
        past += later
    z = tl.load(history_z + frame * p.key_pad + keys)
    z += tl.load(history_z + (p.all_frames + frame) * p.key_pad + keys)
    weight = load_weight(q_weight, column, keys, 1.0, p)
    for start in range(0, p.tokens, SPLITS * TOKENS):
        rows = start + tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
        plain = load_plain(q + first * p.rows.q + column, weight, rows, keys, p.rows.q, p)
        rotated = load_rotated(plain, q_rot, rope, first, frame, rows, keys, p)
        # The factor that fused queries lack stands above and below the line, but not in epsilon.
        small = epsilon / load_inverse(inverse_q, first, rows, p)
        scale = 1.0 / (tl.sum(plain * z[None, :], axis=1) + small)
        if p.fused:
            # Ahead of the product, behind whose barriers it would be waited for alone.
            opening = load_tile(gate + first * p.rows.gate + column, rows, values, p.rows.gate, p.tokens, p.value_dim)
            opening = silu(opening) * scale[:, None]
        else:
            opening = scale[:, None]
        # Values by tokens: what is computed goes through shared memory on this side, on the other through registers.
        queries = tl.trans(operand(rotated, p))
        result = product(past, queries, p)
        if p.precision == "bf16":
            # A second product: a sum in front of the first would keep its operand from going straight where it is read.
            result += product(later, queries, p)
        result = tl.trans(result) * opening
        at = rows[:, None] * out_stride + values[None, :]
        inside = (rows < p.tokens)[:, None] & (values < p.value_dim)[None, :]
        if factor is not None:
            result = saturated(result * tl.load(factor))
        tl.store(out + first * out_stride + column + at, result.to(out.dtype.element_ty), mask=inside)
