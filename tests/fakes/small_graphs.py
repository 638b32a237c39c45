"""Hand-made graphs of Linears over one input; each reads its weight through a Transpose, as exported ones do."""

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.tape import Tape
from torch import Tensor

from sana_quant.groups import GROUPS
from sana_quant.policy import Policy


def linears(weights: Mapping[str, Tensor], rows: int = 3) -> ir.Model:
    """x f32 (1, rows, K) to one output f32 (1, rows, N) per Linear, by module path; weights (N, K) keep their dtype."""
    tape = Tape()
    width = next(iter(weights.values())).shape[1]
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, rows, width]))
    outputs, constants = [], []
    for path, weight in weights.items():
        tensor = ir.tensor(weight, name=f"{path}.weight")
        constant = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        transposed = tape.op("Transpose", [constant], {"perm": [1, 0]}, name=f"{path}/Transpose")
        shape = ir.Shape([1, rows, weight.shape[0]])
        output = ir.Value(name=f"{path}/y", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
        outputs.append(tape.op("MatMul", [x, transposed], name=path, output=output))
        constants.append(constant)
    graph = ir.Graph([x], outputs, nodes=tape.nodes, initializers=constants, opset_imports={"": 23}, name="linears")
    return ir.Model(graph, ir_version=11)


def one_block(precision: str, **groups: str) -> Policy:
    """A policy of one block: `precision` everywhere but in `groups`, whose names have _ for -."""
    named = {name.replace("_", "-"): value for name, value in groups.items()}
    return Policy("made", "made", "bf16", {group: (named.get(group, precision),) for group in GROUPS})
