"""The VAE's 3x3x3 convolution over frames, rows, columns, channels: cuDNN's, or Winograd's with our kernels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sana_kernels import conv_naive
from sana_kernels.conv_ops import check_contiguous, check_planes
from sana_kernels.conv_problem import CONTEXT, PLACES, TAPS, Winograd
from sana_kernels.errors import KernelError
from sana_kernels.launch import nearest
from sana_kernels.launcher import architecture, start


@dataclass(frozen=True)
class Tile:
    """What one program of the product computes at a time, and how; it stores a tile in `parts`, 1 or 2."""

    rows: int
    columns: int
    depth: int = 64
    warps: int = 8
    stages: int = 4
    parts: int = 2


HOPPER = (Tile(128, 256), Tile(256, 128, stages=3, parts=1))
NARROW = (Tile(128, 128, depth=32, stages=3, parts=1),)

TILES = {
    80: (Tile(128, 128, stages=3, parts=1),),
    86: NARROW,
    89: NARROW,
    90: HOPPER,
    100: HOPPER,
    120: NARROW,
    121: NARROW,
}
"""Per architecture, by preference: the first whose columns divide the outputs. The row of sm_90 is the fastest of six
on an H200 (benchmarks/gpu/vae.py); the others are what fits in shared memory, not measured."""

MOST_ROWS = max(tile.rows for row in TILES.values() for tile in row)

FOLD_WARPS, FOLD_VALUES, FOLD_CHANNELS, WEIGHT_BLOCK = 4, 512, 128, 512

SLICE_VALUES = 2**28
"""Folded inputs at a time, half a gigabyte: the folded planes of a whole chunk are the largest tensor of all."""


def convolve(x: Tensor, weight: Tensor, pad: bool) -> tuple[Tensor, Sequence[int] | None]:
    """The convolution without bias of x (2 + F, H', W', Ci): (F, H, W, Co) and None.

    With `pad`, rows and columns count as zero beyond the border; else x holds one more of each on every side. `weight`
    is (Co, 3, 3, 3, Ci), or (9, Co, 3, Ci) for Winograd: then the result is products (36, rows, Co), and the size
    F, H, W that they unfold to. Raises KernelError for other shapes, types and layouts.
    """
    frames, height, width, channels = check_planes("convolve", x=x)
    size = frames - CONTEXT, height - (0 if pad else 2), width - (0 if pad else 2)
    if min(size) < 1:
        raise KernelError(f"convolve: x has shape {tuple(x.shape)}, which leaves no output")
    if weight.ndim == 4:
        return winograd(x, weight, pad), size
    if weight.ndim != 5 or tuple(weight.shape[1:]) != (3, 3, 3, channels) or weight.dtype != x.dtype:
        raise KernelError(
            f"convolve: weight is {weight.dtype} {tuple(weight.shape)}, expected {x.dtype} (Co, 3, 3, 3, {channels})"
        )
    y = F.conv3d(x[None].permute(0, 4, 1, 2, 3), weight.permute(0, 4, 1, 2, 3), padding=(0, 1, 1) if pad else 0)
    return y.permute(0, 2, 3, 4, 1)[0].contiguous(), None


@torch.library.custom_op("sana::conv_winograd", mutates_args=())
def winograd(x: Tensor, weight: Tensor, pad: bool) -> Tensor:
    """Products (36, rows, Co) in the type of the weights, of x (2 + F, H', W', Ci) and weights (9, Co, 3, Ci)."""
    p = winograd_problem(x, weight, pad)
    if x.is_cuda:
        return run_winograd(p, x, weight, tile_for(p, architecture(x.device)))
    u = conv_naive.fold_weights(weight).to(weight.dtype)
    return conv_naive.products(p, conv_naive.fold(p, x).to(weight.dtype), u).to(weight.dtype)


@winograd.register_fake
def _(x: Tensor, weight: Tensor, pad: bool) -> Tensor:
    p = winograd_problem(x, weight, pad)
    return weight.new_empty(PLACES, p.product_rows, p.outputs)


def run_winograd(p: Winograd, x: Tensor, weight: Tensor, tile: Tile, most: int = SLICE_VALUES) -> Tensor:
    """Products by the kernels, with at most about `most` folded inputs at a time."""
    u = run_fold_weights(weight)
    m = weight.new_empty(PLACES, p.product_rows, p.outputs)
    fitting = max(1, most // (PLACES * p.tiles * p.channels) - CONTEXT)
    size = -(-p.frames // -(-p.frames // fitting))
    for first in range(0, p.frames, size):
        part = replace(p, frames=min(size, p.frames - first))
        planes = x[first : first + part.frames + CONTEXT]
        # Without a name of its own, as that would keep a slice until the next one is made.
        run_product(part, run_fold(part, planes, weight.dtype), u, m, first * p.tiles, tile)
    return m


def run_fold_weights(weight: Tensor) -> Tensor:
    """(9, Co, 3, Ci) to (36, Co, 3, Ci): folded they are four times as large, so they are kept as they are."""
    from sana_kernels.conv_winograd import fold_weights

    u = weight.new_empty(PLACES, *weight.shape[1:])
    size = weight[0].numel()
    with torch.cuda.device_of(weight):
        programs = -(-size // WEIGHT_BLOCK)
        start(fold_weights, (programs,), u, weight, size, WEIGHT_BLOCK, num_warps=FOLD_WARPS, enable_fp_fusion=True)
    return u


def run_fold(p: Winograd, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Folded inputs (36, (2 + F) tiles, Ci)."""
    from sana_kernels.conv_winograd import fold

    architecture(x.device)
    v = torch.empty(PLACES, p.folded, p.channels, dtype=dtype, device=x.device)
    channels = next(width for width in (FOLD_CHANNELS, 64, 32, 16) if p.channels % width == 0)
    tiles = FOLD_VALUES // channels
    with torch.cuda.device_of(x):
        grid = -(-p.folded // tiles), p.channels // channels
        start(fold, grid, v, x, p, tiles, channels, num_warps=FOLD_WARPS, enable_fp_fusion=True)
    return v


def run_product(p: Winograd, v: Tensor, u: Tensor, m: Tensor, first: int, tile: Tile) -> None:
    """Products of folded inputs and weights, into m (36, rows, Co) from row `first`."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    from sana_kernels.conv_winograd import product

    programs = processors(v.device)
    operands = (
        TensorDescriptor.from_tensor(v.flatten(0, 1), [tile.rows, tile.depth]),
        TensorDescriptor.from_tensor(u.flatten(2).flatten(0, 1), [tile.columns, tile.depth]),
        TensorDescriptor.from_tensor(m.flatten(0, 1), [tile.rows, tile.columns // tile.parts]),
    )
    sizes = p, tile.rows, tile.columns, tile.depth, tile.parts, programs
    with torch.cuda.device_of(v):
        start(
            product, (programs,), *operands, first, *sizes,
            num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
        )  # fmt: skip


def processors(device: torch.device) -> int:
    """How many programs run side by side."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def tile_for(p: Winograd, sm: int) -> Tile:
    """The first tile that divides the problem; raises KernelError where there is none."""
    for tile in TILES[nearest(sm)]:
        if not p.outputs % tile.columns and not p.channels % tile.depth:
            return tile
    raise KernelError(f"conv_winograd: {p.channels} to {p.outputs} channels, expected multiples of 64 and 128")


def winograd_problem(x: Tensor, weight: Tensor, pad: bool) -> Winograd:
    """Sizes of a convolution by Winograd; raises KernelError naming what does not fit."""
    frames, height, width, channels = check_planes("conv_winograd", x=x)
    if weight.ndim != 4 or (weight.shape[0], *weight.shape[2:]) != (TAPS, 3, channels):
        raise KernelError(f"conv_winograd: weight has shape {tuple(weight.shape)}, expected (9, Co, 3, {channels})")
    check_contiguous("conv_winograd", weight=weight)
    p = Winograd(frames - CONTEXT, height, width, channels, weight.shape[1], int(pad), 0)
    # A tile of the last rows may reach as far behind them.
    return replace(p, product_rows=p.frames * p.tiles + MOST_ROWS)
