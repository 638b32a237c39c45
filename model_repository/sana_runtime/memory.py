"""Where tensors live: numpy arrays on the host, or torch tensors on the GPU, which stages carry without looking inside.

What crosses the server's wire is on the host; state stays where its engine computes.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, cached_property, partial
from threading import get_ident
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from sana_runtime.clock import Clock, CudaClock, HostClock
from sana_runtime.tensors import TensorSpec, dtype_name
from sana_runtime.turns import NoTurn, Turn, turn_on

Array = Any
"""A numpy array or a torch tensor: either takes `+`, `*` with a float, and has a dtype and a shape."""


class Memory(Protocol):
    """One kind of memory; the clock of the device that computes in it, and the turn of what computes there."""

    turn: Turn

    @property
    def clock(self) -> Clock: ...

    def working(self) -> AbstractContextManager[None]:
        """Around what an engine computes: it waits for its turn, and is timed."""
        ...

    def new_turn(self) -> Turn:
        """A turn among all processes that compute here, for a stage to put in the place of `turn`."""
        ...

    def settle(self) -> None:
        """Let all work of the calling thread go where engines' goes from now on: neither has to wait for the other."""
        ...

    def upload(self, array: np.ndarray) -> Array:
        """The values of a host array, here."""
        ...

    def download(self, array: Array, into: np.ndarray | None = None) -> np.ndarray:
        """The values of one of its tensors, on the host: in `into`, which has its shape and type, where that is given.

        All that was computed before is then done, and all uploads are.
        """
        ...

    def share(self, array: np.ndarray) -> Callable[[], object]:
        """Let the device read and write a host array by itself, until what is returned is called."""
        ...

    def zeros(self, spec: TensorSpec) -> Array:
        """A tensor of zeros, here."""
        ...


class Workplace:
    """Where engines compute: by which clock, and when."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.turn: Turn = NoTurn()

    @contextmanager
    def working(self) -> Iterator[None]:
        self.turn.take()
        with self.clock.running():
            yield

    def new_turn(self) -> Turn:
        return NoTurn()

    def settle(self) -> None:
        return


class HostMemory(Workplace):
    """numpy arrays."""

    def __init__(self) -> None:
        super().__init__(HostClock())

    def upload(self, array: np.ndarray) -> np.ndarray:
        return array

    def download(self, array: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
        if into is None:
            return array
        np.copyto(into, array, casting="no")
        return into

    def share(self, array: np.ndarray) -> Callable[[], object]:
        return _nothing

    def zeros(self, spec: TensorSpec) -> np.ndarray:
        return np.zeros(spec.shape, spec.dtype)


def _nothing() -> None:
    """Give back memory that needed no preparation."""


class TorchMemory(Workplace):
    """torch tensors on one device, which a GPU engine computes on in a stream of its own."""

    def __init__(self, device: str) -> None:
        from torch.utils.weak import WeakIdKeyDictionary

        self.device = device
        self._stream = _stream_of(device) if device.startswith("cuda") else None
        self._pieces = WeakIdKeyDictionary()
        self._settled: int | None = None
        super().__init__(CudaClock() if self._stream else HostClock())

    def new_turn(self) -> Turn:
        import torch

        if self._stream is None:
            return NoTurn()
        return turn_on(str(torch.cuda.get_device_properties(self.device).uuid))

    def settle(self) -> None:
        import torch

        if self._stream is not None:
            torch.cuda.set_stream(self._stream)
            self._settled = get_ident()

    def upload(self, array: np.ndarray) -> Array:
        """The card reads a shared array in place, so it must not change before a download is done."""
        host = self._shared(array)
        if host is None:
            host = self._host(array.shape, array.dtype.name)
            np.copyto(host.numpy(), array)
        return host.to(self.device, non_blocking=True)

    def _shared(self, array: np.ndarray) -> Array | None:
        """The array as a tensor if it is one that `share` was called for."""
        import torch

        if self._stream is None or not array.flags.writeable:
            return None
        tensor = torch.from_numpy(array)
        return tensor if tensor.is_pinned() else None

    def share(self, array: np.ndarray) -> Callable[[], object]:
        if self._stream is None:
            return _nothing
        import torch

        library, address = torch.cuda.cudart(), array.ctypes.data
        if failed := int(library.cudaHostRegister(address, array.nbytes, 0)):
            warnings.warn(
                f"the GPU cannot read shared memory by itself (CUDA error {failed}): every chunk is copied once more",
                stacklevel=2,
            )
            # CUDA keeps the error for whoever launches next, which must not be a chunk's engine.
            with suppress(RuntimeError):
                torch.ones(1, device=self.device)
            return _nothing
        return partial(library.cudaHostUnregister, address)

    def _host(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Room on the host that the card reads and writes by itself: a chunk of frames crosses ten times as fast."""
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=self._stream is not None)

    def as_tensor(self, array: Array) -> Array:
        """The array itself if it is a tensor, else its upload."""
        return self.upload(array) if isinstance(array, np.ndarray) else array

    def holds(self, tensor: Array) -> bool:
        """Whether a torch tensor is on the device."""
        return bool(tensor.get_device() == self._index)

    @cached_property
    def _index(self) -> int:
        """How torch numbers the device."""
        import torch

        return int(torch.empty(0, device=self.device).get_device())

    def download(self, array: Array, into: np.ndarray | None = None) -> np.ndarray:
        import torch

        host = self._host(array.shape, dtype_name(array)) if into is None else torch.from_numpy(into)
        if array in self._pieces:
            self._download_pieces(array, host)
        else:
            host.copy_(array, non_blocking=True)
        if self._stream is not None:
            torch.cuda.current_stream().synchronize()
        return np.asarray(host.numpy()) if into is None else into

    def mark(self) -> "Mark":
        """To be recorded behind a part of the stream's work, also where that becomes a graph and is repeated."""
        import torch

        return SimpleNamespace(record=_nothing) if self._stream is None else torch.cuda.Event(external=True)

    def note_pieces(self, array: Array, pieces: Sequence["Piece"]) -> None:
        """Let a download take each piece of `array` as soon as its mark is passed, while the next is computed."""
        if self._stream is not None and len(pieces) > 1:
            self._pieces[array] = pieces

    def _download_pieces(self, array: Array, host: Array) -> None:
        import torch

        copies = _copies_of(self.device)
        for place, mark in self._pieces[array]:
            copies.wait_event(mark)
            with torch.cuda.stream(copies):
                host[place].copy_(array[place], non_blocking=True)
        torch.cuda.current_stream().wait_stream(copies)

    def zeros(self, spec: TensorSpec) -> Array:
        return self.empty(spec).zero_()

    def empty(self, spec: TensorSpec) -> Array:
        """A tensor of any values, here."""
        import torch

        return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=self.device)

    @contextmanager
    def stream(self) -> Iterator[int]:
        """The handle of the stream that torch's work inside the block also goes to.

        It comes after all earlier work of the caller, and all later work comes after it.
        """
        if self._stream is None or self._settled == get_ident():
            yield self._stream.cuda_stream if self._stream else 0
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


class Mark(Protocol):
    """A CUDA event, or on a CPU, where everything is done at once, nothing."""

    def record(self) -> None: ...


Piece = tuple[tuple[slice, ...], Mark]
"""Where in a tensor, and what is recorded behind the work that makes it."""


@cache
def _copies_of(device: str) -> Any:
    """The stream of copies that go on beside the work of engines."""
    import torch

    return torch.cuda.Stream(device)


@cache
def _stream_of(device: str) -> Any:
    """The stream of all engines on a device: what one frees is room for the next, which waits for it anyway.

    Not the default stream, which cannot be captured into a CUDA graph.
    """
    import torch

    return torch.cuda.Stream(device)


ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"
"""Where torch's allocator of GPU memory finds the user's settings."""


def grow_segments() -> None:
    """Let torch put freed room on the GPU together for larger tensors, unless the user has settings of their own.

    It reads this once, when it first looks at a GPU, so this comes before torch is imported (ADR 11).
    """
    if not os.environ.keys() & set(ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"


def local_architecture() -> int | None:
    """The SM number of the GPU that engines run on, None where torch sees none."""
    grow_segments()
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor
