"""The steps of the VAE as PyTorch operators: Triton kernels on CUDA, the readable reference on a CPU.

Tensors are frames, rows, columns, channels (F, H, W, C), contiguous, in one floating type; biases are float32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sana_kernels import conv_naive
from sana_kernels.conv_problem import CONTEXT, PLACES, Fill, Patches, tiles
from sana_kernels.errors import KernelError
from sana_kernels.launcher import architecture, start

TYPES = (torch.bfloat16, torch.float16, torch.float32)
LARGEST = 2**31
WARPS = 4
PIXEL_BLOCK = 2048


def run_fill(p: Fill, y: Tensor, bias: Tensor, skip: Tensor | None, buffer: Tensor, kept: Tensor | None) -> None:
    """Fill the frames of `buffer` behind the first `p.lead` by the kernels."""
    from sana_kernels.conv_fill import fill, mirror
    from sana_kernels.conv_winograd import unfold

    architecture(y.device)
    with torch.cuda.device_of(y):
        if p.folded_rows:
            grid = (-(-p.frames * p.down * p.across // p.tile_block),)
            start(
                unfold, grid, buffer, kept, y, bias, skip, p, p.tile_block,
                num_warps=p.tile_warps, enable_fp_fusion=True,
            )  # fmt: skip
        else:
            grid = (-(-p.pixels // p.block),)
            start(fill, grid, buffer, kept, y, bias, skip, p, p.block, num_warps=WARPS, enable_fp_fusion=True)
        if p.halo:
            grid = (-(-p.frames * p.rim // p.block),)
            start(mirror, grid, buffer, p, p.block, num_warps=WARPS, enable_fp_fusion=True)


def run_pixels(p: Patches, y: Tensor, bias: Tensor) -> Tensor:
    """8-bit frames by the kernel."""
    from sana_kernels.conv_fill import pixels

    architecture(y.device)
    frames = torch.empty(p.shape, dtype=torch.uint8, device=y.device)
    with torch.cuda.device_of(y):
        grid = (-(-p.values // PIXEL_BLOCK),)
        start(pixels, grid, frames, y, bias, p, PIXEL_BLOCK, num_warps=WARPS, enable_fp_fusion=True)
    return frames


def _naive_fill(p: Fill, y: Tensor, bias: Tensor, skip: Tensor | None, buffer: Tensor, kept: Tensor | None) -> None:
    values = conv_naive.source(p, y, bias, skip)
    conv_naive.conv_input(p, values, buffer)
    if kept is not None:
        kept.copy_(values)


def _fill(
    p: Fill, y: Tensor, bias: Tensor, skip: Tensor | None, start: bool, kept: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """A new buffer, whose leading frames are the first one again at the `start` of a stream, and else not written."""
    buffer = torch.empty(p.buffer_shape, dtype=dtype, device=y.device)
    (run_fill if y.is_cuda else _naive_fill)(p, y, bias, skip, buffer, kept)
    if start:
        buffer[: p.lead] = buffer[p.lead : p.lead + 1]
    return buffer


@torch.library.custom_op("sana::conv_input", mutates_args=("y",))
def conv_input(
    y: Tensor, bias: Tensor, skip: Tensor | None, start: bool, lead: int, halo: bool, norm: bool, keep: bool
) -> Tensor:
    """The input of a convolution: y + bias (+ skip), normed over channels and passed through SiLU if `norm`.

    y, skip (F, H, W, C), bias (C,). Returns (lead + F, H', W', C), one row and column larger on each side if `halo`,
    reflected. The leading frames are the first again at the `start` of a stream, and else not written: what the chunk
    before left belongs there. With `keep`, y becomes the sum. Raises KernelError for other shapes and types.
    """
    frames, height, width, channels = check_planes("conv_input", y=y)
    p = Fill("sum", frames, height, width, channels, lead, int(halo), norm, keep, skip is not None)
    check_fill("conv_input", p, y.dtype, bias, skip)
    return _fill(p, y, bias, skip, start, y if keep else None, y.dtype)


@torch.library.custom_op("sana::conv_unfold", mutates_args=("skip",))
def conv_unfold(
    m: Tensor, bias: Tensor, skip: Tensor | None, start: bool, size: Sequence[int], dtype: torch.dtype,
    lead: int, halo: bool, norm: bool, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As conv_input, of Winograd products m (36, rows, C) that unfold to `size` frames, rows and columns, in `dtype`.

    With `keep`, the sum is skip afterwards, or, without one, the second result (F, H, W, C).
    """
    p = unfold_problem(m, size, skip is not None, lead, halo, norm, keep)
    check_fill("conv_unfold", p, dtype, bias, skip)
    alone = keep and skip is None
    kept = m.new_empty((p.frames, p.height, p.width, p.channels) if alone else (0,), dtype=dtype)
    return _fill(p, m, bias, skip, start, (kept if alone else skip) if keep else None, dtype), kept


@torch.library.custom_op("sana::conv_resized", mutates_args=())
def conv_resized(
    kind: str, y: Tensor, bias: Tensor, before: Tensor, stride: Sequence[int], start: bool,
    lead: int, halo: bool, norm: bool, drop: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As conv_input, of a change of resolution, and the sum before the norm (F, H, W, C).

    `kind` is "down" or "up", `stride` its frames, rows and columns. y is what the convolution made of `before`, which
    has a halo for "up"; the channels of y for "up" are sorted by place, then channel. "up" leaves out `drop` frames.
    """
    p = resized_problem(kind, y, before, stride, lead, halo, norm, drop)
    check_bias("conv_resized", bias, y.shape[-1])
    check_buffer("conv_resized", p)
    kept = y.new_empty(p.frames, p.height, p.width, p.channels)
    return _fill(p, y, bias, before, start, kept, y.dtype), kept


@torch.library.custom_op("sana::conv_frames", mutates_args=())
def conv_frames(frames: Tensor, patch: int, start: bool, dtype: torch.dtype) -> Tensor:
    """8-bit frames (F, H, W, 3) as the input of the first convolution (2 + F, H/p, W/p, 3 p p), in [-1, 1]."""
    p = frames_problem(frames, patch)
    check_contiguous("conv_frames", frames=frames)
    no_bias = torch.empty(0, dtype=dtype, device=frames.device)
    return _fill(p, frames, no_bias, None, start, None, dtype)


@torch.library.custom_op("sana::conv_pixels", mutates_args=())
def conv_pixels(y: Tensor, bias: Tensor, patch: int) -> Tensor:
    """uint8 frames (F, H p, W p, 3) of patches (F, H, W, 3 p p), nominally in [-1, 1]; bias (3 p p,)."""
    frames, height, width, channels = check_planes("conv_pixels", y=y)
    if channels != 3 * patch**2:
        raise KernelError(f"conv_pixels: y has {channels} channels, patches of {patch}x{patch} have {3 * patch**2}")
    check_bias("conv_pixels", bias, channels)
    p = Patches(frames, height, width, patch)
    return run_pixels(p, y, bias) if y.is_cuda else conv_naive.pixels(p, y, bias)


@conv_input.register_fake
def _(
    y: Tensor, bias: Tensor, skip: Tensor | None, start: bool, lead: int, halo: bool, norm: bool, keep: bool
) -> Tensor:
    frames, height, width, channels = y.shape
    return y.new_empty(Fill("sum", frames, height, width, channels, lead, int(halo), norm, keep).buffer_shape)


@conv_unfold.register_fake
def _(
    m: Tensor, bias: Tensor, skip: Tensor | None, start: bool, size: Sequence[int], dtype: torch.dtype,
    lead: int, halo: bool, norm: bool, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    p = unfold_problem(m, size, skip is not None, lead, halo, norm, keep)
    kept = (p.frames, p.height, p.width, p.channels) if keep and skip is None else (0,)
    return m.new_empty(p.buffer_shape, dtype=dtype), m.new_empty(kept, dtype=dtype)


@conv_resized.register_fake
def _(
    kind: str, y: Tensor, bias: Tensor, before: Tensor, stride: Sequence[int], start: bool,
    lead: int, halo: bool, norm: bool, drop: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    p = resized_problem(kind, y, before, stride, lead, halo, norm, drop)
    return y.new_empty(p.buffer_shape), y.new_empty(p.frames, p.height, p.width, p.channels)


@conv_frames.register_fake
def _(frames: Tensor, patch: int, start: bool, dtype: torch.dtype) -> Tensor:
    return frames.new_empty(frames_problem(frames, patch).buffer_shape, dtype=dtype)


@conv_pixels.register_fake
def _(y: Tensor, bias: Tensor, patch: int) -> Tensor:
    frames, height, width, _ = y.shape
    return y.new_empty(Patches(frames, height, width, patch).shape, dtype=torch.uint8)


def frames_problem(frames: Tensor, patch: int) -> Fill:
    """Sizes of the first input; raises KernelError for what are no 8-bit frames of whole patches."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise KernelError(f"conv_frames: frames are {frames.dtype} {tuple(frames.shape)}, expected uint8 (F, H, W, 3)")
    count, height, width, _ = frames.shape
    if height % patch or width % patch:
        raise KernelError(f"conv_frames: frames of {width}x{height} are no whole number of {patch}x{patch} patches")
    size = count, height // patch, width // patch, 3 * patch**2
    return Fill("frames", *size, CONTEXT, 0, False, False, h=patch, w=patch)


def unfold_problem(
    m: Tensor, size: Sequence[int], residual: bool, lead: int, halo: bool, norm: bool, keep: bool
) -> Fill:
    """Sizes of what products unfold to; raises KernelError for a tensor that holds none."""
    frames, height, width = size
    if m.ndim != 3 or m.shape[0] != PLACES or m.shape[1] < frames * tiles(height) * tiles(width):
        raise KernelError(f"conv_unfold: m has shape {tuple(m.shape)}, which are no products of {tuple(size)}")
    check_values("conv_unfold", "m", m)
    check_contiguous("conv_unfold", m=m)
    sizes = frames, height, width, m.shape[2]
    return Fill("sum", *sizes, lead, int(halo), norm, keep, residual, folded_rows=m.shape[1])


def resized_problem(
    kind: str, y: Tensor, before: Tensor, stride: Sequence[int], lead: int, halo: bool, norm: bool, drop: int
) -> Fill:
    """Sizes of a change of resolution; raises KernelError where its two tensors do not fit together."""
    frames, height, width, channels = check_planes("conv_resized", y=y, before=before)
    edge = 1 if choose_kind(kind) else 0
    t, h, w = stride
    volume, wide = t * h * w, before.shape[3]
    check_shape("conv_resized", "before", before, (frames + CONTEXT, height + 2 * edge, width + 2 * edge, wide))
    if kind == "up":
        new = frames * t - drop, height * h, width * w, channels // volume
        whole = not channels % volume
        grouped = not wide % volume and not new[3] % (wide // volume)
    else:
        new = frames // t, height // h, width // w, channels * volume
        whole = not (frames % t + height % h + width % w)
        grouped = not wide * volume % new[3]
    if not whole:
        raise KernelError(f"conv_resized: y has shape {tuple(y.shape)}, which stride {tuple(stride)} does not divide")
    if not grouped:
        raise KernelError(f"conv_resized: {wide} channels before do not make groups for {new[3]}")
    places = {"t": t, "h": h, "w": w, "drop": drop, "skip_channels": wide, "skip_halo": edge}
    return Fill(kind, *new, lead, int(halo), norm, True, True, **places)


def choose_kind(kind: str) -> bool:
    """Whether the resolution grows."""
    if kind not in ("down", "up"):
        raise KernelError(f"conv_resized: unknown kind {kind!r}, choose down or up")
    return kind == "up"


def check_fill(op: str, p: Fill, dtype: torch.dtype, bias: Tensor, skip: Tensor | None) -> None:
    check_bias(op, bias, p.channels)
    check_buffer(op, p)
    if skip is not None:
        check_shape(op, "skip", skip, (p.frames, p.height, p.width, p.channels))
        if skip.dtype != dtype:
            raise KernelError(f"{op}: skip is {skip.dtype}, the values are {dtype}")


def check_buffer(op: str, p: Fill) -> None:
    if p.halo and min(p.height, p.width) < 2:
        raise KernelError(f"{op}: a plane of {p.height}x{p.width} has nothing to reflect, it takes 2x2 or more")
    if p.lead not in (CONTEXT, CONTEXT + 1):
        raise KernelError(f"{op}: {p.lead} leading frames, expected {CONTEXT} or {CONTEXT + 1}")


def check_planes(op: str, **tensors: Tensor) -> torch.Size:
    """The shape of the first; raises KernelError unless all are contiguous (F, H, W, C) in one floating type."""
    first = next(iter(tensors.values()))
    for name, tensor in tensors.items():
        if tensor.ndim != 4 or not tensor.numel():
            raise KernelError(
                f"{op}: {name} has shape {tuple(tensor.shape)}, expected (frames, rows, columns, channels)"
            )
        check_values(op, name, tensor)
        if tensor.dtype != first.dtype:
            raise KernelError(f"{op}: {name} is {tensor.dtype}, but the first tensor is {first.dtype}")
    check_contiguous(op, **tensors)
    return first.shape


def check_values(op: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in TYPES:
        raise KernelError(f"{op}: {name} is {tensor.dtype}, expected one of {', '.join(map(str, TYPES))}")
    if tensor.numel() >= LARGEST:
        raise KernelError(f"{op}: {name} has {tensor.numel()} values, the kernels count to {LARGEST - 1}")


def check_contiguous(op: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise KernelError(f"{op}: {name} has strides {tensor.stride()}, make it contiguous")


def check_shape(op: str, name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise KernelError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    check_contiguous(op, **{name: tensor})


def check_bias(op: str, bias: Tensor, channels: int) -> None:
    if bias.dtype != torch.float32:
        raise KernelError(f"{op}: bias is {bias.dtype}, expected torch.float32")
    check_shape(op, "bias", bias, (channels,))
