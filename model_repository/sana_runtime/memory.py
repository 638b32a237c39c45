"""Where tensors live: numpy arrays on the host, or torch tensors on the GPU, which stages carry without looking inside.

What crosses the server's wire is on the host; state stays where its engine computes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from sana_runtime.tensors import TensorSpec

Array = Any
"""A numpy array or a torch tensor: either takes `+`, `*` with a float, and has a dtype and a shape."""


class Memory(Protocol):
    """One kind of memory."""

    def upload(self, array: np.ndarray) -> Array:
        """The values of a host array, here."""
        ...

    def download(self, array: Array) -> np.ndarray:
        """The values of one of its tensors, on the host."""
        ...

    def zeros(self, spec: TensorSpec) -> Array:
        """A tensor of zeros, here."""
        ...


class HostMemory:
    """numpy arrays."""

    def upload(self, array: np.ndarray) -> np.ndarray:
        return array

    def download(self, array: np.ndarray) -> np.ndarray:
        return array

    def zeros(self, spec: TensorSpec) -> np.ndarray:
        return np.zeros(spec.shape, spec.dtype)


class TorchMemory:
    """torch tensors on one device, which a GPU engine computes on in a stream of its own."""

    def __init__(self, device: str) -> None:
        import torch

        self.device = device
        # The default stream cannot be captured into a CUDA graph.
        self._stream = torch.cuda.Stream(device) if device.startswith("cuda") else None

    def upload(self, array: np.ndarray) -> Array:
        host = self._host(array.shape, array.dtype.name)
        np.copyto(host.numpy(), array)
        return host.to(self.device, non_blocking=True)

    def _host(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Room on the host that the card reads and writes by itself: a chunk of frames crosses ten times as fast."""
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=self._stream is not None)

    def as_tensor(self, array: Array) -> Array:
        """The array itself if it is a tensor, else its upload."""
        return self.upload(array) if isinstance(array, np.ndarray) else array

    def download(self, array: Array) -> np.ndarray:
        import torch

        host = self._host(array.shape, str(array.dtype).removeprefix("torch."))
        host.copy_(array, non_blocking=True)
        if self._stream is not None:
            torch.cuda.current_stream().synchronize()
        return np.asarray(host.numpy())

    def zeros(self, spec: TensorSpec) -> Array:
        import torch

        return torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype), device=self.device)

    @contextmanager
    def stream(self) -> Iterator[int]:
        """The handle of the stream that torch's work inside the block also goes to.

        It comes after all earlier work of the caller, and all later work comes after it.
        """
        if self._stream is None:
            yield 0
            return
        import torch

        caller = torch.cuda.current_stream()
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield self._stream.cuda_stream
        caller.wait_stream(self._stream)

    def card(self) -> str:
        """The name of the device, fit for a file name."""
        import torch

        name = torch.cuda.get_device_name(self.device) if self._stream else self.device
        return "".join(letter if letter.isalnum() else "-" for letter in name)


def local_architecture() -> int | None:
    """The SM number of the GPU that engines run on, None where torch sees none."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor
