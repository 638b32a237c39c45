"""Copies from a pretended GPU: a tensor whose engine finishes it piece by piece."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from sana_runtime import memory
from sana_runtime.memory import TorchMemory


@dataclass(eq=False)
class Stream:
    """Waits for a mark by doing the work in front of it."""

    waited: list[object] = field(default_factory=list)
    cuda_stream: int = 7

    def wait_event(self, mark: "Work") -> None:
        mark.work()

    def wait_stream(self, stream: object) -> None:
        self.waited.append(stream)

    def synchronize(self) -> None:
        self.waited.append("synchronized")


@dataclass(frozen=True)
class Work:
    work: Callable[[], object]

    def record(self) -> None: ...


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> dict[str, Stream]:
    """The streams of a memory that believes to be on a GPU."""
    found = {name: Stream() for name in ("engine", "copies", "caller")}
    monkeypatch.setattr(memory, "_stream_of", lambda device: found["engine"])
    monkeypatch.setattr(memory, "_copies_of", lambda device: found["copies"])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: found["caller"])
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    return found


def test_pieces_are_copied_when_they_are_there_and_waited_for_in_the_end(streams: dict[str, Stream]) -> None:
    here, made = TorchMemory("cuda"), torch.zeros(1, 5, 2)
    into = np.full((1, 5, 2), -1.0, np.float32)
    seen = []

    def finish(begin: int, end: int) -> None:
        seen.append(into[0, :, 0].tolist())
        made[:, begin:end] = end

    ends = ((0, 2), (2, 4), (4, 5))
    here.note_pieces(
        made, [((slice(None), slice(*both)), Work(lambda both=both: finish(*both))) for both in ends]
    )  # fmt: skip
    assert here.download(made, into) is into
    assert seen == [[-1, -1, -1, -1, -1], [2, 2, -1, -1, -1], [2, 2, 4, 4, -1]]
    assert into[0, :, 0].tolist() == [2, 2, 4, 4, 5]
    assert streams["caller"].waited == [streams["copies"], "synchronized"]


def test_other_tensors_are_copied_whole(streams: dict[str, Stream]) -> None:
    here, made = TorchMemory("cuda"), torch.ones(3)
    here.note_pieces(torch.zeros(3), [((slice(0, 2),), Work(pytest.fail)), ((slice(2, 3),), Work(pytest.fail))])
    assert here.download(made, np.zeros(3, np.float32)).tolist() == [1, 1, 1]
    assert streams["caller"].waited == ["synchronized"]


def test_a_thread_that_has_settled_and_its_engines_do_not_wait_for_each_other(
    streams: dict[str, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_stream", chosen.append)
    here = TorchMemory("cuda")

    def waited() -> list[object]:
        with here.stream() as handle:
            assert handle == streams["engine"].cuda_stream
        found = [stream.waited.copy() for stream in (streams["engine"], streams["caller"])]
        for stream in streams.values():
            stream.waited.clear()
        return [other for waits in found for other in waits]

    each_other = [streams["caller"], streams["engine"]]
    assert waited() == each_other
    here.settle()
    assert chosen == [streams["engine"]]
    assert waited() == []
    with ThreadPoolExecutor(1) as other:
        assert other.submit(waited).result() == each_other


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_marks_in_a_graph_that_is_repeated_hold_back_copies() -> None:
    here, count, size = TorchMemory("cuda"), 4, 1 << 22
    made, turn = torch.zeros(count, size, device="cuda"), torch.zeros((), device="cuda")
    slow = torch.randn(4096, 4096, device="cuda")
    pieces = [((slice(index, index + 1),), here.mark()) for index in range(count)]

    def compute() -> None:
        for place, mark in pieces:
            for _ in range(4):
                torch.mm(slow, slow)
            made[place] = turn
            mark.record()

    with here.stream():
        compute()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            compute()
    here.note_pieces(made, pieces)
    into = np.empty((count, size), np.float32)
    for value in range(1, 5):
        with here.stream():
            turn.fill_(value)
            graph.replay()
        assert (here.download(made, into) == value).all()
