"""Lowered graphs: onnxruntime rounds to FP8 and FP4 exactly as the fake quantisation in PyTorch does."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor

from fakes.small_graphs import linears, one_block
from sana_quant.calibration import Calibration
from sana_quant.lower import to_fp32
from sana_quant.numerics import fake_fp8, fake_nvfp4, fp8_scale, nvfp4_scale, quantise_weight
from sana_quant.qdq import insert

PATH = "blocks.0.attn.q"
AMAX = 3.0
ROUNDED = {
    "fp8": lambda x: fake_fp8(x, fp8_scale(AMAX)),
    "nvfp4": lambda x: fake_nvfp4(x, nvfp4_scale(AMAX)),
}


def run(model: ir.Model, folder: Path, x: Tensor) -> list[Tensor]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    ir.save(model, folder / "lowered.onnx")
    session = onnxruntime.InferenceSession(folder / "lowered.onnx", options)
    return [torch.from_numpy(array) for array in session.run(None, {"x": x.numpy()})]


def quantised(precision: str, weight: Tensor, rows: int) -> ir.Model:
    model = linears({PATH: weight}, rows)
    insert(model, one_block(precision), Calibration({PATH: AMAX}), ("SA-Q",))
    return to_fp32(model)


def awkward(rows: int, width: int) -> Tensor:
    """Numbers over eight decades, blocks of zeros, ties of both grids, and some beyond the calibrated range."""
    generator = torch.Generator().manual_seed(1)
    decades = 10.0 ** torch.randint(-6, 2, (rows, width), generator=generator)
    x = torch.randn(rows, width, generator=generator) * decades
    x[0] = 0.0
    ties = torch.arange(16) * AMAX / 12
    x[1, :16], x[1, 16:32] = ties, ties * fp8_scale(AMAX)
    x[2, :16] = AMAX * torch.linspace(-4, 4, 16)
    return x[None]


@pytest.mark.parametrize("precision", ROUNDED)
def test_inputs_are_rounded_bit_for_bit(precision: str, tmp_path: Path) -> None:
    x = awkward(40, 64)
    model = quantised(precision, torch.eye(64), rows=40)
    product = next(node for node in model.graph if node.name == PATH)
    model.graph.outputs.append(product.inputs[0])
    _, rounded = run(model, tmp_path, x)
    np.testing.assert_array_equal(rounded.numpy(), ROUNDED[precision](x).numpy())


@pytest.mark.parametrize("precision", ROUNDED)
def test_weights_are_the_packed_ones(precision: str, tmp_path: Path) -> None:
    weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(2))
    unit = AMAX * torch.eye(32)[None]
    (product,) = run(quantised(precision, weight, rows=32), tmp_path, unit)
    fake, _ = quantise_weight(weight, precision)
    np.testing.assert_array_equal(product[0].numpy(), AMAX * fake.T.numpy())


def test_nothing_narrow_is_left() -> None:
    model = quantised("nvfp4", torch.randn(32, 32).bfloat16(), rows=4)
    dtypes = {value.dtype for value in model.graph.initializers.values()}
    assert dtypes == {ir.DataType.FLOAT, ir.DataType.INT64}
    assert all(node.domain == "" for node in model.graph)
