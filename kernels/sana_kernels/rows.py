# mypy: ignore-errors
"""Triton kernels that take one token, a row of all channels, at a time: residuals, norms, gates, quantisation.

`p` is a RowShape, a compile-time constant. Outputs and operands that a call does not have are None.
"""

import triton
import triton.language as tl

from sana_kernels.tiles import saturated, silu


@triton.jit
def store_both(plain, fp8, x, factor, at, mask):
    """x in the type of its tensor, in E4M3, or both."""
    if plain is not None:
        tl.store(plain + at, x.to(plain.dtype.element_ty), mask=mask)
    if fp8 is not None:
        tl.store(fp8 + at, saturated(x * factor).to(tl.float8e4nv), mask=mask)


@triton.jit
def load_mixed(y, more, tail, row, columns, inside, p: tl.constexpr):
    """A row of y, and of the temporal layer what is added to it, to rows of the first frame also the tail."""
    mixed = tl.load(y + row * p.width + columns, mask=inside, other=0.0).to(tl.float32)
    if more is not None:
        mixed += tl.load(more + row * p.width + columns, mask=inside, other=0.0).to(tl.float32)
    if tail is not None:
        at = tail + left_of(row, p) * p.width + columns
        mixed += tl.load(at, mask=inside & (row // p.tokens % p.frames == 0), other=0.0).to(tl.float32)
    return mixed


@triton.jit
def left_of(row, p: tl.constexpr):
    """The row of the frame left of the chunk that is at the same place in the image."""
    return row // (p.tokens * p.frames) * p.tokens + row % p.tokens


@triton.jit
def load_vector(ptr, columns, inside):
    """A vector over channels, ones if there is none."""
    vector = tl.full(columns.shape, 1.0, tl.float32)
    if ptr is not None:
        vector = tl.load(ptr + columns, mask=inside, other=0.0).to(tl.float32)
    return vector


@triton.jit
def load_residual(x, y, more, tail, gates, row, columns, inside, p: tl.constexpr):
    """x + gate * y of a piece of a row."""
    result = tl.load(x + row * p.width + columns, mask=inside, other=0.0).to(tl.float32)
    if y is not None:
        result += load_mixed(y, more, tail, row, columns, inside, p) * gates
    return result


@triton.jit
def modulate(x, mean, inverse, shift, scale):
    return (x - mean) * inverse * (1.0 + scale) + shift


@triton.jit
def residual_norm(
    x, y, more, tail, gate, shift, scale, x_out, plain, fp8, factor,
    epsilon: tl.constexpr, p: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """x_out = x + gate * y, and behind it the modulated layer norm of that. Grid: blocks of ROWS tokens.

    A row is two pieces, as the next power of two would be nearly twice as wide. Vectors over channels are read once for
    all ROWS tokens: they are larger than a token.
    """
    # Eight per thread: with sixteen, as E4M3 would have it, what is stored in bfloat16 changes its layout.
    left, right = tl.max_contiguous(tl.arange(0, p.piece), 8), p.piece + tl.arange(0, p.rest)
    in_left, in_right = left < p.width, right < p.width
    gates = load_vector(gate, left, in_left), load_vector(gate, right, in_right)
    shifts = load_vector(shift, left, in_left), load_vector(shift, right, in_right)
    scales = load_vector(scale, left, in_left), load_vector(scale, right, in_right)
    for step in range(ROWS):
        row = (tl.program_id(0) * ROWS + step).to(tl.int64)
        to_left, to_right = in_left & (row < p.rows), in_right & (row < p.rows)
        at = row * p.width
        first = load_residual(x, y, more, tail, gates[0], row, left, to_left, p)
        second = load_residual(x, y, more, tail, gates[1], row, right, to_right, p)
        if x_out is not None:
            tl.store(x_out + at + left, first.to(x_out.dtype.element_ty), mask=to_left)
            tl.store(x_out + at + right, second.to(x_out.dtype.element_ty), mask=to_right)
        if shift is not None:
            mean = (tl.sum(first, axis=0) + tl.sum(second, axis=0)) / p.width
            from_mean = tl.where(in_left, first - mean, 0.0), tl.where(in_right, second - mean, 0.0)
            squares = tl.sum(from_mean[0] * from_mean[0], axis=0) + tl.sum(from_mean[1] * from_mean[1], axis=0)
            inverse = tl.rsqrt(squares / p.width + epsilon)
            first = modulate(first, mean, inverse, shifts[0], scales[0])
            second = modulate(second, mean, inverse, shifts[1], scales[1])
        store_both(plain, fp8, first, factor, at + left, to_left)
        store_both(plain, fp8, second, factor, at + right, to_right)


@triton.jit
def stack_columns(x, tail, out, factor, row, columns, p: tl.constexpr):
    """Some columns of a token to where three frames read them."""
    inside = columns < p.width
    frame = row // p.tokens % p.frames
    step: tl.constexpr = p.tokens * 3 * p.width
    at = out + row * (3 * p.width) + columns
    own = tl.load(x + row * p.width + columns, mask=inside, other=0.0).to(tl.float32)
    own = saturated(own * factor).to(tl.float8e4nv)
    tl.store(at + p.width, own, mask=inside)
    tl.store(at + step, own, mask=inside & (frame < p.frames - 1))
    tl.store(at - step + 2 * p.width, own, mask=inside & (frame > 0))
    nothing = tl.full(columns.shape, 0.0, tl.float32)
    before = nothing
    if tail is not None:
        before = tl.load(tail + left_of(row, p) * p.width + columns, mask=inside & (frame == 0), other=0.0)
        before = saturated(before.to(tl.float32) * factor)
    tl.store(at, before.to(tl.float8e4nv), mask=inside & (frame == 0))
    tl.store(at + 2 * p.width, nothing.to(tl.float8e4nv), mask=inside & (frame == p.frames - 1))


@triton.jit
def stack_frames(x, tail, out, factor, p: tl.constexpr):
    """A token of the frame left of its own, its own, and of the frame right of it, side by side, in E4M3. Grid: tokens.

    x (B, T, S, C), tail (B, S, C), of which the first frame has what is left of it; out (B, T, S, 3 C).
    """
    row = tl.program_id(0).to(tl.int64)
    stack_columns(x, tail, out, factor, row, tl.arange(0, p.piece), p)
    stack_columns(x, tail, out, factor, row, p.piece + tl.arange(0, p.rest), p)


@triton.jit
def inverse_row_rms(x, inverse, epsilon: tl.constexpr, p: tl.constexpr):
    """1 / rms of each row of x. Grid: tokens."""
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, p.pad)
    value = tl.load(x + row * p.width + columns, mask=columns < p.width, other=0.0).to(tl.float32)
    tl.store(inverse + row, tl.rsqrt(tl.sum(value * value, axis=0) / p.width + epsilon))


@triton.jit
def load_normed(x, weight, row, stride: tl.constexpr, columns, epsilon: tl.constexpr, p: tl.constexpr):
    """A row over its rms, times the weight."""
    inside = columns < p.width
    value = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, axis=0) / p.width + epsilon)
    return value * inverse * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def turn(x, rope, row, columns, p: tl.constexpr):
    """Rotate the adjacent channel pairs of all heads of a row by its angles, cos and sin of a pair side by side."""
    angles = tl.load(rope + row * p.head + columns % p.head).to(tl.float32)
    cos, sin = tl.split(tl.reshape(angles, (p.pad // 2, 2)))
    even, odd = tl.split(tl.reshape(x, (p.pad // 2, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (p.pad,))


@triton.jit
def write_window(
    q, k, v, q_weight, k_weight, rope, keys, values, q_out,
    start, epsilon: tl.constexpr, p: tl.constexpr, ROW: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Normed, rotated queries to q_out (B N, C), keys and values to rows from `start` of (B, WINDOW, C). Grid: tokens.

    q, k and v are columns of tensors whose rows are ROW elements apart.
    """
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, p.pad)
    inside = columns < p.width
    chunk: tl.constexpr = p.tokens * p.frames
    kept = (row // chunk * WINDOW + start + row % chunk) * p.width + columns
    value = tl.load(v + row * ROW[2] + columns, mask=inside, other=0.0)
    tl.store(values + kept, value, mask=inside)
    turned = turn(load_normed(k, k_weight, row, ROW[1], columns, epsilon, p), rope, row, columns, p)
    tl.store(keys + kept, turned.to(keys.dtype.element_ty), mask=inside)
    turned = turn(load_normed(q, q_weight, row, ROW[0], columns, epsilon, p), rope, row, columns, p)
    tl.store(q_out + row * p.width + columns, turned.to(q_out.dtype.element_ty), mask=inside)


@triton.jit
def load_joined(x, lse, row, at, heads, inside, p: tl.constexpr, PARTS: tl.constexpr):
    """What attention to all keys is, from attention to each of PARTS shares of them and the logarithm of its weight."""
    size: tl.constexpr = p.rows * p.width
    step: tl.constexpr = p.width // p.head * p.rows
    share, there = lse + heads * p.rows + row, heads < p.width // p.head
    largest = tl.full(heads.shape, -1e30, tl.float32)
    total = tl.full(heads.shape, 0.0, tl.float32)
    result = tl.full(at.shape, 0.0, tl.float32)
    for part in range(PARTS):
        largest = tl.maximum(largest, tl.load(share + part * step, mask=there, other=0.0))
    for part in range(PARTS):
        weight = tl.exp(tl.load(share + part * step, mask=there, other=0.0) - largest)
        total += weight
        result += weight[:, None] * tl.load(x + part * size + at, mask=inside, other=0.0).to(tl.float32)
    return result / total[:, None]


@triton.jit
def gate_rows(
    x, lse, gate, plain, fp8, factor,
    p: tl.constexpr, ROW: tl.constexpr, PARTS: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """x * silu(gate), x alone where there is no gate, whose rows are ROW elements apart. Grid: tokens.

    With lse (PARTS, heads, tokens), x (PARTS, tokens, C) is joined first; a row is then HEADS rows of HEAD channels.
    """
    row = tl.program_id(0).to(tl.int64)
    if lse is not None:
        heads, channels = tl.arange(0, HEADS), tl.arange(0, HEAD)
        columns = heads[:, None] * p.head + channels[None, :]
        inside = (heads < p.width // p.head)[:, None] & (channels < p.head)[None, :]
        result = load_joined(x, lse, row, row * p.width + columns, heads, inside, p, PARTS)
    else:
        columns = tl.arange(0, p.pad)
        inside = columns < p.width
        result = tl.load(x + row * p.width + columns, mask=inside, other=0.0).to(tl.float32)
    if gate is not None:
        opening = tl.load(gate + row * ROW + columns, mask=inside, other=0.0).to(tl.float32)
        result *= silu(opening)
    store_both(plain, fp8, result, factor, row * p.width + columns, inside)
