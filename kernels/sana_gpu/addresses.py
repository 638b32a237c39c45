"""Tensors that a CUDA graph finds by address: it needs no fixed buffers for what a call brings and takes away."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor

from sana_kernels.address_ops import ALIGNMENT, fetch, leave
from sana_runtime.errors import EngineError
from sana_runtime.memory import Array, TorchMemory
from sana_runtime.tensors import TensorSpec

LINE = 128
"""Bytes that memory moves at once: no two parts of a pack share them."""


@dataclass(frozen=True)
class Part:
    """A tensor that lies `offset` bytes behind the start of another, which a call brings."""

    whole: str
    spec: TensorSpec
    offset: int = 0


@dataclass(frozen=True)
class Pack:
    """Tensors one behind the other in a tensor of bytes, (1, size): the host has one to look after in place of all."""

    specs: tuple[TensorSpec, ...]

    @property
    def size(self) -> int:
        return self._ends()[-1]

    def spec(self, name: str) -> TensorSpec:
        return TensorSpec(name, "uint8", (1, self.size))

    def places(self) -> Iterable[tuple[TensorSpec, int]]:
        """Each with the byte at which it begins."""
        return zip(self.specs, self._ends(), strict=False)

    def unpacked(self, packed: Tensor) -> dict[str, Tensor]:
        """Views of them by name."""
        bytes_of = {spec: packed[0, start : start + nbytes(spec)] for spec, start in self.places()}
        return {spec.name: x.view(getattr(torch, spec.dtype)).view(spec.shape) for spec, x in bytes_of.items()}

    def _ends(self) -> list[int]:
        """Where each begins, and the end of the last."""
        return list(accumulate((-(-nbytes(spec) // LINE) * LINE for spec in self.specs), initial=0))


def fit(array: Array, memory: TorchMemory) -> Tensor:
    """The array itself if it is a tensor on the device whose values lie in order and whose address the kernels take."""
    tensor: Tensor = memory.as_tensor(array)
    if not (memory.holds(tensor) and tensor.is_contiguous()):
        tensor = tensor.to(memory.device).contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def nbytes(spec: TensorSpec) -> int:
    return prod(spec.shape) * int(getattr(torch, spec.dtype).itemsize)


class Numbers:
    """`table`, int64 (size,) on a device, which the host fills again and again, in the order of the current stream."""

    PLACES = 4
    """In pinned memory, which the device reads while the host goes on: so many tables may be on their way at once."""

    def __init__(self, size: int, device: str) -> None:
        self.table = torch.zeros(size, dtype=torch.int64, device=device)
        self._places = deque(self._place() for _ in range(self.PLACES))

    def _place(self) -> tuple[Tensor, Any]:
        there = self.table.is_cuda
        numbers = torch.empty(len(self.table), dtype=torch.int64, pin_memory=there)
        return numbers, torch.cuda.Event() if there else None

    def send(self, numbers: Sequence[int]) -> None:
        """Fill the table for what the stream does from now on."""
        place, read = self._places[0]
        self._places.rotate()
        if read is not None:
            read.synchronize()
        place.numpy()[:] = numbers
        self.table.copy_(place, non_blocking=True)
        if read is not None:
            read.record()


class AddressTable:
    """Where the inputs and outputs of one call lie, by name; the device has an address of every whole.

    What reads and writes through it can be recorded once and repeated for other tensors: only the table changes. It
    changes in the order of the current stream, so calls that follow each other there may share it.
    """

    def __init__(self, parts: Mapping[str, Part], device: str) -> None:
        self._parts = parts
        self._slots = {whole: slot for slot, whole in enumerate(dict.fromkeys(part.whole for part in parts.values()))}
        self._numbers = Numbers(len(self._slots), device)

    def point(self, tensors: Mapping[str, Tensor]) -> None:
        """Let every whole mean its tensor of `tensors`, which has its type and shape and is one that `fit` made.

        They have to live until what is computed from them is on its way.
        """
        self._numbers.send([tensors[whole].data_ptr() for whole in self._slots])

    def fetch(self, name: str, into: Tensor) -> None:
        """The values of the tensor that the name means; raises EngineError for room of another type or shape."""
        fetch(into, self._numbers.table, *self._place(name, into))

    def leave(self, name: str, values: Tensor) -> None:
        """Write into the tensor that the name means; raises EngineError for values of another type or shape."""
        leave(values.contiguous(), self._numbers.table, *self._place(name, values))

    def _place(self, name: str, tensor: Tensor) -> tuple[int, int]:
        """Slot and offset of the part that `tensor` is to be."""
        part = self._parts[name]
        if reason := part.spec.refusal(tensor):
            raise EngineError(reason)
        return self._slots[part.whole], part.offset
