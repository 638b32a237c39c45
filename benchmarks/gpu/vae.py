"""The VAE's engines on this GPU: how fast, layer by layer, once `check` says that they are correct.

Weights are random; times are medians over CUDA events of whole chunks, of steady ones unless said otherwise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from memory import give_back, peak
from timing import milliseconds
from torch import Tensor
from vae_errors import PARTS, PRODUCTION, check, configured, engines, example, network, random_vae, state_of

from sana_export.configs import SANA_STREAMING
from sana_export.vae import VAE
from sana_gpu import vae_network
from sana_gpu.vae import Engines, prepare_vae
from sana_gpu.vae_network import InHand
from sana_gpu.vae_weights import WINOGRAD
from sana_runtime.geometry import StreamGeometry

__all__ = ["PARTS", "PRODUCTION", "check", "engines", "feeds_of", "measure", "profile", "random_vae", "table"]

BF16_PEAK = 790e12
"""Of a matrix product, measured on the same card (FLOP/s)."""


def feeds_of(found: Engines, variant: str) -> dict[str, Tensor]:
    """A chunk and, if it is a steady one, the state that a first chunk left."""
    engine = found[variant]
    feeds = {engine.inputs[0].name: example(engine, 1)}
    if variant == "steady":
        first = found["first"]
        feeds |= state_of(first.run({first.inputs[0].name: example(first, 0)}))
    return feeds


def measure(
    part: str, size: tuple[int, int] = PRODUCTION, batches: tuple[int, ...] = (1,), winograd: Any = WINOGRAD
) -> dict[str, Any]:
    """Medians of first and steady chunks (ms), peak memory (GB) and the share of the peak of bf16 products."""
    give_back()
    found = engines(part, random_vae(SANA_STREAMING.vae), size, winograd)
    result: dict[str, Any] = {}
    for variant in found:
        feeds = feeds_of(found, variant)
        time = milliseconds(partial(found[variant].run, feeds))
        work = sum(layer.flops for layer in convolutions(part, size, variant))
        result[variant] = {
            "ms": time,
            "tflop": work / 1e12,
            "share of bf16 peak": work / BF16_PEAK / (time / 1e3),
            "peak GB": peak(partial(found[variant].run, feeds)),
        }
        for batch in batches[1:] if variant == "steady" else ():
            result[f"steady, {batch} streams"] = {
                "ms": milliseconds(partial(found[variant].run_batch, [feeds] * batch), 4)
            }
    return result


@dataclass(frozen=True)
class Layer:
    """One shape of convolution: input planes with what is before and around them, and how many there are of it."""

    frames: int
    rows: int
    columns: int
    channels: int
    outputs: int
    pad: bool
    count: int = 1

    @property
    def flops(self) -> float:
        halo = 0 if self.pad else 2
        pixels = (self.frames - 2) * (self.rows - halo) * (self.columns - halo)
        return 2.0 * 27 * self.count * pixels * self.channels * self.outputs

    def __str__(self) -> str:
        planes = f"{self.frames - 2}x{self.rows}x{self.columns}"
        return f"{planes:>11} {self.channels:4} -> {self.outputs:4} x{self.count:2}"


def convolutions(part: str, size: tuple[int, int] = PRODUCTION, variant: str = "steady") -> list[Layer]:
    """The list of shapes in order of execution, from a walk without values."""
    from sana_gpu.vae import PORTS, outline
    from sana_gpu.vae import example as given

    config = configured(size)
    geometry = StreamGeometry(**config["geometry"])
    with torch.device("meta"):
        weights = prepare_vae(part, config["vae"], network(part, VAE(SANA_STREAMING.vae)).state_dict(), winograd={})
    found: dict[Layer, int] = {}

    def record(x: Tensor, weight: Tensor, pad: bool) -> Any:
        layer = Layer(*x.shape, weight.shape[0], pad)
        found[layer] = found.get(layer, 0) + 1
        return real(x, weight, pad)

    port, real = PORTS[part], vae_network.convolve
    walk = partial(port.walk, outline(weights), config["vae"])
    before = InHand({})
    walk(given(port, geometry, 0), before)
    vae_network.convolve = record
    try:
        walk(given(port, geometry, int(variant == "steady")), InHand(before.written if variant == "steady" else {}))
    finally:
        vae_network.convolve = real
    return [replace(layer, count=count) for layer, count in found.items()]


@dataclass
class Step:
    """Time of everything of one kind and shape in a chunk."""

    kind: str
    shape: str
    count: int
    ms: float
    flops: float = 0.0

    def __str__(self) -> str:
        rate = (
            f"{self.flops / self.ms / 1e9:5.0f} TFLOP/s  {self.flops / self.ms * 1e3 / BF16_PEAK:4.0%}"
            if self.flops
            else ""
        )
        return f"{self.kind:14} {self.shape:34} x{self.count:2} {self.ms:8.3f} ms  {rate}"


STEPS = ("convolve", "conv_input", "conv_unfold", "conv_resized", "conv_frames", "conv_pixels")


@contextmanager
def timed(events: list[tuple[str, Any, torch.cuda.Event, torch.cuda.Event]]) -> Iterator[None]:
    """Brackets every step of a walk with events."""
    real = {name: getattr(vae_network, name) for name in STEPS}

    def wrapped(name: str, *arguments: Any, **named: Any) -> Any:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = real[name](*arguments, **named)
        stop.record()
        events.append((name, (*arguments, *named.values()), start, stop))
        return result

    for name in STEPS:
        setattr(vae_network, name, partial(wrapped, name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(vae_network, name, function)


def table(part: str, size: tuple[int, int] = PRODUCTION) -> list[Step]:
    """Every kind of step of one steady chunk, in order, with its time in a chunk (ms)."""
    found = engines(part, random_vae(SANA_STREAMING.vae), size)
    feeds = feeds_of(found, "steady")
    # Without the graph, for the chunk that the engine still points to: its tensors have to live until then.
    made = found["steady"].run(feeds)
    events: list[Any] = []
    with torch.inference_mode(), timed(events):
        found["steady"].compute()
    torch.cuda.synchronize()
    del made
    steps: dict[tuple[str, str], Step] = {}
    for name, arguments, start, stop in events:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        shape, flops = str(tuple(tensors[0].shape)), 0.0
        kind = name + (f" {arguments[0]}" if name == "conv_resized" else "")
        if name == "convolve":
            x, weight, pad = arguments
            layer = Layer(*x.shape, weight.shape[1 if weight.ndim == 4 else 0], pad)
            shape, flops = str(layer), layer.flops
            kind = "winograd" if weight.ndim == 4 else "cudnn"
        step = steps.setdefault((kind, shape), Step(kind, shape, 0, 0.0))
        step.count, step.ms, step.flops = step.count + 1, step.ms + start.elapsed_time(stop), step.flops + flops
    return list(steps.values())


def profile(part: str, variant: str = "steady", size: tuple[int, int] = PRODUCTION) -> list[tuple[str, float, int]]:
    """The ten kernels that take most of a chunk: name, ms, calls."""
    found = engines(part, random_vae(SANA_STREAMING.vae), size)
    feeds = feeds_of(found, variant)
    found[variant].run(feeds)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        found[variant].run(feeds)
        torch.cuda.synchronize()
    kernels = sorted(recorded.key_averages(), key=lambda entry: -entry.self_device_time_total)
    return [(entry.key[:110], entry.self_device_time_total / 1e3, entry.count) for entry in kernels[:10]]
