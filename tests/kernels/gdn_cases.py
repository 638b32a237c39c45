"""Random operands of the gated delta network, sized as trained ones are, and how far a result is off."""

import torch
from torch import Tensor

from sana_kernels.naive import State

Shape = tuple[int, int, int, int, int, int]
"""Batch, heads, frames, tokens, key width, value width."""

LIMITS = {"fp32": 2e-6, "tf32": 3e-3}
"""How far off the kernels may be. TF32 cuts operands to 2^-10, and three products follow each other; three products in
TF32 in the place of one in float32 lose 2^-22."""


def operands(shape: Shape, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v, q_rot, k_rot, beta, decay, drawn in float64; the denominators stay away from zero."""
    batch, heads, frames, tokens, dk, dv = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(batch, heads, frames, *sizes, generator=generator, dtype=torch.float64)

    scale = (dk * tokens) ** -0.5
    q, k, v = draw(tokens, dk).relu() + 0.1, draw(tokens, dk).relu() * scale, draw(tokens, dv)
    q_rot, k_rot, beta = draw(tokens, dk), draw(tokens, dk) * scale, draw(tokens).sigmoid()
    return [tensor.to(dtype) for tensor in (q, k, v, q_rot, k_rot, beta, draw().sigmoid())]


def carried(shape: Shape) -> State:
    batch, heads, _, _, dk, dv = shape
    generator = torch.Generator().manual_seed(7)
    kv = torch.randn(batch, heads, dv, dk, generator=generator, dtype=torch.float64)
    return State(kv, 1 + torch.rand(batch, heads, dk, generator=generator, dtype=torch.float64))


def projections(batch: int, heads: int, frames: int, tokens: int, width: int) -> dict[str, Tensor]:
    """What gdn_layer_core takes besides the state, in float64; q, k, v and gate are columns of one tensor."""
    generator = torch.Generator().manual_seed(3)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    names = ("q", "k", "v", "gate")
    packed = draw(batch, frames * tokens, len(names) * heads * width)
    angles = draw(frames * tokens, width // 2)
    return {
        **dict(zip(names, packed.chunk(len(names), dim=-1), strict=True)),
        "beta": draw(batch, frames * tokens, heads),
        "rate": draw(batch, frames * tokens, heads),
        "q_weight": 1 + 0.1 * draw(heads * width),
        "k_weight": 1 + 0.1 * draw(heads * width),
        "rate_bias": draw(heads),
        "a_log": 0.3 * draw(heads),
        "rope": torch.stack([angles.cos(), angles.sin()], -1).flatten(-2),
    }


def off(got: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference over that of the wanted values; infinite where there is no number."""
    error = (got.double().cpu() - wanted.double()).square().mean() / wanted.double().square().mean()
    return float(torch.nan_to_num(error.sqrt(), nan=float("inf")))
