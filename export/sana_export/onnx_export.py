"""Graphs to ONNX files (dynamo exporter, opset 23), and how far onnxruntime is from PyTorch on each of them."""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from sana_export.graphs import Graph
from sana_runtime.engine import load_engine
from sana_runtime.errors import BuildError

OPSET = 23
EXTERNAL_DATA_BYTES = 1 << 30
"""Weights beyond this go to a file beside the ONNX file: protobuf cannot hold 2 GiB."""

FLOAT_LIMIT = 1e-4
PIXEL_LIMIT = 1 / 255


def export(graph: Graph, path: Path) -> None:
    """Write `graph` as an ONNX file with static shapes; raises BuildError naming the stage variant."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        program = _trace(graph)
    except Exception as error:
        raise BuildError(f"{graph.stage}/{graph.variant} cannot be exported to ONNX: {error}") from error
    strip_metadata(program.model)
    external = f"{path.name}.data" if _weight_bytes(program.model) > EXTERNAL_DATA_BYTES else None
    ir.save(program.model, path, external_data=external)


def _trace(graph: Graph) -> torch.onnx.ONNXProgram:
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


def measure(graph: Graph, path: Path, threads: int) -> dict[str, float]:
    """max|a-b|/max|b| of every output, onnxruntime against PyTorch (uint8 outputs: max|a-b|/255).

    Raises BuildError naming the output that is too far off.
    """
    engine = load_engine("onnxruntime", path, threads)
    served = engine.run({name: tensor.numpy() for name, tensor in graph.inputs.items()})
    errors = {}
    for name, tensor in graph.run().items():
        errors[name] = relative_error(served[name], tensor.numpy())
        limit = PIXEL_LIMIT if tensor.dtype == torch.uint8 else FLOAT_LIMIT
        if not errors[name] <= limit:
            raise BuildError(
                f"{graph.stage}/{graph.variant}: output {name} of the ONNX graph is {errors[name]:.2e} away from "
                f"PyTorch (limit {limit:.1e}); the engine is not written"
            )
    return errors


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """max|a-b| / max|b|; for uint8, max|a-b| / 255."""
    difference = float(np.max(np.abs(found.astype(np.float64) - wanted.astype(np.float64))))
    scale = 255.0 if wanted.dtype == np.uint8 else float(np.max(np.abs(wanted)))
    return difference / scale if scale else difference
