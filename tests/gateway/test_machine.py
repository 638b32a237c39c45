"""The session state machine: commands, answers, and the order of things at a chunk boundary."""

import pytest

from sana_client.gateway import messages as m
from sana_client.gateway.machine import Machine, Phase, Video
from sana_client.gateway.refusals import CommandRefused
from sana_client.protocol import StreamInfo

INFO = StreamInfo("sana_streaming", 33, 24, 16, 16, max_chunks=40, streams=2, stages=())


def machine(**options: object) -> Machine:
    return Machine(INFO, **options)


def running(**options: object) -> Machine:
    found = machine(**options)
    found.command("set_prompt", m.SetPrompt("red"))
    found.command("start", m.Start())
    return found


def types(messages: list) -> list[str]:
    return [message.type for message in messages]


def test_the_names_on_the_wire() -> None:
    assert machine().state().data == {
        "running": False,
        "started": False,
        "paused": False,
        "mode": "live",
        "current_chunk": 0,
        "current_prompt": "",
        "has_prompt": False,
        "has_video": True,
        "num_source_frames": 0,
        "seed": 42,
        "anchor_interval": 20,
    }


def test_a_live_session_step_by_step() -> None:
    found = machine()
    assert types(found.command("set_prompt", m.SetPrompt(" red "))) == ["prompt_accepted", "conditions_ready", "state"]
    assert types(found.command("start", m.Start())) == ["generation_started", "state"]
    plan, told = found.begin_chunk()
    assert (plan.index, plan.position, plan.prompt, plan.last) == (0, 0, "red", False)
    assert types(told) == ["state"]
    assert found.chunk_complete(plan, 33).data == {"chunk_index": 0, "frames_emitted": 33, "active_prompt": "red"}


def test_a_prompt_waits_for_the_boundary_and_the_newest_wins() -> None:
    found = running()
    first, _ = found.begin_chunk()
    found.command("set_prompt", m.SetPrompt("green", 1))
    found.command("set_prompt", m.SetPrompt("blue", 2))
    assert found.state().data["current_prompt"] == "blue"
    second, _ = found.begin_chunk()
    third, _ = found.begin_chunk()
    assert (first.prompt, first.event_id) == ("red", None)
    assert (second.prompt, second.event_id) == (third.prompt, third.event_id) == ("blue", 2)


def test_pause_takes_effect_at_a_boundary_and_can_be_taken_back() -> None:
    found = running()
    assert types(found.command("pause", m.Nothing())) == ["state"]
    assert found.phase is Phase.RUNNING
    found.command("resume", m.Nothing())
    assert found.settle() == []
    found.command("pause", m.Nothing())
    assert types(found.settle()) == ["generation_paused", "state"]
    assert types(found.command("resume", m.Nothing())) == ["generation_resumed", "state"]
    assert found.phase is Phase.RUNNING


def test_reset_goes_before_pause_and_clears_everything() -> None:
    found = running()
    found.begin_chunk()
    found.command("pause", m.Nothing())
    found.command("reset", m.Nothing())
    assert types(found.settle()) == ["generation_reset", "state"]
    state = found.state().data
    assert (state["started"], state["has_prompt"], state["current_chunk"]) == (False, False, 0)
    assert found.settle() == []


@pytest.mark.parametrize(
    ("command", "data", "reason"),
    [
        ("start", m.Start(), "no prompt"),
        ("pause", m.Nothing(), "works while it is running"),
        ("resume", m.Nothing(), "works while it is paused"),
        ("set_prompt", m.SetPrompt("  "), "empty"),
        ("set_prompt", m.SetPrompt("x" * 2001), "2000 is most"),
    ],
)
def test_refused_commands_change_nothing(command: str, data: object, reason: str) -> None:
    found = machine()
    before = vars(found).copy()
    with pytest.raises(CommandRefused, match=reason) as refusal:
        found.command(command, data)
    assert refusal.value.command == command
    assert vars(found) == before


@pytest.mark.parametrize(
    ("command", "data"), [("set_mode", m.SetMode("file")), ("set_seed", m.SetSeed(1)), ("start", m.Start())]
)
def test_what_only_an_idle_session_takes(command: str, data: object) -> None:
    machine().check(command)
    with pytest.raises(CommandRefused, match="works while it is idle"):
        running().command(command, data)


def test_a_file_needs_file_mode_and_a_first_chunk() -> None:
    found = machine()
    with pytest.raises(CommandRefused, match="live mode"):
        found.set_video(Video(64, 48, 100))
    found.command("set_mode", m.SetMode("file"))
    with pytest.raises(CommandRefused, match="has 32 frames"):
        found.set_video(Video(64, 48, 32))
    found.command("set_prompt", m.SetPrompt("red"))
    with pytest.raises(CommandRefused, match="no video"):
        found.command("start", m.Start())
    assert types(found.set_video(Video(64, 48, 58))) == ["video_accepted", "conditions_ready", "state"]
    assert found.set_video(Video(64, 48, 58))[0].data["num_latent_frames"] == 5 + 3 + 3
    found.command("start", m.Start())


def test_anchors_come_every_so_many_chunks_and_when_the_table_is_full() -> None:
    found = running(anchor_interval=3)
    needed, positions, anchors = [], [], []
    for _ in range(7):
        needed.append(found.frames_needed)
        plan, told = found.begin_chunk()
        positions.append(plan.position)
        anchors += [message.data["chunk_index"] for message in told if message.type == "anchored"]
    assert positions == [0, 1, 2, 0, 1, 2, 0]
    assert needed == [33, 24, 24, 33, 24, 24, 33]
    assert anchors == [3, 6]
    endless = running(anchor_interval=0)
    assert [endless.begin_chunk()[0].position for _ in range(42)][-3:] == [39, 0, 1]


def test_max_chunks_ends_and_a_new_start_counts_from_zero() -> None:
    found = running(max_chunks=2)
    assert [found.begin_chunk()[0].last for _ in range(2)] == [False, True]
    assert found.complete()[0].data == {"total_chunks": 2}
    found.command("start", m.Start())
    assert found.begin_chunk()[0].index == 0


def test_after_a_failure_prompt_and_source_are_kept() -> None:
    found = running()
    found.begin_chunk()
    told = found.failed("the server went away")
    assert told[0].data == {"reason": "the server went away"}
    found.command("start", m.Start())
    assert found.begin_chunk()[0].prompt == "red"


def test_spectators_see_progress_and_not_the_answers() -> None:
    told = machine().command("set_prompt", m.SetPrompt("red"))
    assert [message.broadcast for message in told] == [False, False, True]
