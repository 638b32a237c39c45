# mypy: ignore-errors
"""Triton kernels before the scan: norms of whole rows, and every frame's tokens summed into one update (spec 3.7).

`p` is the Problem, a compile-time constant. Matrices between the phases are padded with zeros to powers of two.
"""

import triton
import triton.language as tl

from sana_kernels.tiles import (
    load_factors,
    load_plain,
    load_rotated,
    load_tile,
    load_weight,
    locate,
    operand,
    product,
    rotate,
    sigmoid,
    softplus,
    store_matrix,
)


@triton.jit
def inverse_rms(
    ptr, first, stride: tl.constexpr, epsilon: tl.constexpr, p: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """1 / rms over all channels of ROWS rows, WIDTH channels at a time."""
    rows = tl.arange(0, ROWS)
    start = ptr + first.to(tl.int64) * stride
    squares = tl.full((ROWS, WIDTH), 0.0, tl.float32)
    for column in range(0, p.hidden, WIDTH):
        x = load_tile(start, rows, column + tl.arange(0, WIDTH), stride, p.all_tokens - first, p.hidden)
        squares += x * x
    return tl.rsqrt(tl.sum(squares, axis=1) / p.hidden + epsilon)


@triton.jit
def row_norms(
    q, k, beta, inverse_q, strength, root,
    epsilon: tl.constexpr, p: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """What multiplies whole rows. Grid: blocks of ROWS tokens, {q, k}.

    inverse_q (B N,) is 1 / rms of q. With the rms of k and b = sigmoid(beta), strength = b / rms and
    root = sqrt(b) / rms, both (h, B N).
    """
    first = tl.program_id(0) * ROWS
    tokens = first + tl.arange(0, ROWS)
    if tl.program_id(1) == 0:
        inverse = inverse_rms(q, first, p.rows.q, epsilon, p, ROWS, WIDTH)
        tl.store(inverse_q + tokens, inverse, mask=tokens < p.all_tokens)
    else:
        inverse_k = inverse_rms(k, first, p.rows.k, epsilon, p, ROWS, WIDTH)
        heads = tl.arange(0, p.head_pad)
        b = sigmoid(load_tile(beta, tokens, heads, p.rows.beta, p.all_tokens, p.heads))
        at = heads[None, :] * p.all_tokens + tokens[:, None]
        inside = (tokens < p.all_tokens)[:, None] & (heads < p.heads)[None, :]
        tl.store(strength + at, b * inverse_k[:, None], mask=inside)
        tl.store(root + at, tl.sqrt(b) * inverse_k[:, None], mask=inside)


@triton.jit
def frame_decay(rate, rate_bias, a_log, first, head, p: tl.constexpr, TOKENS: tl.constexpr):
    """What a frame keeps of the state, from the mean of its tokens' raw rates."""
    stride: tl.constexpr = p.rows.rate
    total = tl.full((TOKENS,), 0.0, tl.float32)
    for start in range(0, p.tokens, TOKENS):
        rows = start + tl.arange(0, TOKENS)
        total += tl.load(rate + (first + rows) * stride + head, mask=rows < p.tokens, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / p.tokens
    speed = tl.exp(tl.load(a_log + head).to(tl.float32))
    return tl.exp(-speed * softplus(mean + tl.load(rate_bias + head).to(tl.float32)))


@triton.jit
def load_keys(k, k_rot, factor, weight, rope, first, column, frame, rows, p: tl.constexpr):
    """A tile of keys and the same rotated, both times `factor` per token."""
    keys = tl.arange(0, p.key_pad)
    plain = load_plain(k + first * p.rows.k + column, weight, rows, keys, p.rows.k, p)
    if p.fused and p.precision == "bf16":
        plain *= factor[:, None]
        rotated = rotate(plain, rope, first, frame, rows, p)
    else:
        # Triton 3.6 to 3.9 cannot lay out a TF32 operand that comes straight from the reshape of a rotation.
        rotated = load_rotated(plain, k_rot, rope, first, frame, rows, keys, p) * factor[:, None]
        plain *= factor[:, None]
    return plain, rotated


@triton.jit
def sum_erased(k, k_rot, root, k_weight, rope, erase_kv, erase_z, p: tl.constexpr, TOKENS: tl.constexpr):
    """erase_kv = k_rot^T b k_rot and erase_z = k^T b k of a frame, both (dk, dk).

    With keys times sqrt(b), both sides of a product are one tensor.
    """
    frame = tl.program_id(0)
    first, column, head = locate(frame, p)
    weight = load_weight(k_weight, column, tl.arange(0, p.key_pad), p.key_scale, p)
    sum_kv = tl.full((p.key_pad, p.key_pad), 0.0, tl.float32)
    sum_z = tl.full((p.key_pad, p.key_pad), 0.0, tl.float32)
    for start in range(0, p.tokens, TOKENS):
        rows = start + tl.arange(0, TOKENS)
        factor = load_factors(root, first, head, rows, p)
        factor = factor if p.fused else tl.sqrt(factor)
        plain, rotated = load_keys(k, k_rot, factor, weight, rope, first, column, frame, rows, p)
        plain, rotated = operand(plain, p), operand(rotated, p)
        sum_kv += product(tl.trans(rotated), rotated, p)
        sum_z += product(tl.trans(plain), plain, p)
    store_matrix(erase_kv + frame * p.key_pad * p.key_pad, sum_kv)
    store_matrix(erase_z + frame * p.key_pad * p.key_pad, sum_z)


@triton.jit
def sum_written(k, k_rot, v, strength, k_weight, rope, write_kv, write_z, p: tl.constexpr, TOKENS: tl.constexpr):
    """write_kv = v^T b k_rot (dv, dk) and write_z = b k (dk,) of a frame."""
    frame = tl.program_id(0)
    first, column, head = locate(frame, p)
    keys, values = tl.arange(0, p.key_pad), tl.arange(0, p.value_pad)
    weight = load_weight(k_weight, column, keys, p.key_scale, p)
    sum_kv = tl.full((p.value_pad, p.key_pad), 0.0, tl.float32)
    sum_z = tl.full((TOKENS, p.key_pad), 0.0, tl.float32)
    for start in range(0, p.tokens, TOKENS):
        rows = start + tl.arange(0, TOKENS)
        factor = load_factors(strength, first, head, rows, p)
        plain, rotated = load_keys(k, k_rot, factor, weight, rope, first, column, frame, rows, p)
        # `column` counts key channels; a fused head has as many value channels.
        value = load_tile(v + first * p.rows.v + column, rows, values, p.rows.v, p.tokens, p.value_dim)
        sum_kv += product(tl.trans(operand(value, p)), operand(rotated, p), p)
        sum_z += plain
    store_matrix(write_kv + frame * p.value_pad * p.key_pad, sum_kv)
    tl.store(write_z + frame * p.key_pad + keys, tl.sum(sum_z, axis=0))


@triton.jit
def summaries(
    k, k_rot, v, beta, strength, root, k_weight, rope, rate, rate_bias, a_log,
    erase_kv, erase_z, write_kv, write_z, decay, p: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Sum a frame's tokens into its update of the state. Grid: frames (B h T), {erase, write}.

    Apart, because the sums of both do not fit in the registers of one program, and frames alone do not fill a card.
    Fused, the program that writes also finds the frame's decay.
    """
    if tl.program_id(1) == 0:
        sum_erased(k, k_rot, root if p.fused else beta, k_weight, rope, erase_kv, erase_z, p, TOKENS)
    else:
        sum_written(k, k_rot, v, strength if p.fused else beta, k_weight, rope, write_kv, write_z, p, TOKENS)
        if p.fused:
            first, _, head = locate(tl.program_id(0), p)
            tl.store(decay + tl.program_id(0), frame_decay(rate, rate_bias, a_log, first, head, p, p.rate_block))
