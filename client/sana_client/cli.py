"""The command `sana-stream`: edit a video, or a live one, through a served model."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sana_client.errors import ClientError

if TYPE_CHECKING:
    from sana_client.run import Job, Report

EPILOG = """
**Examples**

`sana-stream clip.mp4 --prompt "Turn the video into a pencil drawing" -o drawn.mp4`

`sana-stream clip.mp4 --prompt "Turn day into night" --prompt-at "4=Make it sepia" -o out.mp4 --contact-sheet s.png`

`sana-stream rtsp://camera/1 --prompt "Turn day into night" -o live.mkv`  (Ctrl-C ends it, the file is complete)

`ffmpeg -i talk.webm -f matroska - | sana-stream - --prompt "Turn day into night" -o talk.mkv --json > figures.json`
"""

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


Input = Annotated[
    str, typer.Argument(metavar="INPUT", help="Video file, device (/dev/video0), address, or - for stdin.")
]
Prompt = Annotated[str, typer.Option(help="What to do with the video, from its start.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="File to write: .mp4, .mov or .mkv.")]
PromptAt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SECONDS=PROMPT", help="Change the prompt at the first chunk that starts then or later; repeatable."
    ),
]
Url = Annotated[str, typer.Option(metavar="HOST:PORT", help="gRPC address of the Triton server.")]
Model = Annotated[str, typer.Option(help="Name of the ensemble.")]
Seed = Annotated[int, typer.Option(min=0, help="Noise seed: same seed, same edit.")]
InFlight = Annotated[int, typer.Option(min=1, max=8, help="Chunks sent ahead of their answers.")]
TransportName = Annotated[
    str,
    typer.Option(
        "--transport",
        help="How frames travel: shm (shared memory, same host), message (any host), or auto (shm if it works; "
        "a notice says when not).",
    ),
]
Wait = Annotated[
    float, typer.Option(min=0.001, metavar="SECONDS", help="How long to wait for a slot when the server is full.")
]
Timeout = Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="How long a chunk may take.")]
SideBySide = Annotated[bool, typer.Option("--side-by-side", help="Show the source to the left of the edit.")]
Sheet = Annotated[
    Path | None,
    typer.Option(metavar="PNG", help="Also write moments of the source above their edits as one picture."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the figures of the run as one JSON object.")]


@app.command(epilog=EPILOG)
def stream(
    source: Input,
    prompt: Prompt,
    output: Output,
    prompt_at: PromptAt = None,
    url: Url = "127.0.0.1:8001",
    model: Model = "sana_streaming",
    seed: Seed = 0,
    in_flight: InFlight = 2,
    transport: TransportName = "auto",
    wait: Wait = 5.0,
    timeout: Timeout = 120.0,
    side_by_side: SideBySide = False,
    contact_sheet: Sheet = None,
    json_: Json = False,
) -> None:
    """Edit a video chunk by chunk on a SANA-Streaming server.

    Frames are scaled and cropped to the model's size. Timestamps and sound stay those of the source. The model needs at
    least its first chunk (33 frames). A stream longer than the model can hold goes on as a new sequence, with a notice
    and counted as `restarts` in the figures: the edit may change its look there.
    """
    from sana_client.chunks import Prompts
    from sana_client.run import Job
    from sana_client.session import Limits

    prompts = Prompts.parse(prompt, prompt_at or [])
    limits = Limits(in_flight, slot_seconds=wait, chunk_seconds=timeout)
    report = _run(Job(source, output, prompts, url, model, seed, transport, limits, side_by_side, contact_sheet))
    if json_:
        print(json.dumps({"input": source, "output": str(output), **report.as_json()}))
    else:
        _show(report)


def _run(job: "Job") -> "Report":
    import asyncio

    from sana_client.display import Bar
    from sana_client.run import run

    with Bar() as bar:
        return asyncio.run(run(job, bar))


def _show(report: "Report") -> None:
    from rich.console import Console

    from sana_client.display import figures

    Console().print(figures(report))


def main() -> None:
    """Entry point of `sana-stream`: an error is one sentence on stderr and exit code 1."""
    try:
        app()
    except ClientError as error:
        sys.exit(f"sana-stream: {error}")
