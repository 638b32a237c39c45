# mypy: ignore-errors
"""Triton kernels that copy from and to places whose addresses they find in a table on the GPU."""

import triton
import triton.language as tl


@triton.jit
def fetch(into_ptr, table_ptr, slot, size, BLOCK: tl.constexpr):
    """Copy `size` values from the address in table[slot]."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = address(table_ptr, slot, into_ptr)
    tl.store(into_ptr + index, tl.load(place + index, mask=index < size), mask=index < size)


@triton.jit
def leave(from_ptr, table_ptr, slot, size, BLOCK: tl.constexpr):
    """Copy `size` values to the address in table[slot]."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = address(table_ptr, slot, from_ptr)
    tl.store(place + index, tl.load(from_ptr + index, mask=index < size), mask=index < size)


@triton.jit
def address(table_ptr, slot, like_ptr):
    # Without the hint a thread would copy value by value.
    return tl.multiple_of(tl.load(table_ptr + slot).to(like_ptr.dtype), 16)
