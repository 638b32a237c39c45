"""The progress bar of `sana-stream`, on stderr so that figures on stdout stay clean."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sana_client.run import Report
from sana_client.stats import latency


class RateColumn(ProgressColumn):
    """Frames per second over the last moments."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} fps" if speed else "")


class Bar:
    """Frames done, frames per second, and the time left where the length is known."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("waiting for the server", total=None)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, frames: int | None) -> None:
        self._progress.update(self._task, description="editing", total=frames)

    def advance(self, frames: int) -> None:
        self._progress.advance(self._task, frames)

    def notice(self, text: str) -> None:
        self._progress.console.print(f"notice: {text}", markup=False, soft_wrap=True)


def figures(report: Report) -> Table:
    """The figures of a run for a person: where a chunk's time went, stage by stage, and how long it took in all."""
    table = Table(
        "milliseconds per chunk", "computing", "waiting", "moving tensors", title="where the time went", min_width=60
    )
    for stage, total in report.stages.items():
        per_chunk = (seconds / max(total.requests, 1) * 1e3 for seconds in (total.compute, total.queue, total.copy))
        table.add_row(stage, *(f"{value:.1f}" for value in per_chunk))
    for name, seconds in latency(report.latencies).items():
        table.add_row(f"answer after, {name}", f"{seconds * 1e3:.1f}")
    table.caption = (
        f"{report.frames_out} frames in {report.chunks} chunks, {report.fps:.1f} frames per second, "
        f"first chunk after {report.first_chunk or 0:.2f} s"
    )
    return table
