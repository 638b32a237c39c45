"""Where the kernels are tested: in Triton's interpreter on CPU tensors, or on a GPU with TRITON_INTERPRET=0."""

from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton._C.libtriton.ir import INPUT_PRECISION
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

DOT, CAST = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
ROUND, SPLAT = InterpreterBuilder.create_fp_to_fp, InterpreterBuilder.create_splat


def widened(operand: TensorHandle) -> TensorHandle:
    """The interpreter keeps bfloat16 as its bits, and would multiply those."""
    if operand.dtype.scalar != tl.bfloat16:
        return operand
    return TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def cut(x: np.ndarray) -> np.ndarray:
    """What tensor cores take of float32 numbers as TF32."""
    return (np.ascontiguousarray(x).view(np.uint32) & 0xFFFFE000).view(np.float32)


def parts(operand: TensorHandle) -> tuple[TensorHandle, TensorHandle]:
    """The nearest TF32 numbers, and what is left."""
    large = cut((np.ascontiguousarray(operand.data).view(np.uint32) + 0x1000).view(np.float32))
    return TensorHandle(large, tl.float32), TensorHandle(cut(operand.data - large), tl.float32)


def create_dot(
    self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, total: TensorHandle, precision: Any, *rest: Any
) -> TensorHandle:
    """The interpreter multiplies float32 numbers in full."""
    a, b = widened(a), widened(b)
    if a.dtype.scalar == tl.float32 and precision == INPUT_PRECISION.TF32:
        a, b = (TensorHandle(cut(operand.data), tl.float32) for operand in (a, b))
    elif a.dtype.scalar == tl.float32 and precision == INPUT_PRECISION.TF32x3:
        (a, small_a), (b, small_b) = parts(a), parts(b)
        total = DOT(self, small_a, b, DOT(self, a, small_b, total, precision, *rest), precision, *rest)
    return DOT(self, a, b, total, precision, *rest)


def cast_impl(self: InterpreterBuilder, source: TensorHandle, wanted: tl.dtype) -> TensorHandle:
    """The interpreter cuts bits off where hardware rounds to the nearest bfloat16."""
    if (source.dtype.scalar, wanted.scalar) != (tl.float32, tl.bfloat16):
        return CAST(self, source, wanted)
    rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
    return TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)


def create_fp_to_fp(self: InterpreterBuilder, source: TensorHandle, wanted: tl.dtype, *rest: Any) -> TensorHandle:
    """It cuts bits off for E4M3 as well."""
    if (source.dtype.scalar, wanted.scalar) != (tl.float32, tl.float8e4nv):
        return ROUND(self, source, wanted, *rest)
    rounded = torch.from_numpy(np.ascontiguousarray(source.data)).to(torch.float8_e4m3fn)
    return TensorHandle(rounded.view(torch.uint8).numpy(), tl.float8e4nv)


def create_splat(self: InterpreterBuilder, wanted: tl.dtype, source: TensorHandle) -> TensorHandle:
    """It makes integers of a truth value, which it then does not take as a mask."""
    spread = SPLAT(self, wanted, source)
    return TensorHandle(spread.data.astype(bool), tl.int1) if source.data.dtype == np.bool_ else spread


@pytest.fixture(scope="session")
def device() -> torch.device:
    if not triton.knobs.runtime.interpret:
        return torch.device("cuda")
    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast_impl
    InterpreterBuilder.create_fp_to_fp, InterpreterBuilder.create_splat = create_fp_to_fp, create_splat
    return torch.device("cpu")
