"""Graphs in the cache live as long as an engine is to be made of them; the steps are stand-ins, the cache is real."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from micro import MICRO
from sana_build.cache import Cache
from sana_build.engine_jobs import EngineJob
from sana_build.engine_steps import GRAPH, export_stage
from sana_build.tensorrt_build import TensorRTPlan
from sana_build.workshop import Workshop
from sana_export.checkpoint import resolve
from sana_quant.policy import load_policy

POLICY = load_policy("bf16", MICRO.dit.depth)


class Steps:
    """Runs no process: exports write a file, and compilations read it."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.exported, self.compiled = cache, 0, 0

    def run(self, name: str, function: Callable[..., Any], *arguments: Any) -> TensorRTPlan | None:
        if function is export_stage:
            for _, key in arguments[-1]:
                with self.cache.make("graphs", key) as folder:
                    (folder / GRAPH).write_text(name)
                self.exported += 1
            return None
        graph, plan, *_ = arguments
        plan.write_text(graph.read_text())
        self.compiled += 1
        return TensorRTPlan("1", {}, {}, (), plan.stat().st_size)


def job(name: str, *sms: int) -> EngineJob:
    return EngineJob("vae_decoder", "first", name, POLICY, sms)


def test_one_graph_is_compiled_for_two_sets_of_cards_and_then_dropped(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    steps = Steps(cache)
    workshop = Workshop(MICRO, resolve("random:0", MICRO), "tensorrt_rtx", "1", None, steps)  # type: ignore[arg-type]
    newer, older = job("first-fp8", 120, 121), job("first-bf16", 89)
    workshop.export("vae_decoder", [newer, older])
    workshop.build(newer, [older])
    workshop.build(older)
    assert (steps.exported, steps.compiled) == (1, 2)
    assert workshop.find(newer)
    assert workshop.find(older)
    assert not list((tmp_path / "graphs").iterdir())
