"""Seeded random weights under which no gate, norm or convolution is trivial and a long stream stays bounded."""

import math

import torch
from torch import Tensor, nn

Range = tuple[float, float]

UNIFORM: dict[str, Range] = {
    # Decay and normaliser of the GDN state: frames keep 85 to 99 percent of it.
    "A_log": (-1.0, 0.2),
    "dt_bias": (-3.0, -2.0),
    "norm.weight": (0.8, 1.2),
}
"""Parameters with a fixed range, by the end of their name."""

MODULATION_SCALE = 0.3
BIAS_SCALE = 0.1


@torch.no_grad()
def fill_dit(module: nn.Module, seed: int) -> None:
    """Fill every parameter of a DiT in place, a function of the seed and the order of the parameters alone."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.copy_(_draw(name, parameter.shape, generator))


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    for suffix, (low, high) in UNIFORM.items():
        if name.endswith(suffix):
            return torch.rand(shape, generator=generator) * (high - low) + low
    return torch.randn(shape, generator=generator) * _scale(name, shape)


def _scale(name: str, shape: torch.Size) -> float:
    if name.endswith("scale_shift_table"):
        return MODULATION_SCALE
    if len(shape) == 1:
        return BIAS_SCALE
    fan_in = math.prod(shape[1:])
    # The time embedding shifts and gates every block, so it is as weak as the tables it is added to.
    return (MODULATION_SCALE if name.startswith("t_block") else 1.0) / math.sqrt(fan_in)
