"""Real engines of TensorRT-RTX, built without a GPU from hand-made graphs."""

from pathlib import Path

import pytest

from fakes.quantised_graphs import write_linears
from sana_build.precision import GroupRow, Requested, check_precisions
from sana_build.stage_process import run_step
from sana_build.tensorrt_build import TensorRTPlan, build_plan
from sana_runtime.errors import BuildError

pytest.importorskip("tensorrt_rtx")

MIXED = {
    "blocks.0.attn.q": "nvfp4",
    "blocks.0.attn.k": "nvfp4",
    "blocks.0.attn.v": "fp8",
    "blocks.0.attn.output_gate": "bf16",
}
NARROWER = {"fp8": dict.fromkeys(MIXED, "fp8"), "bf16": dict.fromkeys(MIXED, "bf16")}


def compile_graph(folder: Path, precisions: dict[str, str], *sms: int, plan: Path | None = None) -> TensorRTPlan:
    """In a process of its own, as a build does it: TensorRT keeps the first logger of a process."""
    graph = write_linears(folder / "graph.onnx", precisions)
    target = plan or folder / "engine.plan"
    arguments = graph, target, "tensorrt_rtx", sms, folder / "tensorrt.log"
    return run_step("compile", folder / "step.log", build_plan, *arguments).value


def wanted(precisions: dict[str, str]) -> list[Requested]:
    return [Requested(path, path.rsplit(".", 1)[1], precision) for path, precision in precisions.items()]


def test_a_mixed_engine_runs_every_layer_in_its_precision(tmp_path: Path) -> None:
    plan = compile_graph(tmp_path, MIXED, 120, 121)
    assert check_precisions("e", plan.layers, wanted(MIXED)) == [
        GroupRow("q", "nvfp4", 1, 1, 1),
        GroupRow("k", "nvfp4", 1, 1, 1),
        GroupRow("v", "fp8", 1, 1, 1),
        GroupRow("output_gate", "bf16", 1, 1, 1),
    ]
    assert plan.bytes == (tmp_path / "engine.plan").stat().st_size
    assert plan.inputs == {"x": "float32[1,256,256]"}
    assert plan.outputs.keys() == {f"{path}.y" for path in MIXED}
    assert "LayerType: gemm" in (tmp_path / "tensorrt.log").read_text()


@pytest.mark.parametrize(("precision", "sms"), [("fp8", (89,)), ("bf16", (86,)), ("bf16", (86, 89, 120, 121))])
def test_older_cards_run_the_wider_precisions(tmp_path: Path, precision: str, sms: tuple[int, ...]) -> None:
    plan = compile_graph(tmp_path, NARROWER[precision], *sms)
    rows = check_precisions("e", plan.layers, wanted(NARROWER[precision]))
    assert [(row.precision, row.found) for row in rows] == [(precision, 1)] * 4


def test_a_precision_that_the_card_lacks_ends_the_build_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"Cannot compile for target.*sm89.*fp4_e2m1"):
        compile_graph(tmp_path, MIXED, 89)


def test_an_engine_in_another_precision_than_asked_is_refused(tmp_path: Path) -> None:
    plan = compile_graph(tmp_path, NARROWER["bf16"], 120)
    with pytest.raises(BuildError, match=r"blocks\.0\.attn\.q \(q\) runs in bf16 and the policy says nvfp4.*\(2 more"):
        check_precisions("e", plan.layers, wanted(MIXED))


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "full.plan").symlink_to("/dev/full")
    with pytest.raises(BuildError, match="the disk is full"):
        compile_graph(tmp_path, NARROWER["bf16"], 120, plan=tmp_path / "full.plan")


def test_a_graph_that_is_none_is_refused_by_the_parser(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    arguments = tmp_path / "graph.onnx", tmp_path / "e.plan", "tensorrt_rtx", (120,), tmp_path / "t.log"
    with pytest.raises(BuildError, match=r"TensorRT cannot read graph\.onnx"):
        run_step("compile", tmp_path / "step.log", build_plan, *arguments)


def test_a_library_that_is_not_there_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"tensorrt is not installed.*pip install tensorrt_cu13"):
        build_plan(tmp_path / "g.onnx", tmp_path / "e.plan", "tensorrt", (90,), tmp_path / "log")
