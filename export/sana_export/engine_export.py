"""Graphs to the ONNX files that TensorRT builds engines from: BF16, named nodes, and a policy's layers quantised."""

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import Sequential, common
from onnxscript.optimizer import fold_constants

from sana_export.graphs import Graph
from sana_export.naming import name_nodes
from sana_export.onnx_export import strip_metadata, trace
from sana_quant.calibration import Calibration
from sana_quant.groups import CHUNK_GROUPS, PROMPT_GROUPS
from sana_quant.policy import Policy
from sana_quant.qdq import QuantisedLayer, insert

PREFIXES = {"text_encoder": "model.", "vae_encoder": "encoder.", "denoiser": "dit.", "vae_decoder": "decoder."}
"""Where a stage's graph module holds the part that module paths start in."""


CLEANING = (
    common.RemoveUnusedNodesPass(),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.CommonSubexpressionEliminationPass(),
    common.NameFixPass(),
)
"""What is left of the exporter's own optimisation: its rewrite rules take minutes on a whole transformer."""


def engine_model(graph: Graph) -> ir.Model:
    """`graph` as an ONNX model with named nodes; every Linear reads its own weight (N, K) through a Transpose.

    Raises BuildError naming the stage variant.
    """
    model = trace(graph, optimize=False)
    # A folded Transpose would hold every weight a second time; engines fold it while they are built.
    fold_constants(model, should_fold=lambda node: False if node.op_type == "Transpose" else None)
    Sequential(*CLEANING)(model)
    name_nodes(model, graph.module, PREFIXES[graph.stage])
    strip_metadata(model)
    return model


def export_engine(
    graph: Graph,
    path: Path,
    policy: Policy | None = None,
    calibration: Calibration | None = None,
    model: ir.Model | None = None,
) -> tuple[QuantisedLayer, ...]:
    """Write `graph` for TensorRT, weights in a `.data` file beside it; returns its layers that a policy is about.

    Those are all in the denoiser. `model` is its engine_model, if that is at hand; it is left as it is. Raises
    BuildError naming the stage variant, or the layer that cannot be quantised.
    """
    model = engine_model(graph) if model is None else model.clone()
    found: tuple[QuantisedLayer, ...] = ()
    if graph.stage == "denoiser" and policy is not None:
        groups = PROMPT_GROUPS if graph.variant == "prompt" else CHUNK_GROUPS
        found = insert(model, policy, calibration or Calibration({}), groups)
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path, external_data=f"{path.name}.data")
    return found
