"""The resolved plan of a build: every choice made and checked before any work starts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sana_build.cache import default_cache
from sana_build.gdn_plugin import NATIVE, check_gdn
from sana_build.gpus import Gpu, choose_gpu, choose_policy
from sana_build.libraries import obstacle
from sana_quant.policy import Policy
from sana_runtime.errors import ConfigError, choose
from sana_runtime.libraries import WHEELS
from sana_runtime.manifest import MANIFEST

if TYPE_CHECKING:
    from rich.table import Table

    from sana_export.checkpoint import Checkpoint
    from sana_export.configs import ModelConfig

STAGES = {
    "text_encoder": ("prompt",),
    "vae_encoder": ("first", "steady"),
    "denoiser": ("prompt", "first", "steady"),
    "vae_decoder": ("first", "steady"),
}
"""Triton models with an engine, and the variants each of them is built in."""

IDLE_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """What will be built, from what, for what. `streams` is how many the server holds at once.

    `calibration` is a file with the ranges of quantised layers, None to measure them; `cache` keeps finished engines.
    `gdn` is the form of the GDN cores in engines of TensorRT: native operators, or our plugin.
    """

    model: "ModelConfig"
    checkpoint: "Checkpoint"
    target: Gpu
    policy: Policy
    output: Path
    streams: int
    calibration: Path | None = None
    cache: Path = field(default_factory=default_cache)
    gdn: str = NATIVE

    def table(self) -> "Table":
        """The plan as a two-column table for a person."""
        from rich.table import Table

        model, geometry = self.model, self.model.geometry
        chunks = f"chunks of {geometry.first_frames}, then {geometry.steady_frames}"
        rows = {
            "model": self.model.name,
            "checkpoint": self.checkpoint.describe(),
            "target": f"{self.target.name} ({self.target.title}), engines of {self.target.backend}",
            "policy": f"{self.policy.name} ({self.policy.title})",
            "frames": f"{model.width}x{model.height}, {chunks}",
            "sampler": f"{self.model.stream.steps} steps, window of {self.model.stream.window} chunks with sink",
            "streams": f"{self.streams} at once, each up to {geometry.max_chunks} chunks",
            "engines": ", ".join(f"{stage} ({' '.join(variants)})" for stage, variants in STAGES.items()),
            "output": str(self.output),
        }
        if self.target.backend != "onnxruntime":
            rows["calibration"] = str(self.calibration or "measured on the shipped clip, if a layer is quantised")
            rows["cache"] = str(self.cache)
        if self.target.backend in WHEELS:
            rows["GDN cores"] = self.gdn
        table = Table("plan", "", show_header=False, box=None)
        for name, value in rows.items():
            table.add_row(f"[bold]{name}[/]", value)
        return table


def resolve(
    model: str,
    checkpoint: str | None,
    gpu: str,
    policy: str | None,
    output: Path,
    streams: int,
    calibration: Path | None = None,
    cache: Path | None = None,
    backend: str | None = None,
    gdn: str = NATIVE,
) -> Plan:
    """Check every name and path; raises ConfigError or CheckpointError with the names there are."""
    config = streaming_model(model)
    target = choose_gpu(gpu, backend)
    chosen = choose_policy(target, policy, config.dit.depth)
    check_gdn(gdn, target)
    if reason := obstacle(target):
        raise ConfigError(f"--gpu {gpu} cannot be built here: {reason}")
    if streams < 1:
        raise ConfigError(f"--streams is {streams}: the server needs room for at least one stream")
    check_output(output)
    from sana_export.checkpoint import resolve as resolve_checkpoint

    resolved = resolve_checkpoint(checkpoint or config.checkpoint, config)
    if calibration:
        from sana_build.calibrate import load_calibration

        load_calibration(calibration, config)
    return Plan(config, resolved, target, chosen, output, streams, calibration, cache or default_cache(), gdn)


def streaming_model(name: str) -> "ModelConfig":
    """The model called `name`; raises ConfigError if there is none or it cannot be served as a stream."""
    from sana_export.configs import MODELS

    config = choose("--model", name, MODELS)
    if not config.dit.streaming:
        raise ConfigError(
            f"--model {name} edits whole clips and cannot stream: it is for `verify` and offline use only"
        )
    return config


def check_output(output: Path) -> None:
    """Refuse an output folder that is a file or holds something that is not a built repository."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file: name a folder")
    if output.is_dir() and any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise ConfigError(f"--output {output} is not empty and has no {MANIFEST}: name a new folder, or empty this one")
