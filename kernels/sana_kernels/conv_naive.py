"""What stands around the VAE's convolutions, in readable PyTorch: frames, rows, columns, then channels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sana_kernels.conv_problem import CONTEXT, FAR, FAR_2, FAR_3, NEAR, NEAR_2, NEAR_3, Fill, Patches, Winograd, tiles


def source(p: Fill, y: Tensor, bias: Tensor, skip: Tensor | None) -> Tensor:
    """The values that a fill starts from, (F, H, W, C) in float32 or wider."""
    if p.source == "frames":
        return patchify((wide(y) / 255 - 0.5) / 0.5, p.h)
    if p.folded_rows:
        y = unfold(y, p.frames, p.height, p.width)
    if p.source == "sum" or skip is None:
        return wide(y) + bias if skip is None else wide(y) + bias + wide(skip)
    inner = wide(skip)[CONTEXT:]
    if p.skip_halo:
        inner = inner[:, 1:-1, 1:-1]
    if p.source == "down":
        averaged = unshuffle(inner, p).unflatten(-1, (p.channels, -1)).mean(-1)
        return unshuffle(wide(y) + bias, p) + averaged
    repeated = shuffle(inner.unflatten(-1, (-1, p.volume)).transpose(-1, -2), p).repeat(1, 1, 1, p.volume // 2)
    return (shuffle((wide(y) + bias).unflatten(-1, (p.volume, -1)), p) + repeated)[p.drop :]


def conv_input(p: Fill, values: Tensor, buffer: Tensor) -> None:
    """Norm, SiLU, halo: into the frames of `buffer` behind the first `p.lead`."""
    if p.norm:
        values = F.silu(values * torch.rsqrt(values.square().mean(-1, keepdim=True) + 1e-8))
    if p.halo:
        planes = F.pad(values.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="reflect")
        values = planes.permute(0, 2, 3, 1)
    buffer[p.lead :] = values.to(buffer.dtype)


SPREAD = NEAR_2 + FAR_2
INPUT = (
    (1, 0, -SPREAD, 0, 1, 0),
    (0, -FAR, -FAR_2, NEAR, 1, 0),
    (0, FAR, -FAR_2, -NEAR, 1, 0),
    (0, -NEAR, -NEAR_2, FAR, 1, 0),
    (0, NEAR, -NEAR_2, -FAR, 1, 0),
    (0, 1, 0, -SPREAD, 0, 1),
)
OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, NEAR, -NEAR, FAR, -FAR, 0),
    (0, NEAR_2, NEAR_2, FAR_2, FAR_2, 0),
    (0, NEAR_3, -NEAR_3, FAR_3, -FAR_3, 1),
)
TAPS = (
    (1, 0, 0),
    *(
        (1 / scale, point / scale, point**2 / scale)
        for point in (NEAR, -NEAR)
        for scale in (2 * NEAR_2 * (NEAR_2 - FAR_2),)
    ),
    *(
        (1 / scale, point / scale, point**2 / scale)
        for point in (FAR, -FAR)
        for scale in (2 * FAR_2 * (FAR_2 - NEAR_2),)
    ),
    (0, 0, 1),
)
"""B^T, A^T and G of Winograd's F(4x4, 3x3): 4x4 outputs are A^T (G g G^T * B^T d B) A."""


def fold_weights(w: Tensor) -> Tensor:
    """G g G^T of every 3x3 kernel, (9, ...) to (36, ...)."""
    g = torch.tensor(TAPS, dtype=wide(w).dtype, device=w.device)
    return torch.einsum("ir,rs...,js->ij...", g, wide(w).unflatten(0, (3, 3)), g).flatten(0, 1)


def fold(p: Winograd, x: Tensor) -> Tensor:
    """(2 + F, H', W', C) to B^T d B of every 6x6 window, (36, (2 + F) tiles, C)."""
    b = torch.tensor(INPUT, dtype=wide(x).dtype, device=x.device)
    right, below = 4 * p.across + 2 - p.columns - p.pad, 4 * p.down + 2 - p.rows - p.pad
    x = F.pad(wide(x), (0, 0, p.pad, right, p.pad, below))
    windows = x.unfold(1, 6, 4).unfold(2, 6, 4)
    return torch.einsum("ir,fyxcrs,js->ijfyxc", b, windows, b).flatten(2, 4).flatten(0, 1)


def products(p: Winograd, v: Tensor, u: Tensor) -> Tensor:
    """The sum over three frames of v u^T for each place, (36, rows, Co)."""
    planes = wide(v).unflatten(1, (-1, p.tiles))
    total = sum(planes[:, t : t + p.frames].flatten(1, 2) @ wide(u)[:, :, t].mT for t in range(3))
    return F.pad(total, (0, 0, 0, p.product_rows - p.frames * p.tiles))


def unfold(m: Tensor, frames: int, height: int, width: int) -> Tensor:
    """A^T M A: (36, rows, C) to (F, H, W, C)."""
    a = torch.tensor(OUTPUT, dtype=wide(m).dtype, device=m.device)
    down, across = tiles(height), tiles(width)
    planes = wide(m)[:, : frames * down * across].unflatten(1, (frames, down, across)).unflatten(0, (6, 6))
    pixels = torch.einsum("yi,ijfdac,xj->fdyaxc", a, planes, a)
    return pixels.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it already is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unshuffle(x: Tensor, p: Fill) -> Tensor:
    """(F t, H h, W w, C) to (F, H, W, C t h w), a channel's places side by side."""
    x = x.unflatten(2, (-1, p.w)).unflatten(1, (-1, p.h)).unflatten(0, (-1, p.t))
    return x.permute(0, 2, 4, 6, 1, 3, 5).flatten(3)


def shuffle(x: Tensor, p: Fill) -> Tensor:
    """(F, H, W, t h w, C) to (F t, H h, W w, C)."""
    x = x.unflatten(3, (p.t, p.h, p.w))
    return x.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3).flatten(0, 1)


def patchify(frames: Tensor, patch: int) -> Tensor:
    """(F, H, W, 3) to (F, H/p, W/p, 3 p p); the channel counts colour, column, row."""
    x = frames.unflatten(2, (-1, patch)).unflatten(1, (-1, patch))
    return x.permute(0, 1, 3, 5, 4, 2).flatten(3)


def pixels(p: Patches, y: Tensor, bias: Tensor) -> Tensor:
    """8-bit frames (F, H, W, 3) from patches, clamped and truncated."""
    x = (wide(y) + bias).unflatten(-1, (3, p.patch, p.patch)).permute(0, 1, 5, 2, 4, 3)
    return (127.5 * x + 127.5).clamp(0, 255).to(torch.uint8).reshape(p.shape)
