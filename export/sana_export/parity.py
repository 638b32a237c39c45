"""A graph for TensorRT against the fake-quantised PyTorch model, on a CPU, layer by layer.

Rounding amplifies the last digit in which two libraries differ: a number between two codes falls to the other side, and
after a few quantised layers the difference is as large as the quantisation itself. So every quantised layer of the
PyTorch model takes the graph's own input, and how far its own was from that is part of the result.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
import torch
from torch import Tensor, nn

from sana_export.compare import relative_error
from sana_export.engine_export import PREFIXES
from sana_export.graphs import Graph
from sana_quant.lower import to_fp32
from sana_quant.qdq import quantised_inputs


def parity(graph: Graph, model: ir.Model) -> dict[str, float]:
    """max|a-b|/max|b| of every output of `graph`, and of the input of every quantised layer under the layer's path.

    `graph` is an FP32 PyTorch graph whose transformer is fake-quantised; `model` is the same graph exported in BF16
    and quantised, which is lowered in place.
    """
    layers = quantised_inputs(model)
    named = {value.name: value for value in layers.values()}
    model.graph.outputs.extend(value for value in named.values() if value not in model.graph.outputs)
    found = _run(to_fp32(model), graph)
    inputs = {path: found[str(value.name)] for path, value in layers.items()}
    with _fed(graph.module, PREFIXES[graph.stage], inputs) as errors:
        wanted = graph.run()
    return errors | {name: relative_error(found[name], tensor) for name, tensor in wanted.items()}


def _run(model: ir.Model, graph: Graph) -> dict[str, Tensor]:
    """Every output of a lowered model on the inputs of `graph`, by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # As written: fused, the two casts around a rounding to FP8 may go.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with TemporaryDirectory() as folder:
        path = Path(folder) / "lowered.onnx"
        ir.save(model, path, external_data="lowered.data")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {name: tensor.numpy() for name, tensor in graph.inputs.items()})
    return {node.name: torch.from_numpy(array) for node, array in zip(session.get_outputs(), outputs, strict=True)}


@contextmanager
def _fed(module: nn.Module, prefix: str, inputs: dict[str, Tensor]) -> Iterator[dict[str, float]]:
    """Give the layers at the paths of `inputs` these inputs; yields how far their own ones are from them."""
    errors: dict[str, float] = {}
    with ExitStack() as stack:
        for path, given in inputs.items():
            layer = module.get_submodule(prefix + path)
            stack.callback(layer.register_forward_pre_hook(_feed(errors, path, given)).remove)
        yield errors


def _feed(errors: dict[str, float], path: str, given: Tensor) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    def hook(_: nn.Module, own: tuple[Tensor]) -> tuple[Tensor]:
        errors[path] = relative_error(given, own[0])
        return (given,)

    return hook
