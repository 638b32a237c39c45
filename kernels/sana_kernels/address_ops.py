"""Copies from and to addresses in a table, as PyTorch operators: a CUDA graph can read and write in another place."""

import ctypes
from collections.abc import Iterable

import torch
from torch import Tensor

from sana_kernels.errors import KernelError
from sana_kernels.launcher import architecture, start

ALIGNMENT = 16
"""Bytes that every address has to be a multiple of: the kernels move as many at once."""

BLOCK, WARPS = 4096, 4
PIECE = 1 << 15
"""Bytes that one program of `move` copies, at most."""

Move = tuple[int, int, int, int, int]
"""From slot and byte, to slot and byte, bytes."""

FIELDS = 5


@torch.library.custom_op("sana::fetch", mutates_args=("into",))
def fetch(into: Tensor, table: Tensor, slot: int, offset: int = 0) -> None:
    """Fill `into` from `offset` bytes behind the address in table[slot], int64 (N,) on the same device.

    Both lie in order. Raises KernelError for a tensor, a slot or an offset that cannot be meant. Nothing can check the
    address.
    """
    check_move("fetch", into, table, slot, offset)
    if into.is_cuda:
        return run_move(into, table, slot, offset, there=False)
    ctypes.memmove(into.data_ptr(), int(table[slot]) + offset, into.nbytes)
    return None


@torch.library.custom_op("sana::leave", mutates_args=())
def leave(values: Tensor, table: Tensor, slot: int, offset: int = 0) -> None:
    """Write `values` to `offset` bytes behind the address in table[slot]; otherwise as `fetch`."""
    check_move("leave", values, table, slot, offset)
    if values.is_cuda:
        return run_move(values, table, slot, offset, there=True)
    ctypes.memmove(int(table[slot]) + offset, values.data_ptr(), values.nbytes)
    return None


@torch.library.custom_op("sana::move", mutates_args=())
def move(table: Tensor, moves: Tensor, aligned: bool) -> None:
    """Copy what each row of `moves` (N, 5), of `rows_of`, says; both int64, on one device.

    A slot means the address in `table`, where slot 0 holds 0, for places that never change. A row is left out if one of
    its other slots holds 0. Raises KernelError for tensors that cannot be meant. Nothing can check the addresses.
    """
    check_moves(table, moves)
    if moves.is_cuda:
        return run_moves(table, moves, aligned)
    starts = table.tolist()
    for source, first, target, second, size in moves.tolist():
        if all(slot == 0 or starts[slot] for slot in (source, target)):
            ctypes.memmove(starts[target] + second, starts[source] + first, size)
    return None


@move.register_fake
def _(table: Tensor, moves: Tensor, aligned: bool) -> None:
    check_moves(table, moves)


def rows_of(moves: Iterable[Move]) -> tuple[list[Move], bool]:
    """Moves of any length as rows for `move`, and whether all that they say is a multiple of ALIGNMENT.

    Raises KernelError for an odd number of bytes.
    """
    moves = list(moves)
    if odd := [size for *_, size in moves if size % 2]:
        raise KernelError(f"move: {odd[0]} bytes, expected an even number")
    rows = [
        (source, first + start, target, second + start, min(PIECE, size - start))
        for source, first, target, second, size in moves
        for start in range(0, size, PIECE)
    ]
    return rows, all(place % ALIGNMENT == 0 for row in rows for place in (row[1], row[3], row[4]))


@fetch.register_fake
def _(into: Tensor, table: Tensor, slot: int, offset: int = 0) -> None:
    check_move("fetch", into, table, slot, offset)


@leave.register_fake
def _(values: Tensor, table: Tensor, slot: int, offset: int = 0) -> None:
    check_move("leave", values, table, slot, offset)


def check_move(op: str, values: Tensor, table: Tensor, slot: int, offset: int) -> None:
    if table.dtype != torch.int64 or table.ndim != 1 or not 0 <= slot < len(table):
        raise KernelError(f"{op}: no slot {slot} in a table of {table.dtype} {tuple(table.shape)}, expected int64 (N,)")
    if offset < 0 or offset % ALIGNMENT:
        raise KernelError(f"{op}: the offset is {offset} bytes, expected a multiple of {ALIGNMENT}")
    if not values.is_contiguous():
        raise KernelError(f"{op}: the tensor has strides {values.stride()}, make it contiguous")


def check_moves(table: Tensor, moves: Tensor) -> None:
    found = {"table": (table, 1), "moves": (moves, 2)}
    for name, (tensor, dimensions) in found.items():
        if tensor.dtype != torch.int64 or tensor.ndim != dimensions or not tensor.is_contiguous():
            raise KernelError(f"move: {name} is {tensor.dtype} {tuple(tensor.shape)}, expected int64 in order")
    if moves.shape[1] != FIELDS:
        raise KernelError(f"move: {moves.shape[1]} fields in a row, expected {FIELDS}")


def run_moves(table: Tensor, moves: Tensor, aligned: bool) -> None:
    """Copy by the kernel."""
    from sana_kernels import by_address

    architecture(moves.device)
    with torch.cuda.device_of(moves):
        constants = {"BLOCK": PIECE // 2, "ALIGNED": aligned}
        start(by_address.move, (len(moves),), table, moves, **constants, num_warps=2 * WARPS, enable_fp_fusion=True)


def run_move(values: Tensor, table: Tensor, slot: int, offset: int, there: bool) -> None:
    """Copy by the kernels: to the address if `there`, else from it."""
    from sana_kernels import by_address

    architecture(values.device)
    kernel, size = by_address.leave if there else by_address.fetch, values.numel()
    with torch.cuda.device_of(values):
        grid = (-(-size // BLOCK),)
        start(kernel, grid, values, table, slot, offset, size, BLOCK, num_warps=WARPS, enable_fp_fusion=True)
