# mypy: ignore-errors
"""Triton helpers of the gated delta network kernels: tiles of one frame's tokens, and their products.

`p` is the Problem. Of its two kinds of operands, fused ones are raw projections (B, N, C), where a row is a token and a
head is a range of columns; of the others, prepared (B, h, T, S, d), every row belongs to one head.
"""

import triton
import triton.language as tl


@triton.jit
def operand(x, p: tl.constexpr):
    """x as products take it; one that a product reads twice is cast once, and lies in shared memory once."""
    return x.to(tl.bfloat16 if p.precision == "bf16" else tl.float32)


@triton.jit
def product(a, b, p: tl.constexpr):
    """a @ b of two operands with sums in float32."""
    if p.precision == "bf16":
        result = tl.dot(a, b)
    elif p.precision == "tf32":
        result = tl.dot(a, b, input_precision="tf32")
    elif p.threefold:
        result = tl.dot(a, b, input_precision="tf32x3")
    else:
        result = tl.dot(a, b, input_precision="ieee")
    return result


@triton.jit
def sigmoid(x):
    # Powers of two are what the hardware computes, and tl.exp takes three more instructions.
    return 1.0 / (1.0 + tl.exp2(-1.4426950408889634 * x))


@triton.jit
def silu(x):
    # A division takes six instructions, the square of a root of the inverse two.
    root = tl.rsqrt(1.0 + tl.exp2(-1.4426950408889634 * x))
    return x * root * root


@triton.jit
def saturated(x):
    """x within the range of E4M3."""
    return tl.minimum(tl.maximum(x, -448.0), 448.0)


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def locate(frame, p: tl.constexpr):
    """First row, first column and head of `frame`, counted over (B, h, T)."""
    head = frame // p.frames % p.heads
    if p.fused:
        row = (frame // (p.heads * p.frames) * p.frames + frame % p.frames) * p.tokens
        column = head * p.key_dim
    else:
        row = frame * p.tokens
        column = 0
    return row.to(tl.int64), column, head


@triton.jit
def load_tile(ptr, rows, columns, stride: tl.constexpr, height, width: tl.constexpr):
    """Rows of `ptr` as float32, zero past `height` rows and `width` columns."""
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    return tl.load(ptr + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_weight(ptr, column, columns, scale: tl.constexpr, p: tl.constexpr):
    """One head's norm weights times the factor of what is normed; prepared operands are normed already."""
    if p.fused:
        weight = tl.load(ptr + column + columns, mask=columns < p.key_dim, other=0.0).to(tl.float32) * scale
    else:
        weight = tl.full(columns.shape, 1.0, tl.float32)
    return weight


@triton.jit
def load_plain(ptr, weight, rows, columns, stride: tl.constexpr, p: tl.constexpr):
    """Queries or keys before rotation; fused, relu(x * weight), which lacks a factor per token: 1 / rms of its row."""
    x = load_tile(ptr, rows, columns, stride, p.tokens, p.key_dim)
    if p.fused:
        x = tl.maximum(x * weight[None, :], 0.0)
    return x


@triton.jit
def turned(x, angles):
    """Turn adjacent channel pairs; cos and sin lie side by side so that no thread needs another's angles."""
    half: tl.constexpr = x.shape[1] // 2
    cos, sin = tl.split(tl.reshape(angles, (x.shape[0], half, 2)))
    even, odd = tl.split(tl.reshape(x, (x.shape[0], half, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), x.shape)


@triton.jit
def rotate(x, rope_ptr, first, frame, rows, p: tl.constexpr):
    """Turn a tile of one frame's tokens."""
    row = first if p.own_angles else frame % p.frames * p.tokens
    columns = tl.arange(0, p.key_pad)
    return turned(x, load_tile(rope_ptr + row * p.key_dim, rows, columns, p.key_dim, p.tokens, p.key_dim))


@triton.jit
def load_rotated(plain, ptr, rope_ptr, first, frame, rows, columns, p: tl.constexpr):
    """The tile after rotation: turned here if fused, loaded if prepared."""
    if p.fused:
        rotated = rotate(plain, rope_ptr, first, frame, rows, p)
    else:
        rotated = load_tile(ptr + first * p.key_dim, rows, columns, p.key_dim, p.tokens, p.key_dim)
    return rotated


@triton.jit
def load_factors(ptr, first, head, rows, p: tl.constexpr):
    """A factor per token: beta (B, h, T, S), or fused, what `prepare` made of it (h, B N)."""
    if p.fused:
        first += head * p.all_tokens
    return tl.load(ptr + first + rows, mask=rows < p.tokens, other=0.0).to(tl.float32)


@triton.jit
def load_inverse(ptr, first, rows, p: tl.constexpr):
    """1 / rms of each token's row; prepared operands are normed already."""
    if p.fused:
        inverse = tl.load(ptr + first + rows, mask=rows < p.tokens, other=1.0)
    else:
        inverse = tl.full(rows.shape, 1.0, tl.float32)
    return inverse


@triton.jit
def store_matrix(ptr, matrix):
    """Write a padded matrix of the workspace, cast to its type."""
    rows, columns = tl.arange(0, matrix.shape[0]), tl.arange(0, matrix.shape[1])
    tl.store(ptr + rows[:, None] * matrix.shape[1] + columns[None, :], matrix.to(ptr.dtype.element_ty))
