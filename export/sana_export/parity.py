"""A graph for TensorRT against the fake-quantised PyTorch model, on a CPU, layer by layer.

Rounding amplifies the last digit in which two libraries differ: a number between two codes falls to the other side, and
after a few quantised layers the difference is as large as the quantisation itself. So every quantised layer of the
PyTorch model takes the graph's own input, and how far its own was from that is part of the result.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
import torch
from torch import Tensor, nn

from sana_export.blocks import single_block
from sana_export.compare import relative_error
from sana_export.configs import ModelConfig
from sana_export.dit import DiT
from sana_export.engine_export import PREFIXES, engine_model
from sana_export.graphs import Graph, denoiser_graphs
from sana_quant.calibration import Calibration
from sana_quant.fake import fake_quantised
from sana_quant.groups import CHUNK_GROUPS, GROUPS, PROMPT_GROUPS
from sana_quant.lower import to_fp32
from sana_quant.policy import Policy
from sana_quant.qdq import insert, quantised_inputs


@dataclass(frozen=True)
class Part:
    """A transformer in BF16 that is measured: a whole one, or one block of it; `block` is its number there."""

    model: ModelConfig
    dit: DiT
    block: int | None = None

    def policy(self, whole: Policy) -> Policy:
        """What the policy of the whole transformer says about this part."""
        if self.block is None:
            return whole
        return replace(whole, groups={group: (blocks[self.block],) for group, blocks in whole.groups.items()})

    def calibration(self, whole: Calibration) -> Calibration:
        """The ranges of this part; a layer without one is left out."""
        if self.block is None:
            return whole
        paths = {f"blocks.0.{module}": f"blocks.{self.block}.{module}" for module in GROUPS.values()}
        return Calibration({own: whole.amax[path] for own, path in paths.items() if path in whole.amax})


def block_of(model: ModelConfig, dit: DiT, block: int) -> Part:
    """Block number `block` of `dit` as a transformer of its own, between the embedders and the head of `dit`."""
    alone = single_block(model, "softmax" if block in model.dit.softmax_blocks else "gdn")
    with torch.device("meta"):
        part = DiT(alone.dit)
    for name, child in dit.named_children():
        setattr(part, name, child)
    part.blocks = nn.ModuleList([dit.blocks[block]])
    return Part(alone, part, block)


def measure(
    part: Part, policies: Sequence[Policy], calibration: Calibration
) -> Iterator[tuple[Policy, str, dict[str, float]]]:
    """Every variant of a part's graph under policies of the whole transformer, and what `compare` says of it."""
    config, ranges = part.model.dit, part.calibration(calibration)
    text = torch.randn(1, config.text_tokens, config.caption_width, generator=torch.Generator().manual_seed(0))
    # No padding: -10000, for keys that must not be seen, is -9984 in BF16, and their weight is zero either way.
    example = part.model, text, torch.ones(1, config.text_tokens)
    models = {graph.variant: engine_model(graph) for graph in denoiser_graphs(part.dit, *example, Graph.outline)}
    wide = deepcopy(part.dit).float()
    for policy in policies:
        own, outputs = part.policy(policy), Outputs()
        for graph in denoiser_graphs(fake_quantised(wide, own, ranges), *example, outputs.of):
            model = models[graph.variant].clone()
            insert(model, own, ranges, PROMPT_GROUPS if graph.variant == "prompt" else CHUNK_GROUPS)
            errors, outputs.known[graph.variant] = compare(graph, model)
            yield policy, graph.variant, errors


@dataclass(frozen=True)
class Outputs:
    """What graphs computed while they were compared, which later graphs take their example inputs from."""

    known: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def of(self, graph: Graph) -> dict[str, Tensor]:
        return self.known[graph.variant]


def compare(graph: Graph, model: ir.Model) -> tuple[dict[str, float], dict[str, Tensor]]:
    """max|a-b|/max|b| of every output of `graph`, and of the input of every quantised layer under the layer's path.

    `graph` is an FP32 PyTorch graph whose transformer is fake-quantised, and its outputs are returned too; `model` is
    the same graph exported in BF16 and quantised, which is lowered in place.
    """
    layers = quantised_inputs(model)
    named = {value.name: value for value in layers.values()}
    model.graph.outputs.extend(value for value in named.values() if value not in model.graph.outputs)
    found = _run(to_fp32(model), graph)
    inputs = {path: found[str(value.name)] for path, value in layers.items()}
    with _fed(graph.module, PREFIXES[graph.stage], inputs) as errors:
        wanted = graph.run()
    return errors | {name: relative_error(found[name], tensor) for name, tensor in wanted.items()}, wanted


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
