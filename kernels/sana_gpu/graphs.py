"""Functions over fixed buffers as CUDA graphs, of which one engine has one per kind of call."""

from collections.abc import Callable, Hashable
from typing import Any

import torch

from sana_runtime.memory import TorchMemory

Function = Callable[[], Any]
"""Reads and writes tensors that stay where they are, and returns tensors of its own; no value on the host matters."""


class Graphs:
    """Captured functions by key. They share one memory pool, so they must run one after another.

    On a CPU a function is its own graph.
    """

    def __init__(self, memory: TorchMemory) -> None:
        self._memory = memory
        self._captured: dict[Hashable, Function] = {}
        self._pool: Any = None

    def get(self, key: Hashable, function: Function) -> Function:
        """What runs `function` again and returns the same tensors, with new values, each time.

        The first call of a key runs `function` once for what it compiles and allocates, and records it: fill its
        buffers afterwards. Call this, and what it returns, inside `memory.stream()`.
        """
        if not self._memory.device.startswith("cuda"):
            return function
        if key not in self._captured:
            self._captured[key] = self._capture(function)
        return self._captured[key]

    def _capture(self, function: Function) -> Function:
        function()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=torch.cuda.current_stream()):
            results = function()
        self._pool = self._pool or graph.pool()

        def replay() -> Any:
            graph.replay()
            return results

        return replay
