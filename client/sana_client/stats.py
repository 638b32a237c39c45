"""Where the time of a stream went, stage by stage, from the server's own statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tritonclient.grpc import service_pb2 as pb


@dataclass(frozen=True)
class StageTime:
    """Totals of one stage: requests, and seconds spent waiting for its turn, computing, and moving tensors."""

    requests: int = 0
    queue: float = 0.0
    compute: float = 0.0
    copy: float = 0.0

    def __sub__(self, earlier: "StageTime") -> "StageTime":
        return StageTime(**{name: value - getattr(earlier, name) for name, value in asdict(self).items()})


def stage_times(statistics: "pb.ModelStatisticsResponse", stages: Sequence[str]) -> dict[str, StageTime]:
    """Totals of each stage since the server loaded it; they count every stream, not only this client's."""
    found = {model.name: model.inference_stats for model in statistics.model_stats}
    return {
        stage: StageTime(
            requests=stats.success.count,
            queue=stats.queue.ns / 1e9,
            compute=stats.compute_infer.ns / 1e9,
            copy=(stats.compute_input.ns + stats.compute_output.ns) / 1e9,
        )
        for stage in stages
        if (stats := found.get(stage))
    }


def between(before: Mapping[str, StageTime], after: Mapping[str, StageTime]) -> dict[str, StageTime]:
    """What each stage did between two readings; a stage that was reloaded meanwhile has no earlier one."""
    return {stage: total - before.get(stage, StageTime()) for stage, total in after.items()}


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles of the time from sending a chunk to its answer, empty without chunks."""
    if not seconds:
        return {}
    return {f"p{rank}": round(float(np.percentile(seconds, rank)), 6) for rank in (50, 95, 99)}
