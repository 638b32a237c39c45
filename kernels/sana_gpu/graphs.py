"""Functions as CUDA graphs, of which one engine has one per kind of call."""

from collections.abc import Callable, Hashable
from functools import cache, partial
from typing import Any

import torch

from sana_kernels.launcher import compiled_ahead
from sana_runtime.memory import TorchMemory

Function = Callable[[], None]
"""Reads and writes tensors that stay where they are, or that it finds by an address on the GPU; no value on the host
matters."""


@cache
def anchor(device: str) -> Any:
    """A graph of its own for the pool where all graphs of a device keep what they allocate.

    Room for the largest of them serves all; capture that one first, as room that was split for smaller tensors is not
    always joined for larger ones. torch gives up a pool with its last graph and refuses it to any other from then on:
    hence the anchor, which stays.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.zeros(1, device=device)
    return graph


class Graphs:
    """Captured functions by key. Those of one device must run one after another, as they do in the memory's stream.

    On a CPU a function is its own graph.
    """

    def __init__(self, memory: TorchMemory) -> None:
        self._memory = memory
        self._captured: dict[Hashable, Function] = {}
        self._missing = True

    def get(self, key: Hashable, function: Function) -> Function:
        """What runs `function` again.

        The first call of a key compiles what `function` launches, runs it once for what it allocates, and records it:
        buffers that it changes are to be filled by it, or afterwards. Call this, and what it returns, inside
        `memory.stream()`; what it returns waits for the GPU's turn. Kernels are looked for ahead until those of a whole
        graph were on disk: then those of the others are, too.
        """
        if not self._memory.device.startswith("cuda"):
            return partial(self._run, function)
        if key not in self._captured:
            self._captured[key] = self._capture(function)
        return partial(self._run, self._captured[key])

    def _run(self, function: Function) -> None:
        with self._memory.working():
            function()

    def _capture(self, function: Function) -> Function:
        if self._missing:
            with compiled_ahead() as missing:
                function()
            self._missing = bool(missing)
        function()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=anchor(self._memory.device).pool(), stream=torch.cuda.current_stream()):
            function()
        return graph.replay
