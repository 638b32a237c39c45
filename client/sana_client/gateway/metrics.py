"""Prometheus metrics of a gateway: sessions, cadence, deadlines, time per step."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from tritonclient.grpc.service_pb2 import ModelStatisticsResponse

SECONDS = (0.005, 0.015, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0)


class StageTimes(Collector):
    """The model server's own account of its stages, as it was last heard."""

    def __init__(self) -> None:
        self.heard = ModelStatisticsResponse()

    def collect(self) -> Iterator[CounterMetricFamily]:
        seconds = CounterMetricFamily("sana_stage_seconds", "Time in a stage of the model.", labels=["stage", "part"])
        chunks = CounterMetricFamily("sana_stage_chunks", "Requests that a stage has answered.", labels=["stage"])
        for stage in self.heard.model_stats:
            chunks.add_metric([stage.name], stage.inference_stats.success.count)
            for part in ("queue", "compute_input", "compute_infer", "compute_output"):
                seconds.add_metric([stage.name, part], getattr(stage.inference_stats, part).ns / 1e9)
        return iter((seconds, chunks))


class Metrics:
    """One registry per gateway, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.sessions = Counter("sana_sessions", "Sessions that ended, by reason.", ["reason"], registry=self.registry)
        self.active = self._gauge("sana_streams_active", "Slots of the model that are taken.")
        self.waiting = self._gauge("sana_streams_waiting", "Sessions in line for a slot.")
        self.capacity = self._gauge("sana_streams_capacity", "Slots of the model.")
        self.spectators = self._gauge("sana_spectators", "Viewers of sessions that others drive.")
        self.chunks = self._counter("sana_chunks", "Chunks delivered.")
        self.in_time = self._counter("sana_chunks_in_time", "Chunks delivered by their deadline.")
        self.stalled = self._counter("sana_underrun_seconds", "Seconds that viewers waited for late chunks.")
        self.received = self._counter("sana_source_frames", "Source frames received.")
        self.dropped = self._counter("sana_source_frames_dropped", "Source frames dropped at the edge.")
        self.refused = Counter("sana_refused", "Requests refused, by reason.", ["reason"], registry=self.registry)
        self.steps = Histogram(
            "sana_chunk_seconds", "Time of a chunk, by step.", ["step"], buckets=SECONDS, registry=self.registry
        )

        self.stages = StageTimes()
        self.registry.register(self.stages)

    def delivered(self, steps: Mapping[str, float], late: bool, stalled: float) -> None:
        """Count a chunk: seconds by step, whether it missed its deadline, and how long a viewer waited for it."""
        self.chunks.inc()
        self.in_time.inc(not late)
        self.stalled.inc(stalled)
        for step, seconds in steps.items():
            self.steps.labels(step).observe(seconds)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)
