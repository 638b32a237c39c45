"""How far a tensor is from the one it should be."""

import math

import torch
from torch import Tensor


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """max|a-b| / max|b| in float64, absolute where b is all zero; NaN if the shapes differ by more than unit axes."""
    found, wanted = found.detach().double().squeeze(), wanted.double().squeeze()
    if found.shape != wanted.shape:
        return math.nan
    difference, scale = float((found - wanted).abs().max()), float(wanted.abs().max())
    return difference / scale if scale else difference


def pixel_error(found: Tensor, wanted: Tensor) -> float:
    """max|a-b| / 255 of uint8 frames."""
    return float((found.to(torch.int32) - wanted.to(torch.int32)).abs().max()) / 255
