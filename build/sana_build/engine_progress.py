"""How far a build is, as one line on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sana_build.progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


@dataclass(frozen=True)
class EngineProgress:
    """Counts engines; `report` says what is being done."""

    bar: "Progress"
    task: "TaskID"

    def report(self, what: str) -> None:
        self.bar.update(self.task, description=what)

    def advance(self) -> None:
        self.bar.advance(self.task)


@contextmanager
def engine_progress(total: int, console: "Console") -> Iterator[EngineProgress]:
    """A progress line over `total` engines while the block runs."""
    with progress_bar(console) as bar:
        yield EngineProgress(bar, bar.add_task("loading the checkpoint", total=total))
