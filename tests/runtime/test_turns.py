"""Turns on a GPU, between processes and between stages."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_stages import encode, encoder_stage

from fakes.engines import MANIFEST, FakeEngine, request
from sana_runtime.errors import EngineError
from sana_runtime.memory import HostMemory, TorchMemory
from sana_runtime.stages import VAEEncoderStage
from sana_runtime.turns import FileTurn, NoTurn, Turn, turn_on

HOLD = """
import pathlib, sys, time
from sana_runtime.turns import FileTurn

FileTurn(pathlib.Path(sys.argv[1])).take()
print("taken", flush=True)
time.sleep(60)
"""
CLOSING = request(0, end=True, parameters={"close": True})
LONG = 0.3
"""Seconds in which whoever does not wait would be done."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "turn"


def held_elsewhere(path: Path) -> subprocess.Popen[str]:
    """A process that has the turn."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "taken\n"
    return process


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = held_elsewhere(path)
    yield process
    process.kill()
    process.wait()


def taking(turn: FileTurn) -> threading.Thread:
    thread = threading.Thread(target=turn.take, daemon=True)
    thread.start()
    thread.join(LONG)
    return thread


def test_a_process_waits_for_another_and_goes_on_when_it_is_killed(
    path: Path, holder: subprocess.Popen[str]
) -> None:  # fmt: skip
    thread = taking(FileTurn(path))
    assert thread.is_alive()
    holder.kill()
    thread.join(10)
    assert not thread.is_alive()


def test_a_turn_that_is_taken_twice_is_given_once(path: Path) -> None:
    first, second = FileTurn(path), FileTurn(path)
    first.give()
    first.take()
    first.take()
    waiting = taking(second)
    assert waiting.is_alive()
    first.give()
    waiting.join(10)
    assert not waiting.is_alive()


class Noted(NoTurn):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def take(self) -> None:
        self.seen.append("take")

    def give(self) -> None:
        self.seen.append("give")


class Timed(FakeEngine):
    """Says when it computes, as engines do."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self.memory.working():
            return super().run(feeds)


def timed_stage() -> VAEEncoderStage:
    engines = dict(encoder_stage().engines)
    for name, fake in engines.items():
        assert isinstance(fake, FakeEngine)
        engines[name] = Timed(fake.function, **{x.name.replace(".", "__"): (x.dtype, x.shape) for x in fake.inputs})
        engines[name].memory = HostMemory()  # type: ignore[misc]
    return VAEEncoderStage(engines, MANIFEST)


def give(stage: VAEEncoderStage, turn: Turn) -> None:
    """Let the stage have this turn, as on a card."""
    for engine in stage.engines.values():
        engine.memory.turn = turn


def test_a_turn_is_for_engines_and_ends_with_the_answers() -> None:
    stage, turn = timed_stage(), Noted()
    give(stage, turn)
    encode(stage, 0, 1)
    encode(stage, 1, 1)
    assert turn.seen == ["take", "give"] * 2
    turn.seen.clear()
    stage.run(CLOSING)
    assert turn.seen == ["give"]
    turn.seen.clear()
    stage.engines["first"].failing = True  # type: ignore[attr-defined]
    with pytest.raises(EngineError):
        encode(stage, 0, 1)
    assert turn.seen == ["take", "give"]


def test_stages_of_one_card_compute_one_after_another(path: Path) -> None:
    stages, lock = [timed_stage() for _ in range(3)], threading.Lock()
    inside = most = 0

    def slow(feeds: Mapping[str, np.ndarray], real: Callable[..., dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        with lock:
            inside -= 1
        return real(feeds)

    for stage in stages:
        give(stage, FileTurn(path))
        for engine in stage.engines.values():
            engine.function = partial(slow, real=engine.function)  # type: ignore[attr-defined]
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda stage: [encode(stage, index, index + 1) for index in range(4)], stages)
        assert list(found) == [[1, 3, 6, 10]] * 3
    assert most == 1


def test_a_closing_request_does_not_wait(path: Path, holder: subprocess.Popen[str]) -> None:
    stage = timed_stage()
    give(stage, FileTurn(path))
    assert stage.run(CLOSING)["source"].size
    assert holder.poll() is None


def test_without_a_file_stages_say_so_and_compute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.warns(UserWarning, match="do not take turns on the GPU .* set TMPDIR"):
        assert isinstance(turn_on("GPU-1"), NoTurn)


def test_cards_have_turns_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    one, other = turn_on("GPU-1"), turn_on("GPU-2")
    assert isinstance(one, FileTurn)
    assert isinstance(other, FileTurn)
    one.take()
    assert not taking(other).is_alive()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_card_has_one_turn_for_all_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    turn = TorchMemory("cuda").new_turn()
    assert isinstance(turn, FileTurn)
    assert isinstance(TorchMemory("cuda").new_turn(), FileTurn)
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(rf"sana-turn-{os.getuid()}-[0-9a-f-]{{36}}", path.name)
