"""Tensors that a CUDA graph finds by address: it needs no fixed buffers for what a call brings and takes away."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sana_kernels.address_ops import ALIGNMENT, fetch, leave
from sana_runtime.errors import EngineError
from sana_runtime.tensors import TensorSpec


class AddressTable:
    """Where the inputs and outputs of one call lie, by name.

    What reads and writes through it can be recorded once and repeated for other tensors: only the table changes. It
    changes in the order of the current stream, so calls that follow each other there may share it.
    """

    def __init__(self, specs: Sequence[TensorSpec], device: str) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._slots = {spec.name: slot for slot, spec in enumerate(specs)}
        self._table = torch.zeros(len(specs), dtype=torch.int64, device=device)

    def fit(self, tensor: Tensor) -> Tensor:
        """The tensor itself if it is on the device, its values lie in order and the kernels take its address."""
        tensor = tensor.to(self._table.device).contiguous()
        return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor

    def point(self, tensors: Mapping[str, Tensor]) -> None:
        """Let every name mean its tensor of `tensors`, which has the spec's type and shape and is one that `fit` made.

        They have to live until what is computed from them is on its way.
        """
        addresses = torch.tensor([tensors[name].data_ptr() for name in self._slots])
        # From pinned memory, as the host would wait for the GPU otherwise.
        self._table.copy_(addresses.pin_memory() if self._table.is_cuda else addresses, non_blocking=True)

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
