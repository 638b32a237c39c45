"""A GDN block at production width with our plugin in place of the native operators: one layer for the whole core."""

from pathlib import Path

import pytest

from sana_build.engine_jobs import requested
from sana_build.precision import check_precisions
from sana_build.stage_process import run_step
from sana_build.tensorrt_build import TensorRTPlan, build_plan
from sana_export.blocks import single_block
from sana_export.configs import SANA_STREAMING
from sana_quant.calibration import Calibration
from sana_quant.groups import layers
from sana_quant.policy import load_policy

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("triton")

SM = 120
GDN_BLOCK = single_block(SANA_STREAMING, "gdn")


def export_steady(path: Path) -> None:
    from sana_export.checkpoint import resolve
    from sana_export.engine_export import export_engine
    from sana_export.engine_graphs import engine_graphs

    calibration = Calibration({layer.path: 8.0 for layer in layers(1)})
    graphs = engine_graphs("denoiser", GDN_BLOCK, resolve("random:0", GDN_BLOCK), "plugin-bf16", (SM,))
    steady = next(graph for graph in graphs if graph.variant == "steady")
    export_engine(steady, path, load_policy("mpq", 1), calibration)


def build_with_plugin(graph: Path, plan: Path, log: Path) -> TensorRTPlan:
    from sana_kernels import plugin

    plugin.register()
    return build_plan(graph, plan, "tensorrt_rtx", (SM,), log)


def test_a_gdn_core_is_one_custom_layer_among_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests of the kernels set this, and an interpreted kernel cannot be compiled.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    graph = tmp_path / "graph.onnx"
    run_step("export", tmp_path / "export.log", export_steady, graph)
    files = graph, tmp_path / "engine.plan", tmp_path / "tensorrt.log"
    plan = run_step("compile", tmp_path / "compile.log", build_with_plugin, *files).value
    custom = [layer.nodes for layer in plan.layers if layer.type == "custom_layer"]
    assert custom == [("blocks.0.attn/SanaGDN",)]
    assert not any(node.startswith("blocks.0.attn/matmul") for layer in plan.layers for node in layer.nodes)
    rows = check_precisions("steady", plan.layers, requested(load_policy("mpq", 1), "steady", 1))
    assert sum(row.found for row in rows) == 9
