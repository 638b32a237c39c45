"""Graphs to ONNX files (dynamo exporter, opset 23), and how far an engine is from PyTorch."""

import logging
import warnings
from pathlib import Path

import onnx_ir as ir
import torch

from sana_export.compare import pixel_error, relative_error
from sana_export.graphs import Graph
from sana_runtime.engine import Engine
from sana_runtime.errors import BuildError

OPSET = 23
EXTERNAL_DATA_BYTES = 1 << 30
"""Weights beyond this go to a file beside the ONNX file: protobuf cannot hold 2 GiB."""

FLOAT_LIMIT = 1e-4
PIXEL_LIMIT = 1 / 255


def export(graph: Graph, path: Path) -> None:
    """Write `graph` as an ONNX file with static shapes; raises BuildError naming the stage variant."""
    model = trace(graph)
    strip_metadata(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    external = f"{path.name}.data" if _weight_bytes(model) > EXTERNAL_DATA_BYTES else None
    ir.save(model, path, external_data=external)


def trace(graph: Graph, optimize: bool = True) -> ir.Model:
    """`graph` as an ONNX model whose weights are the module's own; raises BuildError naming the stage variant.

    Optimised, constants are folded: among them the transposed weights of all Linears, which copies them.
    """
    try:
        return _exported(graph, optimize).model
    except Exception as error:
        raise BuildError(f"{graph.stage}/{graph.variant} cannot be exported to ONNX: {error}") from error


def _exported(graph: Graph, optimize: bool) -> torch.onnx.ONNXProgram:
    # It warns at every export that torchvision, which nothing here uses, is not installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.module,
            tuple(graph.inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            verbose=False,
            optimize=optimize,
        )
    assert program is not None
    return program


def strip_metadata(model: ir.Model) -> None:
    """Drop what the exporter noted per node and value: it holds source paths of the building machine."""
    model.metadata_props.clear()
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        body.metadata_props.clear()
        for node in ir.traversal.RecursiveGraphIterator(body):
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def measure(graph: Graph, engine: Engine) -> dict[str, float]:
    """max|a-b|/max|b| of every output, engine against PyTorch (uint8 outputs: max|a-b|/255).

    Raises BuildError naming the output that is too far off.
    """
    served = engine.run({name: tensor.numpy() for name, tensor in graph.inputs.items()})
    errors = {}
    for name, wanted in graph.run().items():
        compare, limit = (pixel_error, PIXEL_LIMIT) if wanted.dtype == torch.uint8 else (relative_error, FLOAT_LIMIT)
        errors[name] = compare(torch.from_numpy(served[name]), wanted)
        if not errors[name] <= limit:
            raise BuildError(
                f"{graph.stage}/{graph.variant}: output {name} of the engine is {errors[name]:.2e} away from "
                f"PyTorch (limit {limit:.1e}); the engine is not written"
            )
    return errors
