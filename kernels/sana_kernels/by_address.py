# mypy: ignore-errors
"""Triton kernels that copy from and to places whose addresses they find in a table on the GPU."""

import triton
import triton.language as tl


@triton.jit
def fetch(into_ptr, table_ptr, slot, offset, size, BLOCK: tl.constexpr):
    """Copy `size` values from `offset` bytes behind the address in table[slot]."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = address(table_ptr, slot, offset, into_ptr)
    tl.store(into_ptr + index, tl.load(place + index, mask=index < size), mask=index < size)


@triton.jit
def leave(from_ptr, table_ptr, slot, offset, size, BLOCK: tl.constexpr):
    """Copy `size` values to `offset` bytes behind the address in table[slot]."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = address(table_ptr, slot, offset, from_ptr)
    tl.store(place + index, tl.load(from_ptr + index, mask=index < size), mask=index < size)


@triton.jit
def move(table_ptr, moves_ptr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    """Copy what a row of moves (N, 5) says: from slot and byte, to slot and byte, how many; 2 BLOCK bytes at most."""
    row = moves_ptr + tl.program_id(0) * 5
    from_slot, to_slot = tl.load(row), tl.load(row + 2)
    from_start, to_start = tl.load(table_ptr + from_slot), tl.load(table_ptr + to_slot)
    missing = ((from_slot > 0) & (from_start == 0)) | ((to_slot > 0) & (to_start == 0))
    size = tl.where(missing, 0, tl.load(row + 4) // 2)
    source = (from_start + tl.load(row + 1)).to(tl.pointer_type(tl.int16))
    target = (to_start + tl.load(row + 3)).to(tl.pointer_type(tl.int16))
    if ALIGNED:
        # Without the hints a thread would copy value by value; that of the size is for the mask.
        source, target, size = tl.multiple_of(source, 16), tl.multiple_of(target, 16), tl.multiple_of(size, 8)
    index = tl.arange(0, BLOCK)
    tl.store(target + index, tl.load(source + index, mask=index < size), mask=index < size)


@triton.jit
def address(table_ptr, slot, offset, like_ptr):
    # Without the hint a thread would copy value by value.
    return tl.multiple_of((tl.load(table_ptr + slot) + offset).to(like_ptr.dtype), 16)
