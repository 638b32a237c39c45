"""`sana-build search` on the command line."""

from pathlib import Path
from typing import Annotated

import typer


def search(
    model: Annotated[str, typer.Option(help="Named model, for example tiny.")],
    gpu: Annotated[str, typer.Option(help="Card that will run the policy: its precisions and its cost model.")],
    output: Annotated[Path, typer.Option(help="Folder for the results; a stopped search goes on in it.")],
    checkpoint: Annotated[str | None, typer.Option(help="Weights. \\[default: the model's own]")] = None,
    clip: Annotated[list[Path] | None, typer.Option(help="Video to edit; may be repeated. \\[default: ours]")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Instruction; may be repeated. \\[default: four]")] = None,
    chunks: Annotated[int, typer.Option(help="Chunks per stream; errors grow along a stream.")] = 3,
    method: Annotated[str, typer.Option(help="additive, or paper for the paper's own search.")] = "additive",
    workers: Annotated[int | None, typer.Option(help="Processes that measure. \\[default: one per GPU]")] = None,
) -> None:
    """Find the precision policy with the best quality for its speed, by editing real clips under many of them.

    sana-build search --model tiny --gpu rtx5090 --workers 2 --output out/search

    Measures each group of layers and each range of blocks alone, predicts every combination from that, measures a
    short list and refines it. Writes report.md, results.json, and policies that `--policy FILE` takes.
    """
    from rich.console import Console

    from sana_build.search import resolve
    from sana_build.search import search as run

    console = Console()
    plan = resolve(model, gpu, output, checkpoint, clip or (), prompt or (), chunks, method, workers)
    console.print(plan.table())
    run(plan, console)
    console.print(f"wrote {output / 'report.md'} and {output / 'policies'}")
