"""From an init to a session: what it asks for, checked against what is served."""

from sana_client.errors import UsageError
from sana_client.gateway import messages as m
from sana_client.gateway.access import Caller
from sana_client.gateway.audience import Audience, Outbox
from sana_client.gateway.hub import Hub
from sana_client.gateway.live import LiveSession
from sana_client.gateway.machine import Machine
from sana_client.gateway.output import OutputForm
from sana_client.gateway.refusals import Full


def open_session(init: m.Init, hub: Hub, caller: Caller, outbox: Outbox) -> LiveSession:
    """The idle session that an init describes; raises ClientError for what is not served, or when nothing is."""
    info = hub.model()
    if len(hub.sessions) >= hub.settings.sessions:
        raise Full(f"{len(hub.sessions)} sessions are open: try again when some have ended", hub.admission.waiting)
    _check_served(init, f"{info.width}x{info.height}")
    limit = hub.settings.prompt_characters
    machine = Machine(info, max_chunks=_chunks(init, info.first_frames, info.steady_frames), prompt_limit=limit)
    machine.seed = init.seed
    if not init.commands:
        machine.anchor_interval = 0
    if init.prompt or not init.commands:
        machine.set_prompt(init.prompt)
    form = OutputForm.of(init, hub.settings.framing)
    return LiveSession(hub, caller, machine, form, Audience(outbox, init.commands), lossless=init.lossless)


async def prepared(live: LiveSession, init: m.Init) -> LiveSession:
    """The session with the file that its init names, if any; raises NotFound or CommandRefused."""
    if init.condition_inputs and init.condition_inputs.video:
        await live.use_video(init.condition_inputs.video)
    return live


def _chunks(init: m.Init, first: int, steady: int) -> int | None:
    """Chunks that `num_frames` and `max_chunks` allow, whichever is less."""
    frames = None if init.num_frames is None else 1 + max(0, -(-(init.num_frames - first) // steady))
    return min((limit for limit in (frames, init.max_chunks) if limit is not None), default=None)


NOT_SERVED = ("enable_frame_interpolation", "enable_upscaling", "enhance_prompt", "first_frame")


def _check_served(init: m.Init, size: str) -> None:
    """Raise UsageError for what an init asks for and this model does not do."""
    for name in NOT_SERVED:
        if getattr(init, name):
            raise UsageError(f"{name} is not served by this model: leave it out")
    if init.size is not None and init.size != size:
        raise UsageError(f"size {init.size!r:.40} is not served: leave it out, or ask for {size}")
