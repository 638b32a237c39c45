"""The table of streams: order, isolation, capacity and age."""

import pytest

from sana_runtime.errors import EngineError, RequestError, SequenceError
from sana_runtime.sessions import SessionTable


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> SessionTable[list[int]]:
    return SessionTable(capacity=2, idle_seconds=10.0, clock=clock)


def send(table: SessionTable, correlation: int | str, index: object, *, start: bool = False, end: bool = False) -> list:
    """One chunk whose state is the list of indices so far; returns that list."""
    with table.step(correlation, index, start=start, end=end) as session:
        session.state = [*(session.state or []), index]
        return session.state


def test_chunks_build_up_state_in_order(table: SessionTable) -> None:
    send(table, 7, 0, start=True)
    send(table, 7, 1)
    assert send(table, 7, 2, end=True) == [0, 1, 2]
    assert table.live == 0


def test_another_stream_does_not_leak_in(table: SessionTable) -> None:
    send(table, 7, 0, start=True)
    send(table, 8, 0, start=True)
    send(table, 7, 1)
    assert send(table, 8, 1) == [0, 1]
    assert send(table, 7, 2) == [0, 1, 2]


def test_integer_and_string_ids_are_one_key(table: SessionTable) -> None:
    send(table, 7, 0, start=True)
    assert send(table, "7", 1) == [0, 1]


def test_start_over_a_live_stream_begins_afresh(table: SessionTable) -> None:
    send(table, 7, 0, start=True)
    send(table, 7, 1)
    assert send(table, 7, 0, start=True) == [0]
    assert (table.live, table.started, table.evicted) == (1, 2, 0)


def test_unknown_stream_is_refused(table: SessionTable) -> None:
    with pytest.raises(SequenceError, match="stream 7 is not open: "):
        send(table, 7, 0)


@pytest.mark.parametrize(("index", "words"), [(2, "expected chunk 1 and got chunk 2"), (0, "expected chunk 1 and got")])
def test_gap_and_repeat_are_refused_and_change_nothing(table: SessionTable, index: int, words: str) -> None:
    send(table, 7, 0, start=True)
    with pytest.raises(SequenceError, match=words):
        send(table, 7, index)
    assert send(table, 7, 1) == [0, 1]


@pytest.mark.parametrize("index", [None, "0", 0.0, True, False])
def test_index_must_be_an_integer(table: SessionTable, index: object) -> None:
    with pytest.raises(SequenceError, match="integer request parameter `chunk`"):
        send(table, 7, index, start=True)


def test_first_chunk_has_index_zero(table: SessionTable) -> None:
    with pytest.raises(SequenceError, match="expected chunk 0 and got chunk 5"):
        send(table, 7, 5, start=True)
    assert send(table, 7, 0) == [0]


def test_end_frees_even_if_the_chunk_is_refused(table: SessionTable) -> None:
    send(table, 7, 0, start=True)
    with pytest.raises(SequenceError):
        send(table, 7, 9, end=True)
    assert table.live == 0


def test_failure_breaks_the_stream_until_start(table: SessionTable) -> None:
    send(table, 7, 0, start=True)
    with pytest.raises(EngineError), table.step(7, 1, start=False, end=False):
        raise EngineError("out of memory")
    with pytest.raises(SequenceError, match=r"broke at chunk 1 \(out of memory\)"):
        send(table, 7, 1)
    assert table.broken == 1
    assert send(table, 7, 0, start=True) == [0]


def test_refused_request_does_not_break_the_stream(table: SessionTable) -> None:
    send(table, 7, 0, start=True)
    with pytest.raises(RequestError), table.step(7, 1, start=False, end=False):
        raise RequestError("wrong frames")
    assert send(table, 7, 1) == [0, 1]
    assert table.broken == 0


def test_least_recently_used_stream_makes_room(table: SessionTable, clock: Clock) -> None:
    send(table, "a", 0, start=True)
    send(table, "b", 0, start=True)
    clock.now += 1
    send(table, "a", 1)
    send(table, "c", 0, start=True)
    assert (table.live, table.evicted) == (2, 1)
    assert send(table, "a", 2) == [0, 1, 2]
    with pytest.raises(SequenceError, match="stream b is not open"):
        send(table, "b", 1)


def test_idle_stream_is_dropped_and_a_used_one_is_not(table: SessionTable, clock: Clock) -> None:
    send(table, "a", 0, start=True)
    send(table, "b", 0, start=True)
    clock.now += 9
    send(table, "b", 1)
    clock.now += 2
    assert send(table, "b", 2) == [0, 1, 2]
    assert (table.live, table.evicted) == (1, 1)


def test_time_of_a_slow_chunk_does_not_count_as_idle(table: SessionTable, clock: Clock) -> None:
    with table.step("a", 0, start=True, end=False) as session:
        session.state = [0]
        clock.now += 60
    clock.now += 9
    assert send(table, "a", 1) == [0, 1]
