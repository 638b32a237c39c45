"""How long engines are at work, by the device that they work on."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol


class Clock(Protocol):
    """Adds up what is `running` until somebody asks."""

    def running(self) -> AbstractContextManager[None]:
        """Around an engine's work, without what its tensors take on their way there and back."""
        ...

    def take(self) -> float:
        """Seconds of the work since this was last asked, which is waited for."""
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

    def take(self) -> float:
        seconds, self._seconds = self._seconds, 0.0
        return seconds


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

    def take(self) -> float:
        seconds = 0.0
        while self._spans:
            began, ended = self._spans.popleft()
            ended.synchronize()
            seconds += began.elapsed_time(ended) / 1e3
        return seconds
