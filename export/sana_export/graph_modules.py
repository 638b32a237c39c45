"""What each stage variant computes: modules from positional tensors, in graph order, to positional tensors.

Whatever the precision inside, latents, text and masks are FP32 at the border of a graph, and so is the GDN state; all
other state has the precision of the weights.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from sana_export.dit import DiT, GDNCache, KVCache, Prompt
from sana_export.dtypes import compute_dtype
from sana_export.pixels import pixels_to_uint8, uint8_to_pixels
from sana_export.rope import RopeTable, rope_rows
from sana_export.vae import VAEDecoder, VAEEncoder
from sana_runtime.geometry import StreamGeometry

MASKED = -10000.0
"""Added to the score of a key that must not be seen; exact zero weight after softmax in FP32 and BF16."""


class EncoderGraph(nn.Module):
    """frames u8 (1, F, H, W, 3) and caches -> source (1, C, T, h, w) and caches."""

    def __init__(self, encoder: VAEEncoder, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.encoder, self.names = encoder, names

    def forward(self, frames: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(self.names, caches, strict=True)) or None
        pixels = uint8_to_pixels(frames).to(compute_dtype(self.encoder))
        latent, written = self.encoder(pixels, state)
        return latent.float(), *written.values()


class DecoderGraph(nn.Module):
    """latent (1, C, T, h, w) and caches -> edited u8 (1, F, H, W, 3) and caches."""

    def __init__(self, decoder: VAEDecoder, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.decoder, self.names = decoder, names

    def forward(self, latent: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(self.names, caches, strict=True)) or None
        video, written = self.decoder(latent.to(compute_dtype(self.decoder)), state)
        return pixels_to_uint8(video.float()), *written.values()


class PromptGraph(nn.Module):
    """text (1, L, D) and text_mask (1, L) -> every block's cross-attention keys and values, and the key bias."""

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit = dit

    def forward(self, text: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return flatten_prompt(self.dit.prompt(text.to(compute_dtype(self.dit)), mask))


class FirstGraph(nn.Module):
    """One DiT evaluation of chunk 0, which has no past."""

    def __init__(self, dit: DiT, geometry: StreamGeometry) -> None:
        super().__init__()
        self.dit = dit
        frames = range(geometry.first_latents)
        cos, sin = rope_rows(dit.config.head_dim, frames, geometry.latent_height, geometry.latent_width)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, latent: Tensor, source: Tensor, timestep: Tensor, *prompt: Tensor) -> tuple[Tensor, ...]:
        dtype = compute_dtype(self.dit)
        rows = self.cos, self.sin
        velocity, caches = self.dit(latent.to(dtype), source.to(dtype), timestep, as_prompt(prompt), rows, None)
        return velocity.float(), *(tensor for cache in caches for tensor in cache_tensors(cache))


class SteadyGraph(nn.Module):
    """One DiT evaluation of any later chunk: sink and recent chunks in fixed slots, unfilled ones masked."""

    def __init__(self, dit: DiT, geometry: StreamGeometry) -> None:
        super().__init__()
        self.dit, self.geometry = dit, geometry
        config = dit.config
        self.rope = RopeTable(config.head_dim, config.max_frames, geometry.latent_height, geometry.latent_width)

    def forward(
        self,
        latent: Tensor,
        source: Tensor,
        timestep: Tensor,
        frame_start: Tensor,
        recent_valid: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        split = 2 * self.dit.config.depth + 1
        past, recent = self._past(iter(rest[split:]))
        rows = self.rope(frame_start, self.geometry.steady_latents)
        dtype = compute_dtype(self.dit)
        bias = self._window_bias(recent_valid).to(dtype)
        prompt = as_prompt(rest[:split])
        velocity, caches = self.dit(latent.to(dtype), source.to(dtype), timestep, prompt, rows, past, bias)
        written = (tensor for i, cache in enumerate(caches) for tensor in self._written(cache, recent.get(i)))
        return velocity.float(), *written

    def _past(self, tensors: Iterator[Tensor]) -> tuple[list[GDNCache | KVCache], dict[int, KVCache]]:
        past: list[GDNCache | KVCache] = []
        recent = {}
        for block in range(self.dit.config.depth):
            if block not in self.dit.config.softmax_blocks:
                past.append(GDNCache(next(tensors), next(tensors), next(tensors)))
                continue
            sink_k, sink_v, recent_k, recent_v, tconv = (next(tensors) for _ in range(5))
            recent[block] = KVCache(recent_k, recent_v, tconv)
            past.append(KVCache(torch.cat([sink_k, recent_k], 2), torch.cat([sink_v, recent_v], 2), tconv))
        return past, recent

    def _window_bias(self, recent_valid: Tensor) -> Tensor:
        tokens = self.geometry.tokens_per_frame
        recent = (1 - recent_valid).repeat_interleave(self.geometry.steady_latents * tokens, dim=1) * MASKED
        sink = recent_valid.new_zeros(recent_valid.shape[0], self.geometry.first_latents * tokens)
        return torch.cat([sink, recent], 1)[:, None, None]

    def _written(self, cache: GDNCache | KVCache, recent: KVCache | None) -> tuple[Tensor, ...]:
        if recent is None or isinstance(cache, GDNCache):
            return cache_tensors(cache)
        return shifted(recent.k, cache.k), shifted(recent.v, cache.v), cache.tconv


def shifted(slots: Tensor, newest: Tensor) -> Tensor:
    """Recent chunks (1, h, slots * tokens, d) without the oldest, and the newest behind them."""
    kept = slots[:, :, newest.shape[2] :]
    return torch.cat([kept, newest], 2) if kept.shape[2] else newest


def flatten_prompt(prompt: Prompt) -> tuple[Tensor, ...]:
    return *(tensor for pair in zip(prompt.k, prompt.v, strict=True) for tensor in pair), prompt.bias


def as_prompt(tensors: Sequence[Tensor]) -> Prompt:
    return Prompt(tuple(tensors[:-1:2]), tuple(tensors[1:-1:2]), tensors[-1])


def cache_tensors(cache: GDNCache | KVCache) -> tuple[Tensor, ...]:
    if isinstance(cache, GDNCache):
        return cache.state_kv, cache.state_z, cache.tconv
    return cache.k, cache.v, cache.tconv
