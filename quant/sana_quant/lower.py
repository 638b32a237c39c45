"""A graph for TensorRT as one that onnxruntime runs on a CPU: rounded to FP8 and FP4 as before, and FP32 elsewhere.

Numbers of every narrow type become FP32 numbers on its grid; what BF16 rounds between operators is not modelled.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from sana_quant.numerics import BLOCK, E2M1_MAX
from sana_quant.onnx_nodes import FLOAT, FP4, FP8, NodeWriter, float32, operands, sizes
from sana_quant.qdq import TRT_DOMAIN

NARROW = (ir.DataType.BFLOAT16, FP8, FP4)

E2M1_STEPS = ((4.0, 1.0), (2.0, 0.5))
"""Below a magnitude, the distance between two E2M1 numbers; it is 2 above all of them."""

BOOL = ir.DataType.BOOL


def to_fp32(model: ir.Model) -> ir.Model:
    """`model`, changed in place to compute in FP32; inputs and outputs that were BF16 are FP32."""
    for value in model.graph.initializers.values():
        _widen_constant(value)
    for node in model.graph:
        _widen_attributes(node)
        for value in node.outputs:
            _widen_type(value)
    for value in model.graph.inputs:
        _widen_type(value)
    for node in list(model.graph):
        if node.op_type in LOWERINGS:
            _replace(model.graph, node)
    model.opset_imports.pop(TRT_DOMAIN, None)
    return model


def _widen_constant(value: ir.Value) -> None:
    if value.dtype in NARROW and value.const_value is not None:
        value.const_value = ir.Tensor(value.const_value.numpy().astype(np.float32), name=value.name)
        _widen_type(value)


def _widen_type(value: ir.Value) -> None:
    if value.dtype in NARROW:
        value.type = ir.TensorType(FLOAT)


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if name in ("to", "output_dtype", "dtype") and ir.DataType(attribute.as_int()) in NARROW:
            node.attributes[name] = ir.AttrInt64(name, int(FLOAT))


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    writer = NodeWriter(graph, node, f"{node.name}/fp32")
    results = LOWERINGS[node.op_type](writer, node)
    for old, new in zip(node.outputs, results, strict=True):
        ir.convenience.replace_all_uses_with(old, new)
    graph.remove(node, safe=True)


def _quantize(writer: NodeWriter, node: ir.Node) -> tuple[ir.Value, ...]:
    """Of a tensor to FP8: codes as FP32."""
    x, step, _ = operands(node)
    return (_e4m3(writer, "codes", writer.op("Div", [x, step], "scaled", FLOAT, sizes(x))),)


def _dequantize(writer: NodeWriter, node: ir.Node) -> tuple[ir.Value, ...]:
    """Codes as FP32 times one scale, or times a scale per block of 16 along the last axis."""
    codes, step, *_ = operands(node)
    if "block_size" not in node.attributes:
        return (writer.op("Mul", [codes, step], "wide", FLOAT, sizes(codes)),)
    blocks = _split(writer, "codes", codes)
    steps = writer.op("Unsqueeze", [step, _last_axis(writer)], "steps", FLOAT, (*sizes(step), 1))
    wide = writer.op("Mul", [blocks, steps], "wide_blocks", FLOAT, sizes(blocks))
    return (_reshape(writer, "wide", wide, sizes(codes)),)


def _dynamic_quantize(writer: NodeWriter, node: ir.Node) -> tuple[ir.Value, ...]:
    """Of a tensor to FP4: codes and the E4M3 scale of every block of 16, both as FP32."""
    x, unit = operands(node)
    blocks = _split(writer, "x", x)
    *outer, _ = shape = sizes(blocks)
    one = *outer, 1
    magnitudes = writer.op("Abs", [blocks], "magnitudes", FLOAT, shape)
    largest = writer.op("ReduceMax", [magnitudes, _last_axis(writer)], "largest", FLOAT, one, keepdims=1)
    sixth = writer.op("Div", [largest, writer.constant("six", float32(E2M1_MAX))], "sixth", FLOAT, one)
    scales = _e4m3(writer, "scales", writer.op("Div", [sixth, unit], "relative", FLOAT, one))
    steps = writer.op("Mul", [scales, unit], "steps", FLOAT, one)
    # A block whose scale rounds to zero is zero as a whole.
    empty = writer.op("Equal", [steps, writer.constant("nothing", float32(0.0))], "empty", BOOL, one)
    infinity = writer.constant("infinity", float32(np.inf))
    divisors = writer.op("Where", [empty, infinity, steps], "divisors", FLOAT, one)
    codes = _e2m1(writer, writer.op("Div", [blocks, divisors], "scaled", FLOAT, shape))
    return _reshape(writer, "codes", codes, sizes(x)), _reshape(writer, "block_scales", scales, tuple(outer))


def _e4m3(writer: NodeWriter, name: str, x: ir.Value) -> ir.Value:
    """The nearest E4M3 number."""
    codes = writer.op("Cast", [x], f"{name}_e4m3", FP8, sizes(x), to=FP8, saturate=1)
    return writer.op("Cast", [codes], name, FLOAT, sizes(x), to=FLOAT)


def _e2m1(writer: NodeWriter, x: ir.Value) -> ir.Value:
    """The nearest E2M1 number."""
    shape = sizes(x)
    bounds = [writer.constant(name, float32(value)) for name, value in (("low", -E2M1_MAX), ("high", E2M1_MAX))]
    inside = writer.op("Clip", [x, *bounds], "inside", FLOAT, shape)
    magnitude = writer.op("Abs", [inside], "magnitude", FLOAT, shape)
    step = writer.constant("coarse", float32(2.0))
    for limit, fine in E2M1_STEPS:
        bound, narrow = (
            writer.constant(f"limit_{limit}", float32(limit)),
            writer.constant(f"fine_{limit}", float32(fine)),
        )
        small = writer.op("Less", [magnitude, bound], f"below_{limit}", BOOL, shape)
        step = writer.op("Where", [small, narrow, step], f"step_{limit}", FLOAT, shape)
    counts = writer.op("Div", [inside, step], "counts", FLOAT, shape)
    rounded = writer.op("Round", [counts], "rounded", FLOAT, shape)
    return writer.op("Mul", [rounded, step], "e2m1", FLOAT, shape)


def _split(writer: NodeWriter, name: str, x: ir.Value) -> ir.Value:
    """(..., K) to (..., K / 16, 16)."""
    *outer, width = sizes(x)
    return _reshape(writer, f"{name}_blocks", x, (*outer, width // BLOCK, BLOCK))


def _reshape(writer: NodeWriter, name: str, x: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    target = writer.constant(f"{name}_shape", ir.Tensor(np.array(shape, np.int64)))
    return writer.op("Reshape", [x, target], name, FLOAT, shape)


def _last_axis(writer: NodeWriter) -> ir.Value:
    return writer.constant("last", ir.Tensor(np.array([-1], np.int64)))


LOWERINGS: dict[str, Callable[[NodeWriter, ir.Node], tuple[ir.Value, ...]]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "TRT_FP4DynamicQuantize": _dynamic_quantize,
}
