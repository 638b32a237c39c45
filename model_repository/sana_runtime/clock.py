"""How long engines are at work, by the device that they work on."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol

Lap = Callable[[], float]
"""Waits for some work, in any thread, and says how many seconds it took; work that failed took none."""


class Clock(Protocol):
    """Times what is `running`, from lap to lap."""

    def running(self) -> AbstractContextManager[None]:
        """Around an engine's work, without what its tensors take on their way there and back."""
        ...

    def lap(self) -> Lap:
        """The work since this was last asked, which is not waited for."""
        ...


class HostClock:
    """For work that is done when a call returns."""

    def __init__(self) -> None:
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - began

    def lap(self) -> Lap:
        seconds, self._seconds = self._seconds, 0.0
        return lambda: seconds


class CudaClock:
    """For work in torch's current stream, by events before and behind it."""

    KEPT = 64
    """Calls that are remembered, so that their events are given back where nobody asks."""

    def __init__(self) -> None:
        self._spans = deque[tuple[Any, Any]](maxlen=self.KEPT)

    @contextmanager
    def running(self) -> Iterator[None]:
        import torch

        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        yield
        ended.record()
        self._spans.append((began, ended))

    def lap(self) -> Lap:
        spans, self._spans = self._spans, deque(maxlen=self.KEPT)
        return partial(_total, spans)


def _total(spans: Iterable[tuple[Any, Any]]) -> float:
    try:
        return sum(_seconds(*span) for span in spans)
    except RuntimeError:
        # The GPU failed at the work, of which whoever downloads its results is told.
        return 0.0


def _seconds(began: Any, ended: Any) -> float:
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3
