"""Copies from and to addresses in a table, as PyTorch operators: a CUDA graph can read and write in another place."""

import ctypes

import torch
from torch import Tensor

from sana_kernels.errors import KernelError
from sana_kernels.launcher import architecture, start

ALIGNMENT = 16
"""Bytes that every address has to be a multiple of: the kernels move as many at once."""

BLOCK, WARPS = 4096, 4


@torch.library.custom_op("sana::fetch", mutates_args=("into",))
def fetch(into: Tensor, table: Tensor, slot: int) -> None:
    """Fill `into` from the address in table[slot], int64 (N,) on the same device; both lie in order.

    Raises KernelError for a tensor or a slot that cannot be meant. Nothing can check the address.
    """
    check_move("fetch", into, table, slot)
    if into.is_cuda:
        return run_move(into, table, slot, there=False)
    ctypes.memmove(into.data_ptr(), int(table[slot]), into.nbytes)
    return None


@torch.library.custom_op("sana::leave", mutates_args=())
def leave(values: Tensor, table: Tensor, slot: int) -> None:
    """Write `values` to the address in table[slot]; otherwise as `fetch`."""
    check_move("leave", values, table, slot)
    if values.is_cuda:
        return run_move(values, table, slot, there=True)
    ctypes.memmove(int(table[slot]), values.data_ptr(), values.nbytes)
    return None


@fetch.register_fake
def _(into: Tensor, table: Tensor, slot: int) -> None:
    check_move("fetch", into, table, slot)


@leave.register_fake
def _(values: Tensor, table: Tensor, slot: int) -> None:
    check_move("leave", values, table, slot)


def check_move(op: str, values: Tensor, table: Tensor, slot: int) -> None:
    if table.dtype != torch.int64 or table.ndim != 1 or not 0 <= slot < len(table):
        raise KernelError(f"{op}: no slot {slot} in a table of {table.dtype} {tuple(table.shape)}, expected int64 (N,)")
    if not values.is_contiguous():
        raise KernelError(f"{op}: the tensor has strides {values.stride()}, make it contiguous")


def run_move(values: Tensor, table: Tensor, slot: int, there: bool) -> None:
    """Copy by the kernels: to the address if `there`, else from it."""
    from sana_kernels import by_address

    architecture(values.device)
    kernel, size = by_address.leave if there else by_address.fetch, values.numel()
    with torch.cuda.device_of(values):
        grid = (-(-size // BLOCK),)
        start(kernel, grid, values, table, slot, size, BLOCK, num_warps=WARPS, enable_fp_fusion=True)
