"""`sana-build calibrate`: parse and resolve, then measure the ranges of a model's layers and write them to a file."""

from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write, for --calibration of a build.")],
    model: Annotated[str, typer.Option(help="Named model, for example sana-streaming.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="File, folder, hub id or random:SEED. \\[default: the model's own]")
    ] = None,
    clip: Annotated[
        list[Path] | None, typer.Option(help="Video to edit; may be given again. \\[default: the shipped clip]")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Instruction; may be given again, every clip is edited with each.")
    ] = None,
    chunks: Annotated[int, typer.Option(min=1, help="Chunks of every stream.")] = 5,
    size: Annotated[str | None, typer.Option(help="Frame size as 640x352. \\[default: the model's own]")] = None,
) -> None:
    """Edit clips in PyTorch and write the range of every layer that a policy may quantise.

    sana-build calibrate --model sana-streaming --checkpoint DIR --clip a.mp4 --prompt "make it snow" -o ranges.json

    Runs on a CUDA device if there is one. A build without a calibration file does a quick one by itself.
    """
    from rich.console import Console

    from sana_build import calibrate as work
    from sana_build.plan import streaming_model
    from sana_export.checkpoint import resolve

    work.check_file(output)
    config = streaming_model(model)
    weights = resolve(checkpoint or config.checkpoint, config)
    config = work.sized(config, size) if size else config
    console = Console()
    calibration = work.calibrate(
        config, weights, clip or [work.shipped_clip()], prompt or list(work.PROMPTS), chunks, console
    )
    calibration.write(output)
    console.print(f"wrote the ranges of {len(calibration.amax)} layers to [bold]{output}[/]")
