"""The layer table of an engine, from lines in the form that TensorRT-RTX 1.7 logs them."""

import pytest

from sana_build.layer_table import EngineLayer, gemm_counts, kernels, parse_layers, products_of
from sana_runtime.errors import BuildError


def tensor(name: str, dtype: str) -> str:
    return (
        f"{{ Name: {name}, Dimensions: [1,256,256], Strides: [65536,256,1], StrideOrder: [2,1,0], "
        f"Datatype: {dtype}, Format: (Linear) Row major linear format }}"
    )


def line(name: str, kind: str, inputs: list[str], nodes: list[str]) -> str:
    read = ", ".join(tensor(f"t{index}", dtype) for index, dtype in enumerate(inputs))
    metadata = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {read} ], Constants: [ {tensor('c', 'Float')} ], "
        f"Outputs: [ {tensor('y', 'BFloat16')} ], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: {metadata}"
    )


TABLE = "\n".join(
    [
        "Layers:",
        line("quantise", "kgen", ["BFloat16"], ["blocks.0.attn.q", "blocks.0.attn.k", "TRT_FP4DynamicQuantize_3"]),
        line("k+q", "gemm", ["FP4E2M1", "FP8"], ["blocks.0.attn.k", "Transpose_1", "blocks.0.attn.q"]),
        line("wait_1", "wait", [], []),
        line("fused", "runtime_fusion", ["BFloat16"], ["blocks.0.attn.output_gate", "Add_2"]),
        "Bindings:",
        "x",
    ]
)


def test_a_logged_table_is_read_layer_by_layer() -> None:
    quantise, merged, _, fused = parse_layers(["Engine generation completed", TABLE])
    assert merged == EngineLayer("k+q", "gemm", ("nvfp4", "fp8"), ("blocks.0.attn.k", "Transpose_1", "blocks.0.attn.q"))
    assert (quantise.multiplies, merged.multiplies, fused.multiplies) == (False, True, True)
    assert fused.inputs == ("bf16",)


def test_the_product_of_a_node_is_the_layer_that_multiplies_and_not_the_one_that_quantises() -> None:
    layers = parse_layers([TABLE])
    assert [layer.name for layer in products_of(layers, "blocks.0.attn.q")] == ["k+q"]
    assert products_of(layers, "blocks.0.attn") == []


def test_products_are_counted_by_precision_and_a_merged_one_once() -> None:
    assert gemm_counts(parse_layers([TABLE])) == {"bf16": 1, "nvfp4": 1}


def test_waiting_is_no_kernel() -> None:
    assert [layer.name for layer in kernels(parse_layers([TABLE]))] == ["quantise", "k+q", "fused"]


def test_a_log_without_a_table_is_refused() -> None:
    with pytest.raises(BuildError, match="logged no layer table"):
        parse_layers(["Engine generation completed"])
