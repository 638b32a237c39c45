"""CUDA graphs on a CPU: operators are recorded once and repeated on the same tensors, without the code around them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sana_gpu import graphs

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]


class Tape(TorchDispatchMode):
    """In place of torch.cuda.CUDAGraph: notes every operator with its arguments and what it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            for before, now in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(before, Tensor) and before.data_ptr() != now.data_ptr():
                    before.copy_(now)


class Recorder:
    """In place of what records a graph: notes the pool that each is given."""

    def __init__(self) -> None:
        self.pools: list[object] = []

    @contextmanager
    def __call__(self, graph: Tape, pool: object, stream: object) -> Iterator[None]:
        self.pools.append(pool)
        with graph:
            yield


def record(engines: Iterable[Any], monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Let engines compute by such graphs from now on."""
    recorder = Recorder()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", recorder)
    anchor = SimpleNamespace(pool=lambda: recorder)
    monkeypatch.setattr(graphs, "anchor", lambda device: anchor)
    monkeypatch.setattr(torch.cuda, "current_stream", object)
    for engine in engines:
        monkeypatch.setattr(engine, "_graphs", graphs.Graphs(SimpleNamespace(device="cuda", working=nullcontext)))  # type: ignore[arg-type]
    return recorder
