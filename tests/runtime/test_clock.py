"""The time that engines are at work, on the host and on a pretended GPU."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from test_denoiser import denoise, denoiser_stage

from sana_runtime.clock import Clock, CudaClock, HostClock
from sana_runtime.memory import HostMemory


@dataclass
class Event:
    """Of a pretended GPU, which takes a second for everything that is recorded behind another."""

    enable_timing: bool
    at: float = 0.0
    waited: bool = False
    now: list[float] = field(default_factory=lambda: NOW)

    def record(self) -> None:
        self.now[0] += 1.0
        self.at = self.now[0]

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, later: "Event") -> float:
        assert later.waited
        return 1e3 * (later.at - self.at)


NOW = [0.0]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)


def run(clock: Clock, work: Callable[[], object] = lambda: None) -> None:
    with clock.running():
        work()


def test_a_host_counts_what_runs_and_nothing_between() -> None:
    clock = HostClock()
    for _ in range(2):
        run(clock, lambda: time.sleep(0.02))
        time.sleep(0.1)
    assert 0.04 <= clock.lap()() < 0.1
    assert clock.lap()() == 0.0


@pytest.mark.usefixtures("events")
def test_a_gpu_counts_between_its_events() -> None:
    clock = CudaClock()
    for _ in range(3):
        run(clock)
    assert clock.lap()() == 3.0
    assert clock.lap()() == 0.0


@pytest.mark.usefixtures("events")
def test_events_that_nobody_asks_for_are_given_back() -> None:
    clock = CudaClock()
    for _ in range(3 * CudaClock.KEPT):
        run(clock)
    assert clock.lap()() == CudaClock.KEPT


@pytest.mark.usefixtures("events")
def test_work_that_fails_on_the_gpu_does_not_take_the_answer_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    clock = CudaClock()
    run(clock)
    with monkeypatch.context() as broken:
        broken.setattr(Event, "synchronize", fail)
        assert clock.lap()() == 0.0
    run(clock)
    assert clock.lap()() == 1.0


@pytest.mark.parametrize("make", [HostClock, CudaClock])
@pytest.mark.usefixtures("events")
def test_work_that_fails_has_no_time(make: Callable[[], Clock]) -> None:
    clock = make()
    with pytest.raises(ZeroDivisionError):
        run(clock, lambda: 1 / 0)
    assert clock.lap()() == 0.0


def test_a_stage_counts_engines_that_share_a_clock_once() -> None:
    stage, memory = denoiser_stage(), HostMemory()
    for engine in stage.engines.values():
        engine.memory, real = memory, engine.function  # type: ignore[attr-defined, misc]

        def function(feeds: object, real: Callable[[object], object] = real) -> object:
            with memory.working():
                time.sleep(0.01)
                return real(feeds)

        engine.function = function  # type: ignore[attr-defined]
    began = time.perf_counter()
    denoise(stage, 0)
    assert 0.01 <= stage.lap()() <= time.perf_counter() - began
    assert stage.lap()() == 0.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_real_gpu_is_timed_and_not_what_comes_before() -> None:
    clock, slow = CudaClock(), torch.randn(8192, 8192, device="cuda")

    def work(count: int) -> None:
        for _ in range(count):
            torch.mm(slow, slow)

    def seconds(count: int) -> float:
        run(clock, lambda: work(count))
        return clock.lap()()

    work(3)
    one, four = seconds(5), seconds(20)
    work(20)
    assert one == pytest.approx(seconds(5), rel=0.3)
    assert four == pytest.approx(4 * one, rel=0.3)
