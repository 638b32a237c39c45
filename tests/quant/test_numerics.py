"""The number formats against their definition, enumerated bit pattern by bit pattern."""

import math
from bisect import bisect_left
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sana_quant.numerics import (
    BLOCK,
    E2M1,
    E2M1_MAX,
    E4M3,
    E4M3_MAX,
    Fp8,
    Grid,
    Nvfp4,
    fake_fp8,
    fake_nvfp4,
    fp8_scale,
    nvfp4_scale,
    nvfp4_weight_scale,
    pack_fp8,
    pack_nvfp4,
    quantise_weight,
    round_to,
    unpack_fp8,
    unpack_nvfp4,
)
from sana_runtime.errors import ConfigError


def magnitudes(exponent_bits: int, mantissa_bits: int, bias: int, without: int = 0) -> list[float]:
    """What every positive bit pattern stands for, in order; the last `without` are not numbers."""
    ones = 1 << mantissa_bits
    values = []
    for code in range((1 << exponent_bits + mantissa_bits) - without):
        exponent, mantissa = divmod(code, ones)
        implied = Fraction(mantissa, ones) + (exponent > 0)
        values.append(float(implied * Fraction(2) ** (max(exponent, 1) - bias)))
    return values


TABLES = {"E4M3": magnitudes(4, 3, 7, without=1), "E2M1": magnitudes(2, 1, 1)}
GRIDS = {"E4M3": E4M3, "E2M1": E2M1}

floats = st.floats(allow_nan=False, allow_infinity=False, width=32)
near = st.floats(-500, 500, width=32)


def nearest(value: float, table: list[float]) -> float:
    """Exact arithmetic: the nearer neighbour, the even bit pattern when both are as near, the last one beyond it."""
    magnitude = abs(value)
    above = min(bisect_left(table, magnitude), len(table) - 1)
    below = above - 1 if above and table[above] != magnitude and magnitude < table[-1] else above
    down, up = Fraction(magnitude) - Fraction(table[below]), Fraction(table[above]) - Fraction(magnitude)
    code = below if down < up or (down == up and below % 2 == 0) else above
    return float(np.copysign(table[code], value))


def reference_nvfp4(x: np.ndarray, scale: float) -> np.ndarray:
    """One block, number by number; every operation rounds to float32 as the kernels do."""
    unit = np.float32(scale)
    block = np.float32(nearest(float(np.abs(x).max() / np.float32(6) / unit), TABLES["E4M3"]))
    step = block * unit
    if step == 0:
        return np.zeros_like(x)
    return np.array([np.float32(nearest(float(value / step), TABLES["E2M1"])) * step for value in x], np.float32)


def test_the_tables_are_the_formats() -> None:
    assert TABLES["E2M1"] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert (len(TABLES["E4M3"]), TABLES["E4M3"][1], TABLES["E4M3"][-1]) == (127, 2**-9, E4M3_MAX)
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn)
    assert codes.float().tolist() == TABLES["E4M3"]


@pytest.mark.parametrize("name", GRIDS)
def test_every_number_midpoint_and_neighbour_rounds_as_the_standard_says(name: str) -> None:
    table = TABLES[name]
    points = np.array([*table, *((a + b) / 2 for a, b in pairwise(table))], np.float32)
    far = np.float32(np.inf)
    points = np.concatenate([points, np.nextafter(points, far), np.nextafter(points, -far), [1e-45, 3.4e38]])
    points = np.concatenate([points, -points]).astype(np.float32)
    found = round_to(torch.from_numpy(points), GRIDS[name])
    assert found.tolist() == [nearest(point, table) for point in points.tolist()]


@pytest.mark.parametrize("name", GRIDS)
@settings(deadline=None)
@given(values=st.lists(floats | near, min_size=1, max_size=40))
def test_any_number_goes_to_the_nearest_one_of_the_grid(name: str, values: list[float]) -> None:
    found = round_to(torch.tensor(values), GRIDS[name])
    assert found.tolist() == [nearest(value, TABLES[name]) for value in torch.tensor(values).tolist()]


@settings(deadline=None)
@given(values=st.lists(near, min_size=16, max_size=16), amax=st.floats(0, 1000, width=32))
def test_an_nvfp4_block_is_scaled_and_rounded_as_defined(values: list[float], amax: float) -> None:
    scale = nvfp4_scale(amax)
    x = np.array(values, np.float32)
    assert fake_nvfp4(torch.from_numpy(x), scale).tolist() == reference_nvfp4(x, scale).tolist()


@settings(deadline=None)
@given(values=st.lists(floats, min_size=1, max_size=20), amax=st.floats(0, 1e6, width=32))
def test_fp8_is_scaled_and_rounded_as_defined(values: list[float], amax: float) -> None:
    scale = np.float32(fp8_scale(amax))
    x = torch.tensor(values)
    with np.errstate(over="ignore"):
        wanted = [np.float32(nearest(float(value), TABLES["E4M3"])) * scale for value in saturating(x, scale)]
    assert fake_fp8(x, float(scale)).tolist() == wanted


def saturating(x: torch.Tensor, scale: np.float32) -> np.ndarray:
    """x / scale, where an overflow is just a large number."""
    return np.clip(x.numpy() / scale, -1e30, 1e30)


@settings(deadline=None)
@given(
    values=st.lists(floats, min_size=2 * BLOCK, max_size=2 * BLOCK),
    amax=st.floats(0, allow_infinity=False, width=32),
)
def test_no_input_and_no_scale_makes_a_nan(values: list[float], amax: float) -> None:
    x = torch.tensor(values).view(1, -1)
    for fake in (fake_fp8(x, fp8_scale(amax)), fake_nvfp4(x, nvfp4_scale(amax))):
        assert torch.isfinite(fake).all()


@settings(deadline=None)
@given(values=st.lists(near, min_size=3 * 2 * BLOCK, max_size=3 * 2 * BLOCK))
def test_a_packed_weight_unpacks_to_the_fake_one(values: list[float]) -> None:
    w = torch.tensor(values).view(3, -1)
    amax = float(w.abs().max())
    scale = fp8_scale(amax)
    assert torch.equal(unpack_fp8(pack_fp8(w, scale), scale), fake_fp8(w, scale))
    packed = pack_nvfp4(w, nvfp4_scale(amax))
    assert torch.equal(unpack_nvfp4(packed), fake_nvfp4(w, packed.scale))


def test_packed_bits_are_low_nibble_first_and_the_sign_is_the_high_bit() -> None:
    w = torch.zeros(1, BLOCK)
    w[0, :4] = torch.tensor([6.0, -0.5, -6.0, 1.0]) * 448
    packed = pack_nvfp4(w, 1.0)
    assert packed.codes.shape == (1, BLOCK // 2)
    assert packed.codes[0, :2].tolist() == [0x9 << 4 | 0x7, 0x2 << 4 | 0xF]
    assert packed.scales.float().tolist() == [[448.0]]


@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
def test_zero_blocks_stay_zero(precision: str) -> None:
    w = torch.randn(4, 2 * BLOCK)
    w[:, :BLOCK] = 0
    fake, _ = quantise_weight(w, precision)
    assert fake[:, BLOCK:].any()
    assert not fake[:, :BLOCK].any()
    assert not quantise_weight(torch.zeros(4, BLOCK), precision)[0].any()


def test_a_block_too_small_for_its_scale_is_zero() -> None:
    x = torch.full((1, 2 * BLOCK), 1.0)
    x[:, BLOCK:] = 1e-6
    assert fake_nvfp4(x, nvfp4_scale(1.0)).unique().tolist() == [0, 1]


def test_numbers_beyond_the_calibrated_range_saturate() -> None:
    x = torch.linspace(-4, 4, BLOCK).view(1, -1)
    assert float(fake_fp8(x, fp8_scale(2.0)).max()) == 2.0
    assert float(fake_nvfp4(x, nvfp4_scale(2.0)).max()) == 2.0


@pytest.mark.parametrize(("precision", "packed"), [("fp8", Fp8), ("nvfp4", Nvfp4)])
def test_the_largest_weight_and_the_rest_are_near(precision: str, packed: type) -> None:
    w = torch.randn(32, 64)
    fake, stored = quantise_weight(w, precision)
    largest = w.abs().argmax()
    assert isinstance(stored, packed)
    # A block scale is a number of E4M3, the scale of an FP8 weight is chosen for its largest.
    exact = 1e-6 if precision == "fp8" else 1 / 16
    torch.testing.assert_close(fake.flatten()[largest], w.flatten()[largest], rtol=exact, atol=0)
    # Half a step: 1/16 of a normal E4M3 number, 1/6 of a block's largest, both scales' own rounding aside.
    limit = w.abs() / 16 + stored.scale * 2**-9 if precision == "fp8" else _largest_of_block(w) / 6 * (1 + 1 / 8)
    assert ((fake - w).abs() <= limit).all()


def _largest_of_block(w: torch.Tensor) -> torch.Tensor:
    return w.unflatten(-1, (-1, BLOCK)).abs().amax(-1, keepdim=True).expand(-1, -1, BLOCK).flatten(-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_result_has_the_dtype_of_the_input_and_fp32_arithmetic(dtype: torch.dtype) -> None:
    x = torch.randn(3, 32).to(dtype)
    for fake in (fake_fp8, fake_nvfp4):
        assert fake(x, 0.01).dtype == dtype
        assert torch.equal(fake(x, 0.01), fake(x.float(), 0.01).to(dtype))
    assert quantise_weight(x, "nvfp4")[0].dtype == dtype


def test_blocks_do_not_see_each_other_and_rows_may_have_any_shape() -> None:
    x = torch.randn(2, 3, 64)
    alone = torch.cat([fake_nvfp4(part, 0.003) for part in x.split(BLOCK, dim=-1)], dim=-1)
    assert torch.equal(fake_nvfp4(x, 0.003), alone)
    assert torch.equal(fake_nvfp4(x.transpose(0, 1), 0.003), fake_nvfp4(x, 0.003).transpose(0, 1))


def test_the_input_is_left_alone() -> None:
    x = torch.randn(2, 32)
    kept = x.clone()
    fake_fp8(x, 1.0)
    fake_nvfp4(x, 1.0)
    quantise_weight(x, "nvfp4")
    assert torch.equal(x, kept)


def test_scales_are_float32_numbers() -> None:
    for amax in (0.1, 3.7, 123.4):
        assert fp8_scale(amax) == float(np.float32(amax / E4M3_MAX))
        assert nvfp4_scale(amax) == float(np.float32(amax / (E2M1_MAX * E4M3_MAX)))
    assert fp8_scale(0) == nvfp4_scale(0) == nvfp4_scale(1e-40) == 1


def test_widths_that_are_no_multiple_of_the_block_are_refused() -> None:
    with pytest.raises(ConfigError, match="24 is no multiple"):
        fake_nvfp4(torch.zeros(1, 24), 1.0)


def test_precisions_without_scales_are_refused() -> None:
    with pytest.raises(ConfigError, match="'bf16': choose one of fp8, nvfp4"):
        quantise_weight(torch.zeros(1, 16), "bf16")


def test_a_grid_of_one_exponent_is_plain_rounding() -> None:
    assert round_to(torch.tensor([0.5, 1.5, 2.5, 9.0]), Grid(3, 3, 8.0)).tolist() == [0, 2, 2, 8]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_the_same_bits() -> None:
    x = torch.randn(333, 256, generator=torch.Generator().manual_seed(0)) * 3
    for fake in (fake_fp8, fake_nvfp4):
        for scale in (0.0123, 0.00077):
            assert torch.equal(fake(x.cuda(), scale).cpu(), fake(x, scale))
    assert torch.equal(pack_nvfp4(x.cuda(), 0.01).codes.cpu(), pack_nvfp4(x, 0.01).codes)


@given(st.floats(min_value=1e-6, max_value=1e4))
def test_weights_of_about_one_size_share_a_global_scale(amax: float) -> None:
    scale = nvfp4_weight_scale(amax)
    assert math.log(scale, 16) == pytest.approx(round(math.log(scale, 16)), abs=1e-6)
    assert 0.999999 * nvfp4_scale(amax) <= scale <= 16.00001 * nvfp4_scale(amax)
