"""Camera actions: the forms that are taken, and what each chunk samples (realtime protocol 1.4)."""

import pytest

from sana_client.gateway.camera import (
    PROFILES,
    CameraInput,
    Sampled,
    Script,
    Transitions,
    check_keys,
    parse_action,
    parse_camera,
)
from sana_client.gateway.refusals import InvalidRequest

WM, LINGBOT = PROFILES["sana_wm"], PROFILES["lingbot"]


def camera(profile=LINGBOT) -> CameraInput:
    return CameraInput(profile)


def held(*states: str) -> Transitions:
    return Transitions(tuple(tuple(state) for state in states))


def script(*slots: str) -> Script:
    return Script(tuple(tuple(slot) for slot in slots))


def sampled(text: str, event_id: int | None = None) -> Sampled:
    """From "w,wd,-": slots, with - for none."""
    return Sampled(tuple(tuple(slot.replace("-", "")) for slot in text.split(",")), event_id)


def test_nothing_received_is_no_condition() -> None:
    assert camera().sample(3) == Sampled(None)


def test_a_script_plays_once_and_is_padded() -> None:
    found = camera()
    found.receive(script("w", "d", "w", "a"), event_id=5)
    assert found.sample(3) == sampled("w,d,w", 5)
    assert found.sample(3) == sampled("a,-,-", 5)
    assert found.sample(3) == sampled("-,-,-")


def test_a_new_script_replaces_everything_pending() -> None:
    found = camera()
    found.receive(held("w"), 1)
    found.receive(script("a", "a", "a", "a"), 2)
    found.receive(script("d"), 3)
    assert found.sample(3) == sampled("d,-,-", 3)


@pytest.mark.parametrize(("profile", "room"), [(WM, 2048), (LINGBOT, 512)])
def test_a_full_queue_loses_its_earliest_slots(profile, room: int) -> None:
    found = camera(profile)
    found.receive(script(*["w"] * 10, *["d"] * room))
    assert found.sample(3) == sampled("d,d,d")


def test_a_held_state_repeats_with_its_event_id() -> None:
    found = camera()
    found.receive(held("w"), 4)
    assert found.sample(3) == found.sample(3) == sampled("w,w,w", 4)


def test_a_tap_inside_one_chunk_is_a_pulse() -> None:
    found = camera()
    found.receive(held("w", ""), 4)
    assert found.sample(3) == sampled("w,-,-", 4)
    assert found.sample(3) == sampled("-,-,-", 4)


@pytest.mark.parametrize(("profile", "pulse"), [(WM, 8), (LINGBOT, 1)])
def test_a_pulse_lasts_as_long_as_the_model_wants(profile, pulse: int) -> None:
    found = camera(profile)
    found.receive(held("w", "d", ""), 4)
    assert found.sample(24).slots == (("d",),) * pulse + ((),) * (24 - pulse)


def test_transitions_of_several_events_are_drained_at_one_boundary() -> None:
    found = camera()
    found.receive(held("w"), 1)
    found.receive(held("a"), 2)
    assert found.sample(2) == sampled("w,a", 2)
    assert found.sample(2) == sampled("a,a", 2)


def test_the_same_key_again_is_no_pulse() -> None:
    found = camera()
    found.receive(held("w", "w"), 1)
    assert found.sample(2) == sampled("w,w", 1)


def test_state_mode_clears_a_script_even_without_transitions() -> None:
    found = camera()
    found.receive(script("w", "w"), 1)
    found.receive(held())
    assert found.sample(2) == sampled("-,-")


def test_empty_transitions_keep_what_is_held() -> None:
    found = camera()
    found.receive(held("w"), 1)
    found.sample(2)
    found.receive(held())
    assert found.sample(2) == sampled("w,w", 1)


def test_chunked_sampling_equals_one_long_sample() -> None:
    whole, parts = camera(), camera()
    for found in (whole, parts):
        found.receive(script(*"wasdwasdwasd"))
    joined = sum((parts.sample(count).slots for count in (5, 3, 4)), ())
    assert joined == whole.sample(12).slots


def test_both_forms_are_parsed() -> None:
    assert parse_camera([["w"], [], ["a", "d"]]) == script("w", "", "ad")
    moves = [{"actions": ["w"], "client_ts_ms": 12.7}, {"actions": []}]
    assert parse_camera({"mode": "state", "transitions": moves}) == held("w", "")


@pytest.mark.parametrize(
    "payload",
    [
        "w",
        None,
        5,
        ["w"],
        [[1]],
        {"mode": "state"},
        {"mode": "script", "transitions": []},
        {"mode": "state", "transitions": [[]]},
        {"mode": "state", "transitions": [{"actions": ["w"], "client_ts_ms": "soon"}]},
        {"mode": "state", "transitions": [{"actions": "w"}]},
    ],
)
def test_other_forms_are_refused(payload: object) -> None:
    with pytest.raises(InvalidRequest):
        parse_camera(payload)


def test_unknown_keys_are_refused_where_they_would_end_the_session() -> None:
    check_keys(Script((("wd",), ("none",))), WM)
    check_keys(Script((("x",),)), LINGBOT)
    for bad in (("x",), ("none", "w")):
        with pytest.raises(InvalidRequest, match="unknown camera keys"):
            check_keys(Script((bad,)), WM)


def test_the_action_language() -> None:
    assert parse_action(" W-2, dw-1，none-1,-1") == script("w", "w", "dw", "", "")
    assert parse_action("ww-01") == script("w")


@pytest.mark.parametrize("text", ["", " ", "w", "w-", "w-0", "w-x", "w-2,", "x-1", "w-²", "none,w-1", "w--1x"])
def test_malformed_actions_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_action(text)
