"""Calibration of a model: the largest input of every layer that a policy may quantise, over edits of real clips."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_build.progress import progress_bar
from sana_build.rollouts import Machine, Scene, load_scenes, rollout
from sana_export.checkpoint import Checkpoint
from sana_export.configs import ModelConfig
from sana_quant.calibration import Calibration, observe
from sana_runtime.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

PROMPTS = ("Make it a watercolor painting", "Change the season to winter and cover the ground with fresh snow.")
CLIP = "big-buck-bunny.mp4"

FIFTH = 5
"""Of width and height: time falls with the area, the ranges by little, which their headroom makes up for."""


def calibrate(
    model: ModelConfig,
    checkpoint: Checkpoint,
    clips: Sequence[Path],
    prompts: Sequence[str],
    chunks: int,
    console: "Console",
) -> Calibration:
    """Edit `chunks` chunks of every clip with every prompt, and note the largest inputs.

    Raises ConfigError for a clip that cannot be read and for weights under which a layer's input is not finite.
    """
    machine = Machine.best()
    with progress_bar(console) as progress:
        task = progress.add_task("reading clips", total=len(clips) * len(prompts) * chunks)
        scenes = load_scenes(
            model, checkpoint, clips, prompts, chunks, machine, lambda text: progress.update(task, description=text)
        )
        progress.update(task, description="loading the transformer")
        dit = checkpoint.load_dit(model.dit, machine.dtype).to(machine.device)
        with observe(dit) as observer:
            for number, scene in enumerate(scenes, 1):
                progress.update(task, description=f"editing {number} of {len(scenes)}")
                for _ in rollout(dit, model.stream, scene):
                    progress.advance(task)
    calibration = observer.calibration(_about(model, checkpoint, scenes, machine))
    calibration.check(model.dit.depth)
    return calibration


def quick_calibration(model: ModelConfig, checkpoint: Checkpoint, console: "Console") -> Calibration:
    """What a build calibrates by itself: two chunks of the shipped clip, one prompt, small frames."""
    return calibrate(small_frames(model, FIFTH), checkpoint, [shipped_clip()], PROMPTS[:1], 2, console)


def load_calibration(path: Path, model: ModelConfig) -> Calibration:
    """A calibration file made for `model`; raises ConfigError naming the entry that is missing or of another model."""
    calibration = Calibration.read(path)
    calibration.check(model.dit.depth, f"calibration {path}")
    made_for = calibration.about.get("model")
    if made_for != model.name:
        raise ConfigError(
            f"calibration {path} was made for {made_for}: run `sana-build calibrate --model {model.name}`"
        )
    return calibration


def small_frames(model: ModelConfig, divisor: int) -> ModelConfig:
    """The model at its width and height over `divisor`, rounded up to what the VAE divides."""
    unit = divisor * model.vae.spatial_ratio
    height, width = (math.ceil(size / unit) * model.vae.spatial_ratio for size in (model.height, model.width))
    return replace(model, height=height, width=width)


def sized(model: ModelConfig, size: str) -> ModelConfig:
    """The model at frames of `size`, written 640x352; raises ConfigError for another form."""
    width, _, height = size.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ConfigError(f"--size {size!r} is not a frame size: write WIDTHxHEIGHT, as {model.width}x{model.height}")
    return replace(model, height=int(height), width=int(width))


def check_file(output: Path) -> None:
    """Raise ConfigError before any work if `output` cannot become a file."""
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise ConfigError(f"--output {output} is a folder or in none that exists: name a file in an existing folder")


def shipped_clip() -> Path:
    """The clip that comes with the package, in a wheel or in a checkout."""
    package = Path(__file__).parent
    installed = package / "assets" / CLIP
    return installed if installed.is_file() else package.parents[1] / "assets" / CLIP


def _about(model: ModelConfig, checkpoint: Checkpoint, scenes: Sequence[Scene], machine: Machine) -> dict[str, Any]:
    return {
        "model": model.name,
        "checkpoint": checkpoint.describe(),
        "size": f"{model.width}x{model.height}",
        "steps": model.stream.steps,
        "chunks": len(scenes[0].sources),
        "scenes": [name for scene in scenes for name in scene.names],
        "computed": f"{machine.device}, {machine.dtype}".replace("torch.", ""),
    }
