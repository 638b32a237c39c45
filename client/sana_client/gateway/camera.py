"""Camera actions of the world models: parsing, and sampling into the slots of a chunk (realtime protocol 1.4)."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sana_client.gateway.refusals import InvalidRequest

Actions = tuple[str, ...]
KEYS = frozenset("wasdijkl")
TRANSITIONS = 512


@dataclass(frozen=True)
class CameraProfile:
    """How one family of models takes camera input; a slot is whatever the model steps its camera by.

    `strict` refuses unknown keys on arrival, others ignore them. `pulse` is how many slots a tap lasts at least.
    """

    queue: int
    pulse: int
    strict: bool


PROFILES = {
    "sana_wm": CameraProfile(queue=2048, pulse=8, strict=True),
    "lingbot": CameraProfile(queue=512, pulse=1, strict=False),
}


@dataclass(frozen=True)
class Script:
    """Actions per slot, played once; replaces whatever was pending."""

    slots: tuple[Actions, ...]


@dataclass(frozen=True)
class Transitions:
    """Changes of what is held down, in order of arrival."""

    states: tuple[Actions, ...]


@dataclass(frozen=True)
class Sampled:
    """The camera of one chunk: `slots` is None when no camera input was ever received."""

    slots: tuple[Actions, ...] | None
    event_id: int | None = None


def parse_camera(payload: Any) -> Script | Transitions:
    """A `camera_actions` payload, its keys unchecked; raises InvalidRequest for any other form."""
    if isinstance(payload, Sequence) and not isinstance(payload, str | bytes):
        return Script(tuple(map(_actions, payload)))
    if isinstance(payload, dict) and payload.get("mode") == "state":
        transitions = payload.get("transitions")
        if isinstance(transitions, list):
            return Transitions(tuple(map(_transition, transitions)))
    raise InvalidRequest('camera_actions must be a list of key lists, or {"mode": "state", "transitions": [...]}')


def _actions(value: Any) -> Actions:
    if isinstance(value, list) and all(isinstance(key, str) for key in value):
        return tuple(value)
    raise InvalidRequest(f"{value!r:.80} is not a list of keys")


def _transition(value: Any) -> Actions:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{value!r:.80} is not a transition")
    try:
        # The time is checked and not used: order of arrival decides.
        int(value.get("client_ts_ms") or 0)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest(f"client_ts_ms {value['client_ts_ms']!r:.80} is not a number") from None
    return _actions(value.get("actions"))


def check_keys(camera: Script | Transitions, profile: CameraProfile) -> None:
    """Raise InvalidRequest for a key that a strict model does not know; "wd" counts as w and d."""
    if not profile.strict:
        return
    for actions in camera.slots if isinstance(camera, Script) else camera.states:
        unknown = set("".join(actions)) - KEYS
        if unknown and actions != ("none",):
            raise InvalidRequest(f"unknown camera keys {list(actions)!r:.80}: the keys are {', '.join(sorted(KEYS))}")


def parse_action(text: str) -> Script:
    """The action language, like "w-8,wd-4,none-2": keys and a number of slots; raises InvalidRequest."""
    text = "".join(text.split()).replace("，", ",")
    if not text:
        raise InvalidRequest("the action is empty: write it like w-8,none-4")
    return Script(tuple(slot for segment in text.split(",") for slot in _segment(segment)))


def _segment(segment: str) -> list[Actions]:
    keys, dash, duration = segment.rpartition("-")
    if not dash:
        raise InvalidRequest(f"action segment {segment!r:.80} has no duration: write it like w-8")
    if not duration.isdecimal() or not int(duration[-9:]) > 0 or len(duration) > 9:
        raise InvalidRequest(f"duration {duration!r:.80} of an action is not a positive whole number")
    keys = keys.lower()
    actions = () if keys == "none" else tuple(sorted(set(keys)))
    if unknown := set(actions) - KEYS:
        raise InvalidRequest(f"unknown camera keys {', '.join(sorted(unknown))}: they are {', '.join(sorted(KEYS))}")
    # More slots than any queue holds can never be played.
    return [actions] * min(int(duration), max(profile.queue for profile in PROFILES.values()))


@dataclass
class CameraInput:
    """What a session has received, sampled chunk by chunk; a script and held keys exclude each other."""

    profile: CameraProfile
    _script: deque[Actions] = field(default_factory=deque)
    _script_id: int | None = None
    _transitions: deque[tuple[Actions, int | None]] = field(default_factory=lambda: deque(maxlen=TRANSITIONS))
    _held: tuple[Actions, int | None] = ((), None)
    _received: bool = False

    def receive(self, camera: Script | Transitions, event_id: int | None = None) -> None:
        """Take an event; a full queue loses its earliest slots."""
        self._received = True
        self._script.clear()
        if isinstance(camera, Script):
            self._transitions.clear()
            self._held = (), None
            self._script = deque(camera.slots, maxlen=self.profile.queue)
            self._script_id = event_id
        else:
            self._transitions.extend((actions, event_id) for actions in camera.states)

    def sample(self, count: int) -> Sampled:
        """The next `count` slots, taken at a chunk boundary."""
        if not self._received:
            return Sampled(None)
        if self._script:
            taken = tuple(islice(_drain(self._script), count))
            return Sampled(taken + ((),) * (count - len(taken)), self._script_id)
        return self._sample_held(count)

    def _sample_held(self, count: int) -> Sampled:
        pulse: tuple[Actions, ...] = ()
        if self._transitions:
            *earlier, self._held = self._transitions
            self._transitions.clear()
            tapped = next((actions for actions, _ in reversed(earlier) if actions), self._held[0])
            if tapped != self._held[0]:
                pulse = (tapped,) * min(self.profile.pulse, count)
        actions, event_id = self._held
        return Sampled(pulse + (actions,) * (count - len(pulse)), event_id)


def _drain(queue: deque[Actions]) -> Any:
    while queue:
        yield queue.popleft()
