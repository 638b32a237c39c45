"""Tensors that a CUDA graph finds by address: it needs no fixed buffers for what a call brings and takes away."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
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
    tensor: Tensor = memory.as_tensor(array).to(memory.device).contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def write(table: Tensor, numbers: Tensor) -> None:
    """Fill a table on the device with int64 numbers of the host, in the order of the current stream."""
    # From pinned memory, as the host would wait for the GPU otherwise.
    table.copy_(numbers.pin_memory() if table.is_cuda else numbers, non_blocking=True)


def nbytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape)) * getattr(torch, spec.dtype).itemsize


class AddressTable:
    """Where the inputs and outputs of one call lie, by name.

    What reads and writes through it can be recorded once and repeated for other tensors: only the table changes. It
    changes in the order of the current stream, so calls that follow each other there may share it.
    """

    def __init__(self, parts: Mapping[str, Part], device: str) -> None:
        self._specs = {name: part.spec for name, part in parts.items()}
        self._slots = {name: slot for slot, name in enumerate(parts)}
        self._wholes = list(dict.fromkeys(part.whole for part in parts.values()))
        self._whole_of = np.array([self._wholes.index(part.whole) for part in parts.values()])
        self._offsets = np.array([part.offset for part in parts.values()])
        self._table = torch.zeros(len(parts), dtype=torch.int64, device=device)

    def point(self, tensors: Mapping[str, Tensor]) -> None:
        """Let every whole mean its tensor of `tensors`, which has its type and shape and is one that `fit` made.

        They have to live until what is computed from them is on its way.
        """
        starts = np.array([tensors[name].data_ptr() for name in self._wholes])
        write(self._table, torch.from_numpy(starts[self._whole_of] + self._offsets))

    def fetch(self, name: str, into: Tensor) -> None:
        """The values of the tensor that the name means; raises EngineError for room of another type or shape."""
        self._check(name, into)
        fetch(into, self._table, self._slots[name])

    def leave(self, name: str, values: Tensor) -> None:
        """Write into the tensor that the name means; raises EngineError for values of another type or shape."""
        self._check(name, values)
        leave(values.contiguous(), self._table, self._slots[name])

    def _check(self, name: str, tensor: Tensor) -> None:
        if reason := self._specs[name].refusal(tensor):
            raise EngineError(reason)
