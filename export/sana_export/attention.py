"""The three attentions of a transformer block: gated delta network, windowed softmax, and cross (spec 3.7 to 3.9)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sana_export.caches import GDNCache, KVCache
from sana_export.dtypes import upcast
from sana_export.rope import Rope, rotate
from sana_kernels.naive import State, gdn

QK_EPSILON = 1e-5
CROSS_QK_EPSILON = 1e-6
PADDING_BIAS = -10000.0

Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""q, k, v, q_rot, k_rot, beta and decay, as sana_kernels.naive.gdn takes them."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 and returned in the dtype of x."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = upcast(x)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (wide * scale * self.weight).to(x.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) to (B, h, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, h, N, d) to (B, N, C)."""
    return x.transpose(1, 2).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention (B, h, N, d); bias (B, 1, 1, keys) is added to the scores of every query."""
    # onnxruntime's Attention broadcasts a bias over heads, but not over queries.
    per_query = None if bias is None else bias.expand(-1, -1, q.shape[2], -1)
    return F.scaled_dot_product_attention(q, k, v, per_query)


class GatedSelfAttention(nn.Module):
    """Projections, QK norms over all channels, and the output gate that both self-attentions have."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(hidden, hidden, bias=False)
        self.k = nn.Linear(hidden, hidden, bias=False)
        self.v = nn.Linear(hidden, hidden, bias=False)
        self.q_norm = RMSNorm(hidden, QK_EPSILON)
        self.k_norm = RMSNorm(hidden, QK_EPSILON)
        self.output_gate = nn.Linear(hidden, hidden)
        self.proj = nn.Linear(hidden, hidden)

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        """Gate attended (B, h, N, d) by x (B, N, C) and project to (B, N, C)."""
        gate = F.silu(upcast(self.output_gate(x)))
        return self.proj((merge_heads(attended) * gate).to(x.dtype))


class GDNAttention(GatedSelfAttention):
    """Linear attention with a carried state and, inside the chunk, a view of later frames (spec 3.7)."""

    cache_type = GDNCache

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__(hidden, heads)
        self.beta_proj = nn.Linear(hidden, heads)
        self.gate_proj = nn.Linear(hidden, heads)
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.core: Callable[..., tuple[Tensor, State]] = gdn

    def forward(
        self, x: Tensor, frames: int, rope: Rope, past: GDNCache | None, past_bias: Tensor | None
    ) -> tuple[Tensor, State]:
        """x (B, N, C) of `frames` frames; returns (B, N, C) and the state after the last frame."""
        carried = None if past is None else State(past.state_kv, past.state_z)
        attended, state = self.core(*self.operands(x, frames, rope), carried)
        return self.finish(attended.flatten(2, 3), x), state

    def operands(self, x: Tensor, frames: int, rope: Rope) -> Operands:
        """q, k, v, q_rot, k_rot (B, h, T, S, d), beta (B, h, T, S) and decay (B, h, T), in float32."""
        head_dim, tokens = x.shape[-1] // self.heads, x.shape[1] // frames
        q, k, v = (upcast(y) for y in (F.relu(self.q_norm(self.q(x))), F.relu(self.k_norm(self.k(x))), self.v(x)))
        # An exported constant takes the dtype of the tensor it multiplies, and no BF16 number is this factor:
        # hence after the upcast.
        k = k * (head_dim * tokens) ** -0.5
        q, k, v = (split_heads(y, self.heads) for y in (q, k, v))
        beta = torch.sigmoid(upcast(self.beta_proj(x))).transpose(1, 2)
        per_token = (q, k, v, rotate(q, rope), rotate(k, rope), beta)
        q, k, v, q_rot, k_rot, beta = (y.unflatten(2, (frames, tokens)) for y in per_token)
        return q, k, v, q_rot, k_rot, beta, self.decay(x, frames)

    def decay(self, x: Tensor, frames: int) -> Tensor:
        """How much of the state each frame keeps, (B, h, T), from the mean of its tokens."""
        mean = x.unflatten(1, (frames, -1)).mean(2)
        rate = F.softplus(upcast(self.gate_proj(mean)) + self.dt_bias)
        return torch.exp(-torch.exp(upcast(self.A_log)) * rate).transpose(1, 2)


class SoftmaxAttention(GatedSelfAttention):
    """Full attention of the chunk over the past window and itself, without a causal mask (spec 3.8)."""

    cache_type = KVCache

    def forward(
        self, x: Tensor, frames: int, rope: Rope, past: KVCache | None, past_bias: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, N, C), past_bias (1 or B, 1, 1, past tokens); returns (B, N, C) and the chunk's own k, v."""
        q = rotate(split_heads(self.q_norm(self.q(x)), self.heads), rope)
        k = rotate(split_heads(self.k_norm(self.k(x)), self.heads), rope)
        v = split_heads(self.v(x), self.heads)
        keys = torch.cat([past.k, k], dim=2) if past else k
        values = torch.cat([past.v, v], dim=2) if past else v
        bias = None if past_bias is None else F.pad(past_bias, (0, k.shape[2]))
        return self.finish(attend(q, keys, values, bias), x), (k, v)


class CrossAttention(nn.Module):
    """Attention from the tokens to the prompt, whose keys and values depend on the prompt alone (spec 3.9)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(hidden, hidden)
        self.kv_linear = nn.Linear(hidden, 2 * hidden)
        self.q_norm = RMSNorm(hidden, CROSS_QK_EPSILON)
        self.k_norm = RMSNorm(hidden, CROSS_QK_EPSILON)
        self.proj = nn.Linear(hidden, hidden)

    def prompt(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, h, L, d) of the projected caption y (B, L, C)."""
        k, v = self.kv_linear(y).chunk(2, dim=-1)
        return split_heads(self.k_norm(k), self.heads), split_heads(v, self.heads)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """x (B, N, C), k, v (B, h, L, d), bias (B, 1, 1, L)."""
        q = split_heads(self.q_norm(self.q_linear(x)), self.heads)
        return self.proj(merge_heads(attend(q, k, v, bias)))


def padding_bias(mask: Tensor) -> Tensor:
    """(B, 1, 1, L) to add to scores: zero where mask (B, L) is 1, else a large but finite number."""
    return ((1 - mask) * PADDING_BIAS)[:, None, None, :]
