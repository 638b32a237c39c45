"""The calibrated ranges a build quantises with: from a file, from the cache, or measured now."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from sana_build.cache import make_key, source_hash
from sana_build.engine_jobs import EngineJob

if TYPE_CHECKING:
    from sana_build.plan import Plan
    from sana_build.workshop import StepRunner
    from sana_export.checkpoint import Checkpoint
    from sana_export.configs import ModelConfig
    from sana_quant.calibration import Calibration

FILE = "calibration.json"
PROGRAM = ("sana_export", "sana_build.calibrate", "sana_build.rollouts", "sana_quant.calibration")


def calibrate_for(plan: "Plan", jobs: Iterable[EngineJob], runner: "StepRunner") -> "Calibration | None":
    """What the jobs need, None if no layer of theirs is quantised; raises ConfigError for a file that does not fit."""
    if not any(job.narrow for job in jobs):
        return None
    from sana_build.calibrate import load_calibration
    from sana_quant.calibration import Calibration

    if plan.calibration:
        return load_calibration(plan.calibration, plan.model)
    key = make_key(
        weights=plan.checkpoint.identity(), model=asdict(plan.model), program=[source_hash(name) for name in PROGRAM]
    )
    if not runner.cache.find("calibrations", key):
        with runner.cache.make("calibrations", key) as folder:
            measured: Calibration = runner.run("calibrate", measure_ranges, plan.model, plan.checkpoint)
            measured.write(folder / FILE)
    return Calibration.read(runner.cache.folder("calibrations", key) / FILE)


def measure_ranges(model: "ModelConfig", checkpoint: "Checkpoint") -> "Calibration":
    """Edit a little of the shipped clip, with the progress in the log of the step."""
    from rich.console import Console

    from sana_build.calibrate import quick_calibration

    return quick_calibration(model, checkpoint, Console(width=120))
