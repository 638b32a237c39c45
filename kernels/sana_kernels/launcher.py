"""Launch kernels on PyTorch tensors, and the calls of a GDN problem; compile many kernels at a time."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

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


COMPILERS = 16
"""Kernels that are compiled at a time at most: each takes some hundred MB meanwhile."""

_AHEAD: ContextVar[bool] = ContextVar("sana_compiled_ahead", default=False)


@contextmanager
def compiled_ahead(strict: bool = True) -> Iterator[list[str]]:
    """Compile what is launched in the block, several kernels at a time, and run none of it.

    What a kernel would have written keeps the values that it has. After the block, the list names the kernels that were
    not on disk. Unless it is `strict`, what cannot be compiled fails where it is launched next, not at its end.
    """
    import triton

    missing: list[str] = []
    before = _AHEAD.set(True)
    try:
        count = min(COMPILERS, len(os.sched_getaffinity(0)))
        with triton.knobs.compilation.scope(), ThreadPoolExecutor(count) as threads:
            triton.knobs.compilation.listener = partial(_note_missing, missing)
            with triton.AsyncCompileMode(threads, ignore_errors=not strict):
                yield missing
    finally:
        _AHEAD.reset(before)


def _note_missing(names: list[str], src: Any, cache_hit: bool, **_: Any) -> None:
    if not cache_hit:
        names.append(src.name)


def start(kernel: Any, grid: tuple[int, ...], /, *operands: Any, **options: Any) -> None:
    """Launch a kernel, or compile it alone where kernels are `compiled_ahead`."""
    if _AHEAD.get():
        kernel.warmup(*operands, grid=grid, **options)
    else:
        kernel[grid](*operands, **options)


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
    return partial(start, kernel, call.grid, **operands, **call.constants, **call.options)


def launch(p: Problem, tensors: Mapping[str, Tensor], sm: int) -> None:
    """Run all phases; `tensors` are the operands, states and results by the names of the kernels' parameters."""
    known = {**tensors, **allocate(p, tensors["q"].device)}
    with torch.cuda.device_of(tensors["q"]):
        for call in calls(p, launch_for(sm, p.precision)):
            bind(call, known)()
