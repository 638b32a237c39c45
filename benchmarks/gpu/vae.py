"""The VAE's engines on this GPU: how fast, once `check` says that they are correct.

Weights are random; times are medians over CUDA events of whole chunks, of steady ones unless said otherwise.
"""

from functools import partial
from typing import Any

import torch
from memory import give_back
from timing import milliseconds
from torch import Tensor
from vae_errors import PARTS, PRODUCTION, check, configured, engines, example, network, random_vae, state_of

from sana_export.configs import SANA_STREAMING
from sana_export.vae import VAE
from sana_gpu import vae_network
from sana_gpu.vae import Engines, prepare_vae
from sana_gpu.vae_network import InHand
from sana_runtime.geometry import StreamGeometry

__all__ = ["PARTS", "PRODUCTION", "check", "engines", "feeds_of", "measure", "profile", "random_vae"]

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


def measure(part: str, batches: tuple[int, ...] = (1,)) -> dict[str, dict[str, float]]:
    """Medians of first and steady chunks (ms), and the work of their convolutions (TFLOP)."""
    give_back()
    found = engines(part, random_vae(SANA_STREAMING.vae), PRODUCTION)
    result: dict[str, dict[str, float]] = {}
    for variant in found:
        feeds = feeds_of(found, variant)
        time = milliseconds(partial(found[variant].run, feeds))
        result[variant] = {"ms": time, "tflop": work(part, variant) / 1e12}
        for batch in batches[1:] if variant == "steady" else ():
            result[f"steady, {batch} streams"] = {
                "ms": milliseconds(partial(found[variant].run_batch, [feeds] * batch), 4)
            }
    return result


def work(part: str, variant: str) -> float:
    """FLOPs of a chunk's convolutions, from a walk without values."""
    from sana_gpu.vae import PORTS, outline
    from sana_gpu.vae import example as given

    config = configured(PRODUCTION)
    geometry = StreamGeometry(**config["geometry"])
    with torch.device("meta"):
        weights = prepare_vae(part, config["vae"], network(part, VAE(SANA_STREAMING.vae)).state_dict(), winograd={})
    found: list[float] = []

    def record(x: Tensor, weight: Tensor, pad: bool) -> Any:
        frames, rows, columns, channels = x.shape
        halo = 0 if pad else 2
        pixels = (frames - 2) * (rows - halo) * (columns - halo)
        found.append(2.0 * 27 * pixels * channels * weight.shape[0])
        return real(x, weight, pad)

    port, real = PORTS[part], vae_network.convolve
    walk = partial(port.walk, outline(weights), config["vae"])
    before = InHand({})
    list(walk(given(port, geometry, 0), before))
    vae_network.convolve = record
    try:
        past = before.written if variant == "steady" else {}
        list(walk(given(port, geometry, int(variant == "steady")), InHand(past)))
    finally:
        vae_network.convolve = real
    return sum(found)


def profile(part: str) -> list[tuple[str, float, int]]:
    """The ten kernels that take most of a steady chunk: name, ms, calls."""
    found = engines(part, random_vae(SANA_STREAMING.vae), PRODUCTION)
    feeds = feeds_of(found, "steady")
    found["steady"].run(feeds)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        found["steady"].run(feeds)
        torch.cuda.synchronize()
    kernels = sorted(recorded.key_averages(), key=lambda entry: -entry.self_device_time_total)
    return [(entry.key[:110], entry.self_device_time_total / 1e3, entry.count) for entry in kernels[:10]]
