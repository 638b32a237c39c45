"""A DiT and its text encoder as training sees them: streams at any positions, with caches that can be cut."""

from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from sana_export import attention
from sana_export.caches import Cache, KVCache, Prompt
from sana_export.dit import DiT
from sana_export.rope import Rope, RopeTable
from sana_export.text import TextEncoder
from sana_kernels.naive import State, gdn
from sana_runtime.geometry import StreamGeometry
from sana_runtime.schedule import TRAIN_TIMESTEPS, streaming_schedule
from train_tiny.model import mixed_precision

SCHEDULE = streaming_schedule(4)
STEPS = tuple(zip(SCHEDULE.timesteps, SCHEDULE.sigmas[:-1], SCHEDULE.sigmas[1:], strict=True))


class Memory:
    """The sink and the newest chunk: the whole window of a stream with window 2."""

    def __init__(self) -> None:
        self.sink: list[Cache] = []
        self.newest: list[Cache] = []

    def past(self) -> list[Cache] | None:
        if not self.newest:
            return None
        if self.sink is self.newest:
            return self.newest
        return [joined(sink, newest) for sink, newest in zip(self.sink, self.newest, strict=True)]

    def append(self, written: list[Cache]) -> None:
        self.newest = written
        self.sink = self.sink or written

    def cut(self) -> None:
        """Keep the values and forget how they came about."""
        alone = self.sink is self.newest
        self.newest = [mapped(cache, Tensor.detach) for cache in self.newest]
        self.sink = self.newest if alone else [mapped(cache, Tensor.detach) for cache in self.sink]

    def clear(self) -> None:
        """Zero everything that later chunks read: what a server without state would do."""
        self.newest = [mapped(cache, torch.zeros_like) for cache in self.newest]
        self.sink = [mapped(cache, torch.zeros_like) for cache in self.sink]


def joined(sink: Cache, newest: Cache) -> Cache:
    if not (isinstance(sink, KVCache) and isinstance(newest, KVCache)):
        return newest
    return KVCache(torch.cat([sink.k, newest.k], 2), torch.cat([sink.v, newest.v], 2), newest.tconv)


def mapped(cache: Cache, function) -> Cache:  # type: ignore[no-untyped-def]
    return replace(cache, **{field.name: function(getattr(cache, field.name)) for field in fields(cache)})


class Editor(nn.Module):
    """DiT and text encoder, called with bf16 matrices except in the recurrence."""

    def __init__(self, dit: DiT, text: TextEncoder, geometry: StreamGeometry) -> None:
        super().__init__()
        self.dit, self.text = dit, text
        config = dit.config
        self.table = RopeTable(config.head_dim, config.max_frames, geometry.latent_height, geometry.latent_width)

    def prompt(self, ids: Tensor, mask: Tensor) -> Prompt:
        with mixed_precision(ids.device):
            return self.dit.prompt(*self.text(ids, mask))

    def rope(self, starts: Tensor, frames: int) -> Rope:
        """Rows (B, 1, N, d / 2) for chunks of `frames` latents, each at its own position starts (B,)."""
        index = starts[:, None] + torch.arange(frames, device=starts.device)
        return self._rows("cos", index), self._rows("sin", index)

    def _rows(self, function: str, index: Tensor) -> Tensor:
        time, space = self.table.get_buffer(f"time_{function}")[index], self.table.get_buffer(f"space_{function}")
        time = time.unsqueeze(2).expand(-1, -1, len(space), -1)
        return torch.cat([time, space.expand(*index.shape, -1, -1)], -1).flatten(1, 2).unsqueeze(1)

    def evaluate(
        self, latent: Tensor, source: Tensor, time: Tensor, prompt: Prompt, rope: Rope, past: list[Cache] | None
    ) -> tuple[Tensor, list[Cache]]:
        """Velocity and caches, both float32; time (B,) on the 0..1000 scale."""
        with mixed_precision(latent.device):
            velocity, written = self.dit(latent, source, time, prompt, rope, past)
        return velocity.float(), written

    def write(
        self, latent: Tensor, source: Tensor, prompt: Prompt, rope: Rope, past: list[Cache] | None
    ) -> list[Cache]:
        """What a finished latent leaves for the next chunk."""
        return self.evaluate(latent, source, latent.new_zeros(len(latent)), prompt, rope, past)[1]


def keep_recurrence_precise() -> None:
    """Let autocast skip the GDN recurrence, whose state would lose its small updates in bf16."""
    attention.gdn = precise_gdn


def precise_gdn(*operands: Tensor) -> tuple[Tensor, State]:
    with torch.autocast(operands[0].device.type, enabled=False):
        return gdn(*operands)


def noised(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Clean latents with the share of noise that belongs to time (B,) on the 0..1000 scale."""
    sigma = (time / TRAIN_TIMESTEPS)[:, None, None, None, None]
    return (1 - sigma) * clean + sigma * noise
