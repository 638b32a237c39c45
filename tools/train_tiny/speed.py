"""What makes a training step cheap on a GPU: blocks compiled, and the whole step replayed as one CUDA graph."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass, tree_flatten, tree_map_only

from sana_export.caches import GDNCache, KVCache

WARMUPS = 3
VARIANTS = 64
"""Shapes and gradient modes that one compiled block may be called in."""

for cache in (GDNCache, KVCache):
    register_dataclass(cache)


class Captured:
    """A training step on a GPU as CUDA graphs, one for every combination of input shapes; on a CPU, the step itself.

    A step takes and returns tensors in any nesting, and leaves gradients behind. Whatever in its inputs is no tensor is
    a constant of the graph. Its thousand small kernels take longer to launch than to run: hence the graphs.
    """

    def __init__(self, step: Callable[..., Any], parameters: Iterable[nn.Parameter]) -> None:
        self.step, self.parameters = step, list(parameters)
        self.replays: dict[tuple[Any, ...], Callable[[list[Any]], Any]] = {}
        self.memory: Any = None

    def __call__(self, *inputs: Any) -> Any:
        leaves, _ = tree_flatten(inputs)
        if not any(isinstance(leaf, Tensor) and leaf.is_cuda for leaf in leaves):
            return self.step(*inputs)
        key = tuple(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        if key not in self.replays:
            self.replays[key] = self.capture(inputs)
        return tree_map_only(Tensor, Tensor.clone, self.replays[key](leaves))

    def rehearse(self, *inputs: Any) -> Any:
        """A step that learns nothing, so that all of it is compiled and captured."""
        outputs = self(*inputs)
        self.clear()
        return outputs

    def capture(self, inputs: tuple[Any, ...]) -> Callable[[list[Any]], Any]:
        """The graph for inputs of these shapes, as a function of their leaves."""
        held = tree_map_only(Tensor, Tensor.clone, inputs)
        self.warm_up(held)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.memory):
            outputs = self.step(*held)
        self.memory = graph.pool()
        gradients, places = [parameter.grad for parameter in self.parameters], tree_flatten(held)[0]
        self.clear()

        def replay(leaves: list[Any]) -> Any:
            for place, leaf in zip(places, leaves, strict=True):
                if isinstance(leaf, Tensor):
                    place.copy_(leaf)
            graph.replay()
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            return outputs

        return replay

    def warm_up(self, inputs: tuple[Any, ...]) -> None:
        """Let libraries and compilers choose their kernels, away from the stream that is captured."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUPS):
                self.step(*inputs)
                self.clear()
        torch.cuda.current_stream().wait_stream(side)

    def clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def compile_each(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Fuse what lies between the matrix products of every module; modules of one kind share the result."""
    if device.type != "cuda":
        return
    torch._dynamo.config.recompile_limit = VARIANTS
    for module in modules:
        module.compile(dynamic=False)
