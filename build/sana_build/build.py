"""The build: make the engines of every stage, package the repository, put it in place."""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_build.built import Built, BuiltEngine, costs, denoiser_rows, summary
from sana_build.engine_progress import engine_progress
from sana_build.folders import under_construction
from sana_build.onnx_engines import build_onnx_engines
from sana_build.plan import IDLE_SECONDS, STAGES, Plan
from sana_build.precision import precision_table
from sana_build.repository import package
from sana_build.stage_process import disk_full, no_space, peak_memory
from sana_build.tensorrt_engines import build_tensorrt_engines, plan_jobs
from sana_runtime.errors import BuildError
from sana_runtime.libraries import WHEELS
from sana_runtime.manifest import EngineEntry, Manifest

if TYPE_CHECKING:
    from rich.console import Console

    from sana_build.engine_progress import EngineProgress

CALIBRATION = "calibration.json"
Builder = Callable[[Plan, Path, "EngineProgress"], Built]


def _build_torch(plan: Plan, staging: Path, progress: "EngineProgress") -> Built:
    from sana_build.torch_engines import build_torch_engines

    return build_torch_engines(plan, staging, progress)


BUILDERS: dict[str, Builder] = {
    "onnxruntime": build_onnx_engines,
    "tensorrt_rtx": build_tensorrt_engines,
    "tensorrt": build_tensorrt_engines,
    "torch": _build_torch,
}
"""Who makes the engines of a backend below a folder."""

VERSIONED = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "transformers", "diffusers", "numpy")


def build(plan: Plan, console: "Console") -> Manifest:
    """Build `plan` into its output folder, which is replaced only when everything has succeeded."""
    started = time.monotonic()
    try:
        built, manifest = _build(plan, console)
    except OSError as error:
        if not no_space(error):
            raise
        raise BuildError(disk_full(error)) from error
    _report(built, console)
    peak = max((step.peak for step in built.steps), default=0) + peak_memory()
    console.print(
        f"built [bold]{plan.output}[/] in {time.monotonic() - started:.0f} s, peak memory {peak / 1e9:.1f} GB"
    )
    return manifest


def _build(plan: Plan, console: "Console") -> tuple[Built, Manifest]:
    with under_construction(plan.output) as staging:
        with console.status("checking the checkpoint"):
            plan.checkpoint.check(plan.model)
        with engine_progress(len(plan_jobs(plan)), console) as progress:
            built = BUILDERS[plan.target.backend](plan, staging, progress)
        shutil.copyfile(plan.checkpoint.tokenizer_path(), staging / "text_encoder" / "1" / "tokenizer.json")
        if built.calibration:
            built.calibration.write(staging / CALIBRATION)
        known = {engine.entry.path: engine.sha256 for engine in built.engines if engine.sha256}
        return built, package(staging, _manifest(plan, built), known, built.packages)


def _manifest(plan: Plan, built: Built) -> Manifest:
    return Manifest(
        model=plan.model.name,
        gpu=plan.target.name,
        policy=plan.policy.name,
        checkpoint=plan.checkpoint.describe(),
        weights=plan.checkpoint.identity(),
        geometry=plan.model.geometry,
        steps=plan.model.stream.steps,
        streams=plan.streams,
        idle_seconds=IDLE_SECONDS,
        engines=_entries(built.engines),
        versions={name: version(name) for name in VERSIONED} | built.libraries,
        config=_config(plan, built),
    )


def _entries(engines: list[BuiltEngine]) -> dict[str, dict[str, list[EngineEntry]]]:
    entries: dict[str, dict[str, list[EngineEntry]]] = {stage: {} for stage in STAGES}
    for engine in engines:
        entries[engine.stage].setdefault(engine.variant, []).append(engine.entry)
    return entries


def _config(plan: Plan, built: Built) -> dict[str, Any]:
    from sana_export.text import chi_prompt

    model = plan.model
    text = {"tokens": model.dit.text_tokens, "width": model.dit.caption_width, "chi": chi_prompt()}
    return {
        "text": text,
        "dit": asdict(model.dit),
        "vae": asdict(model.vae),
        "stream": asdict(model.stream),
        "policy": asdict(plan.policy),
        "gdn": plan.gdn if plan.target.backend in WHEELS else None,
        "calibration": dict(built.calibration.about) if built.calibration else None,
    }


def _report(built: Built, console: "Console") -> None:
    console.print(summary(built.engines))
    for policy, rows in denoiser_rows(built.engines).items():
        console.print(precision_table(rows, f"precision of the denoiser's layers, policy {policy}"))
    if built.steps:
        console.print(costs(built.steps))
