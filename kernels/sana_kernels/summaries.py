# mypy: ignore-errors
"""Triton kernels before the scan: keys as products read them, every frame's tokens summed into one update (spec 3.7).

`p` is the Problem, a compile-time constant. Matrices between the phases are padded with zeros to powers of two.
"""

import triton
import triton.language as tl

from sana_kernels.tiles import (
    load_factors,
    load_tile,
    locate,
    operand,
    product,
    sigmoid,
    softplus,
    store_matrix,
    turned,
)


@triton.jit
def load_groups(ptr, groups, p: tl.constexpr):
    """Channels of a row, in groups of p.lanes; a group never belongs to two heads."""
    at = groups[:, None] * p.lanes + tl.arange(0, p.lanes)[None, :]
    return tl.load(ptr + at, mask=(groups < p.groups)[:, None], other=0.0).to(tl.float32)


@triton.jit
def load_roots(beta, groups, p: tl.constexpr):
    """sqrt(b) of a token's heads, for every group."""
    raw = tl.load(beta + groups * p.lanes // p.key_dim, mask=groups < p.groups, other=0.0).to(tl.float32)
    return tl.sqrt(sigmoid(raw))[:, None]


@triton.jit
def load_angles(rope, groups, p: tl.constexpr):
    """The angles of a token, which all of its heads share."""
    at = (groups * p.lanes % p.key_dim)[:, None] + tl.arange(0, p.lanes)[None, :]
    return tl.load(rope + at).to(tl.float32)


@triton.jit
def sum_squares(x):
    return tl.sum(tl.sum(x * x, axis=1), axis=0)


@triton.jit
def store_pieces(ptr, x, inside, apart: tl.constexpr, growth: tl.constexpr, pieces: tl.constexpr):
    """x as a sum of numbers in the type of `ptr`, `apart` elements from each other; what is left is kept grown."""
    for piece in tl.static_range(pieces):
        nearest = x.to(ptr.dtype.element_ty)
        tl.store(ptr + piece * apart, nearest, mask=inside)
        x = (x - nearest.to(tl.float32)) * growth


@triton.jit
def store_keys(keys, keys_rot, weighted, x, roots, angles, groups, p: tl.constexpr):
    """Keys plain and rotated, both times sqrt(b), and rotated times b."""
    at = groups[:, None] * p.lanes + tl.arange(0, p.lanes)[None, :]
    apart = (groups * p.lanes // p.key_dim * p.room)[:, None]
    inside = (groups < p.groups)[:, None]
    rotated = turned(x, angles) * roots
    store_pieces(keys + at + apart, x * roots, inside, p.all_tokens * p.heads * p.key_step, 2.0, p.pieces)
    store_pieces(keys_rot + at, rotated, inside, p.all_tokens * p.hidden, 2.0, p.pieces)
    whole = rotated * roots * p.lacked
    store_pieces(weighted + at, whole, inside, p.all_tokens * p.hidden, 1.0, p.weighted_pieces)


@triton.jit
def prepare_roots(beta, root, keys, row, p: tl.constexpr):
    """sqrt(b) of a token's heads, before zeros behind the plain keys of each; where those have no room, in `root`."""
    heads = tl.arange(0, p.head_pad)
    raw = tl.load(beta + heads, mask=heads < p.heads, other=0.0).to(tl.float32)
    roots = tl.sqrt(sigmoid(raw))
    if p.summed:
        room = tl.arange(0, p.room_pad)
        group = tl.where(room[None, :] == 0, roots[:, None] / p.lacked, 0.0)
        at = heads[:, None] * p.key_step + p.key_dim + room[None, :]
        inside = (heads < p.heads)[:, None] & (room < p.room)[None, :]
        store_pieces(keys + at, group, inside, p.all_tokens * p.heads * p.key_step, 2.0, p.pieces)
    else:
        tl.store(root + heads * p.all_tokens + row, roots, mask=heads < p.heads)


@triton.jit
def prepare_keys(k, beta, k_weight, rope, keys, keys_rot, weighted, epsilon: tl.constexpr, p: tl.constexpr):
    """Keys of a token, normed and past ReLU."""
    left, right = tl.arange(0, p.piece), p.piece + tl.arange(0, p.rest)
    # Everything is read ahead of the sum over the row, behind whose barrier it would be waited for a second time.
    first, second = load_groups(k, left, p), load_groups(k, right, p)
    weights = load_groups(k_weight, left, p), load_groups(k_weight, right, p)
    roots = load_roots(beta, left, p), load_roots(beta, right, p)
    angles = load_angles(rope, left, p), load_angles(rope, right, p)
    scale: tl.constexpr = p.key_scale / p.lacked
    factor = tl.rsqrt((sum_squares(first) + sum_squares(second)) / p.hidden + epsilon) * scale
    first, second = tl.maximum(first * weights[0], 0.0) * factor, tl.maximum(second * weights[1], 0.0) * factor
    store_keys(keys, keys_rot, weighted, first, roots[0], angles[0], left, p)
    store_keys(keys, keys_rot, weighted, second, roots[1], angles[1], right, p)


@triton.jit
def prepare(
    q, k, beta, k_weight, rope, inverse_q, root, keys, keys_rot, weighted, epsilon: tl.constexpr, p: tl.constexpr
):
    """What is done to whole rows, before heads are apart. Grid: tokens, {q, k}.

    inverse_q (B N,) is 1 / rms of q. Of k, with b = sigmoid(beta): keys (pieces, B N, h, p.key_step) and keys_rot
    (pieces, B N, C), plain and rotated, times sqrt(b), over p.lacked, and weighted (p.weighted_pieces, B N, C), rotated
    times b. sqrt(b) itself lies behind the plain keys of a head where those are padded, else in root (h, B N). A row is
    read in two parts, as the next power of two would be nearly twice as wide.
    """
    row = tl.program_id(0).to(tl.int64)
    keys += row * (p.heads * p.key_step)
    if tl.program_id(1) == 0:
        prepare_roots(beta + row * p.rows.beta, root, keys, row, p)
        at = q + row * p.rows.q
        first, second = load_groups(at, tl.arange(0, p.piece), p), load_groups(at, p.piece + tl.arange(0, p.rest), p)
        squares = (sum_squares(first) + sum_squares(second)) / p.hidden
        tl.store(inverse_q + row, tl.rsqrt(squares + epsilon))
    else:
        now = row if p.own_angles else row % (p.frames * p.tokens)
        prepare_keys(
            k + row * p.rows.k, beta + row * p.rows.beta, k_weight, rope + now * p.key_dim,
            keys, keys_rot + row * p.hidden, weighted + row * p.hidden, epsilon, p,
        )  # fmt: skip


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
def load_piece(prepared, piece: tl.constexpr, first, head, rows, p: tl.constexpr, STEP: tl.constexpr):
    """A tile of one piece of prepared keys, whose heads have STEP channels."""
    columns = tl.arange(0, p.key_pad)
    inside = (rows < p.tokens)[:, None] & (columns < STEP)[None, :]
    prepared += piece * (p.all_tokens * p.heads * STEP)
    prepared += first * (p.heads * STEP) + head * STEP
    return tl.load(prepared + rows[:, None] * (p.heads * STEP) + columns[None, :], mask=inside, other=0.0)


@triton.jit
def load_keys(prepared, k, beta, first, head, rows, p: tl.constexpr, STEP: tl.constexpr, ROOT: tl.constexpr):
    """A tile of keys as products read it: the first piece of prepared ones, of the others times b, or its ROOT."""
    if p.fused:
        tile = load_piece(prepared, 0, first, head, rows, p, STEP)
    else:
        columns = tl.arange(0, p.key_pad)
        factor = load_factors(beta, first, head, rows, p)
        factor = tl.sqrt(factor) if ROOT else factor
        tile = load_tile(k + first * p.key_dim, rows, columns, p.key_dim, p.tokens, p.key_dim) * factor[:, None]
        tile = operand(tile, p)
    return tile


@triton.jit
def add_square(total, tile, prepared, first, head, rows, p: tl.constexpr, STEP: tl.constexpr):
    """total + tile^T tile. Products of large and small pieces mirror each other: there is one, with the small twice."""
    if p.pieces == 2:
        small = load_piece(prepared, 1, first, head, rows, p, STEP)
        # What tensor cores cut off their sums must not grow with the frame.
        total += tl.dot(tl.trans(tile), tile, tl.dot(tl.trans(tile), small))
    else:
        total += product(tl.trans(tile), tile, p)
    return total


@triton.jit
def completed(total, p: tl.constexpr):
    """A sum of squares with each of two mirrored products in its place, and with the factor that its keys lack."""
    if p.pieces == 2:
        total = 0.5 * (total + tl.trans(total))
    return total * (p.lacked * p.lacked)


@triton.jit
def load_weighted(weighted, k_rot, beta, first, head, rows, p: tl.constexpr):
    """A tile of rotated keys times b; one of several pieces is their sum, in float32."""
    pieces: tl.constexpr = p.weighted_pieces
    tile = load_keys(weighted, k_rot, beta, first, head, rows, p, p.key_dim, False)
    for piece in tl.static_range(1, pieces):
        tile = tile.to(tl.float32) + load_piece(weighted, piece, first, head, rows, p, p.key_dim).to(tl.float32)
    return tile


@triton.jit
def add_written(total, values, weighted, first, head, rows, p: tl.constexpr):
    """total + v^T b k_rot of a tile with values in bfloat16: a product per piece of the keys, smallest first."""
    part = total if p.precision == "tf32" else tl.zeros_like(total)
    for piece in tl.static_range(p.weighted_pieces - 1, -1, -1):
        part = tl.dot(tl.trans(values), load_piece(weighted, piece, first, head, rows, p, p.key_dim), part)
    return part if p.precision == "tf32" else total + part


@triton.jit
def load_values(v, first, column, rows, p: tl.constexpr):
    """A tile of values as products read it; `column` counts key channels, a fused head has as many value channels."""
    columns = tl.arange(0, p.value_pad)
    inside = (rows < p.tokens)[:, None] & (columns < p.value_dim)[None, :]
    at = first * p.rows.v + column + rows[:, None] * p.rows.v + columns[None, :]
    tile = tl.load(v + at, mask=inside, other=0.0)
    return tile if p.weighted_pieces > 1 and tile.dtype == tl.bfloat16 else operand(tile, p)


@triton.jit
def sum_erased(keys, keys_rot, k, k_rot, beta, erase_kv, erase_z, write_z, p: tl.constexpr, TOKENS: tl.constexpr):
    """erase_kv = k_rot^T b k_rot and erase_z = k^T b k of a frame, both (dk, dk).

    With keys times sqrt(b), both sides of a product are one tensor. Where sqrt(b) is a column of the plain keys, that
    row of their product is write_z = b k.
    """
    frame = tl.program_id(0)
    first, _, head = locate(frame, p)
    sum_kv = tl.full((p.key_pad, p.key_pad), 0.0, tl.float32)
    sum_z = tl.full((p.key_pad, p.key_pad), 0.0, tl.float32)
    for start in range(0, p.tokens, TOKENS):
        rows = start + tl.arange(0, TOKENS)
        rotated = load_keys(keys_rot, k_rot, beta, first, head, rows, p, p.key_dim, True)
        plain = load_keys(keys, k, beta, first, head, rows, p, p.key_step, True)
        sum_kv = add_square(sum_kv, rotated, keys_rot, first, head, rows, p, p.key_dim)
        sum_z = add_square(sum_z, plain, keys, first, head, rows, p, p.key_step)
    sum_kv, sum_z = completed(sum_kv, p), completed(sum_z, p)
    if p.summed:
        columns = tl.arange(0, p.key_pad)
        behind = columns == p.key_dim
        total = tl.sum(tl.where(behind[:, None], sum_z, 0.0), axis=0)
        tl.store(write_z + frame * p.key_pad + columns, tl.where(behind, 0.0, total))
        sum_z = tl.where(behind[:, None] | behind[None, :], 0.0, sum_z)
    store_matrix(erase_kv + frame * p.key_pad * p.key_pad, sum_kv)
    store_matrix(erase_z + frame * p.key_pad * p.key_pad, sum_z)


@triton.jit
def load_weighted_keys(keys, k, root, beta, first, head, rows, p: tl.constexpr):
    """A tile of plain keys times b, in float32. Prepared keys have one sqrt(b) of two."""
    tile = load_keys(keys, k, beta, first, head, rows, p, p.key_dim, False).to(tl.float32)
    if p.pieces == 2:
        tile += 0.5 * load_piece(keys, 1, first, head, rows, p, p.key_dim).to(tl.float32)
    return tile * load_factors(root, first, head, rows, p)[:, None] if p.fused else tile


@triton.jit
def sum_written(keys, weighted, k, k_rot, v, root, beta, write_kv, write_z, p: tl.constexpr, TOKENS: tl.constexpr):
    """write_kv = v^T b k_rot (dv, dk) of a frame, and write_z = b k (dk,) where no product sums it."""
    frame = tl.program_id(0)
    first, column, head = locate(frame, p)
    sum_kv = tl.full((p.value_pad, p.key_pad), 0.0, tl.float32)
    sum_z = tl.full((TOKENS, p.key_pad), 0.0, tl.float32)
    for start in range(0, p.tokens, TOKENS):
        rows = start + tl.arange(0, TOKENS)
        values = load_values(v, first, column, rows, p)
        if p.weighted_pieces > 1 and values.dtype == tl.bfloat16:
            sum_kv = add_written(sum_kv, values, weighted, first, head, rows, p)
        else:
            rotated = load_weighted(weighted, k_rot, beta, first, head, rows, p)
            sum_kv += product(tl.trans(values), rotated, p)
        if not p.summed:
            sum_z += load_weighted_keys(keys, k, root, beta, first, head, rows, p)
    store_matrix(write_kv + frame * p.value_pad * p.key_pad, sum_kv)
    if not p.summed:
        tl.store(write_z + frame * p.key_pad + tl.arange(0, p.key_pad), tl.sum(sum_z, axis=0) * p.lacked)


@triton.jit
def summaries(
    keys, keys_rot, weighted, k, k_rot, v, beta, root, rate, rate_bias, a_log,
    erase_kv, erase_z, write_kv, write_z, decay, p: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Sum a frame's tokens into its update of the state. Grid: frames (B h T), {erase, write}.

    Apart, because the sums of both do not fit in the registers of one program, and frames alone do not fill a card.
    Fused, the program that writes also finds the frame's decay.
    """
    if tl.program_id(1) == 0:
        sum_erased(keys, keys_rot, k, k_rot, beta, erase_kv, erase_z, write_z, p, TOKENS)
    else:
        sum_written(keys, weighted, k, k_rot, v, root, beta, write_kv, write_z, p, TOKENS)
        if p.fused:
            first, _, head = locate(tl.program_id(0), p)
            tl.store(decay + tl.program_id(0), frame_decay(rate, rate_bias, a_log, first, head, p, p.rate_block))
