"""The passes between the VAE's convolutions: the Triton kernels against the readable reference, and what is refused."""

import pytest
import torch
from gdn_cases import off
from torch import Tensor

from sana_kernels import conv_naive
from sana_kernels.conv_ops import (
    conv_frames,
    conv_input,
    conv_pixels,
    conv_resized,
    resized_problem,
    run_fill,
    run_pixels,
)
from sana_kernels.conv_problem import Fill, Patches
from sana_kernels.errors import KernelError

LIMITS = {torch.float32: 1e-6, torch.bfloat16: 2e-3}
STRIDES = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "both": (2, 2, 2)}

# frames, rows, columns, channels
SUMS = {"ragged": (3, 5, 7, 24), "smallest plane": (1, 2, 2, 8), "three rows": (2, 3, 9, 17), "wide": (1, 2, 3, 256)}


def draw(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def filled(p: Fill, device: torch.device, *tensors: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Buffer and kept sum by the kernel, each beside that of the reference."""
    y, bias, skip = tensors
    dtype = bias.dtype if y.dtype == torch.uint8 else y.dtype
    got, wanted = (torch.zeros(p.buffer_shape, dtype=dtype) for _ in range(2))
    kept = torch.zeros(p.frames, p.height, p.width, p.channels, dtype=dtype)
    got, kept_there = got.to(device), kept.to(device)
    run_fill(p, *(None if x is None else x.to(device) for x in tensors), got, kept_there)
    values = conv_naive.source(p, y, bias, skip)
    conv_naive.conv_input(p, values, wanted)
    if p.keep:
        kept.copy_(values)
    return [(got.cpu(), wanted), (kept_there.cpu(), kept)]


def check(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for got, wanted in pairs:
        assert off(got, wanted) < LIMITS[wanted.dtype] if wanted.any() else torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("halo", [0, 1])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("shape", SUMS.values(), ids=SUMS)
def test_sum(shape: tuple[int, ...], norm: bool, halo: int, dtype: torch.dtype, device: torch.device) -> None:
    p = Fill("sum", *shape, 2, halo, norm, keep=norm, residual=norm)
    skip = draw(*shape, seed=1).to(dtype) if norm else None
    check(filled(p, device, draw(*shape).to(dtype), draw(shape[-1]), skip))


@pytest.mark.parametrize("stride", STRIDES.values(), ids=STRIDES)
@pytest.mark.parametrize("averaged", [1, 2, 3])
def test_down(stride: tuple[int, int, int], averaged: int, device: torch.device) -> None:
    t, h, w = stride
    y = draw(2 * t, 3 * h, 5 * w, 6)
    before = draw(2 * t + 2, 3 * h, 5 * w, 6 * averaged, seed=1)
    p = resized_problem("down", y, before, stride, 2, False, True, 0)
    assert p.channels == 6 * t * h * w
    check(filled(p, device, y, draw(6), before))


@pytest.mark.parametrize("stride", STRIDES.values(), ids=STRIDES)
@pytest.mark.parametrize("at_start", [False, True])
def test_up(stride: tuple[int, int, int], at_start: bool, device: torch.device) -> None:
    volume = stride[0] * stride[1] * stride[2]
    channels = 3 * volume
    y = draw(3, 3, 4, channels * volume // 2)
    before = draw(5, 5, 6, channels, seed=1)
    drop = stride[0] - 1 if at_start else 0
    p = resized_problem("up", y, before, stride, 2, True, True, drop)
    assert (p.frames, p.channels) == (3 * stride[0] - drop, channels // 2)
    check(filled(p, device, y, draw(y.shape[-1]), before))


def test_frames_and_pixels_undo_each_other(device: torch.device) -> None:
    frames = torch.randint(0, 256, (2, 12, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    p = Fill("frames", 2, 3, 5, 48, 2, 0, False, False, h=4, w=4)
    (got, wanted), _ = filled(p, device, frames, torch.empty(0), None)
    check([(got, wanted)])
    # Truncation would turn the least rounding error into a whole step.
    half = torch.full((48,), 0.5 / 127.5)
    patches, bias = got[2:].to(device), half.to(device)
    assert torch.equal(run_pixels(Patches(2, 3, 5, 4), patches, bias).cpu(), frames)
    assert torch.equal(conv_pixels(got[2:].contiguous(), half, 4), frames)


def test_pixels_are_clamped(device: torch.device) -> None:
    y = torch.tensor([-3.0, -1.0, 0.0, 1.0, 7.0, 0.5]).repeat(8).reshape(1, 1, 1, 48)
    got = run_pixels(Patches(1, 1, 1, 4), y.to(device), torch.zeros(48, device=device))
    assert set(got.flatten().tolist()) == {0, 127, 191, 255}


def test_leading_frames_are_the_first_again_at_the_start() -> None:
    y, bias = draw(2, 3, 4, 8), torch.zeros(8)
    start = conv_input(y.clone(), bias, None, True, 3, True, False, False)
    assert start.shape == (5, 5, 6, 8)
    assert all(torch.equal(start[lead], start[3]) for lead in range(3))
    later = conv_input(y.clone(), bias, None, False, 2, True, False, False)
    assert torch.equal(later[2:], start[3:])


def test_a_kept_sum_replaces_y() -> None:
    y, skip = draw(1, 2, 3, 8), draw(1, 2, 3, 8, seed=1)
    kept = y.clone()
    conv_input(kept, torch.ones(8), skip, True, 2, False, True, True)
    assert torch.allclose(kept, y + skip + 1)


REFUSED = {
    "y is torch.float64": (lambda: conv_input(draw(1, 2, 2, 8).double(), draw(8), None, True, 2, True, True, True)),
    r"y has shape \(2, 2, 8\)": (lambda: conv_input(draw(2, 2, 8), draw(8), None, True, 2, True, True, True)),
    "y has strides": (lambda: conv_input(draw(1, 2, 8, 2).mT, draw(8), None, True, 2, True, True, True)),
    "bias has shape": (lambda: conv_input(draw(1, 2, 2, 8), draw(4), None, True, 2, True, True, True)),
    "bias is torch.bfloat16": (
        lambda: conv_input(draw(1, 2, 2, 8), draw(8).bfloat16(), None, True, 2, True, True, True)
    ),
    "skip has shape": (lambda: conv_input(draw(1, 2, 2, 8), draw(8), draw(1, 2, 8), True, 2, True, True, True)),
    "nothing to reflect": (lambda: conv_input(draw(1, 1, 2, 8), draw(8), None, True, 2, True, True, True)),
    "4 leading frames": (lambda: conv_input(draw(1, 2, 2, 8), draw(8), None, True, 4, True, True, True)),
    "unknown kind 'left'": (
        lambda: conv_resized("left", draw(1, 2, 2, 8), draw(8), draw(3, 2, 2, 8), (1, 2, 2), True, 2, False, True, 0)
    ),
    "before has shape": (
        lambda: conv_resized("down", draw(1, 2, 2, 8), draw(8), draw(3, 4, 2, 8), (1, 2, 2), True, 2, False, True, 0)
    ),
    "does not divide": (
        lambda: conv_resized("down", draw(1, 3, 2, 8), draw(8), draw(3, 3, 2, 8), (1, 2, 2), True, 2, False, True, 0)
    ),
    "do not make groups": (
        lambda: conv_resized("down", draw(1, 2, 2, 8), draw(8), draw(3, 2, 2, 9), (1, 2, 2), True, 2, False, True, 0)
    ),
    "frames are torch.float32": (lambda: conv_frames(draw(1, 4, 4, 3), 4, True, torch.float32)),
    "no whole number of 4x4 patches": (
        lambda: conv_frames(torch.zeros(1, 6, 4, 3, dtype=torch.uint8), 4, True, torch.float32)
    ),
    "y has 8 channels": (lambda: conv_pixels(draw(1, 2, 2, 8), draw(8), 4)),
}


@pytest.mark.parametrize(("message", "call"), REFUSED.items(), ids=REFUSED)
def test_refused_by_name(message: str, call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(KernelError, match=message):
        call()


def test_operators_carry_shapes_without_values() -> None:
    y, before = draw(2, 4, 4, 8), draw(4, 4, 4, 8, seed=1)
    arguments = "down", y, draw(8), before, [2, 2, 2], True, 2, False, True, 0
    torch.library.opcheck(conv_resized, arguments)
    torch.library.opcheck(conv_input, (y, draw(8), None, True, 2, True, True, True))
    torch.library.opcheck(conv_pixels, (draw(1, 2, 2, 48), draw(48), 4))
    torch.library.opcheck(conv_frames, (torch.zeros(1, 4, 4, 3, dtype=torch.uint8), 4, True, torch.float32))
