"""The state of a session without any I/O: commands in, messages out, and what happens at a chunk boundary.

Everything that changes a running edit waits for the next boundary, where it is applied in the order reset, pause,
anchor, prompt (realtime protocol 4).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sana_client.gateway import messages as m
from sana_client.gateway.refusals import CommandRefused
from sana_client.protocol import StreamInfo

ANCHOR_CHUNKS = 20
BROADCAST = frozenset(
    ("state", "command_error", "chunk_complete", "anchored", "generation_started", "generation_complete")
)
"""Messages that spectators see as well; the others answer the session's owner."""


class Phase(StrEnum):
    IDLE = "idle"
    RUNNING = "running"
    PAUSED = "paused"


ALLOWED = {
    "set_mode": Phase.IDLE,
    "set_video": Phase.IDLE,
    "set_seed": Phase.IDLE,
    "start": Phase.IDLE,
    "pause": Phase.RUNNING,
    "resume": Phase.PAUSED,
}
"""In which phase a command is accepted; the ones that are not here always are."""


@dataclass(frozen=True)
class Message:
    """One message to a client."""

    type: str
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def broadcast(self) -> bool:
        return self.type in BROADCAST


@dataclass(frozen=True)
class Video:
    """A file that a session edits; sizes in pixels."""

    width: int
    height: int
    frames: int


@dataclass(frozen=True)
class ChunkPlan:
    """What the next chunk is computed with; `index` counts chunks of the session, `position` those of its sequence."""

    index: int
    position: int
    prompt: str
    event_id: int | None
    last: bool


@dataclass
class Machine:
    """One session. `info` is the served model; `anchor_interval` counts chunks, 0 never anchors by itself."""

    info: StreamInfo
    anchor_interval: int = ANCHOR_CHUNKS
    max_chunks: int | None = None
    prompt_limit: int = 2000
    phase: Phase = Phase.IDLE
    mode: str = "live"
    seed: int = 42
    video: Video | None = None
    prompt: str = ""
    event_id: int | None = None
    chunk: int = 0
    position: int = 0
    _pausing: bool = False
    _resetting: bool = False
    _anchoring: bool = False
    _next_prompt: tuple[str, int | None] | None = None
    _was_ready: bool = False

    def state(self) -> Message:
        """The whole state, as sent on connect, after each accepted command and at each boundary."""
        started = self.phase is not Phase.IDLE
        return Message(
            "state",
            {
                "running": self.phase is Phase.RUNNING,
                "started": started,
                "paused": self.phase is Phase.PAUSED,
                "mode": self.mode,
                "current_chunk": self.chunk,
                "current_prompt": self.upcoming_prompt,
                "has_prompt": bool(self.upcoming_prompt),
                "has_video": self._has_source(),
                "num_source_frames": self.video.frames if self.video else 0,
                "seed": self.seed,
                "anchor_interval": self.anchor_interval,
            },
        )

    @property
    def upcoming_prompt(self) -> str:
        return self._next_prompt[0] if self._next_prompt else self.prompt

    def check(self, name: str) -> None:
        """Raise CommandRefused if the command does not fit the phase the session is in."""
        # A pause that waits for its boundary counts already, so that a quick resume takes it back.
        phase = Phase.PAUSED if self._pausing else self.phase
        if name in ALLOWED and phase is not ALLOWED[name]:
            raise CommandRefused(name, f"the session is {phase}: {name} works while it is {ALLOWED[name]}")

    def command(self, name: str, data: Any) -> list[Message]:
        """Take a command (all but `frame` and `set_video`); its answers, raises CommandRefused and changes nothing."""
        self.check(name)
        answers = HANDLERS[name](self, data)
        return [*answers, *self._ready_message(), self.state()]

    def set_prompt(self, prompt: str, event_id: int | None = None) -> list[Message]:
        """The prompt from the next boundary on; the newest wins."""
        prompt = prompt.strip()
        if not prompt:
            raise CommandRefused("set_prompt", "the prompt is empty: say what to do with the video")
        if len(prompt) > self.prompt_limit:
            raise CommandRefused("set_prompt", f"the prompt has {len(prompt)} characters: {self.prompt_limit} is most")
        self._next_prompt = prompt, event_id
        return [Message("prompt_accepted", {"prompt": prompt})]

    def set_video(self, video: Video) -> list[Message]:
        """The file to edit; raises CommandRefused in live mode and for one shorter than the first chunk."""
        self.check("set_video")
        if self.mode != "file":
            raise CommandRefused("set_video", "the session is in live mode: set_mode file comes first")
        if video.frames < self.info.first_frames:
            needed = self.info.first_frames
            raise CommandRefused("set_video", f"the video has {video.frames} frames: this model needs {needed}")
        self.video = video
        chunks = 1 + -(-(video.frames - self.info.first_frames) // self.info.steady_frames)
        latents = latent_frames(self.info.first_frames) + (chunks - 1) * latent_frames(self.info.steady_frames)
        sizes = {"width": video.width, "height": video.height, "num_frames": video.frames}
        accepted = Message("video_accepted", sizes | {"num_latent_frames": latents})
        return [accepted, *self._ready_message(), self.state()]

    def _set_mode(self, data: m.SetMode) -> list[Message]:
        if data.mode != self.mode:
            self.mode, self.video = data.mode, None
        return []

    def _set_seed(self, data: m.SetSeed) -> list[Message]:
        self.seed = data.seed
        return []

    def _set_anchor_interval(self, data: m.SetAnchorInterval) -> list[Message]:
        self.anchor_interval = data.chunks
        return []

    def _start(self, data: m.Start) -> list[Message]:
        self.check_start()
        self.phase = Phase.RUNNING
        self.chunk = self.position = 0
        started = {"prompt": self.upcoming_prompt, "chunk_num": 0, "chunk_index": 0, "frame_num": 0}
        return [Message("generation_started", started)]

    def check_start(self) -> None:
        """Raise CommandRefused if a start would be refused now."""
        self.check("start")
        if not self.upcoming_prompt:
            raise CommandRefused("start", "there is no prompt: set_prompt comes first")
        if not self._has_source():
            raise CommandRefused("start", "there is no video: set_video comes first")

    def _pause(self, data: m.Nothing) -> list[Message]:
        self._pausing = True
        return []

    def _resume(self, data: m.Nothing) -> list[Message]:
        self.phase, self._pausing = Phase.RUNNING, False
        return [Message("generation_resumed")]

    def _reset(self, data: m.Nothing) -> list[Message]:
        if self.phase is Phase.IDLE:
            return self._cleared("reset")
        self._resetting = True
        return []

    @property
    def unsettled(self) -> bool:
        """Whether `settle` would do something."""
        return self.phase is Phase.IDLE or self._resetting or (self._pausing and self.phase is Phase.RUNNING)

    def anchor(self) -> None:
        """Ground the next chunk on the source again."""
        self._anchoring = self.chunk > 0

    def settle(self) -> list[Message]:
        """Apply what stops or halts a session, at a boundary or while one is waited for."""
        if self._resetting and self.phase is not Phase.IDLE:
            return [*self._cleared("reset"), self.state()]
        if self._pausing and self.phase is Phase.RUNNING:
            self.phase, self._pausing = Phase.PAUSED, False
            return [Message("generation_paused"), self.state()]
        return []

    @property
    def frames_needed(self) -> int:
        """Source frames of the next chunk."""
        return self.info.frames(0 if self._anchor_due() else self.position)

    def begin_chunk(self) -> tuple[ChunkPlan, list[Message]]:
        """Commit the next chunk of a running session: anchor, then prompt, then tell the state."""
        told: list[Message] = []
        if self._anchor_due():
            self.position, self._anchoring = 0, False
            told.append(Message("anchored", {"chunk_index": self.chunk}))
        if self._next_prompt:
            (self.prompt, self.event_id), self._next_prompt = self._next_prompt, None
        last = self.max_chunks is not None and self.chunk + 1 >= self.max_chunks
        plan = ChunkPlan(self.chunk, self.position, self.prompt, self.event_id, last)
        self.chunk += 1
        self.position += 1
        return plan, [*told, self.state()]

    def chunk_complete(self, plan: ChunkPlan, frames: int) -> Message:
        """A chunk whose frames are on their way, with the prompt it was computed with."""
        return Message(
            "chunk_complete", {"chunk_index": plan.index, "frames_emitted": frames, "active_prompt": plan.prompt}
        )

    def complete(self) -> list[Message]:
        """The file is used up, or all chunks that were asked for are done."""
        self._idle()
        return [Message("generation_complete", {"total_chunks": self.chunk}), self.state()]

    def failed(self, reason: str) -> list[Message]:
        """The model failed: idle again, prompt and source kept, so that a start can follow."""
        self._idle()
        return [Message("generation_reset", {"reason": reason}), self.state()]

    def _anchor_due(self) -> bool:
        if self.position == 0 or self._anchoring:
            return self._anchoring
        return self.position >= self.info.max_chunks or (0 < self.anchor_interval <= self.position)

    def _has_source(self) -> bool:
        return self.mode == "live" or self.video is not None

    def _ready_message(self) -> list[Message]:
        conditions = {"has_prompt": bool(self.upcoming_prompt), "has_video": self._has_source()}
        ready, was = all(conditions.values()), self._was_ready
        self._was_ready = ready
        return [Message("conditions_ready", conditions)] if ready and not was else []

    def _cleared(self, reason: str) -> list[Message]:
        self._idle()
        self.video, self.prompt, self.event_id, self._next_prompt = None, "", None, None
        self.chunk = self.position = 0
        self._was_ready = False
        return [Message("generation_reset", {"reason": reason})]

    def _idle(self) -> None:
        self.phase = Phase.IDLE
        self._pausing = self._resetting = self._anchoring = False


HANDLERS: dict[str, Callable[[Machine, Any], list[Message]]] = {
    "set_prompt": lambda machine, data: machine.set_prompt(data.prompt, data.event_id),
    "set_mode": Machine._set_mode,
    "set_seed": Machine._set_seed,
    "set_anchor_interval": Machine._set_anchor_interval,
    "start": Machine._start,
    "pause": Machine._pause,
    "resume": Machine._resume,
    "reset": Machine._reset,
}


def latent_frames(frames: int) -> int:
    """Latent frames of a chunk of `frames` pixel frames; the VAE packs eight, and the first frame stands alone."""
    return -(-frames // 8)
