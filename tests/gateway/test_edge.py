"""Bounded source frames, pacing and cadence, with a clock that the test turns."""

import numpy as np
import pytest

from sana_client.gateway.edge import FrameBuffer, SourceFrame
from sana_client.gateway.pacing import Cadence, Pacer


class Clock:
    """Stands still until it is told to go on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def frame(number: int) -> SourceFrame:
    return SourceFrame(np.full((2, 2, 3), number, np.uint8), number, number * 10.0, 0.0)


def filled(count: int, capacity: int = 33) -> FrameBuffer:
    buffer = FrameBuffer(capacity)
    for number in range(count):
        buffer.push(frame(number))
    return buffer


def test_frames_come_out_in_order_with_their_capture_times() -> None:
    buffer = filled(33)
    assert not buffer.ready(34)
    taken = buffer.take(24)
    assert [source.number for source in taken.frames] == list(range(24))
    assert taken.captured_ms[:2] == (0.0, 10.0)
    assert taken.pixels.shape == (24, 2, 2, 3)
    assert len(buffer) == 9


def test_without_room_the_oldest_frame_goes_and_is_counted() -> None:
    buffer = filled(40)
    assert (len(buffer), buffer.received, buffer.dropped) == (33, 40, 7)
    assert buffer.take(1).frames[0].number == 7


def test_the_last_chunk_repeats_its_last_frame() -> None:
    buffer = filled(5)
    assert not buffer.ready(24)
    buffer.ended = True
    assert buffer.ready(24)
    taken = buffer.take(24)
    assert taken.real == 5
    assert (taken.pixels[5:] == 4).all()
    assert buffer.finished


def test_a_paced_chunk_waits_until_the_one_before_it_was_shown() -> None:
    clock = Clock()
    pacer = Pacer(24, clock)
    assert pacer.wait(None) == 0
    pacer.sent(24)
    clock.now += 0.25
    assert pacer.wait(None) == pytest.approx(0.75)
    clock.now += 2
    assert pacer.wait(None) == 0
    pacer.sent(24)
    assert pacer.wait(None) == pytest.approx(1.0)


def test_a_new_event_goes_out_at_once() -> None:
    clock = Clock()
    pacer = Pacer(24, clock)
    pacer.sent(24)
    assert pacer.wait(5) == 0
    pacer.sent(24)
    assert pacer.wait(5) == pytest.approx(1.0)


def test_cadence_counts_late_chunks_and_the_time_they_cost() -> None:
    clock = Clock()
    cadence = Cadence(24, clock)
    assert cadence.delivered(24) == 0
    clock.now += 0.5
    assert cadence.delivered(24) == 0
    clock.now += 2.0
    # Two seconds of frames were there for two and a half seconds.
    assert cadence.delivered(24) == pytest.approx(0.5)
    assert (cadence.underruns, cadence.stalled) == (1, pytest.approx(0.5))
    assert cadence.attained == pytest.approx(2 / 3)
    cadence.interrupted()
    clock.now += 60
    assert cadence.delivered(24) == 0
