"""Copies by address: the Triton kernels and what a CPU does, on ragged sizes, and what is refused."""

import pytest
import torch
from torch import Tensor

from sana_kernels.address_ops import BLOCK, fetch, leave, run_move
from sana_kernels.errors import KernelError

SIZES = {"one": (1,), "ragged": (3, 5, 7), "two programs and a bit": (2 * BLOCK + 3,)}
DTYPES = (torch.uint8, torch.bfloat16, torch.float32)


def case(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Values, and room for as many with a border that has to stay zero."""
    values = torch.randint(1, 100, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return values.to(device), torch.zeros(values.numel() + 64, dtype=dtype, device=device)


def table(device: torch.device, *tensors: Tensor) -> Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors], device=device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_kernels(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    values, room = case(shape, dtype, device)
    inside = room[: values.numel()]
    run_move(values, table(device, values, inside), 1, there=True)
    assert torch.equal(inside.view(shape), values)
    assert not room[values.numel() :].any()
    back = torch.zeros_like(values)
    run_move(back, table(device, values, inside), 1, there=False)
    assert torch.equal(back, values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operators(dtype: torch.dtype) -> None:
    values, room = case((3, 5, 7), dtype, torch.device("cpu"))
    inside = room[: values.numel()]
    addresses = table(torch.device("cpu"), values, inside)
    leave(values, addresses, 1)
    assert torch.equal(inside.view(values.shape), values)
    assert not room[values.numel() :].any()
    fetch(back := torch.zeros_like(values), addresses, 1)
    assert torch.equal(back, values)


def test_refusals() -> None:
    values = torch.zeros(4, 4)
    with pytest.raises(KernelError, match=r"leave: the tensor has strides \(1, 4\)"):
        leave(values.T, torch.zeros(1, dtype=torch.int64), 0)
    with pytest.raises(KernelError, match=r"fetch: no slot 1 in a table of torch.int64 \(1,\)"):
        fetch(values, torch.zeros(1, dtype=torch.int64), 1)
    with pytest.raises(KernelError, match=r"fetch: no slot 0 in a table of torch.int32 \(1,\)"):
        fetch(values, torch.zeros(1, dtype=torch.int32), 0)
