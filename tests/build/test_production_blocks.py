"""One GDN and one softmax block at production width, for every architecture in the precisions that it runs."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sana_build.engine_jobs import requested
from sana_build.layer_table import EngineLayer, kernels
from sana_build.precision import check_precisions
from sana_build.stage_process import run_step
from sana_build.tensorrt_build import TensorRTPlan, build_plan
from sana_export.configs import SANA_STREAMING, DiTConfig
from sana_quant.calibration import Calibration
from sana_quant.groups import layers
from sana_quant.policy import load_policy

pytest.importorskip("tensorrt_rtx")

GDN = 0
BLOCKS = replace(SANA_STREAMING, name="blocks", dit=DiTConfig(depth=2, softmax_ratio=0.5))
"""The production model cut to its first GDN and a softmax block: width, frames and window as released."""

MOST_KERNELS_PER_GDN_CORE = 20


BUILDS = {"mpq": (120, 121), "fp8": (89,), "bf16": (86,)}
"""Policies, and the architectures that are built for in each."""


def export_steady(folder: Path) -> None:
    """One graph per policy, from weights that are made once."""
    from sana_export.checkpoint import resolve
    from sana_export.engine_export import export_engine
    from sana_export.engine_graphs import engine_graphs

    calibration = Calibration({layer.path: 8.0 for layer in layers(BLOCKS.dit.depth)})
    graphs = engine_graphs("denoiser", BLOCKS, resolve("random:0", BLOCKS))
    steady = next(graph for graph in graphs if graph.variant == "steady")
    for name in BUILDS:
        export_engine(steady, folder / name / "graph.onnx", load_policy(name, BLOCKS.dit.depth), calibration)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("blocks")
    run_step("export", folder / "export.log", export_steady, folder)
    yield folder
    shutil.rmtree(folder)


def compile_blocks(folder: Path, sms: tuple[int, ...]) -> TensorRTPlan:
    arguments = folder / "graph.onnx", folder / "engine.plan", "tensorrt_rtx", sms, folder / "tensorrt.log"
    return run_step("compile", folder / "compile.log", build_plan, *arguments).value


def gdn_core(table: tuple[EngineLayer, ...]) -> list[str]:
    """Layers with any part of the recurrence in them: nodes of the attention that are in none of its modules."""
    prefix = f"blocks.{GDN}.attn/"
    return [layer.name for layer in kernels(table) if any(node.startswith(prefix) for node in layer.nodes)]


@pytest.mark.parametrize("policy", BUILDS)
def test_a_block_of_each_kind_builds_in_its_precisions(graphs: Path, policy: str) -> None:
    plan = compile_blocks(graphs / policy, BUILDS[policy])
    wanted = requested(load_policy(policy, BLOCKS.dit.depth), "steady", BLOCKS.dit.depth)
    rows = check_precisions(policy, plan.layers, wanted)
    assert sum(row.found for row in rows) == 9 * BLOCKS.dit.depth
    assert 10 < len(gdn_core(plan.layers)) <= MOST_KERNELS_PER_GDN_CORE
    weights = sum(file.stat().st_size for file in (graphs / policy).glob("graph.onnx*"))
    assert plan.bytes < 1.02 * weights + 8e6
