"""A small model on the engines of the `torch` backend, on a CPU, and streams through it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sana_export.configs import ModelConfig, StreamConfig, VAEConfig
from sana_export.dit import DiT
from sana_gpu.denoiser import load_denoiser
from sana_gpu.dit import prepare_dit
from sana_runtime.engine import Engine
from sana_runtime.state import as_inputs, from_outputs
from small_dit import CONFIG, HEIGHT, WIDTH

Engines = Mapping[str, Engine]


def model(window: int = 2) -> ModelConfig:
    """With latent frames of HEIGHT x WIDTH."""
    ratio = VAEConfig().spatial_ratio
    return ModelConfig(
        "small", CONFIG, VAEConfig(), stream=StreamConfig(window=window), height=ratio * HEIGHT, width=ratio * WIDTH
    )


def engine_config(model: ModelConfig, streams: int) -> dict[str, Any]:
    parts = {"dit": model.dit, "geometry": model.geometry, "stream": model.stream}
    return {name: asdict(part) for name, part in parts.items()} | {"streams": streams}


def engines(
    dit: DiT,
    model: ModelConfig,
    precision: Mapping[str, str] = MappingProxyType({}),
    amax: Mapping[str, float] = MappingProxyType({}),
    streams: int = 4,
    attention: str | None = None,
) -> Engines:
    config = engine_config(model, streams)
    weights = prepare_dit(config["dit"], dit.state_dict(), precision, amax, torch.float32)
    return load_denoiser(config, weights, "cpu", attention)


class Stream:
    """One stream as the server drives it: feeds of its next chunk, and what it carries."""

    def __init__(self, engines: Engines, text: Tensor, mask: Tensor, window: int = 2) -> None:
        self.engines, self.slots = engines, window - 1
        self.prompt = engines["prompt"].run({"text": text.numpy(), "text_mask": mask.numpy()})
        self.index, self.start = 0, 0
        self.state: dict[str, Any] = {}

    @property
    def variant(self) -> str:
        return "steady" if self.index else "first"

    def feeds(self, noise: Tensor, source: Tensor) -> dict[str, Any]:
        feeds = {"noise": noise.numpy(), "source": source.numpy(), **self.prompt}
        if not self.index:
            return feeds
        valid = np.zeros((1, self.slots), np.float32)
        valid[:, self.slots - min(self.index - 1, self.slots) :] = 1
        return feeds | {"frame_start": np.array([self.start]), "recent_valid": valid} | as_inputs(self.state)

    def take(self, outputs: Mapping[str, Any]) -> Tensor:
        """Keep what the chunk left; returns its latent."""
        self.state |= from_outputs(outputs)
        missing = {spec.name.removesuffix(".in"): spec for spec in self.engines["steady"].inputs if ".in" in spec.name}
        zeros = {name: self.engines["steady"].memory.zeros(spec) for name, spec in missing.items()}
        self.state = zeros | self.state
        latent = outputs["latent"]
        self.index, self.start = self.index + 1, self.start + latent.shape[2]
        return latent

    def step(self, noise: Tensor, source: Tensor) -> Tensor:
        return self.take(self.engines[self.variant].run(self.feeds(noise, source)))


def together(streams: Sequence[Stream], chunks: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The next chunk of every stream in one batch; all of them past the first."""
    feeds = [stream.feeds(*chunk) for stream, chunk in zip(streams, chunks, strict=True)]
    outputs = streams[0].engines["steady"].run_batch(feeds)
    return [stream.take(one) for stream, one in zip(streams, outputs, strict=True)]
