"""Copies by address: the Triton kernels and what a CPU does, on ragged sizes, and what is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sana_kernels.address_ops import BLOCK, Move, fetch, leave, move, rows_of, run_move, run_moves
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
    inside = room[16 : 16 + values.numel()]
    run_move(values, table(device, values, room), 1, 16 * dtype.itemsize, there=True)
    assert torch.equal(inside.view(shape), values)
    assert not room[:16].any()
    assert not room[16 + values.numel() :].any()
    back = torch.zeros_like(values)
    run_move(back, table(device, values, inside), 1, 0, there=False)
    assert torch.equal(back, values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operators(dtype: torch.dtype) -> None:
    values, room = case((3, 5, 7), dtype, torch.device("cpu"))
    inside = room[16 : 16 + values.numel()]
    addresses = table(torch.device("cpu"), values, room)
    leave(values, addresses, 1, 16 * dtype.itemsize)
    assert torch.equal(inside.view(values.shape), values)
    assert not room[:16].any()
    assert not room[16 + values.numel() :].any()
    fetch(back := torch.zeros_like(values), addresses, 1, 16 * dtype.itemsize)
    assert torch.equal(back, values)


def test_refusals() -> None:
    values = torch.zeros(4, 4)
    with pytest.raises(KernelError, match=r"leave: the tensor has strides \(1, 4\)"):
        leave(values.T, torch.zeros(1, dtype=torch.int64), 0)
    with pytest.raises(KernelError, match="leave: the offset is 8 bytes, expected a multiple of 16"):
        leave(values, torch.zeros(1, dtype=torch.int64), 0, 8)
    with pytest.raises(KernelError, match=r"fetch: no slot 1 in a table of torch.int64 \(1,\)"):
        fetch(values, torch.zeros(1, dtype=torch.int64), 1)
    with pytest.raises(KernelError, match=r"fetch: no slot 0 in a table of torch.int32 \(1,\)"):
        fetch(values, torch.zeros(1, dtype=torch.int32), 0)


def moved(device: torch.device, offset: int) -> tuple[Tensor, list[Move], Tensor, Tensor, Tensor, Tensor]:
    """A table, moves between two tensors that come and one that stays, and these: 112 and 70000 bytes and none."""
    generator = torch.Generator().manual_seed(0)
    given, stays, taken = (
        torch.randint(0, 100, (80000,), dtype=torch.uint8, generator=generator).to(device) for _ in range(3)
    )
    addresses = torch.tensor([0, given.data_ptr(), taken.data_ptr(), 0], device=device)
    moves: list[Move] = [
        (1, 32, 0, stays.data_ptr() + 64 + offset, 112),
        (0, given.data_ptr() + 1024, 2, 2048 + offset, 70000),
        (3, 16, 0, stays.data_ptr(), 16),
        (1, 0, 3, 16, 16),
    ]
    return addresses, moves, given, stays, taken, stays.clone()


@pytest.mark.parametrize("offset", [0, 2])
@pytest.mark.parametrize("run", [run_moves, move])
def test_moves_go_to_their_places_and_those_of_empty_slots_nowhere(
    run: Callable[..., None], offset: int, device: torch.device
) -> None:
    if run is move:
        device = torch.device("cpu")
    addresses, moves, given, stays, taken, before = moved(device, offset)
    untouched = taken.clone()
    rows, aligned = rows_of(moves)
    assert (len(rows), aligned) == (6, offset == 0)
    run(addresses, torch.tensor(rows, device=device), aligned)
    start = 64 + offset
    assert torch.equal(stays[start : start + 112], given[32:144])
    assert torch.equal(stays[:start], before[:start])
    assert torch.equal(stays[start + 112 :], before[start + 112 :])
    start = 2048 + offset
    assert torch.equal(taken[start : start + 70000], given[1024:71024])
    assert torch.equal(taken[:start], untouched[:start])
    assert torch.equal(taken[start + 70000 :], untouched[start + 70000 :])


def test_moves_that_cannot_be_meant() -> None:
    with pytest.raises(KernelError, match="move: 3 bytes, expected an even number"):
        rows_of([(0, 0, 0, 0, 3)])
    with pytest.raises(KernelError, match=r"move: table is torch.int32 \(1,\), expected int64"):
        move(torch.zeros(1, dtype=torch.int32), torch.zeros(1, 5, dtype=torch.int64), True)
    with pytest.raises(KernelError, match="move: 4 fields in a row, expected 5"):
        move(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64), True)
