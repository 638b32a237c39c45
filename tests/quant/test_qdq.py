"""Q/DQ nodes: what they are put on, what layers share, and what is refused."""

import onnx_ir as ir
import pytest
import torch

from fakes.small_graphs import linears, one_block
from sana_quant.calibration import Calibration
from sana_quant.qdq import insert, quantised_inputs
from sana_runtime.errors import BuildError

Q, K = "blocks.0.attn.q", "blocks.0.attn.k"
SHARED = ("SA-Q", "SA-K")


def weights(*paths: str, width: int = 32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {path: torch.randn(24, width, generator=generator) for path in paths}


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(("precision", "node"), [("fp8", "QuantizeLinear"), ("nvfp4", "TRT_FP4DynamicQuantize")])
def test_layers_that_read_one_tensor_share_its_quantiser(precision: str, node: str) -> None:
    model = linears(weights(Q, K))
    insert(model, one_block(precision), Calibration({Q: 3.0, K: 3.0}), SHARED)
    assert kinds(model).count(node) == 1
    apart = linears(weights(Q, K))
    insert(apart, one_block(precision), Calibration({Q: 3.0, K: 4.0}), SHARED)
    assert kinds(apart).count(node) == 2


def test_two_precisions_do_not_share() -> None:
    model = linears(weights(Q, K))
    insert(model, one_block("fp8", SA_K="nvfp4"), Calibration({Q: 3.0, K: 3.0}), SHARED)
    assert kinds(model).count("QuantizeLinear") == kinds(model).count("TRT_FP4DynamicQuantize") == 1


def test_layers_are_reported_with_their_precision_and_weight() -> None:
    model = linears(weights(Q, K))
    found = insert(model, one_block("bf16", SA_K="fp8"), Calibration({K: 1.0}), SHARED)
    assert [(layer.path, layer.group, layer.precision) for layer in found] == [(Q, "SA-Q", "bf16"), (K, "SA-K", "fp8")]
    assert {(layer.outputs, layer.inputs) for layer in found} == {(24, 32)}
    assert list(quantised_inputs(model)) == [K]


def test_a_packed_weight_replaces_the_wide_one() -> None:
    model = linears(weights(Q))
    insert(model, one_block("nvfp4"), Calibration({Q: 1.0}), ("SA-Q",))
    stored = {name: value.const_value for name, value in model.graph.initializers.items()}
    assert f"{Q}.weight" not in stored
    assert stored[f"{Q}/weight_codes"].dtype == ir.DataType.FLOAT4E2M1
    assert stored[f"{Q}/weight_codes"].nbytes == 24 * 32 // 2
    assert stored[f"{Q}/weight_scales"].shape == (24, 2)


def test_a_layer_that_is_not_in_the_graph_is_named() -> None:
    with pytest.raises(BuildError, match=r"names blocks\.0\.cross_attn\.proj, but the graph has no product"):
        insert(linears(weights(Q)), one_block("fp8"), Calibration({Q: 1.0}), ("SA-Q", "CA-O"))


def test_a_layer_without_a_range_is_named() -> None:
    with pytest.raises(BuildError, match=r"no entry for the layer blocks\.0\.attn\.k"):
        insert(linears(weights(Q, K)), one_block("fp8"), Calibration({Q: 1.0}), SHARED)


@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
def test_widths_that_do_not_split_into_blocks_are_refused(precision: str) -> None:
    with pytest.raises(BuildError, match="its 24 inputs are no multiple of 16"):
        insert(linears(weights(Q, width=24)), one_block(precision), Calibration({Q: 1.0}), ("SA-Q",))


def test_a_product_of_two_activations_is_no_layer() -> None:
    model = linears(weights(Q))
    product = next(node for node in model.graph if node.name == Q)
    product.replace_input_with(1, model.graph.inputs[0])
    with pytest.raises(BuildError, match="does not read a weight through a Transpose"):
        insert(model, one_block("fp8"), Calibration({Q: 1.0}), ("SA-Q",))
