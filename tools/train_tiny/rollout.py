"""A DiT and its text encoder as training sees them: streams at any positions, with caches that can be cut."""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sana_export import attention, vae, vae_layers
from sana_export import dit as dit_module
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


class Memory(NamedTuple):
    """The sink and the newest chunk: the whole window of a stream with window 2. Both are empty before the first."""

    sink: list[Cache]
    newest: list[Cache]

    def past(self) -> list[Cache] | None:
        if not self.newest:
            return None
        if self.sink is self.newest:
            return self.newest
        return [joined(sink, newest) for sink, newest in zip(self.sink, self.newest, strict=True)]

    def after(self, written: list[Cache]) -> "Memory":
        """The memory once another chunk has been written."""
        return Memory(self.sink or written, written)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Memory":
        newest = [mapped(cache, function) for cache in self.newest]
        return Memory(newest if self.sink is self.newest else [mapped(cache, function) for cache in self.sink], newest)


def empty_memory() -> Memory:
    return Memory([], [])


def leaf(x: Tensor) -> Tensor:
    """The value alone, as the start of a new graph: to a compiled block it looks like any other memory."""
    return x.detach().requires_grad_()


def joined(sink: Cache, newest: Cache) -> Cache:
    if not (isinstance(sink, KVCache) and isinstance(newest, KVCache)):
        return newest
    return KVCache(torch.cat([sink.k, newest.k], 2), torch.cat([sink.v, newest.v], 2), newest.tconv)


def mapped(cache: Cache, function: Callable[[Tensor], Tensor]) -> Cache:
    return replace(cache, **{field.name: function(getattr(cache, field.name)) for field in fields(cache)})


class Editor(nn.Module):
    """DiT and text encoder, called with bf16 matrices except in the recurrence."""

    def __init__(self, dit: DiT, text: TextEncoder, geometry: StreamGeometry) -> None:
        super().__init__()
        self.dit, self.text = dit, text
        config = dit.config
        self.table = RopeTable(config.head_dim, config.max_frames, geometry.latent_height, geometry.latent_width)

    def prompt(self, ids: Tensor, mask: Tensor) -> Prompt:
        """Instructions (B, N) as every block reads them."""
        with mixed_precision(ids.device):
            text = self.text.model(input_ids=ids, attention_mask=attention_biases(mask), use_cache=False)
            hidden, shown = (ends(x, self.text.text_tokens).float() for x in (text.last_hidden_state, mask))
            return self.dit.prompt(hidden, shown)

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


def sample(
    editor: Editor, source: Tensor, prompt: Prompt, memory: Memory, start: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Memory]:
    """The four Euler steps of one chunk, and the memory with what it leaves."""
    latent = torch.randn(source.shape, device=source.device, generator=generator)
    rope = editor.rope(torch.full((len(source),), start, device=source.device), source.shape[2])
    past = memory.past()
    for time, sigma, following in STEPS:
        velocity, _ = editor.evaluate(latent, source, latent.new_full((len(latent),), time), prompt, rope, past)
        latent = latent + (following - sigma) * velocity
    return latent, memory.after(editor.write(latent, source, prompt, rope, past))


def adapt_model() -> None:
    """Make the model's functions fit for training: the recurrence in float32, and nothing copied from the CPU.

    The norm of the VAE is taken in the precision of its input: half the memory traffic, which is what a step costs.
    """
    attention.gdn = precise_gdn
    vae.channel_norm = vae_layers.channel_norm = light_norm
    dit_module.sinusoid = resident_sinusoid


def precise_gdn(*operands: Tensor) -> tuple[Tensor, State]:
    with torch.autocast(operands[0].device.type, enabled=False):
        return gdn(*operands)


def light_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=2, keepdim=True) + 1e-8).to(x.dtype)


@cache
def resident(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A constant that stays on the device: a CUDA graph cannot fetch it from elsewhere."""
    return torch.tensor(values, device=device)


def resident_sinusoid(timestep: Tensor) -> Tensor:
    angles = timestep.float()[:, None] * resident(tuple(dit_module.FREQUENCIES), timestep.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def attention_biases(mask: Tensor) -> dict[str, Tensor]:
    """What Gemma adds to its scores, (B, 1, N, N), for a mask (B, N); no prompt is longer than its sliding window."""
    earlier = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril()
    bias = torch.where(earlier & mask[:, None, None].bool(), 0.0, -1e9)
    return {"full_attention": bias, "sliding_attention": bias}


def ends(x: Tensor, count: int) -> Tensor:
    """The `count` positions of (B, N, ...) that the denoiser sees: the first and the last ones."""
    return torch.cat([x[:, :1], x[:, 1 - count :]], dim=1)


def noised(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Clean latents with the share of noise that belongs to time (B,) on the 0..1000 scale."""
    sigma = (time / TRAIN_TIMESTEPS)[:, None, None, None, None]
    return (1 - sigma) * clean + sigma * noise
