"""A DiT and its text encoder as training sees them: batches of streams at any positions, with caches that can be cut."""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial

import torch
import torch.nn.functional as F
from sana_export import attention
from sana_export.caches import Cache, KVCache, Prompt
from sana_export.dit import DiT
from sana_export.rope import Rope, RopeTable
from sana_export.text import TextEncoder
from sana_kernels.naive import gdn
from sana_runtime.geometry import StreamGeometry
from sana_runtime.schedule import TRAIN_TIMESTEPS, streaming_schedule
from torch import Tensor, nn

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


def repeated(past: Sequence[Cache] | None, copies: int) -> list[Cache] | None:
    """The caches of a batch, `copies` times one after the other."""
    if past is None or copies == 1:
        return None if past is None else list(past)
    return [mapped(cache, lambda x: x.repeat(copies, *[1] * (x.ndim - 1))) for cache in past]


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


def train_fast(dit: DiT) -> None:
    """Let the depthwise convolutions run as nine shifted products, whose gradients are far cheaper on a GPU."""
    for block in dit.blocks:
        block.mlp.depth_conv.forward = partial(shifted_products, block.mlp.depth_conv)


def shifted_products(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """What a 3x3 depthwise convolution with zero padding returns for images (N, C, H, W) stored channels last."""
    rows, columns = images.shape[2:]
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    return fused_shifts(padded, conv.weight.to(images.dtype), conv.bias.to(images.dtype), rows, columns).permute(0, 3, 1, 2)


def shifts(padded: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int) -> Tensor:
    """(N, H + 2, W + 2, C) and (C, 1, 3, 3) to (N, H, W, C)."""
    total = bias.float()
    for y in range(3):
        for x in range(3):
            total = total + padded[:, y : y + rows, x : x + columns].float() * weight[:, 0, y, x].float()
    return total.to(padded.dtype)


fused_shifts = torch.compile(shifts, dynamic=True)


def keep_recurrence_precise(device: torch.device) -> None:
    """Let autocast skip the GDN recurrence, whose state would lose its small updates in bf16."""
    attention.gdn = torch.autocast(device.type, enabled=False)(gdn)


def repeated_prompt(prompt: Prompt, copies: int) -> Prompt:
    if copies == 1:
        return prompt
    k, v = (tuple(x.repeat(copies, 1, 1, 1) for x in tensors) for tensors in (prompt.k, prompt.v))
    return Prompt(k, v, prompt.bias.repeat(copies, 1, 1, 1))


def noised(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Clean latents with the share of noise that belongs to time (B,) on the 0..1000 scale."""
    sigma = (time / TRAIN_TIMESTEPS)[:, None, None, None, None]
    return (1 - sigma) * clean + sigma * noise
