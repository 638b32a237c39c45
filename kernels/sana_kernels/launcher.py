"""Run the kernel calls of a problem on PyTorch tensors."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from sana_kernels.calls import Call, calls, workspace
from sana_kernels.errors import KernelError
from sana_kernels.launch import launch_for
from sana_kernels.problem import Problem

INTERPRETED_AS = 90
"""The architecture whose launch parameters Triton's interpreter runs."""


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    import triton

    return triton.knobs.runtime.interpret


def architecture(device: torch.device) -> int:
    """The SM number of a CUDA device; raises KernelError for any other."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return 10 * major + minor
    if not interpreted():
        raise KernelError(f"the tensors are on {device}, the kernels need a CUDA device")
    return INTERPRETED_AS


def allocate(p: Problem, device: torch.device) -> dict[str, Tensor]:
    """The workspace between the phases."""
    return {
        name: torch.empty(buffer.shape, dtype=getattr(torch, buffer.dtype), device=device)
        for name, buffer in workspace(p).items()
    }


def bind(call: Call, tensors: Mapping[str, Tensor]) -> Callable[[], object]:
    """A call as a function without arguments; tensor parameters that are not among `tensors` are absent."""
    from sana_kernels.kernels import KERNELS

    kernel = KERNELS[call.kernel]
    operands = {name: tensors.get(name) for name in kernel.arg_names if name not in call.constants}
    return partial(kernel[call.grid], **operands, **call.constants, **call.options)


def launch(p: Problem, tensors: Mapping[str, Tensor], sm: int) -> None:
    """Run all phases; `tensors` are the operands, states and results by the names of the kernels' parameters."""
    known = {**tensors, **allocate(p, tensors["q"].device)}
    with torch.cuda.device_of(tensors["q"]):
        for call in calls(p, launch_for(sm, p.precision)):
            bind(call, known)()
