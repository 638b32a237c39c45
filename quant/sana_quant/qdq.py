"""Quantise and dequantise nodes for the layers of a policy, in the forms that TensorRT turns into FP8 and FP4 products.

A layer is the MatMul that is called by its module path and reads its weight (N, K) through a Transpose.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from sana_quant.calibration import Calibration
from sana_quant.groups import CHUNK_GROUPS, GROUPS, Layer, layers
from sana_quant.numerics import BLOCK, fp8_scale, nvfp4_scale, nvfp4_weight_scale, pack_fp8, pack_nvfp4
from sana_quant.onnx_nodes import FLOAT, FP4, FP8, NodeWriter, float32, fp4, fp8, kind_of, operands, sizes
from sana_quant.policy import OUTSIDE, Policy
from sana_runtime.errors import BuildError, ConfigError

TRT_DOMAIN = "trt"
QUANTISERS = ("QuantizeLinear", "TRT_FP4DynamicQuantize")
BLOCK_AXIS: dict[str, Any] = {"axis": -1, "block_size": BLOCK}


@dataclass(frozen=True)
class QuantisedLayer:
    """A layer of the groups as it is in a graph: its path, group and precision, and the shape (N, K) of its weight."""

    path: str
    group: str
    precision: str
    outputs: int
    inputs: int


Quantised = dict[tuple[ir.Value, str, float], ir.Value]
"""A tensor quantised in a precision under a scale: layers that read one tensor share it."""


def insert(
    model: ir.Model, policy: Policy, calibration: Calibration, groups: Collection[str] = CHUNK_GROUPS
) -> tuple[QuantisedLayer, ...]:
    """Give every layer of `groups` in `model` the precision that `policy` names, in place; returns the layers.

    Weights are packed at once. Raises BuildError for a layer that is not in the graph or was not calibrated, and for
    one whose K is not a multiple of 16.
    """
    depth = len(policy.groups[next(iter(GROUPS))])
    products = {node.name: node for node in model.graph if node.op_type == "MatMul"}
    quantised: Quantised = {}
    found = []
    for layer in (layer for layer in layers(depth) if layer.group in groups):
        if layer.path not in products:
            raise BuildError(f"policy {policy.name} names {layer.path}, but the graph has no product of that name")
        precision = policy.precision(layer.group, layer.block)
        weight = weight_of(products[layer.path])
        outputs, inputs = weight.shape
        found.append(QuantisedLayer(layer.path, layer.group, precision, outputs, inputs))
        if precision not in OUTSIDE:
            amax = _calibrated(calibration, layer, precision, inputs)
            _convert(model.graph, products[layer.path], precision, weight, amax, quantised)
    model.opset_imports[TRT_DOMAIN] = 1
    return tuple(found)


def quantised_inputs(model: ir.Model) -> dict[str, ir.Value]:
    """What every quantised layer of a model reads before it is rounded, by the path of the layer."""
    found = {}
    for node in model.graph:
        source = operands(node)[0].producer() if node.op_type == "MatMul" else None
        while source is not None and source.op_type in ("Cast", "DequantizeLinear"):
            source = operands(source)[0].producer()
        if source is not None and source.op_type in QUANTISERS:
            found[str(node.name)] = operands(source)[0]
    return found


def weight_of(product: ir.Node) -> Tensor:
    """The weight (N, K) of a layer's product, without a copy where the graph holds a torch tensor."""
    transpose = operands(product)[1].producer()
    weight = operands(transpose)[0] if transpose is not None and transpose.op_type == "Transpose" else None
    if weight is None or weight.const_value is None:
        raise BuildError(f"the product {product.name} does not read a weight through a Transpose: export it again")
    raw = getattr(weight.const_value, "raw", None)
    if isinstance(raw, Tensor):
        return raw.detach()
    return torch.from_numpy(weight.const_value.numpy().astype(np.float32))


def _calibrated(calibration: Calibration, layer: Layer, precision: str, inputs: int) -> float:
    if inputs % BLOCK:
        raise BuildError(f"{layer.path} cannot run in {precision}: its {inputs} inputs are no multiple of {BLOCK}")
    try:
        return calibration.of(layer.path)
    except ConfigError as error:
        raise BuildError(str(error)) from error


def _convert(
    graph: ir.Graph, product: ir.Node, precision: str, weight: Tensor, amax: float, quantised: Quantised
) -> None:
    """Make `product` read its input and its weight quantised."""
    writer, recipe = NodeWriter(graph, product, str(product.name)), RECIPES[precision]
    x, transposed = operands(product)
    key = x, precision, recipe.scale(amax)
    if key not in quantised:
        quantised[key] = recipe.activation(writer, x, key[2])
    product.replace_input_with(0, quantised[key])
    product.replace_input_with(1, recipe.weight(writer, weight, kind_of(x)))
    transpose = transposed.producer()
    assert transpose is not None
    (wide,) = operands(transpose)
    graph.remove(transpose, safe=True)
    del graph.initializers[str(wide.name)]


def _fp8_input(writer: NodeWriter, x: ir.Value, scale: float) -> ir.Value:
    step = writer.constant("input_scale", float32(scale))
    zero = writer.constant("zero", fp8(torch.zeros((), dtype=torch.float8_e4m3fn)))
    codes = writer.op("QuantizeLinear", [x, step, zero], "input_codes", FP8, sizes(x))
    return writer.op("DequantizeLinear", [codes, step, zero], "input", kind_of(x), sizes(x), output_dtype=kind_of(x))


def _fp8_weight(writer: NodeWriter, weight: Tensor, dtype: ir.DataType) -> ir.Value:
    scale = fp8_scale(float(weight.abs().max()))
    codes = writer.constant("weight_codes", fp8(pack_fp8(weight, scale).t().contiguous()))
    step = writer.constant("weight_scale", float32(scale))
    return writer.op("DequantizeLinear", [codes, step], "weight", dtype, sizes(codes), output_dtype=dtype)


def _nvfp4_input(writer: NodeWriter, x: ir.Value, scale: float) -> ir.Value:
    step = writer.constant("input_scale", float32(scale))
    *rest, width = sizes(x)
    codes, scales = writer.node(
        "TRT_FP4DynamicQuantize",
        [x, step],
        [("input_codes", FP4, (*rest, width)), ("input_scales", FP8, (*rest, width // BLOCK))],
        TRT_DOMAIN,
        scale_type=int(FP8),
        **BLOCK_AXIS,
    )
    return _dequantised(writer, "input", codes, scales, step, kind_of(x))


def _nvfp4_weight(writer: NodeWriter, weight: Tensor, dtype: ir.DataType) -> ir.Value:
    packed = pack_nvfp4(weight, nvfp4_weight_scale(float(weight.abs().max())))
    codes = writer.constant("weight_codes", fp4(packed.codes))
    scales = writer.constant("weight_scales", fp8(packed.scales))
    step = writer.constant("weight_scale", float32(packed.scale))
    wide = _dequantised(writer, "weight", codes, scales, step, dtype)
    return writer.op("Transpose", [wide], "weight_transposed", dtype, sizes(codes)[::-1], perm=[1, 0])


def _dequantised(
    writer: NodeWriter, name: str, codes: ir.Value, scales: ir.Value, step: ir.Value, dtype: ir.DataType
) -> ir.Value:
    steps = writer.op("DequantizeLinear", [scales, step], f"{name}_steps", FLOAT, sizes(scales))
    wide = writer.op("DequantizeLinear", [codes, steps], f"{name}_float", FLOAT, sizes(codes), **BLOCK_AXIS)
    # TensorRT does not take a block-wise DequantizeLinear from FP32 scales to BF16.
    return writer.op("Cast", [wide], name, dtype, sizes(codes), to=dtype)


@dataclass(frozen=True)
class Recipe:
    """How a precision is written: the scale of a calibrated maximum, and the nodes for an input and for a weight."""

    scale: Callable[[float], float]
    activation: Callable[[NodeWriter, ir.Value, float], ir.Value]
    weight: Callable[[NodeWriter, Tensor, ir.DataType], ir.Value]


RECIPES = {
    "fp8": Recipe(fp8_scale, _fp8_input, _fp8_weight),
    "nvfp4": Recipe(nvfp4_scale, _nvfp4_input, _nvfp4_weight),
}
