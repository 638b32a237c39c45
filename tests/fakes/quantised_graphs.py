"""Hand-made ONNX graphs with layers in chosen precisions, in the forms that TensorRT turns into low-precision GEMMs."""

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir import tape

ROWS = 256
TYPES = {
    "e4m3": (ml_dtypes.float8_e4m3fn, ir.DataType.FLOAT8E4M3FN),
    "bf16": (ml_dtypes.bfloat16, ir.DataType.BFLOAT16),
}


class GraphMaker:
    """Writes a graph of Linears over one input `x` f32 (1, ROWS, width)."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.tape = tape.Tape()
        self.x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, ROWS, width]))
        self.wide = self.tape.op("Cast", [self.x], {"to": ir.DataType.BFLOAT16})
        self.initialisers: list[ir.Value] = []
        self.random = np.random.default_rng(0)

    def constant(self, array: np.ndarray, kind: ir.DataType) -> ir.Value:
        name = f"constant_{len(self.initialisers)}"
        value = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(array.shape))
        value.const_value = ir.Tensor(array, dtype=kind, name=name)
        self.initialisers.append(value)
        return value

    def float32(self, value: float) -> ir.Value:
        return self.constant(np.array(value, np.float32), ir.DataType.FLOAT)

    def weight(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape, np.float32)

    def linear(self, path: str, precision: str, outputs: int) -> ir.Value:
        """The output, f32, of a Linear whose MatMul is called `path`."""
        left, right = getattr(self, precision)(outputs)
        product = self.tape.op("MatMul", [left, right], name=path)
        return self.tape.op("Cast", [product], {"to": ir.DataType.FLOAT})

    def bf16(self, outputs: int) -> tuple[ir.Value, ir.Value]:
        weight = self.weight(self.width, outputs).astype(ml_dtypes.bfloat16)
        return self.wide, self.constant(weight, ir.DataType.BFLOAT16)

    def fp8(self, outputs: int) -> tuple[ir.Value, ir.Value]:
        scale, to = self.float32(0.01), {"output_dtype": ir.DataType.BFLOAT16}
        zero = self.constant(np.zeros((), ml_dtypes.float8_e4m3fn), ir.DataType.FLOAT8E4M3FN)
        codes = self.tape.op("QuantizeLinear", [self.wide, scale, zero])
        left = self.tape.op("DequantizeLinear", [codes, scale, zero], to)
        weight = self.weight(self.width, outputs).astype(ml_dtypes.float8_e4m3fn)
        packed = self.constant(weight, ir.DataType.FLOAT8E4M3FN)
        return left, self.tape.op("DequantizeLinear", [packed, scale], to)

    def nvfp4(self, outputs: int) -> tuple[ir.Value, ir.Value]:
        return self._dynamic(), self._packed(outputs)

    def _dynamic(self) -> ir.Value:
        scale, blocks = self.float32(0.01), {"axis": -1, "block_size": 16}
        codes, scales = self.tape.op_multi_out(
            "TRT_FP4DynamicQuantize", [self.wide, scale], {**blocks, "scale_type": 17}, num_outputs=2, domain="trt"
        )
        return self._dequantised(codes, scales, scale)

    def _packed(self, outputs: int) -> ir.Value:
        codes = (self.weight(outputs, self.width) * 2).astype(ml_dtypes.float4_e2m1fn)
        scales = np.ones((outputs, self.width // 16), ml_dtypes.float8_e4m3fn)
        packed = self.constant(codes, ir.DataType.FLOAT4E2M1), self.constant(scales, ir.DataType.FLOAT8E4M3FN)
        return self.tape.op("Transpose", [self._dequantised(*packed, self.float32(0.01))], {"perm": [1, 0]})

    def _dequantised(self, codes: ir.Value, scales: ir.Value, scale: ir.Value) -> ir.Value:
        blocks = {"axis": -1, "block_size": 16}
        wide = self.tape.op("DequantizeLinear", [scales, scale])
        return self.tape.op(
            "Cast", [self.tape.op("DequantizeLinear", [codes, wide], blocks)], {"to": ir.DataType.BFLOAT16}
        )


def write_linears(path: Path, precisions: Mapping[str, str], width: int = 256, outputs: int = 256) -> Path:
    """A graph of one Linear per entry of `precisions`, module path -> precision; outputs are the paths with `.y`."""
    maker = GraphMaker(width)
    results = []
    for module, precision in precisions.items():
        value = maker.linear(module, precision, outputs)
        value.name = f"{module}.y"
        value.shape, value.type = ir.Shape([1, ROWS, outputs]), ir.TensorType(ir.DataType.FLOAT)
        results.append(value)
    graph = ir.Graph(
        [maker.x], results, nodes=maker.tape.nodes, initializers=maker.initialisers, opset_imports={"": 23, "trt": 1}
    )
    ir.save(ir.Model(graph, ir_version=11), path)
    return path
