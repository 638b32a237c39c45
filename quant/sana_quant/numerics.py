"""FP8 and NVFP4 as TensorRT computes them, in FP32 arithmetic: rounding, scales, fake quantisation and packed bits."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sana_runtime.errors import ConfigError, choose

BLOCK = 16
E4M3_MAX = 448.0
E2M1_MAX = 6.0

EXPONENT_BITS = 0x7F800000
"""Of a float32; alone they read as the power of two at or below the number's magnitude."""


HALF = 0x3F000000
ONE_E2M1 = 0x3F800000 >> 22
"""0.5 as a float32, and the exponent and first mantissa bit of 1."""


@dataclass(frozen=True)
class Grid:
    """A small float: bits of its mantissa, exponent of its smallest normal number, and its largest number."""

    mantissa: int
    exponent: int
    largest: float


E4M3 = Grid(3, -6, E4M3_MAX)
E2M1 = Grid(1, 0, E2M1_MAX)

E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the codes 0 to 7 stand for; 8 more is the sign."""


@dataclass(frozen=True)
class Fp8:
    """A weight in E4M3 with one scale: codes float8_e4m3fn of the weight's shape."""

    codes: Tensor
    scale: float


@dataclass(frozen=True)
class Nvfp4:
    """A weight (N, K) in E2M1: codes uint8 (N, K / 2), low nibble first, and scales float8_e4m3fn (N, K / 16).

    A number is its code times the scale of its block of 16 times the global scale.
    """

    codes: Tensor
    scales: Tensor
    scale: float


Packed = Fp8 | Nvfp4


def round_to(x: Tensor, grid: Grid) -> Tensor:
    """The float32 `x` on the nearest number of `grid`, ties to the even code, beyond the largest number saturating."""
    x = x.clamp(-grid.largest, grid.largest)
    power = (x.view(torch.int32) & EXPONENT_BITS).view(torch.float32)
    step = power.clamp_(min=2.0**grid.exponent).mul_(2.0**-grid.mantissa)
    return x.div_(step).round_().mul_(step)


def fp8_scale(amax: float) -> float:
    """The FP32 scale under which `amax` is the largest E4M3 number; 1 where there is nothing to scale."""
    return _scale(amax / E4M3_MAX)


def nvfp4_scale(amax: float) -> float:
    """The FP32 global scale under which a block with `amax` has the largest block scale; 1 where amax is 0."""
    return _scale(amax / (E2M1_MAX * E4M3_MAX))


def nvfp4_weight_scale(amax: float) -> float:
    """The same rounded up to a power of 16: layers that read one tensor mostly have it in common, and then TensorRT
    computes them as one product. Block scales lose no precision by it, being floating-point numbers.
    """
    return _scale(16.0 ** math.ceil(math.log(amax / (E2M1_MAX * E4M3_MAX), 16))) if amax > 0 else 1.0


def _scale(value: float) -> float:
    # Not even a subnormal number: kernels flush those to zero, and then divide by it.
    return float(np.float32(value)) if value >= np.finfo(np.float32).tiny else 1.0


def fake_fp8(x: Tensor, scale: float) -> Tensor:
    """`x` rounded to E4M3 under `scale`, in the dtype of x."""
    step = _scalar(scale, x)
    return round_to(x.float() / step, E4M3).mul_(step).to(x.dtype)


def fake_nvfp4(x: Tensor, scale: float) -> Tensor:
    """`x` (..., K) rounded to E2M1 in blocks of 16 along K, whose scales are E4M3 under `scale`; in the dtype of x.

    Raises ConfigError if K is not a multiple of 16.
    """
    codes, scales = _encode(x, scale)
    return codes.mul_(scales.mul_(_scalar(scale, x))).flatten(-2).to(x.dtype)


def _encode(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """E2M1 values (..., K / 16, 16) and E4M3 scales (..., K / 16, 1) of `x`, both as float32."""
    blocks = _blocks(x.float())
    unit = _scalar(scale, x)
    scales = round_to(blocks.abs().amax(-1, keepdim=True).div_(E2M1_MAX).div_(unit), E4M3)
    step = scales * unit
    # A block whose scale rounds to zero is zero as a whole, and not 0 / 0.
    codes = round_to(blocks / torch.where(step > 0, step, torch.inf), E2M1)
    return codes, scales


def _blocks(x: Tensor) -> Tensor:
    if x.shape[-1] % BLOCK:
        raise ConfigError(
            f"NVFP4 takes blocks of {BLOCK} channels and {x.shape[-1]} is no multiple of that: keep this layer in fp8"
        )
    return x.unflatten(-1, (-1, BLOCK))


def _scalar(value: float, x: Tensor) -> Tensor:
    # As a tensor: CUDA turns a division by a Python number into a product with its rounded reciprocal.
    return torch.full((), value, dtype=torch.float32, device=x.device)


def pack_fp8(w: Tensor, scale: float) -> Tensor:
    """float8_e4m3fn codes of `w` under `scale`."""
    return round_to(w.float() / _scalar(scale, w), E4M3).to(torch.float8_e4m3fn)


def unpack_fp8(codes: Tensor, scale: float) -> Tensor:
    """float32 numbers that the codes of pack_fp8 stand for."""
    return codes.float() * _scalar(scale, codes)


def pack_nvfp4(w: Tensor, scale: float) -> Nvfp4:
    """The weight (N, K) as codes and block scales; raises ConfigError if K is not a multiple of 16."""
    values, scales = _encode(w, scale)
    codes = _codes(values.flatten(-2))
    return Nvfp4(codes[..., ::2] | codes[..., 1::2] << 4, scales.squeeze(-1).to(torch.float8_e4m3fn), scale)


def _codes(values: Tensor) -> Tensor:
    """uint8 E2M1 codes of float32 numbers on its grid."""
    bits = values.view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    # The exponent and the first bit of the mantissa count the codes from 1.0 = 2 on; 0.5 and 0 are before that.
    codes = (magnitude >> 22).sub_(ONE_E2M1 - 2).clamp_(min=0).to(torch.uint8)
    codes += magnitude == HALF
    return codes + 8 * (bits < 0).to(torch.uint8)


def unpack_nvfp4(packed: Nvfp4) -> Tensor:
    """The float32 weight (N, K) that `packed` stands for."""
    codes = torch.stack([packed.codes & 0xF, packed.codes >> 4], dim=-1).flatten(-2)
    signed = (*E2M1_MAGNITUDES, *(-magnitude for magnitude in E2M1_MAGNITUDES))
    values = torch.tensor(signed, device=codes.device)[codes.int()]
    steps = packed.scales.float().unsqueeze(-1) * _scalar(packed.scale, codes)
    return (values.unflatten(-1, (-1, BLOCK)) * steps).flatten(-2)


def quantise_weight(w: Tensor, precision: str) -> tuple[Tensor, Packed]:
    """The weight (N, K) as a layer in `precision` sees it, in the dtype of w, and as an engine stores it.

    Its scales come from its own largest magnitude. Raises ConfigError for a precision without scales.
    """
    fake, packed = choose("quantised precision", precision, WEIGHTS)(w)
    return fake.to(w.dtype), packed


def _fp8_weight(w: Tensor) -> tuple[Tensor, Packed]:
    scale = fp8_scale(float(w.abs().max()))
    codes = pack_fp8(w, scale)
    return unpack_fp8(codes, scale), Fp8(codes, scale)


def _nvfp4_weight(w: Tensor) -> tuple[Tensor, Packed]:
    packed = pack_nvfp4(w, nvfp4_weight_scale(float(w.abs().max())))
    return unpack_nvfp4(packed), packed


WEIGHTS: dict[str, Callable[[Tensor], tuple[Tensor, Packed]]] = {"fp8": _fp8_weight, "nvfp4": _nvfp4_weight}
