"""Every engine of a repository for NVIDIA cards: built through the cache, then linked into the repository."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from sana_build.built import Built, BuiltEngine
from sana_build.cache import Cache, place
from sana_build.engine_cache import LAYERS, PLAN, EngineRecord
from sana_build.engine_jobs import EngineJob, engine_jobs
from sana_build.folders import alone_in
from sana_build.gdn_plugin import NATIVE, PACKAGE, UNVERIFIED, register, with_gdn
from sana_build.graph_parity import Errors, parities
from sana_build.plan import STAGES
from sana_build.ranges import calibrate_for
from sana_build.space import check_space
from sana_build.tensorrt_build import library_version
from sana_build.workshop import StepRunner, Workshop
from sana_runtime.manifest import EngineEntry

if TYPE_CHECKING:
    from sana_build.engine_progress import EngineProgress
    from sana_build.plan import Plan

NOT_MEASURED = "not measured: needs the GPU"
NOT_ALL_MEASURED = "what BF16 and the GPU's kernels round is not measured: needs the GPU"


def build_tensorrt_engines(plan: "Plan", staging: Path, progress: "EngineProgress") -> Built:
    """Build what the cache does not have, one process per step, and link everything below `staging`.

    Builds with one cache run one after another: they share graphs, and each may need most of the memory.
    """
    with alone_in(plan.cache, lambda: progress.report("waiting for another build")):
        return _build(plan, staging, progress)


def _build(plan: "Plan", staging: Path, progress: "EngineProgress") -> Built:
    runner = StepRunner(Cache(plan.cache), progress.report)
    jobs = plan_jobs(plan)
    library = runner.run("load the library", library_version, plan.target.backend)
    if plan.gdn != NATIVE:
        runner.run("register the GDN plugin", register)
    calibration = calibrate_for(plan, jobs, runner)
    workshop = Workshop(plan.model, plan.checkpoint, plan.target.backend, library, calibration, runner)
    workshop.sweep(jobs)
    check_space(plan, jobs, [job for job in jobs if workshop.find(job) is None])
    policies = {job.policy.name: job.policy for job in jobs if job.wanted}
    errors = parities(plan.model, plan.checkpoint, calibration, policies.values(), runner)
    built = []
    for stage, group in groupby(jobs, lambda job: job.stage):
        for job, record, reused in _engines(workshop, stage, list(group)):
            built.append(_install(workshop, job, record, staging, reused, errors))
            progress.advance()
    packages = () if plan.gdn == NATIVE else (PACKAGE,)
    return Built(built, runner.steps, {plan.target.backend: library}, calibration, packages)


def plan_jobs(plan: "Plan") -> list[EngineJob]:
    """The engines of the plan, those of one stage together."""
    return with_gdn(engine_jobs(STAGES, plan.target, plan.policy, plan.model.dit.depth), plan.gdn, plan.model.dit)


def _engines(workshop: Workshop, stage: str, jobs: list[EngineJob]) -> Iterator[tuple[EngineJob, EngineRecord, bool]]:
    """The engines of one stage, with whether each was there before."""
    found = {job.label: workshop.find(job) for job in jobs}
    missing = [job for job in jobs if found[job.label] is None]
    workshop.export(stage, missing)
    for job in jobs:
        if record := found[job.label]:
            yield job, record, True
        else:
            missing.remove(job)
            yield job, workshop.build(job, later=missing), False


def _install(
    workshop: Workshop, job: EngineJob, record: EngineRecord, staging: Path, reused: bool, errors: Mapping[str, Errors]
) -> BuiltEngine:
    folder = workshop.folder(job)
    path = Path(job.stage) / "1" / f"{job.name}.plan"
    place(folder / PLAN, staging / path)
    place(folder / LAYERS, staging / path.with_suffix(".layers.json"))
    entry = EngineEntry(
        str(path),
        workshop.backend,
        record.inputs,
        record.outputs,
        error=errors[job.policy.name][job.variant] if job.wanted else {},
        unmeasured=_unmeasured(job),
        policy=job.policy.name if job.wanted else job.policy.outside,
        sms=list(job.sms),
        bytes=record.bytes,
        kernels=record.kernels,
        gemms=record.gemms,
        groups=[asdict(row) for row in record.rows],
    )
    return BuiltEngine(job.stage, job.variant, entry, record.seconds, record.rows, reused, record.sha256)


def _unmeasured(job: EngineJob) -> str:
    if not job.wanted:
        return NOT_MEASURED
    return f"{NOT_ALL_MEASURED}; {UNVERIFIED}" if job.cores else NOT_ALL_MEASURED
