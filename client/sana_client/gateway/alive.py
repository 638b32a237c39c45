"""Whether a peer is still there: everything that only a living one can cause, and how long ago it last happened."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

SILENT = "client silent"
SILENT_SECONDS = 1.5
"""A peer with a slot that gives no sign for so long is taken for dead; looked at often, its slot is free within two."""

PATIENT_SECONDS = 20.0
"""The same for peers that hold nothing up: some clients answer a ping only when they have something to say."""

LOOK_SECONDS = 0.25


@dataclass
class LifeSigns:
    """Times the silence of a peer. A sign is any change of what `seen` is given."""

    clock: Callable[[], float]
    _last: Hashable = None
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._at = self.clock()

    def seen(self, counted: Hashable) -> None:
        """Note what has been counted of the peer so far."""
        if counted != self._last:
            self._last, self._at = counted, self.clock()

    def dead(self, holds_slot: bool) -> bool:
        """Whether the silence is too long for a peer that does, or does not, hold or wait for a slot."""
        return self.clock() - self._at > (SILENT_SECONDS if holds_slot else PATIENT_SECONDS)
