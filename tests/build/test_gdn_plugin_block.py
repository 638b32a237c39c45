"""A GDN block at production width with our plugin in place of the native operators: one layer for the whole core."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sana_build.engine_jobs import EngineJob, requested
from sana_build.gdn_plugin import build_plan_with_plugin, check_cores
from sana_build.precision import GroupRow, check_precisions
from sana_build.stage_process import run_step
from sana_export.blocks import single_block
from sana_export.configs import SANA_STREAMING
from sana_kernels.node import HEADER, Program
from sana_quant.calibration import Calibration
from sana_quant.groups import layers
from sana_quant.policy import load_policy

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("triton")

GDN_BLOCK = single_block(SANA_STREAMING, "gdn")
CORE = "blocks.0.attn/SanaGDN"
BUILDS = {"mpq": (120, 121), "fp8": (89,), "bf16": (86,)}
"""Policies, and the architectures that are built for in each."""


def export_steady(folder: Path) -> None:
    """One graph per policy, from weights that are made once."""
    from sana_export.checkpoint import resolve
    from sana_export.engine_export import export_engine
    from sana_export.engine_graphs import engine_graphs, write_gdn_as

    calibration = Calibration({layer.path: 8.0 for layer in layers(1)})
    graphs = engine_graphs("denoiser", GDN_BLOCK, resolve("random:0", GDN_BLOCK))
    steady = next(graph for graph in graphs if graph.variant == "steady")
    for name, sms in BUILDS.items():
        write_gdn_as("plugin-bf16", sms, steady.module)
        export_engine(steady, folder / name / "graph.onnx", load_policy(name, 1), calibration)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("plugin")
    run_step("export", folder / "export.log", export_steady, folder)
    yield folder
    shutil.rmtree(folder)


def programs(plan: Path) -> list[Program]:
    """The kernels that an engine file holds; the builder may leave a copy more in it."""
    data = plan.read_bytes()
    start, found = data.find(b'{"precision"'), []
    while start >= 0:
        found.append(Program.unpack(data[start - HEADER :]))
        start = data.find(b'{"precision"', start + 1)
    return found


@pytest.mark.parametrize("name", BUILDS)
def test_a_gdn_core_is_one_custom_layer_among_its_neighbours(
    graphs: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tests of the kernels set this, and an interpreted kernel cannot be compiled.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    folder, policy, sms = graphs / name, load_policy(name, 1), BUILDS[name]
    files = folder / "graph.onnx", folder / "engine.plan", "tensorrt_rtx", sms, folder / "tensorrt.log"
    plan = run_step("compile", folder / "compile.log", build_plan_with_plugin, *files).value
    job = EngineJob("denoiser", "steady", "steady", policy, sms, (), "plugin-bf16", (CORE,))
    assert check_cores("steady", plan.layers, job) == [GroupRow("GDN core", "plugin-bf16", 1, 1, 0)]
    assert not any(node.startswith("blocks.0.attn/matmul") for layer in plan.layers for node in layer.nodes)
    rows = check_precisions("steady", plan.layers, requested(policy, "steady", 1))
    assert sum(row.found for row in rows) == 9
    assert {(program.precision, tuple(program.cubins)) for program in programs(folder / "engine.plan")} == {
        ("bf16", sms)
    }
