# mypy: ignore-errors
"""Triton kernel of the feed-forward layer between its two wide products: SiLU, depthwise 3x3, gate (spec 3.10)."""

import triton
import triton.language as tl

from sana_kernels.rows import store_both

HALF_SILU = """{
    .reg .b32 low, high, half, turned;
    shl.b32 low, $1, 16;
    and.b32 high, $1, 0xffff0000;
    cvt.rn.f16x2.f32 half, high, low;
    mov.b32 turned, 0x38003800;
    mul.rn.f16x2 half, half, turned;
    tanh.approx.f16x2 turned, half;
    fma.rn.f16x2 $0, half, turned, half;
}"""
"""silu(x) = x / 2 + x / 2 tanh(x / 2), of two bfloat16 numbers as two float16 numbers, to 2^-11."""
SILU: tl.constexpr = tl.constexpr(HALF_SILU)


@triton.jit
def activate(x, FAST: tl.constexpr):
    """SiLU, fast in float16: there are so many that this kernel would wait for instructions, and not for memory."""
    if FAST:
        result = tl.inline_asm_elementwise(SILU, "=r,r", [x], dtype=tl.float16, is_pure=True, pack=2)
    else:
        x = x.to(tl.float32)
        result = x / (1.0 + tl.exp(-x))
    return result


@triton.jit
def add_product(total, a, b, FAST: tl.constexpr):
    """total + a * b, fast as float16, two at a time: nine terms lose less than rounding the result to bfloat16 does."""
    if FAST:
        asm: tl.constexpr = "fma.rn.f16x2 $0, $1, $2, $3;"
        result = tl.inline_asm_elementwise(asm, "=r,r,r,r", [a, b, total], dtype=tl.float16, is_pure=True, pack=2)
    else:
        result = total + a * b
    return result


@triton.jit
def load_active(image, y, x, channels, inside, p: tl.constexpr, FAST: tl.constexpr):
    """SiLU of the channels of one position, zero outside the image."""
    there = (y >= 0) & (y < p.height) & (x < p.width)
    at = (y * p.width + x) * (2 * p.channels)
    return activate(tl.load(image + at + channels, mask=inside & there, other=0.0), FAST)


@triton.jit
def load_vector(ptr, channels, inside, FAST: tl.constexpr):
    """Weights or biases in the type of the sums."""
    return tl.load(ptr + channels, mask=inside, other=0.0).to(tl.float16 if FAST else tl.float32)


@triton.jit
def load_column(image, y, x, channels, inside, p: tl.constexpr, ROWS: tl.constexpr, FAST: tl.constexpr):
    """The positions of column x that ROWS output rows from y on read."""
    column = (load_active(image, y - 1, x, channels, inside, p, FAST),)
    for row in tl.static_range(ROWS + 1):
        column += (load_active(image, y + row, x, channels, inside, p, FAST),)
    return column


@triton.jit
def load_taps(weight, column: tl.constexpr, channels, inside, p: tl.constexpr, FAST: tl.constexpr):
    """Three taps, top to bottom, of one column of the stencil (9, 2 F)."""
    at = weight + column * (2 * p.channels)
    step: tl.constexpr = 6 * p.channels
    top = load_vector(at, channels, inside, FAST)
    middle = load_vector(at + step, channels, inside, FAST)
    bottom = load_vector(at + 2 * step, channels, inside, FAST)
    return top, middle, bottom


@triton.jit
def add_taps(total, taps, column, row: tl.constexpr, FAST: tl.constexpr):
    """What a column adds to the output of one row."""
    total = add_product(total, taps[0], column[row], FAST)
    total = add_product(total, taps[1], column[row + 1], FAST)
    return add_product(total, taps[2], column[row + 2], FAST)


@triton.jit
def add_column(sums, taps, column, ROWS: tl.constexpr, FAST: tl.constexpr):
    """What a column adds to the output rows between its positions."""
    result = (add_taps(sums[0], taps, column, 0, FAST),)
    for row in tl.static_range(1, ROWS):
        result += (add_taps(sums[row], taps, column, row, FAST),)
    return result


@triton.jit
def repeat(x, ROWS: tl.constexpr):
    result = (x,)
    for _ in tl.static_range(1, ROWS):
        result += (x,)
    return result


@triton.jit
def silu(x, FAST: tl.constexpr):
    if FAST:
        half = 0.5 * x
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
        )
        result = half + half * tanh
    else:
        result = x / (1.0 + tl.exp(-x))
    return result


@triton.jit
def depthwise_glu(
    wide, weight, bias, plain, fp8, factor,
    p: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, STAGES: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """a * silu(b), where (a, b) = depthwise 3x3 of silu(wide) on channels-last images. Grid: tiles, channels.

    A program walks along a tile of ROWS rows and COLUMNS columns, and adds each column to the outputs left of it, at it
    and right of it, so that what it read once, activated, is in registers for all of them. FAST takes bfloat16.
    """
    down: tl.constexpr = (p.height + ROWS - 1) // ROWS
    across: tl.constexpr = (p.width + COLUMNS - 1) // COLUMNS
    image = (tl.program_id(0) // (down * across)).to(tl.int64)
    y = tl.program_id(0) % down * ROWS
    left = tl.program_id(0) // down % across * COLUMNS
    first = image * p.height * p.width
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channels < p.channels
    value_image = wide + first * (2 * p.channels)
    gate_image = value_image + p.channels
    value_left = load_taps(weight, 0, channels, inside, p, FAST)
    value_middle = load_taps(weight, 1, channels, inside, p, FAST)
    value_right = load_taps(weight, 2, channels, inside, p, FAST)
    gate_left = load_taps(weight + p.channels, 0, channels, inside, p, FAST)
    gate_middle = load_taps(weight + p.channels, 1, channels, inside, p, FAST)
    gate_right = load_taps(weight + p.channels, 2, channels, inside, p, FAST)
    value_bias = repeat(load_vector(bias, channels, inside, FAST), ROWS)
    gate_bias = repeat(load_vector(bias + p.channels, channels, inside, FAST), ROWS)
    value_before, value_now, gate_before, gate_now = value_bias, value_bias, gate_bias, gate_bias
    end = tl.minimum(left + COLUMNS, p.width)
    for x in tl.range(tl.maximum(left - 1, 0), end + 1, num_stages=STAGES):
        value = load_column(value_image, y, x, channels, inside, p, ROWS, FAST)
        gate = load_column(gate_image, y, x, channels, inside, p, ROWS, FAST)
        value_before = add_column(value_before, value_right, value, ROWS, FAST)
        gate_before = add_column(gate_before, gate_right, gate, ROWS, FAST)
        for row in tl.static_range(ROWS):
            there = inside & (y + row < p.height) & (x > left)
            at = (first + (y + row) * p.width + x - 1) * p.channels + channels
            gated = value_before[row].to(tl.float32) * silu(gate_before[row].to(tl.float32), FAST)
            store_both(plain, fp8, gated, factor, at, there)
        value_before = add_column(value_now, value_middle, value, ROWS, FAST)
        gate_before = add_column(gate_now, gate_middle, gate, ROWS, FAST)
        value_now = add_column(value_bias, value_left, value, ROWS, FAST)
        gate_now = add_column(gate_bias, gate_left, gate, ROWS, FAST)
