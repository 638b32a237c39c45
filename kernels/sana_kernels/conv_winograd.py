# mypy: ignore-errors
"""Triton kernels of the 3x3x3 convolution by Winograd's F(4x4, 3x3) in space: 36 products where 144 were.

Planes are cut into tiles of 4x4 outputs, each from a window of 6x6 inputs. Folded inputs are (36, frames * tiles,
channels). The matrices are those of the points 0, 2/3, -2/3, 3/2, -3/2 and infinity, which lose the least to rounding.
"""

import triton
import triton.language as tl

from sana_kernels.conv_fill import store_inside
from sana_kernels.conv_problem import FAR, FAR_2, FAR_3, NEAR, NEAR_2, NEAR_3

A, A2, A3 = tl.constexpr(NEAR), tl.constexpr(NEAR_2), tl.constexpr(NEAR_3)
B, B2, B3 = tl.constexpr(FAR), tl.constexpr(FAR_2), tl.constexpr(FAR_3)


@triton.jit
def fold_weights(u_ptr, w_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Transform weights: U = G g G^T of every 3x3 kernel g, (9, SIZE) to (36, SIZE)."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < SIZE
    w_ptr += index
    c0 = tap_line(w_ptr, w_ptr + 3 * SIZE, w_ptr + 6 * SIZE, inside)
    c1 = tap_line(w_ptr + SIZE, w_ptr + 4 * SIZE, w_ptr + 7 * SIZE, inside)
    c2 = tap_line(w_ptr + 2 * SIZE, w_ptr + 5 * SIZE, w_ptr + 8 * SIZE, inside)
    for i in tl.static_range(6):
        line = spread(c0[i], c1[i], c2[i])
        for j in tl.static_range(6):
            tl.store(u_ptr + (6 * i + j) * SIZE + index, line[j].to(u_ptr.dtype.element_ty), mask=inside)


@triton.jit
def tap_line(ptr_0, ptr_1, ptr_2, inside):
    """G times one column of a kernel."""
    g0 = tl.load(ptr_0, mask=inside, other=0.0).to(tl.float32)
    g1 = tl.load(ptr_1, mask=inside, other=0.0).to(tl.float32)
    return spread(g0, g1, tl.load(ptr_2, mask=inside, other=0.0).to(tl.float32))


@triton.jit
def spread(g0, g1, g2):
    """G g."""
    even_a, odd_a = (g0 + g2 * A2) * (0.5 / (A2 * (A2 - B2))), g1 * (0.5 / (A * (A2 - B2)))
    even_b, odd_b = (g0 + g2 * B2) * (0.5 / (B2 * (B2 - A2))), g1 * (0.5 / (B * (B2 - A2)))
    return g0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, g2


@triton.jit
def fold(v_ptr, x_ptr, p: tl.constexpr, TILES: tl.constexpr, CHANNELS: tl.constexpr):
    """Transform inputs: V = B^T d B of every 6x6 window d; a plane without halo counts as zero beyond its border."""
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    column, row, frame = tile % p.across * 4 - p.pad, tile // p.across % p.down * 4 - p.pad, tile // p.tiles
    inside = tile < p.folded
    c0 = fold_column(x_ptr, frame, row, column, channel, inside, p)
    c1 = fold_column(x_ptr, frame, row, column + 1, channel, inside, p)
    c2 = fold_column(x_ptr, frame, row, column + 2, channel, inside, p)
    c3 = fold_column(x_ptr, frame, row, column + 3, channel, inside, p)
    c4 = fold_column(x_ptr, frame, row, column + 4, channel, inside, p)
    c5 = fold_column(x_ptr, frame, row, column + 5, channel, inside, p)
    for i in tl.static_range(6):
        line = fold_line(c0[i], c1[i], c2[i], c3[i], c4[i], c5[i])
        for j in tl.static_range(6):
            offset = ((6 * i + j) * p.folded + tile) * p.channels + channel
            tl.store(v_ptr + offset, line[j].to(v_ptr.dtype.element_ty), mask=inside)


@triton.jit
def fold_column(x_ptr, frame, row, column, channel, inside, p: tl.constexpr):
    """B^T times one column of a window."""
    return fold_line(
        load_pixel(x_ptr, frame, row, column, channel, inside, p),
        load_pixel(x_ptr, frame, row + 1, column, channel, inside, p),
        load_pixel(x_ptr, frame, row + 2, column, channel, inside, p),
        load_pixel(x_ptr, frame, row + 3, column, channel, inside, p),
        load_pixel(x_ptr, frame, row + 4, column, channel, inside, p),
        load_pixel(x_ptr, frame, row + 5, column, channel, inside, p),
    )


@triton.jit
def load_pixel(x_ptr, frame, row, column, channel, inside, p: tl.constexpr):
    if p.overhang:
        inside = inside & (row >= 0) & (row < p.rows) & (column >= 0) & (column < p.columns)
    offset = ((frame * p.rows + row) * p.columns + column) * p.channels + channel
    return tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def fold_line(d0, d1, d2, d3, d4, d5):
    """B^T d; opposite points share an even and an odd part."""
    even_a, odd_a = d4 - d2 * B2, d3 * A - d1 * B
    even_b, odd_b = d4 - d2 * A2, d3 * B - d1 * A
    zero, infinity = d0 + d4 - d2 * (A2 + B2), d1 + d5 - d3 * (A2 + B2)
    return zero, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, infinity


@triton.jit
def unfold_line(m0, m1, m2, m3, m4, m5):
    """A^T m."""
    sum_a, turn_a, sum_b, turn_b = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + sum_a + sum_b, turn_a * A + turn_b * B, sum_a * A2 + sum_b * B2, turn_a * A3 + turn_b * B3 + m5


@triton.jit
def product(
    v_desc, u_desc, m_desc, first, p: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """M = sum over three frames of V U^T for each of the 36 places, from row `first`; a program takes tiles in turn.

    What a tile has beyond the last row is written as well: the next slice of frames overwrites it.
    """
    wide: tl.constexpr = p.outputs // COLUMNS
    tall: tl.constexpr = (p.frames * p.tiles + ROWS - 1) // ROWS
    deep: tl.constexpr = p.channels // DEPTH
    for tile in tl.range(tl.program_id(0), 36 * tall * wide, PROGRAMS, flatten=True):
        column, row, place = tile % wide * COLUMNS, tile // wide % tall * ROWS, tile // (wide * tall)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(3 * deep):
            v = v_desc.load([place * p.folded + step // deep * p.tiles + row, step % deep * DEPTH])
            u = u_desc.load([place * p.outputs + column, step * DEPTH])
            total = tl.dot(v, u.T, total, input_precision="ieee")
        row += place * p.product_rows + first
        if PARTS == 1:
            m_desc.store([row, column], total.to(m_desc.dtype))
        else:
            # Halves: what is staged for a store takes shared memory from the pipeline.
            left, right = tl.split(tl.permute(tl.reshape(total, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
            m_desc.store([row, column], left.to(m_desc.dtype))
            m_desc.store([row, column + COLUMNS // 2], right.to(m_desc.dtype))


@triton.jit
def unfold(buffer_ptr, kept_ptr, m_ptr, bias_ptr, skip_ptr, p: tl.constexpr, TILES: tl.constexpr):
    """As `fill`, from products: A^T M A of every tile. One program takes TILES whole tiles."""
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)[:, None]
    channel = tl.arange(0, p.channel_pad)[None, :]
    column, row, frame = tile % p.across * 4, tile // p.across % p.down * 4, tile // (p.across * p.down)
    bias = tl.load(bias_ptr + channel, mask=channel < p.channels, other=0.0)
    m_ptr += tile * p.channels + channel
    inside = (frame < p.frames) & (channel < p.channels)
    c0 = unfold_column(m_ptr, inside, 0, p)
    c1 = unfold_column(m_ptr, inside, 1, p)
    c2 = unfold_column(m_ptr, inside, 2, p)
    c3 = unfold_column(m_ptr, inside, 3, p)
    c4 = unfold_column(m_ptr, inside, 4, p)
    c5 = unfold_column(m_ptr, inside, 5, p)
    for i in tl.static_range(4):
        line = unfold_line(c0[i], c1[i], c2[i], c3[i], c4[i], c5[i])
        # All loads of a row of pixels come before its stores, which they could not pass.
        x0 = add(line[0] + bias, skip_ptr, frame, row + i, column, channel, inside, p)
        x1 = add(line[1] + bias, skip_ptr, frame, row + i, column + 1, channel, inside, p)
        x2 = add(line[2] + bias, skip_ptr, frame, row + i, column + 2, channel, inside, p)
        x3 = add(line[3] + bias, skip_ptr, frame, row + i, column + 3, channel, inside, p)
        finish(buffer_ptr, kept_ptr, x0, frame, row + i, column, channel, inside, p)
        finish(buffer_ptr, kept_ptr, x1, frame, row + i, column + 1, channel, inside, p)
        finish(buffer_ptr, kept_ptr, x2, frame, row + i, column + 2, channel, inside, p)
        finish(buffer_ptr, kept_ptr, x3, frame, row + i, column + 3, channel, inside, p)


@triton.jit
def unfold_column(m_ptr, inside, j: tl.constexpr, p: tl.constexpr):
    """A^T times column j of the products of a tile."""
    step: tl.constexpr = p.folded_rows * p.channels
    return unfold_line(
        tl.load(m_ptr + j * step, mask=inside, other=0.0).to(tl.float32),
        tl.load(m_ptr + (6 + j) * step, mask=inside, other=0.0).to(tl.float32),
        tl.load(m_ptr + (12 + j) * step, mask=inside, other=0.0).to(tl.float32),
        tl.load(m_ptr + (18 + j) * step, mask=inside, other=0.0).to(tl.float32),
        tl.load(m_ptr + (24 + j) * step, mask=inside, other=0.0).to(tl.float32),
        tl.load(m_ptr + (30 + j) * step, mask=inside, other=0.0).to(tl.float32),
    )


@triton.jit
def add(x, skip_ptr, frame, row, column, channel, inside, p: tl.constexpr):
    if p.residual:
        inside = inside & (row < p.height) & (column < p.width)
        offset = ((frame * p.height + row) * p.width + column) * p.channels + channel
        x += tl.load(skip_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit
def finish(buffer_ptr, kept_ptr, x, frame, row, column, channel, inside, p: tl.constexpr):
    """Keep the sum, norm, and store one pixel of each tile."""
    inside = inside & (row < p.height) & (column < p.width)
    if p.keep:
        offset = ((frame * p.height + row) * p.width + column) * p.channels + channel
        tl.store(kept_ptr + offset, x.to(kept_ptr.dtype.element_ty), mask=inside)
    if p.norm:
        x = x * tl.rsqrt(tl.sum(x * x, 1, keep_dims=True) / p.channels + 1e-8)
        x = x * tl.sigmoid(x)
    store_inside(buffer_ptr, x, frame, row, column, channel, inside, p)
