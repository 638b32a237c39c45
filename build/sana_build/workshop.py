"""The steps of a TensorRT build in their order: export, compile and check, each in a process of its own."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_build.built import Step
from sana_build.cache import Cache
from sana_build.engine_cache import PLAN, EngineRecord, engine_key, graph_key, write_record
from sana_build.engine_jobs import EngineJob
from sana_build.engine_steps import GRAPH, export_stage
from sana_build.gdn_plugin import build_plan_with_plugin, check_cores
from sana_build.precision import check_precisions
from sana_build.stage_process import run_step
from sana_build.tensorrt_build import build_plan

if TYPE_CHECKING:
    from sana_export.checkpoint import Checkpoint
    from sana_export.configs import ModelConfig
    from sana_quant.calibration import Calibration

Report = Callable[[str], None]


@dataclass
class StepRunner:
    """Runs the steps of one build, tells `report` what begins, and keeps what each one cost."""

    cache: Cache
    report: Report
    steps: list[Step] = field(default_factory=list)

    def run(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` returns, called in a fresh process; its output goes to a log in the cache."""
        self.report(name)
        finished = run_step(name, self.cache.log(name), function, *arguments)
        self.steps.append(Step(name, finished.seconds, finished.peak))
        return finished.value


@dataclass(frozen=True)
class Workshop:
    """Makes the engines of a model with one library and one calibration, None where no layer is quantised."""

    model: "ModelConfig"
    checkpoint: "Checkpoint"
    backend: str
    library: str
    calibration: "Calibration | None"
    runner: StepRunner

    @property
    def cache(self) -> Cache:
        return self.runner.cache

    def find(self, job: EngineJob) -> EngineRecord | None:
        """The finished engine, None if it has to be built."""
        folder = self.folder(job)
        return EngineRecord.read(folder) if folder.is_dir() else None

    def folder(self, job: EngineJob) -> Path:
        """Where the finished engine is, once it is built."""
        return self.cache.folder("engines", self._engine_key(job))

    def sweep(self, jobs: list[EngineJob]) -> None:
        """Drop the graphs that other builds left behind: they are as large as the weights."""
        self.cache.keep_only("graphs", [self._graph_key(job) for job in jobs])

    def export(self, stage: str, jobs: list[EngineJob]) -> None:
        """Put the graphs of these jobs, which are of one stage, into the cache."""
        # Two policies of a family may ask the same of an engine: then it is one graph, compiled for other cards.
        by_key = {self._graph_key(job): job for job in jobs}
        missing = [(job, key) for key, job in by_key.items() if not self.cache.find("graphs", key)]
        if missing:
            arguments = stage, self.model, self.checkpoint, self.calibration, self.cache, missing
            self.runner.run(f"export {stage}", export_stage, *arguments)

    def build(self, job: EngineJob, later: Sequence[EngineJob] = ()) -> EngineRecord:
        """Compile and check one engine, whose graph is in the cache, and put it into the cache.

        The graph is dropped unless a job that comes `later` needs it. Raises BuildError naming the layer that does not
        run in the precision of the policy, or the GDN core that is not the plugin it was to be.
        """
        started = time.monotonic()
        key = self._graph_key(job)
        graph = self.cache.folder("graphs", key) / GRAPH
        with self.cache.make("engines", self._engine_key(job)) as folder:
            log = self.cache.log(f"tensorrt {job.label}")
            arguments = graph, folder / PLAN, self.backend, job.sms, log
            compile_graph = build_plan_with_plugin if job.cores else build_plan
            plan = self.runner.run(f"compile {job.label}", compile_graph, *arguments)
            rows = check_precisions(job.label, plan.layers, job.wanted) + check_cores(job.label, plan.layers, job)
            record = write_record(folder, plan, rows, time.monotonic() - started)
        if key not in map(self._graph_key, later):
            self.cache.drop("graphs", key)
        return record

    def _graph_key(self, job: EngineJob) -> str:
        return graph_key(self.model, self.checkpoint, self.calibration, job)

    def _engine_key(self, job: EngineJob) -> str:
        return engine_key(self._graph_key(job), job.sms, self.backend, self.library)
