"""Which numbers are in which precision, and modules made straight in theirs, so that their weights exist once."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

FP32_PARAMETERS = ("A_log", "dt_bias")
"""The decay of the GDN state: 20 numbers per block, and an error in them grows with the stream (spec 11)."""


def blank(build: Callable[[], M], dtype: torch.dtype) -> M:
    """What `build` returns, in evaluation mode and in `dtype`, its parameters and persistent buffers to be filled."""
    with torch.device("meta"):
        module = narrow(build(), dtype)
    return module.to_empty(device="cpu").eval()


def narrow(module: M, dtype: torch.dtype) -> M:
    """Convert the parameters and buffers of `module` to `dtype` in place, all but the few that stay FP32."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not name.endswith(FP32_PARAMETERS):
            tensor.data = tensor.data.to(dtype)
    return module


def compute_dtype(module: nn.Module) -> torch.dtype:
    """The precision that the activations of `module` have: that of its matrices."""
    return next(parameter.dtype for parameter in module.parameters() if parameter.ndim > 1)


def upcast(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it already is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
