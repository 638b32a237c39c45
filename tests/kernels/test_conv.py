"""The VAE's convolution: Winograd's kernels against its formulas, both against PyTorch's, and what is refused."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton.language as tl
from gdn_cases import off
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from sana_kernels import conv, conv_naive
from sana_kernels.conv import Tile, convolve, run_fold, run_fold_weights, run_winograd, winograd, winograd_problem
from sana_kernels.conv_ops import conv_unfold, run_fill, unfold_problem
from sana_kernels.errors import KernelError

SMALL = {"whole": Tile(16, 32, 16, 4, 2, 1), "in parts": Tile(32, 32, 16, 4, 3, 2)}

# frames with the past, rows, columns, channels, outputs
SIZES = {"one tile": (3, 2, 2, 16, 32), "ragged rows": (5, 6, 10, 32, 64), "odd plane": (4, 5, 7, 48, 32)}


def draw(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def operands(size: tuple[int, ...], pad: bool) -> tuple[Tensor, Tensor]:
    frames, height, width, channels, outputs = size
    halo = 0 if pad else 2
    return draw(frames, height + halo, width + halo, channels), draw(outputs, 3, 3, 3, channels, seed=1)


def by_tap(weight: Tensor) -> Tensor:
    """(Co, 3, 3, 3, Ci) to (9, Co, 3, Ci)."""
    return weight.permute(2, 3, 0, 1, 4).flatten(0, 1).contiguous()


def direct(x: Tensor, weight: Tensor, pad: bool) -> Tensor:
    padding = (0, 1, 1) if pad else 0
    y = F.conv3d(x.permute(3, 0, 1, 2)[None], weight.permute(0, 4, 1, 2, 3), padding=padding)
    return y[0].permute(1, 2, 3, 0)


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_both_ways_are_the_convolution(size: tuple[int, ...], pad: bool) -> None:
    x, weight = operands(size, pad)
    wanted = direct(x, weight, pad)
    y, no_size = convolve(x, weight, pad)
    assert no_size is None
    assert off(y, wanted) < 1e-6
    m, shape = convolve(x, by_tap(weight), pad)
    assert off(conv_naive.unfold(m, *shape), wanted) < 2e-6


@pytest.mark.parametrize("tile", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_kernels(size: tuple[int, ...], pad: bool, tile: Tile, device: torch.device) -> None:
    x, weight = operands(size, pad)
    w = by_tap(weight)
    u = run_fold_weights(w.to(device))
    assert off(u.cpu(), conv_naive.fold_weights(w)) < 1e-6
    p = winograd_problem(x, w, pad)
    v = run_fold(p, x.to(device), torch.float32)
    assert off(v.cpu(), conv_naive.fold(p, x)) < 1e-6
    wanted = conv_naive.products(p, conv_naive.fold(p, x), conv_naive.fold_weights(w))
    tiles = p.frames * p.tiles
    m = run_winograd(p, x.to(device), w.to(device), tile)
    assert off(m[:, :tiles].cpu(), wanted[:, :tiles]) < 1e-6


@pytest.fixture
def exact_sums(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter sum products in float64: BLAS rounds float32 sums by where in a tile they are."""
    single = InterpreterBuilder.create_dot

    def create_dot(self: InterpreterBuilder, a: Any, b: Any, total: TensorHandle, *rest: Any) -> TensorHandle:
        double = single(self, a, b, TensorHandle(total.data.astype(np.float64), tl.float64), *rest)
        return TensorHandle(double.data.astype(total.data.dtype), total.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.mark.usefixtures("exact_sums")
def test_slices_of_frames_make_the_same_products(device: torch.device) -> None:
    x, weight = (tensor.to(device) for tensor in operands(SIZES["ragged rows"], True))
    w = by_tap(weight)
    p = winograd_problem(x, w, True)
    # Two frames and what is before them, then the third.
    most = 4 * 36 * p.tiles * p.channels
    whole, sliced = (run_winograd(p, x, w, SMALL["whole"], values) for values in (10**9, most))
    assert torch.equal(sliced[:, : p.frames * p.tiles], whole[:, : p.frames * p.tiles])


def test_a_slice_is_gone_before_the_next_is_made(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = (tensor.to(device) for tensor in operands(SIZES["ragged rows"], True))
    w = by_tap(weight)
    p = winograd_problem(x, w, True)
    slices: list[weakref.ref[Tensor]] = []

    def fold(*arguments: Any) -> Tensor:
        assert not any(before() is not None for before in slices)
        folded = run_fold(*arguments)
        slices.append(weakref.ref(folded))
        return folded

    monkeypatch.setattr(conv, "run_fold", fold)
    run_winograd(p, x, w, SMALL["whole"], 4 * 36 * p.tiles * p.channels)
    assert len(slices) == 2


@pytest.mark.parametrize("pad", [False, True])
def test_half_precision_loses_less_than_plain_bf16(pad: bool, device: torch.device) -> None:
    x, weight = operands((4, 8, 16, 64, 64), pad)
    exact = direct(x.double(), weight.double(), pad)
    x = x.bfloat16()
    plain = direct(x.float(), weight.bfloat16().float(), pad).bfloat16()
    w = by_tap(weight).half()
    m = run_winograd(winograd_problem(x, w, pad), x.to(device), w.to(device), SMALL["in parts"])
    fill = unfold_problem(m, (2, 8, 16), False, 2, False, False, False)
    buffer = torch.zeros(fill.buffer_shape, device=device)
    run_fill(fill, m, torch.zeros(64, device=device), None, buffer, None)
    assert off(buffer[2:].cpu(), exact) < off(plain, exact)


@pytest.mark.parametrize("halo", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("size", [(3, 4, 9), (1, 2, 3), (2, 9, 4)], ids=str)
def test_products_unfold_into_the_next_input(
    size: tuple[int, ...], residual: bool, halo: bool, device: torch.device
) -> None:
    m, bias = draw(36, 20, 24), draw(24)
    skip = draw(*size, 24, seed=1) if residual else None
    p = unfold_problem(m, size, residual, 2, halo, True, residual)
    sum_wanted = conv_naive.unfold(m, *size) + bias + (0 if skip is None else skip)
    in_place = None if skip is None else skip.clone()
    wanted, kept_wanted = conv_unfold(m, bias, in_place, True, size, torch.float32, 2, halo, True, True)
    assert off(kept_wanted if in_place is None else in_place, sum_wanted) < 1e-7
    got, kept = torch.zeros(p.buffer_shape, device=device), torch.zeros(*size, 24, device=device)
    run_fill(p, m.to(device), bias.to(device), skip if skip is None else skip.to(device), got, kept)
    assert off(got[2:].cpu(), wanted[2:]) < 1e-6
    if residual:
        assert off(kept.cpu(), sum_wanted) < 1e-6


REFUSED = {
    "leaves no output": lambda: convolve(draw(2, 4, 4, 8), draw(8, 3, 3, 3, 8), True),
    r"expected torch.float32 \(Co, 3, 3, 3, 8\)": lambda: convolve(draw(3, 4, 4, 8), draw(8, 3, 3, 3, 4), True),
    "weight is torch.bfloat16": lambda: convolve(draw(3, 4, 4, 8), draw(8, 3, 3, 3, 8).bfloat16(), True),
    "x is torch.int64": lambda: convolve(draw(3, 4, 4, 8).long(), draw(8, 3, 3, 3, 8), True),
    "weight has shape": lambda: winograd(draw(3, 4, 4, 8), draw(36, 8, 3, 8), True),
    "weight has strides": lambda: winograd(draw(3, 4, 4, 8), draw(9, 8, 8, 3).mT, True),
    "no products": lambda: unfold_problem(draw(36, 3, 8), (1, 8, 8), False, 2, True, True, False),
    "m is torch.int64": lambda: unfold_problem(draw(36, 4, 8).long(), (1, 8, 8), False, 2, True, True, False),
}


@pytest.mark.parametrize(("message", "call"), REFUSED.items(), ids=REFUSED)
def test_refused_by_name(message: str, call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(KernelError, match=message):
        call()


def test_operator_carries_shapes_without_values() -> None:
    torch.library.opcheck(winograd, (draw(3, 4, 4, 8), draw(9, 128, 3, 8), True))
    m, skip = draw(36, 4, 8), draw(1, 5, 7, 8, seed=1)
    torch.library.opcheck(conv_unfold, (m, draw(8), skip, True, [1, 5, 7], torch.float32, 2, True, True, True))
