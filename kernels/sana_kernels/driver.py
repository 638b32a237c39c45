"""Load and launch compiled kernels through the CUDA driver, on a stream of somebody else."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

from sana_kernels.aot import Cubin
from sana_kernels.errors import KernelError

MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES; without it a kernel gets at most 48 KiB."""
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


@cache
def driver() -> Any:
    """The CUDA driver library. Raises KernelError where there is none."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise KernelError(f"no CUDA driver on this machine: {error}") from error


def check(library: Any, status: int, action: str) -> None:
    if status:
        text = ctypes.c_char_p()
        library.cuGetErrorString(status, ctypes.byref(text))
        reason = text.value.decode() if text.value else "unknown error"
        raise KernelError(f"{action} failed: {reason} (CUDA error {status})")


def current_architecture(library: Any) -> int:
    """The SM number of the device whose context is current."""
    device, part = ctypes.c_int(), ctypes.c_int()
    check(library, library.cuCtxGetDevice(ctypes.byref(device)), "finding the current device")
    numbers = []
    for attribute in (MAJOR, MINOR):
        status = library.cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
        check(library, status, "reading the compute capability")
        numbers.append(part.value)
    return 10 * numbers[0] + numbers[1]


class Kernel:
    """A compiled kernel in the current context; it stays loaded as long as the process."""

    def __init__(self, library: Any, cubin: Cubin) -> None:
        self.library, self.cubin = library, cubin
        module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        check(library, library.cuModuleLoadData(ctypes.byref(module), cubin.code), f"loading {cubin.entry}")
        status = library.cuModuleGetFunction(ctypes.byref(self.function), module, cubin.entry.encode())
        check(library, status, f"finding {cubin.entry}")
        status = library.cuFuncSetAttribute(self.function, MAX_DYNAMIC_SHARED, cubin.shared)
        check(library, status, f"reserving {cubin.shared} bytes of shared memory for {cubin.entry}")

    def launch(self, pointers: Sequence[int], stream: int) -> None:
        """Enqueue on `stream`, which may be under capture; `pointers` are the device addresses of cubin.tensors."""
        # Triton adds two pointers to scratch memory, which these kernels do not use (aot.py).
        values = [ctypes.c_void_p(pointer) for pointer in (*pointers, 0, 0)]
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        size = (*self.cubin.grid, self.cubin.threads, 1, 1, self.cubin.shared)
        status = self.library.cuLaunchKernel(self.function, *size, ctypes.c_void_p(stream), addresses, None)
        check(self.library, status, f"launching {self.cubin.entry}")
