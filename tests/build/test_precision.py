"""Every layer of a policy runs in its precision, or the build ends with the layer's name."""

import pytest

from sana_build.layer_table import EngineLayer
from sana_build.precision import GroupRow, Requested, check_precisions
from sana_runtime.errors import BuildError

WANTED = [
    Requested("blocks.0.attn.q", "SA-Q", "nvfp4"),
    Requested("blocks.0.attn.k", "SA-K", "nvfp4"),
    Requested("blocks.0.attn.v", "SA-V", "fp8"),
    Requested("blocks.1.attn.v", "SA-V", "fp8"),
]


def gemm(precision: str, *nodes: str) -> EngineLayer:
    return EngineLayer("+".join(nodes), "gemm", (precision, "fp32"), nodes)


LAYERS = [
    EngineLayer("quantise", "kgen", ("bf16",), ("blocks.0.attn.q", "blocks.0.attn.k")),
    gemm("nvfp4", "blocks.0.attn.q", "blocks.0.attn.k"),
    gemm("fp8", "blocks.0.attn.v"),
    gemm("fp8", "blocks.1.attn.v"),
]


def test_every_group_gets_a_row_and_a_merged_gemm_counts_once_in_each() -> None:
    assert check_precisions("denoiser/steady", LAYERS, WANTED) == [
        GroupRow("SA-Q", "nvfp4", 1, 1, 1),
        GroupRow("SA-K", "nvfp4", 1, 1, 1),
        GroupRow("SA-V", "fp8", 2, 2, 2),
    ]


def test_a_layer_that_fell_back_to_a_wider_type_is_named() -> None:
    layers = [*LAYERS[:3], gemm("bf16", "blocks.1.attn.v")]
    with pytest.raises(BuildError) as refused:
        check_precisions("denoiser/steady", layers, WANTED)
    assert str(refused.value) == (
        "denoiser/steady: blocks.1.attn.v (SA-V) runs in bf16 and the policy says fp8 (engine layer blocks.1.attn.v)"
    )


def test_a_layer_that_runs_narrower_than_asked_is_refused_too() -> None:
    with pytest.raises(BuildError, match=r"blocks\.0\.attn\.v \(SA-V\) runs in fp8 and the policy says bf16"):
        check_precisions("e", LAYERS, [Requested("blocks.0.attn.v", "SA-V", "bf16")])


def test_a_layer_that_only_part_of_the_engine_runs_in_its_precision_is_refused() -> None:
    with pytest.raises(BuildError, match="runs in bf16"):
        check_precisions("e", [*LAYERS, gemm("bf16", "blocks.0.attn.v")], WANTED)


def test_all_faults_are_counted_and_a_missing_layer_is_one() -> None:
    with pytest.raises(BuildError, match=r"comes from blocks\.0\.attn\.q \(SA-Q\).*\(3 more layers like it\)"):
        check_precisions("e", [], WANTED)
