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
    """Put the graphs of jobs of one stage into the cache, each under its key.

    Weights are loaded once and a graph is traced once, which takes most of the time; every policy is put into a copy.
    Raises BuildError naming the layer that cannot be quantised.
    """
    from sana_export.engine_export import engine_model, export_engine
    from sana_export.engine_graphs import engine_graphs, write_gdn_as

    for graph in engine_graphs(stage, model, checkpoint):
        exported = {}
        for job, key in ((job, key) for job, key in jobs if job.variant == graph.variant):
            form = job.gdn, job.sms if job.cores else ()
            if form not in exported:
                write_gdn_as(*form, graph.module)
                exported[form] = engine_model(graph)
            with cache.make("graphs", key) as folder:
                export_engine(graph, folder / GRAPH, job.policy, calibration, exported[form])
