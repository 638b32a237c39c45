"""Streams that wait for the same engine wait together: what a chunk computes is a generator of engine calls."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sana_runtime.engine import Engine
from sana_runtime.memory import Array

T = TypeVar("T")
Tensors = dict[str, Array]
State = Mapping[str, Array]
"""Named tensors in the memory of the engine that made them, or on the host."""

Answer = Tensors | Exception


@dataclass(frozen=True)
class Call:
    """One evaluation that a chunk waits for: the engine variant, and what it is fed."""

    variant: str
    feeds: State


Steps = Generator[Call, Tensors, T]
"""What one stream does for a chunk: it yields calls, is sent their outputs, and returns its result."""


def together(engines: Mapping[str, Engine], streams: Sequence[Steps[T]]) -> list[T | Exception]:
    """The result of every stream, or what it raised; calls that wait for one engine are evaluated as one batch."""
    results: dict[int, T | Exception] = {}
    waiting: dict[int, Call] = {}

    def go_on(index: int, resume: Callable[[], Call]) -> None:
        try:
            waiting[index] = resume()
        except StopIteration as end:
            results[index] = end.value
        except Exception as error:
            results[index] = error

    for index, stream in enumerate(streams):
        go_on(index, stream.__next__)
    while waiting:
        variant = next(iter(waiting.values())).variant
        calls = {index: call for index, call in waiting.items() if call.variant == variant}
        outputs = _evaluate(engines[variant], [waiting.pop(index).feeds for index in calls])
        for index, output in zip(calls, outputs, strict=True):
            go_on(index, _resume(streams[index], output))
    return [results[index] for index in range(len(streams))]


def _resume(stream: Steps[T], output: Answer) -> Callable[[], Call]:
    return lambda: stream.throw(output) if isinstance(output, Exception) else stream.send(output)


def _evaluate(engine: Engine, feeds: Sequence[State]) -> list[Answer]:
    """Outputs per feed. After a batch fails its feeds are tried alone, so that one stream's fault stays its own."""
    try:
        return list(engine.run_batch(feeds))
    except Exception as error:
        if len(feeds) == 1:
            return [error]
    return [attempt(partial(engine.run, one)) for one in feeds]


def attempt(function: Callable[[], T]) -> T | Exception:
    """What the function returns or raises."""
    try:
        return function()
    except Exception as error:
        return error
