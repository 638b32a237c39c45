"""Adding typed nodes and constants to an ONNX graph."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

FLOAT = ir.DataType.FLOAT
FP8 = ir.DataType.FLOAT8E4M3FN
FP4 = ir.DataType.FLOAT4E2M1


class NodeWriter:
    """Writes nodes in front of `anchor`; node and constant names start with `prefix`."""

    def __init__(self, graph: ir.Graph, anchor: ir.Node, prefix: str) -> None:
        self.graph, self.anchor, self.prefix = graph, anchor, prefix

    def op(
        self,
        kind: str,
        inputs: Sequence[ir.Value],
        name: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        **attributes: Any,
    ) -> ir.Value:
        """The output `name` of an operator that has one."""
        return self.node(kind, inputs, [(name, dtype, shape)], **attributes)[0]

    def node(
        self,
        kind: str,
        inputs: Sequence[ir.Value],
        outputs: Sequence[tuple[str, ir.DataType, Sequence[int]]],
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """The outputs (name, dtype, shape) of the operator `kind`; the first one also names the node."""
        values = [self._value(*output) for output in outputs]
        converted = ir.convenience.convert_attributes(attributes)
        node = ir.Node(domain, kind, inputs, converted, outputs=values, name=values[0].name)
        self.graph.insert_before(self.anchor, node)
        return node.outputs

    def constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        value = self._value(name, tensor.dtype, static(tensor.shape))
        value.const_value = tensor
        self.graph.initializers.add(value)
        return value

    def _value(self, name: str, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        return ir.Value(name=f"{self.prefix}/{name}", type=ir.TensorType(dtype), shape=ir.Shape(shape))


def operands(node: ir.Node) -> tuple[ir.Value, ...]:
    """The inputs of a node that leaves none out."""
    return tuple(value for value in node.inputs if value is not None)


def sizes(value: ir.Value) -> tuple[int, ...]:
    """The static shape of a value."""
    assert value.shape is not None, f"{value.name} has no shape"
    return static(value.shape)


def static(shape: ir.ShapeProtocol) -> tuple[int, ...]:
    return tuple(size for size in shape if isinstance(size, int))


def kind_of(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None, f"{value.name} has no type"
    return value.dtype


def float32(value: float) -> ir.TensorProtocol:
    """An FP32 scalar."""
    return ir.Tensor(np.array(value, np.float32))


def fp8(codes: Tensor) -> ir.TensorProtocol:
    """float8_e4m3fn codes as an ONNX tensor over the same memory."""
    return ir.Tensor(codes.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn))


def fp4(codes: Tensor) -> ir.TensorProtocol:
    """E2M1 codes uint8 (N, K / 2), two to a byte, as an ONNX tensor (N, K) over the same memory."""
    rows, pairs = codes.shape
    return ir.PackedTensor(codes.flatten().numpy(), FP4, shape=[rows, 2 * pairs])
