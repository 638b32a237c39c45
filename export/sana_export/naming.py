"""Names of ONNX nodes: a Linear's product is called by its module path, any other node by where it is and what it is.

These names are the handles of a precision policy, and what an engine's layer table shows.
"""

import ast

import onnx_ir as ir
from torch import nn

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter notes the modules around a node, as a Python list: module paths, then the operator."""

PRODUCTS = ("MatMul", "Gemm")


def name_nodes(model: ir.Model, module: nn.Module, prefix: str = "") -> None:
    """Rename every node of `model`, exported from `module`; `prefix` is cut from the paths of its modules."""
    linears = {name for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    named = set()
    for node in model.graph:
        scope = _scope(node)
        path = scope.removeprefix(prefix)
        if node.op_type in PRODUCTS and scope in linears and path not in named:
            named.add(path)
            node.name = path
        else:
            # An operator of our own is found by its type; the exporter calls it after a function of torch.
            own = node.op_type if node.domain else str(node.name).removeprefix("node_")
            node.name = f"{path}/{own}" if path else own


def _scope(node: ir.Node) -> str:
    """Path of the innermost module around `node`; empty for what belongs to the whole graph."""
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    return str(scopes[-2]) if len(scopes) > 1 else ""
