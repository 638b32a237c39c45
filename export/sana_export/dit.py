"""The SANA-Streaming transformer, one class for chunks of a stream and for whole clips (spec 3)."""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sana_export.attention import CrossAttention, GDNAttention, RMSNorm, SoftmaxAttention, padding_bias
from sana_export.caches import Cache, GDNCache, KVCache, Prompt
from sana_export.configs import DiTConfig
from sana_export.ffn import GatedMBConv, Grid
from sana_export.rope import Rope

__all__ = ["Cache", "DiT", "GDNCache", "KVCache", "Prompt", "sinusoid"]

SINUSOID_WIDTH = 256
LAYER_NORM_EPSILON = 1e-6
CAPTION_EPSILON = 1e-5


def _frequencies() -> list[float]:
    half = SINUSOID_WIDTH // 2
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device="cpu") / half
    return [math.exp(exponent) for exponent in exponents.tolist()]


# Constants: libraries differ in the last digit of a float32 exp, which at t = 1000 is up to 6e-5 in the embedding.
FREQUENCIES = _frequencies()


def sinusoid(timestep: Tensor) -> Tensor:
    """Embedding (B, 256) of timestep (B,), cosine half first, in float32 (spec 3.3)."""
    angles = timestep.float()[:, None] * torch.tensor(FREQUENCIES, dtype=torch.float32, device=timestep.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def normalise(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm over channels without parameters of its own, then the given modulation."""
    return F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPSILON) * (1 + scale) + shift


class TimestepEmbedder(nn.Module):
    """Timestep (B,) on the 0..1000 scale to (B, C)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOID_WIDTH, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, timestep: Tensor) -> Tensor:
        # The release was trained with integer times, so the fraction that a solver asks for is dropped.
        return self.mlp(sinusoid(timestep.trunc()).to(next(self.parameters()).dtype))


class CaptionEmbedder(nn.Module):
    """Text (B, L, D) to (B, L, C)."""

    def __init__(self, caption_width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(caption_width, hidden)
        self.fc2 = nn.Linear(hidden, hidden)

    def forward(self, text: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(text), approximate="tanh"))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward on a residual stream of tokens (B, N, C) (spec 3.5)."""

    def __init__(self, config: DiTConfig, attention: type[GDNAttention] | type[SoftmaxAttention]) -> None:
        super().__init__()
        self.attn = attention(config.hidden, config.heads)
        self.cross_attn = CrossAttention(config.hidden, config.heads)
        self.mlp = GatedMBConv(config.hidden, config.ffn_width)
        self.scale_shift_table = nn.Parameter(torch.zeros(6, config.hidden))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        prompt: tuple[Tensor, Tensor, Tensor],
        grid: Grid,
        rope: Rope,
        past: Cache | None,
        past_bias: Tensor | None,
    ) -> tuple[Tensor, Cache]:
        """x (B, N, C), modulation (B, 6, C), prompt (k, v, bias); returns (B, N, C) and what the next chunk reads."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.scale_shift_table + modulation).chunk(6, dim=1)
        attended, (first, second) = self.attn(normalise(x, shift, scale), grid[0], rope, past, past_bias)
        x = x + gate * attended
        x = x + self.cross_attn(x, *prompt)
        mixed, tail = self.mlp(normalise(x, ffn_shift, ffn_scale), grid, past.tconv if past else None)
        return x + ffn_gate * mixed, self.attn.cache_type(first, second, tail)


class FinalLayer(nn.Module):
    """Tokens (B, N, C) and the timestep embedding (B, C) to velocities (B, N, channels) (spec 3.11)."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(2, hidden))
        self.linear = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + time.unsqueeze(1)).chunk(2, dim=1)
        return self.linear(normalise(x, shift, scale))


class DiT(nn.Module):
    """Velocity of a noisy latent, given the source latent, a prompt and what earlier chunks left."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden
        self.x_embedder = nn.Linear(config.latent_channels + config.source_channels, hidden)
        self.t_embedder = TimestepEmbedder(hidden)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))
        self.y_embedder = CaptionEmbedder(config.caption_width, hidden)
        self.attention_y_norm = RMSNorm(hidden, CAPTION_EPSILON)
        kinds = [SoftmaxAttention if i in config.softmax_blocks else GDNAttention for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, kind) for kind in kinds)
        self.final_layer = FinalLayer(hidden, config.latent_channels)

    def prompt(self, text: Tensor, mask: Tensor) -> Prompt:
        """Text (B, L, D) and its mask (B, L), 1 = real token, as the blocks read them at any time."""
        y = self.attention_y_norm(self.y_embedder(text))
        pairs = [cast(Block, block).cross_attn.prompt(y) for block in self.blocks]
        return Prompt(tuple(k for k, _ in pairs), tuple(v for _, v in pairs), padding_bias(mask.to(text.dtype)))

    def forward(
        self,
        latent: Tensor,
        source: Tensor,
        timestep: Tensor,
        prompt: Prompt,
        rope: Rope,
        past: Sequence[Cache] | None = None,
        past_bias: Tensor | None = None,
    ) -> tuple[Tensor, list[Cache]]:
        """Evaluate one chunk (or one whole clip, with `past` None).

        latent, source (B, channels, T, H, W); timestep (B,) on the 0..1000 scale; rope rows (T * H * W, d / 2) at the
        absolute frames of the chunk; `past` holds one cache per block; `past_bias` (1 or B, 1, 1, past tokens) is added
        to the scores of past keys. Returns the velocity, of the shape of latent, and
        one cache per block with this chunk's own keys.
        """
        grid = (latent.shape[2], latent.shape[3], latent.shape[4])
        x = self.x_embedder(torch.cat([latent, source], dim=1).flatten(2).transpose(1, 2))
        time = self.t_embedder(timestep)
        modulation = self.t_block(time).unflatten(1, (6, -1))
        caches = []
        for i, block in enumerate(self.blocks):
            text = (prompt.k[i], prompt.v[i], prompt.bias)
            x, cache = block(x, modulation, text, grid, rope, past[i] if past else None, past_bias)
            caches.append(cache)
        velocity = self.final_layer(x, time)
        return velocity.transpose(1, 2).unflatten(2, grid), caches
