"""Engines with behaviour for stages without a server, and the small geometry they are made for."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sana_runtime.engine import OneByOne, TensorSpec, check_feeds
from sana_runtime.errors import EngineError
from sana_runtime.geometry import StreamGeometry
from sana_runtime.manifest import Manifest
from sana_runtime.memory import HostMemory
from sana_runtime.stages import Request

GEOMETRY = StreamGeometry(height=4, width=8, latent_channels=2, spatial_ratio=4, max_latents=14)
TOKENS, WIDTH = 3, 2
MANIFEST = Manifest(
    model="fake",
    gpu="cpu",
    policy="fp32",
    checkpoint="none",
    weights="none",
    geometry=GEOMETRY,
    steps=2,
    streams=2,
    idle_seconds=60.0,
    engines={},
    versions={},
    config={"text": {"tokens": TOKENS, "width": WIDTH}},
)
FRAMES = {name: (1, frames, 4, 8, 3) for name, frames in (("first", 33), ("steady", 24))}
LATENT = {name: (1, 2, latents, 1, 2) for name, latents in (("first", 5), ("steady", 3))}


class FakeEngine(OneByOne):
    """Checks its feeds like a real engine, then computes `function`; counts calls and fails while `failing`."""

    outputs: tuple[TensorSpec, ...] = ()
    memory = HostMemory()

    def __init__(self, function: Callable[..., dict[str, np.ndarray]], **inputs: tuple[str, tuple[int, ...]]) -> None:
        self.inputs = tuple(TensorSpec(name.replace("__", "."), *spec) for name, spec in inputs.items())
        self.function, self.failing = function, False
        self.calls: list[dict[str, np.ndarray]] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        self.calls.append(dict(feeds))
        if self.failing:
            raise EngineError("out of memory")
        return self.function(feeds)


def request(
    index: int, correlation: str = "7", *, end: bool = False, parameters: Any = None, **tensors: Any
) -> Request:
    return Request(tensors, {"chunk": index, **(parameters or {})}, correlation, start=index == 0, end=end)
