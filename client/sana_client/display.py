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
from rich.text import Text


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
