"""The step of a TensorRT build that runs before the compilation, in a process of its own: graphs of one stage."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from sana_build.cache import Cache
from sana_build.engine_jobs import EngineJob

if TYPE_CHECKING:
    from sana_export.checkpoint import Checkpoint
    from sana_export.configs import ModelConfig
    from sana_quant.calibration import Calibration

GRAPH = "graph.onnx"


def export_stage(
    stage: str,
    model: "ModelConfig",
    checkpoint: "Checkpoint",
    calibration: "Calibration | None",
    cache: Cache,
    jobs: Collection[tuple[EngineJob, str]],
) -> None:
    """Put the graphs of jobs of one stage into the cache, each under its key; the weights are loaded once.

    Raises BuildError naming the layer that cannot be quantised.
    """
    from sana_export.engine_export import export_engine
    from sana_export.engine_graphs import engine_graphs

    for graph in engine_graphs(stage, model, checkpoint):
        for job, key in jobs:
            if job.variant == graph.variant:
                with cache.make("graphs", key) as folder:
                    export_engine(graph, folder / GRAPH, job.policy, calibration)
