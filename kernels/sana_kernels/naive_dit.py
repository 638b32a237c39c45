"""What the kernels around the gated delta network compute, in readable PyTorch (spec 3.5, 3.8 to 3.10)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sana_kernels.naive_layer import rotate

E4M3_MAX = 448.0
LAYER_NORM_EPSILON = 1e-6
QK_EPSILON = 1e-5
CROSS_EPSILON = 1e-6


def to_fp8(x: Tensor, step: float) -> Tensor:
    """x / step as float8_e4m3fn, saturating."""
    return (x.float() / step).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def stacked(x: Tensor, tail: Tensor | None, frames: int) -> Tensor:
    """Tokens of the frame left of x's (B, N, C), its own, and of the one right of it, side by side: (B, N, 3 C).

    `tail` (B, S, C) is the frame left of the chunk, zero if there is none.
    """
    own = x.unflatten(1, (frames, -1))
    nothing = torch.zeros_like(own[:, :1])
    before = nothing if tail is None else tail[:, None]
    left, right = torch.cat([before, own[:, :-1]], dim=1), torch.cat([own[:, 1:], nothing], dim=1)
    return torch.cat([left, own, right], dim=-1).flatten(1, 2)


def mix(y: Tensor, more: Tensor | None, tail: Tensor | None, frames: int) -> Tensor:
    """The temporal layer from its shares: y and more (B, N, C), tail (B, S, C) for the first frame; in float32."""
    mixed = (y.float() if more is None else y.float() + more.float()).unflatten(1, (frames, -1))
    if tail is not None:
        mixed = torch.cat([mixed[:, :1] + tail.float()[:, None], mixed[:, 1:]], dim=1)
    return mixed.flatten(1, 2)


def residual(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """x + gate * y in float32; gate (C,), None for one."""
    return x.float() + (y if gate is None else gate.float() * y)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm of x (..., C) without parameters of its own, then shift and scale (C,); in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=LAYER_NORM_EPSILON) * (1 + scale.float()) + shift.float()


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) * weight over the last axis, in float32."""
    return x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon) * weight.float()


def depthwise_glu(wide: Tensor, weight: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    """a * silu(b), (a, b) = depthwise 3x3 of silu(wide); wide (B, N, 2 F), weight (9, 2 F); (B, N, F) in float32."""
    channels = wide.shape[-1]
    images = F.silu(wide.float()).reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    stencil = weight.float().T.reshape(channels, 1, 3, 3)
    mixed = F.conv2d(images, stencil, bias.float(), padding=1, groups=channels)
    value, gate = mixed.permute(0, 2, 3, 1).reshape(wide.shape).chunk(2, dim=-1)
    return value * F.silu(gate)


def rotated_heads(x: Tensor, weight: Tensor, rope: Tensor) -> Tensor:
    """RMS norm over all channels of x (B, N, C), then every head rotated by rope (B, N, d); in float32."""
    heads = rms_norm(x, weight, QK_EPSILON).unflatten(-1, (-1, rope.shape[-1]))
    return rotate(heads, rope.float().unsqueeze(-2)).flatten(-2)


def cross_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """From raw queries (B, N, C), whose norm's weight is in the keys, to (B, N, C) in float32.

    k, v (B, h, L, d); bias (B, L) is added to the scores.
    """
    heads = rms_norm(q, q.new_ones(q.shape[-1]), CROSS_EPSILON).unflatten(-1, (k.shape[1], -1)).transpose(1, 2)
    scores = heads @ k.float().mT * k.shape[-1] ** -0.5 + bias.float()[:, None, None]
    return (scores.softmax(-1) @ v.float()).transpose(1, 2).flatten(-2)


def joined(x: Tensor, lse: Tensor) -> Tensor:
    """Attention to all keys (1, N, C) from that to P shares of them, x (P, N, C), and their lse (P, h, N)."""
    heads = x.float().unflatten(-1, (lse.shape[1], -1))
    weights = lse.softmax(0).transpose(1, 2).unsqueeze(-1)
    return (heads * weights).sum(0, keepdim=True).flatten(-2)


def gated(x: Tensor, gate: Tensor) -> Tensor:
    """x * silu(gate) in float32."""
    return x.float() * F.silu(gate.float())
