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
def erased(state, erase, p: tl.constexpr):
    """What a frame erases of rows of the matrix state (rows, dk), or of the normaliser (dk,)."""
    if len(state.shape) == 1:
        # erase is symmetric, so the sum may run over either side; this one leaves the state in the layout it came in.
        result = tl.sum(erase.to(tl.float32) * state[:, None], axis=0)
    else:
        result = product(operand(state, p), operand(erase, p), p)
    return result


@triton.jit
def scan_apart(state, erase, write, decay, history, at, p: tl.constexpr, SIZE: tl.constexpr):
    """One chain, of the past or of what comes later, which leaves a state per frame."""
    stream, later = tl.program_id(0), tl.program_id(2)
    keys = tl.arange(0, p.key_pad)
    square = keys[:, None] * p.key_pad + keys[None, :]
    history += (later * p.all_frames).to(tl.int64) * SIZE
    for step in range(p.frames):
        frame = stream * p.frames + step + later * (p.frames - 1 - 2 * step)
        if later == 1:
            tl.store(history + frame * SIZE + at, state.to(history.dtype.element_ty))
        matrix = tl.load(erase + frame * p.key_pad * p.key_pad + square)
        state = tl.load(decay + frame) * (state - erased(state, matrix, p))
        state += tl.load(write + frame * SIZE + at)
        if later == 0:
            tl.store(history + frame * SIZE + at, state.to(history.dtype.element_ty))
    return state


@triton.jit
def scan_joined(
    state, erase, write, decay, history, at, p: tl.constexpr, SIZE: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """Both chains of at most three frames, which leave their sum: the only product of the later one comes in order."""
    stream, keys = tl.program_id(0), tl.arange(0, p.key_pad)
    square = keys[:, None] * p.key_pad + keys[None, :]
    history += stream * p.frames * SIZE + at
    last = tl.load(write + (stream * p.frames + p.frames - 1) * SIZE + at)
    # Stages of the loop itself copy ahead all that it loads, not only what products read.
    for t in tl.range(p.frames, num_stages=STAGES):
        frame = stream * p.frames + t
        matrix = tl.load(erase + frame * p.key_pad * p.key_pad + square)
        new, kept = tl.load(write + frame * SIZE + at), tl.load(decay + frame)
        before, state = state, kept * (state - erased(state, matrix, p)) + new
        if p.frames == 3:
            later = kept * (last - erased(last, matrix, p)) + new
        if t == p.frames - 1:
            tl.store(history + t * SIZE, state.to(history.dtype.element_ty))
        elif t == p.frames - 2:
            tl.store(history + t * SIZE, (state + last).to(history.dtype.element_ty))
            if p.frames == 3:
                tl.store(history, (before + later).to(history.dtype.element_ty))
    return state


@triton.jit
def scan_state(
    erase, write, decay, carried, history, final, at, exact, inside,
    p: tl.constexpr, SIZE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """x <- decay (x - x erase) + write: the places `at` of a padded state of SIZE, `exact` where nothing is padded."""
    if not p.joined:
        # Only the past has a carried and a final state.
        inside &= tl.program_id(2) == 0
    state = tl.full(at.shape, 0.0, tl.float32)
    if p.carried:
        state = tl.load(carried + exact, mask=inside, other=0.0)
    if p.joined:
        state = scan_joined(state, erase, write, decay, history, at, p, SIZE, STAGES)
    else:
        state = scan_apart(state, erase, write, decay, history, at, p, SIZE)
    tl.store(final + exact, state, mask=inside)


@triton.jit
def scan_matrix(
    erase, write, decay, carried, history, final, p: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """ROWS value rows of the matrix state."""
    rows, keys = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, p.key_pad)
    at = rows[:, None] * p.key_pad + keys[None, :]
    exact = (tl.program_id(0) * p.value_dim + rows)[:, None] * p.key_dim + keys[None, :]
    inside = (rows < p.value_dim)[:, None] & (keys < p.key_dim)[None, :]
    size: tl.constexpr = p.value_pad * p.key_pad
    scan_state(erase, write, decay, carried, history, final, at, exact, inside, p, size, STAGES)


@triton.jit
def scan_normaliser(erase, write, decay, carried, history, final, p: tl.constexpr, STAGES: tl.constexpr):
    """The normaliser."""
    keys = tl.arange(0, p.key_pad)
    exact, inside = tl.program_id(0) * p.key_dim + keys, keys < p.key_dim
    scan_state(erase, write, decay, carried, history, final, keys, exact, inside, p, p.key_pad, STAGES)


@triton.jit
def scan(
    erase_kv, erase_z, write_kv, write_z, decay, state_kv, state_z, history_kv, history_z, final_kv, final_z,
    p: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """What each frame reads, with the state on chip from frame to frame. Grid: streams (B h), tiles, chains.

    Value rows of the matrix state never mix, so a tile is ROWS of them; the last tile is the normaliser. The past
    starts from the carried state and includes the frame, what comes later starts from zero and does not: each is a
    chain of its own, or both are one that leaves their sum.
    """
    if tl.program_id(1) * ROWS < p.value_pad:
        scan_matrix(erase_kv, write_kv, decay, state_kv, history_kv, final_kv, p, ROWS, STAGES)
    else:
        scan_normaliser(erase_z, write_z, decay, state_z, history_z, final_z, p, STAGES)


@triton.jit
def readout(
    q, q_rot, inverse_q, q_weight, rope, gate, history_kv, history_z, factor, out,
    epsilon: tl.constexpr, p: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Query the sum of past and later: out = kv q_rot / (z q + epsilon), fused times silu(gate).

    With a `factor` (1,), out is E4M3 of that many times the result. Grid: frames (B h T), SPLITS shares of the frame's
    blocks of TOKENS tokens.
    """
    frame = tl.program_id(0)
    first, column, _ = locate(frame, p)
    keys, values = tl.arange(0, p.key_pad), tl.arange(0, p.value_pad)
    size: tl.constexpr = p.value_pad * p.key_pad
    out_stride: tl.constexpr = p.hidden if p.fused else p.value_dim
    square = values[:, None] * p.key_pad + keys[None, :]
    state = tl.load(history_kv + frame * size + square)
    z = tl.load(history_z + frame * p.key_pad + keys)
    if not p.joined:
        later = tl.load(history_kv + (p.all_frames + frame) * size + square)
        z += tl.load(history_z + (p.all_frames + frame) * p.key_pad + keys)
        if p.precision != "bf16":
            state += later
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
        result = product(state, queries, p)
        if p.precision == "bf16" and not p.joined:
            # A second product: a sum in front of the first would keep its operand from going straight where it is read.
            result += product(later, queries, p)
        result = tl.trans(result) * opening
        at = rows[:, None] * out_stride + values[None, :]
        inside = (rows < p.tokens)[:, None] & (values < p.value_dim)[None, :]
        if factor is not None:
            result = saturated(result * tl.load(factor))
        tl.store(out + first * out_stride + column + at, result.to(out.dtype.element_ty), mask=inside)
