"""The gated delta network between its projections and its output projection, in readable PyTorch (spec 3.7)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sana_kernels.naive import State, gdn

NORM_EPSILON = 1e-5


def normed(x: Tensor, weight: Tensor) -> Tensor:
    """relu(rmsnorm(x)) over all channels."""
    return F.relu(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPSILON) * weight)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of x (..., d) by rope (..., d), which has cos and sin of each pair side by side."""
    cos, sin = rope.unflatten(-1, (-1, 2)).unbind(-1)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def gdn_layer_core(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    beta: Tensor,
    rate: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    rate_bias: Tensor,
    a_log: Tensor,
    rope: Tensor,
    state: State | None,
    frames: int,
) -> tuple[Tensor, State]:
    """From raw projections to what the output projection reads: norms, rotation, gates, recurrence, output gate.

    q, k, v, gate (B, N, C) and beta, rate (B, N, h) are projections of the layer's input, N = frames * S; `rate` is the
    decay's, per token, since its mean over a frame is the projection of the frame's mean. q_weight, k_weight (C,);
    rate_bias, a_log (h,). rope (N, d), or (B, N, d) where rows of the batch stand at different times, holds cos and sin
    of each channel pair side by side. Returns (B, N, C) and the state after the last frame.
    """
    wide, heads = torch.promote_types(q.dtype, torch.float32), len(a_log)
    turn = rope.to(wide).unsqueeze(-3)
    scale = (q.shape[-1] // heads * (q.shape[1] // frames)) ** -0.5

    def per_head(x: Tensor) -> Tensor:
        return x.to(wide).unflatten(-1, (heads, -1)).transpose(1, 2)

    def per_frame(x: Tensor) -> Tensor:
        return x.unflatten(2, (frames, -1))

    q_plain, k_plain = per_head(normed(q.to(wide), q_weight)), per_head(normed(k.to(wide), k_weight) * scale)
    q_rot, k_rot = rotate(q_plain, turn), rotate(k_plain, turn)
    strength = per_head(torch.sigmoid(beta.to(wide))).squeeze(-1)
    speed = F.softplus(rate.to(wide).unflatten(1, (frames, -1)).mean(2) + rate_bias)
    decay = torch.exp(-torch.exp(a_log.to(wide)) * speed).transpose(1, 2)
    plain = per_frame(q_plain), per_frame(k_plain), per_frame(per_head(v))
    out, after = gdn(*plain, per_frame(q_rot), per_frame(k_rot), per_frame(strength), decay, state)
    merged = out.flatten(2, 3).transpose(1, 2).flatten(-2)
    return (merged * F.silu(gate.to(wide))).to(q.dtype), after
