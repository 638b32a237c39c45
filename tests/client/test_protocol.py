"""The stream protocol without a server."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sana_client.errors import (
    ChunkFailed,
    ClientError,
    ModelError,
    SequenceLost,
    ServerFull,
    ServerLost,
    UsageError,
    choose,
)
from sana_client.protocol import CLOSE, Sequence, StreamInfo, explain, new_correlation_id

INFO = StreamInfo("ensemble", 33, 24, 16, 32, max_chunks=4, streams=2, stages=("a", "b"))
PARAMETERS = {"first_frames": "33", "steady_frames": "24", "height": "16", "width": "32", "max_chunks": "4"}


def test_geometry_is_read_from_the_parameters_of_the_ensemble() -> None:
    info = StreamInfo.from_parameters("ensemble", PARAMETERS | {"build": "abc"}, 2, ("a", "b"))
    assert info == INFO
    assert [info.frames(index) for index in range(3)] == [33, 24, 24]
    assert info.shape(24) == (1, 24, 16, 32, 3)
    told = StreamInfo.from_parameters("ensemble", PARAMETERS | {"regions": "x-", "latent_bytes": "80"}, 2, ())
    assert (told.regions, told.latent_bytes) == ("x-", 80)


@pytest.mark.parametrize("change", [{"height": "tall"}, {"max_chunks": None}, {"latent_bytes": "some"}])
def test_an_ensemble_of_somebody_else_is_refused(change: dict[str, str | None]) -> None:
    parameters = {name: value for name, value in (PARAMETERS | change).items() if value is not None}
    with pytest.raises(ModelError, match="no usable geometry"):
        StreamInfo.from_parameters("ensemble", parameters, 2, ())


def test_the_flags_of_a_sequence() -> None:
    sequence = Sequence(INFO)
    requests = [sequence.next(INFO.frames(index)) for index in range(4)]
    assert [(request.index, request.start, request.end) for request in requests] == [
        (0, True, False),
        (1, False, False),
        (2, False, False),
        (3, False, True),
    ]
    with pytest.raises(UsageError, match="ended with chunk 3"):
        sequence.next(24)


def test_the_last_chunk_can_be_announced_early() -> None:
    sequence = Sequence(INFO)
    assert sequence.next(33, last=True).end
    assert sequence.ended


@pytest.mark.parametrize("frames", [0, 24, 32, 34])
def test_a_wrong_frame_count_is_refused_and_changes_nothing(frames: int) -> None:
    sequence = Sequence(INFO)
    with pytest.raises(UsageError, match=f"chunk 0 has {frames} frames: it must have 33"):
        sequence.next(frames)
    assert sequence.next(33).index == 0


def test_only_a_confirmed_end_frees_the_sequence() -> None:
    sequence = Sequence(INFO)
    sequence.next(33, last=True)
    sequence.answered("0", failed=True)
    assert sequence.ended
    assert not sequence.freed
    assert sequence.close() == CLOSE
    sequence.answered("close")
    assert sequence.freed


@given(st.lists(st.booleans(), max_size=12))
def test_answers_belong_to_the_oldest_request_whatever_the_interleaving(moves: list[bool]) -> None:
    sequence = Sequence(StreamInfo("m", 33, 24, 16, 32, max_chunks=100, streams=1, stages=()))
    answered = 0
    for send in moves:
        if send:
            sequence.next(sequence.info.frames(sequence.sent))
        elif sequence.waiting:
            assert sequence.answered(str(answered)).index == answered
            answered += 1
    assert len(sequence.waiting) == sequence.sent - answered


@pytest.mark.parametrize("answer", ["1", "", "close"])
def test_an_answer_out_of_order_is_an_error(answer: str) -> None:
    sequence = Sequence(INFO)
    sequence.next(33)
    sequence.next(24)
    with pytest.raises(ServerLost, match="where 0 was due"):
        sequence.answered(answer)


def test_correlation_ids_are_positive_63_bit_and_never_repeat() -> None:
    ids = {new_correlation_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(0 < number < 2**63 for number in ids)


TEXTS = [
    (
        "in ensemble 'e', timeout of the corresponding sequence has been expired",
        ServerFull,
        "all 2 slots of host:1 are taken: try again when another stream has ended",
    ),
    (
        "in ensemble 'e', inference request for sequence 6 to model 'a' must specify the START flag on the first "
        "request of the sequence",
        SequenceLost,
        "host:1 no longer knows this stream at chunk 2",
    ),
    (
        "in ensemble 'e', Failed to process the request(s) for model 'b_0', "
        "message: Stub process 'b_0_0' is not healthy.",
        ServerLost,
        "a model process of host:1 has died at chunk 2",
    ),
    ("in ensemble 'e', Server is stopping, scheduler for model has stopped", ServerLost, "host:1 is stopping"),
    ("Request for unknown model: 'ensemble' is not found", ModelError, "has no model 'ensemble' any more"),
    ("in ensemble 'e', [request id: 2] it is empty", ChunkFailed, "chunk 2 failed on host:1: it is empty"),
    ("in ensemble 'e', ", ChunkFailed, "chunk 2 failed on host:1: the server gave no reason"),
]


@pytest.mark.parametrize(("text", "kind", "sentence"), TEXTS, ids=[kind.__name__ for _, kind, _ in TEXTS])
def test_triton_errors_become_sentences(text: str, kind: type[ClientError], sentence: str) -> None:
    sequence = Sequence(INFO)
    request = [sequence.next(INFO.frames(index)) for index in range(3)][2]
    error = explain(text, request, INFO, "host:1")
    assert type(error) is kind
    assert sentence in str(error)


def test_an_unknown_choice_lists_the_choices() -> None:
    with pytest.raises(UsageError, match="unknown colour 'x': choose one of blue, red"):
        choose("colour", "x", {"red": 1, "blue": 2})
