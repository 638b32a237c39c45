"""Every engine of a repository for the `torch` backend: weights prepared for our kernels, and measured on the card."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from sana_build.built import Built, BuiltEngine
from sana_build.cache import Cache
from sana_build.engine_jobs import requested
from sana_build.gpus import architectures
from sana_build.plan import IDLE_SECONDS, STAGES
from sana_build.precision import GroupRow, check_stored
from sana_build.ranges import calibrate_for
from sana_build.tensorrt_engines import plan_jobs
from sana_build.torch_parts import Part, parts
from sana_build.torch_trials import check
from sana_build.workshop import StepRunner
from sana_gpu.load import Description, load_on
from sana_runtime.engine import Engine, describe
from sana_runtime.manifest import EngineEntry, Manifest

if TYPE_CHECKING:
    from sana_build.engine_progress import EngineProgress
    from sana_build.plan import Plan

LIBRARIES = ("torch", "triton")
PACKAGES = ("sana_gpu", "sana_kernels")


def build_torch_engines(plan: "Plan", staging: Path, progress: "EngineProgress", device: str = "cuda") -> Built:
    """Write, load and measure every stage in turn; raises BuildError for one that is wrong."""
    runner = StepRunner(Cache(plan.cache), progress.report)
    calibration = calibrate_for(plan, plan_jobs(plan), runner)
    built: list[BuiltEngine] = []
    for part in parts(plan, calibration, device):
        progress.report(f"building {part.stage}")
        for engine in _build(plan, part, staging, device):
            built.append(engine)
            progress.advance()
    return Built(built, runner.steps, {name: version(name) for name in LIBRARIES}, calibration, PACKAGES)


def _build(plan: "Plan", part: Part, staging: Path, device: str) -> list[BuiltEngine]:
    started = time.monotonic()
    folder = staging / part.stage / "1"
    folder.mkdir(parents=True, exist_ok=True)
    part.write(folder / part.file)
    described = [Description(part.stage, variant, part.file, dict(part.config)) for variant in STAGES[part.stage]]
    paths = {description.variant: description.write(folder) for description in described}
    engines = {variant: load_on(path, device) for variant, path in paths.items()}
    errors = check(part.stage, part.make(engines, _manifest(plan)), part.trial, part.module, part.lower)
    seconds = (time.monotonic() - started) / len(paths)
    rows = {variant: _rows(plan, part, variant) for variant in paths}
    return [
        BuiltEngine(
            part.stage,
            variant,
            _entry(plan, part, path.relative_to(staging), engines[variant], errors[measured(variant)], rows[variant]),
            seconds,
            rows[variant],
        )
        for variant, path in paths.items()
    ]


def measured(variant: str) -> str:
    """The kind of chunk whose error is that of an engine: prompts are measured by the chunk that reads them."""
    return "steady" if variant == "steady" else "first"


def _entry(plan: "Plan", part: Part, path: Path, engine: Engine, error: float, rows: Sequence[GroupRow]) -> EngineEntry:
    return EngineEntry(
        str(path),
        "torch",
        describe(engine.inputs),
        describe(engine.outputs),
        {part.trial.output: error},
        policy=plan.policy.name if part.stored else plan.policy.outside,
        sms=list(architectures(plan.target.cards)),
        groups=[asdict(row) for row in rows],
    )


def _rows(plan: "Plan", part: Part, variant: str) -> tuple[GroupRow, ...]:
    if not part.stored:
        return ()
    return tuple(check_stored(variant, part.stored, requested(plan.policy, variant, plan.model.dit.depth)))


def _manifest(plan: "Plan") -> Manifest:
    """As much of one as a stage reads."""
    dit = plan.model.dit
    return Manifest(
        model=plan.model.name,
        gpu=plan.target.name,
        policy=plan.policy.name,
        checkpoint="",
        weights="",
        geometry=plan.model.geometry,
        steps=plan.model.stream.steps,
        streams=plan.streams,
        idle_seconds=IDLE_SECONDS,
        engines={},
        versions={},
        config={"text": {"tokens": dit.text_tokens, "width": dit.caption_width}},
    )
